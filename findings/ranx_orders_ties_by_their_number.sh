#!/usr/bin/env bash
# Found: ranx keeps up to fifteen equal scores in the order in which they were given, and reorders sixteen and more. The same
# system, all documents scored alike, so gets a reciprocal rank that depends on how many documents there are, not on where the
# relevant one stands among them. Why it matters: runs with ties (quantised scores, a collapsed encoder) cannot be compared,
# and small tests of tie handling say nothing about large runs. Seen with ranx 0.3.21.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "ranx==0.3.21" 2>/dev/null
"$folder/venv/bin/python" - <<'PY'
from importlib.metadata import version
from ranx import Qrels, Run, evaluate

def first(documents):
    """Reciprocal rank where all scores are equal and the first document given is the relevant one."""
    names = [f"d{n:03}" for n in range(documents)]
    return float(evaluate(Qrels({"q": {names[0]: 1}}), Run({"q": {name: 0.5 for name in names}}), "mrr"))

found = {documents: first(documents) for documents in (2, 8, 15, 16, 17, 32, 64)}
print("ranx", version("ranx"), found)
assert all(found[n] == 1.0 for n in (2, 8, 15)), "behaviour has changed: few ties"
assert any(found[n] != 1.0 for n in (16, 17, 32, 64)), "behaviour has changed: many ties"
PY
