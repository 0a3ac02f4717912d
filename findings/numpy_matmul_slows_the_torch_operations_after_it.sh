#!/usr/bin/env bash
# Found: where numpy multiplies matrices beside torch on a CPU, the torch operations that come next take more than twice as long, for
# about a tenth of a second. numpy's wheels bring an OpenBLAS of their own, whose threads go on asking for work after a product
# instead of sleeping, so they share the cores with torch's threads. A product by torch leaves nothing behind, and neither does
# numpy's with OPENBLAS_THREAD_TIMEOUT=4 (its threads then sleep at once) or with one thread. Why it matters: numpy's float32 product
# is the faster one on some processors (0.58 of torch's time where this was seen), so that one takes it for the product alone and
# loses more in the steps around it; a profiler blames these steps. Seen with torch 2.13.0 and numpy 2.4.6 (OpenBLAS 0.3.31) on two
# cores of an AMD EPYC: 60 passes over 8 MB took 11.9 ms after torch's product and 28.7 ms after numpy's.
# Needs two idle cores; says so and exits with 2 where one is had.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "torch==2.13.*" "numpy==2.4.*" 2>/dev/null
cat > "$folder/spin.py" <<'PY'
import statistics, time
import numpy as np
import torch

values, out = torch.rand(2_000_000), torch.empty(2_000_000)
matrix = torch.rand(1500, 1500)
array = matrix.numpy()


def passes():
    start = time.perf_counter()
    for _ in range(60):
        torch.mul(values, 1.5, out=out)
        torch.add(out, 1.0, out=out)
    return 1000 * (time.perf_counter() - start)


after = {"torch": [], "numpy": []}
for _ in range(15):
    for name, product in (("torch", lambda: matrix @ matrix), ("numpy", lambda: array @ array)):
        time.sleep(0.4)
        product()
        after[name].append(passes())
print(*(round(statistics.median(after[name]), 1) for name in ("torch", "numpy")))
PY
[ "$(nproc)" -ge 2 ] || { echo "one core"; exit 2; }
run() { env "$@" "$folder/venv/bin/python" "$folder/spin.py"; }
usual=$(run OPENBLAS_NUM_THREADS="$(nproc)"); asleep=$(run OPENBLAS_THREAD_TIMEOUT=4); one=$(run OPENBLAS_NUM_THREADS=1)
"$folder/venv/bin/python" -c 'import numpy, torch; print("torch", torch.__version__, "numpy", numpy.__version__)'
echo "ms after a product by torch and by numpy: $usual; threads that sleep at once: $asleep; one thread: $one"
slower() { awk -v least="$2" '{exit !($2 > least * $1)}' <<< "$1"; }
slower "$usual" 1.5 && ! slower "$asleep" 1.3 && ! slower "$one" 1.3
