#!/usr/bin/env bash
# Everything that only a GPU can show, in at most ten minutes; one Markdown and one JSON report.
#
#     tests/device/run.sh --output device_report                     # the GPU of this machine
#     tests/device/run.sh --device cpu --quick --output /tmp/report  # the same path on a CPU, in half a minute
#     tests/device/run.sh --only search decoding                     # some parts
#
# Needs Python 3.11 or later with torch (2.11 will do), numpy, tokenizers, jaxtyping, einops and pytest. What else is missing on
# a machine that reaches no registry travels as wheels. Made where pip works, for that machine's Python (here 3.12), from the
# top of this repository:
#
#     python -m pip wheel --no-deps -w .whl . && python -m pip download --no-deps --only-binary=:all: --python-version 3.12 \
#         --implementation cp --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 \
#         -d .whl "transformers==5.24.*" "accelerate==1.15.*" "datasets==5.2.*" "evaluate==0.4.6" "faiss-cpu==1.15.*" dill multiprocess
#
# and there, before this script (`WHEELS=.whl tests/device/run.sh …` does it):
#
#     python3 -m pip install --no-index --no-deps --target /tmp/site .whl/*.whl && export PYTHONPATH=/tmp/site
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${PYTHON:-python3}
[ -z "${PYTHON:-}" ] && [ -x .venv/bin/python ] && python=.venv/bin/python
if [ -n "${WHEELS:-}" ]; then
  site=$(mktemp -d)
  "$python" -m pip install -q --no-index --no-deps --no-compile --target "$site" "$WHEELS"/*.whl
  export PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}"
fi
export PYTHONPATH="$PWD:$PWD/tests${PYTHONPATH:+:$PYTHONPATH}" JAXTYPING_DISABLE=1 TOKENIZERS_PARALLELISM=false
exec "$python" -m device.report "$@"
