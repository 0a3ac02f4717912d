#!/usr/bin/env bash
# Found: freezing, which is what torch's own guides switch on to make int8 models fast on a CPU, makes their linear layers more than
# a thousand times slower on a CPU that has AVX512-VNNI and no AMX (Ice Lake servers, Zen 4). A layer as quantisation libraries write
# it - activations rounded to signed int8 row by row, torch._int_mm with a constant weight, two scales - takes half a millisecond in
# eager mode, and one compiled by torch.compile. With torch._inductor.config.freezing the same product is replaced by
# onednn::qlinear_pointwise, for which oneDNN has no kernel on such a CPU when activations are signed, and takes its
# reference code: seconds, on the same numbers, without a warning. With unsigned activations the very same operator is
# as fast as ever, which torchao uses for its own layers since ao #4103; anybody else's are still replaced. Why it matters: compiled
# models look endless on most servers, and fine on those with AMX.
# Seen with torch 2.13.0 on an AMD EPYC (Zen 4), one thread: eager 0.5 ms, compiled 0.9 ms, compiled and frozen 1,400 ms.
# Needs such a CPU and a C++ compiler; says so and exits with 2 elsewhere.
set -euo pipefail
command -v g++ >/dev/null || { echo "no C++ compiler here"; exit 2; }
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "torch==2.13.*" "numpy<3" setuptools 2>/dev/null
cat > "$folder/layers.py" <<'PY'
import sys
import time

import torch

if not torch.cpu._is_vnni_supported() or torch.cpu._is_amx_tile_supported():
    print("this CPU has no VNNI, or has AMX")
    sys.exit(2)
torch.set_num_threads(1)
torch.manual_seed(0)


class Int8Linear(torch.nn.Module):
    """Signed int8 on both sides; one scale for each row, one for each output."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", torch.randint(-127, 128, (512, 1024), dtype=torch.int8))
        self.register_buffer("scale", torch.rand(1024))

    def forward(self, x):
        steps = x.abs().amax(1, keepdim=True) / 127
        rounded = (x / steps).round().clamp(-127, 127).to(torch.int8)
        return torch._int_mm(rounded, self.weight).to(torch.float32) * steps * self.scale


def timed(function, x):
    result, seconds = function(x), []
    for _ in range(3):
        began = time.perf_counter()
        function(x)
        seconds.append(time.perf_counter() - began)
    return result, min(seconds)


layer, x = Int8Linear().eval(), torch.randn(128, 512)
with torch.no_grad():
    right, eager = timed(layer, x)
    compiled, plain = timed(torch.compile(layer), x)
    torch._dynamo.reset()
    torch._inductor.config.freezing = True
    frozen, slow = timed(torch.compile(layer), x)
close = torch.allclose(right, compiled, rtol=1e-4) and torch.allclose(right, frozen, rtol=1e-4)

packed = torch.ops.onednn.qlinear_prepack(layer.weight.T.contiguous(), None)
rows = torch.randint(-127, 128, (128, 512), dtype=torch.int8)
one, none = torch.ones(1), torch.zeros(1, dtype=torch.int32)


def operator(rows, zero):
    end = one, none, None, 1.0, 0, torch.float32, "none", [], ""
    return torch.ops.onednn.qlinear_pointwise(rows, 1.0, zero, packed, *end)


signed, signed_seconds = timed(lambda rows: operator(rows, 0), rows)
unsigned, unsigned_seconds = timed(lambda rows: operator(rows, 128), (rows.short() + 128).to(torch.uint8))
close = close and torch.equal(signed, unsigned)
print(f"torch {torch.__version__}, ms: eager {1e3 * eager:.1f}, compiled {1e3 * plain:.1f}, frozen {1e3 * slow:.0f}; "
      f"the operator, signed {1e3 * signed_seconds:.0f}, unsigned {1e3 * unsigned_seconds:.2f}; equal: {close}")
sys.exit(0 if close and slow > 200 * max(eager, plain) and signed_seconds > 200 * unsigned_seconds else 1)
PY
TORCHINDUCTOR_CACHE_DIR="$folder/cache" "$folder/venv/bin/python" "$folder/layers.py" 2>/dev/null
