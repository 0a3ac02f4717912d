#!/usr/bin/env bash
# Found: torch._int_mm, the int8 product with int32 sums that quantisation libraries build on, is silently wrong on a CPU that has
# VNNI as soon as ONEDNN_MAX_CPU_ISA tells oneDNN to leave it alone. torch 2.6 and later take oneDNN only where the *processor*
# has VNNI (pytorch #136746), and do not ask what oneDNN may use: it then adds pairs of products in 16 bits, which saturate. 64
# products of 127 * 127 come out as 8,160 in place of 1,032,256, the same on every run and without a warning. Why it matters: the
# variable is how people test a weaker machine's path, make results alike across a cluster, or cap power; int8 models then give
# other numbers. A product of largest entries, made once, tells. Seen with torch 2.13.0 on an AMD EPYC (Zen 4).
# Needs a CPU with VNNI; says so and exits with 2 elsewhere.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "torch==2.13.*" "numpy<3" 2>/dev/null
cat > "$folder/product.py" <<'PY'
import torch

assert torch.cpu._is_vnni_supported(), "no VNNI here"
largest = torch.full((64, 64), 127, dtype=torch.int8)
print(int(torch._int_mm(largest, largest.T)[0, 0]))
PY
run() { ONEDNN_MAX_CPU_ISA="$1" "$folder/venv/bin/python" "$folder/product.py" 2>/dev/null || echo "no VNNI"; }
found="DEFAULT $(run DEFAULT), AVX512_CORE $(run AVX512_CORE), AVX2 $(run AVX2), right $((64 * 127 * 127))"
echo "torch $("$folder/venv/bin/python" -c 'import torch; print(torch.__version__)'): $found"
case "$found" in *"no VNNI"*) exit 2;; esac
[ "$(run DEFAULT)" = $((64 * 127 * 127)) ] && [ "$(run AVX512_CORE)" != $((64 * 127 * 127)) ] && [ "$(run AVX2)" != $((64 * 127 * 127)) ]
