#!/usr/bin/env bash
# Found: on an x86 CPU torch.sqrt of float64 gives the neighbour of the right number for 1.4 % of the values between 0 and 1,
# where the processor's own instruction (numpy, Python's math) and a GPU round every root correctly, as IEEE 754 demands. torch
# asks MKL's vector library, which promises less than one unit in the last place and no more; a first call from several threads
# at once may even be answered by its coarsest kernel (pytorch #188792). Why it matters: norms, cosines and distances in float64
# differ in the last bit between machines, between CPU and GPU and between torch and numpy, so scores that are equal on one are
# not equal on the other, and ties break. Seen with torch 2.13.0 on an AMD EPYC (Zen 4).
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "torch==2.13.*" "numpy<3" 2>/dev/null
"$folder/venv/bin/python" - <<'PY'
import math

import numpy as np
import torch

values = torch.rand(100_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
right = torch.tensor([math.sqrt(value) for value in values.tolist()], dtype=torch.float64)
assert torch.equal(torch.from_numpy(np.sqrt(values.numpy())), right)
off = (values.sqrt() != right).double().mean().item()
print(f"torch {torch.__version__}: {100 * off:.2f} % of float64 roots are not correctly rounded, numpy {np.__version__}: none")
assert 0.001 < off < 0.1, "behaviour has changed"
PY
