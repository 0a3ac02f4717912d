"""Run transformers' own tests of its models bare and with every model patched, and note what differs.

    python tests/tools/transformers_suite.py TREE bert llama vit        some architectures
    python tests/tools/transformers_suite.py TREE                       those of `ARCHITECTURES`, resumable

TREE holds transformers' `tests` folder, from its git repository: the sdist of 5.24 has the shared files
(`test_modeling_common.py`) but neither the models' own nor those of generation. Needs `parameterized` and
`timeout-decorator`. Of the tree nothing is kept here but numbers and names; `coverage.py` sets them in a table.
"""

import argparse
import importlib
import json
import multiprocessing
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

RESULTS = Path(__file__).with_suffix(".json")
MINUTES = 60  # of the clock, for one run of an architecture
ARCHITECTURES = (
    "bert", "llama", "vit", "gpt2", "t5", "roberta", "distilbert", "mistral", "qwen2", "qwen3", "gemma2",
    "deit", "beit", "dinov2", "swin", "electra", "albert", "modernbert", "wav2vec2", "clip", "siglip", "deberta_v2",
    "opt", "gpt_neox", "bloom", "phi3", "mixtral", "bart", "whisper", "gemma3",
)  # fmt: skip
NAMES = "asks for the exact set of parameters that a file without any lacks; those of the metrics are beyond it"
EXPLAINED = {
    "test_model_weights_reload_no_missing_tied_weights": NAMES,
    "test_keep_in_fp32_modules": "asks for every parameter in half precision; a metric keeps float32 on purpose",
}
LEFT_OUT = {
    "test_generate_with_quant_cache": "compiles an extension of quanto for minutes",
    "fp16_pad": "half precision of eager and SDPA, eight more forms of what is run in single precision",
    "bf16_pad": "likewise",
}
ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "JAXTYPING_DISABLE": "1", "OMP_NUM_THREADS": "1"}


def outcomes(tree: Path, tests: Iterable[str], patched: bool) -> dict[str, Any]:
    """Outcome of each of the tests, and the models that were patched, from a process forked off this one.

    Raises:
        RuntimeError: the process ended before its tests did; with the end of what it printed.
    """
    with tempfile.TemporaryDirectory() as folder:
        found, printed = Path(folder) / "outcomes.json", Path(folder) / "printed.txt"
        options = [f"--outcomes={found}"] if patched else [f"--outcomes={found}", "--bare"]
        # what a process imports once, sixty need not import again
        child = multiprocessing.get_context("fork").Process(target=_run, args=(tree, [*options, *tests], printed))
        child.start()
        child.join(60 * MINUTES)
        child.kill()
        results = json.loads(found.read_text(encoding="utf-8")) if found.exists() else {}
        if not results.get("outcomes"):
            raise RuntimeError(printed.read_text(encoding="utf-8", errors="replace")[-1500:])
        return results


def _run(tree: Path, options: list[str], printed: Path) -> None:
    with printed.open("w", encoding="utf-8") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.chdir(tree)
    sys.path.insert(0, str(tree))
    # the tree's conftest sets what only a GPU reads, and torch 2.13 refuses how it does
    plugins = ["--noconftest", "-p", "no:cacheprovider", "-p", "tools.patched_models"]
    leave_out = " or ".join(LEFT_OUT)
    pytest.main(["-q", "-W", "ignore", *plugins, "-k", f"ModelTest and not ({leave_out})", *options])


def beside(tree: Path, architecture: str) -> dict[str, Any]:
    """What the table needs: counts, and each test that turned out differently twice."""
    file = f"tests/models/{architecture}/test_modeling_{architecture}.py"
    bare, patched = (outcomes(tree, [file], way) for way in (False, True))
    differing = unlike(bare, patched)
    if differing:  # some draw at random, some wait for a clock
        once, again = (outcomes(tree, differing, way) for way in (False, True))
        differing = unlike(once, again)
    return {
        "bare": dict(Counter(bare["outcomes"].values())),
        "patched": dict(Counter(patched["outcomes"].values())),
        "models": patched["models"],
        "differing": {
            name.partition("::")[2]: [
                once["outcomes"].get(name),
                again["outcomes"].get(name),
                again["reasons"].get(name),
            ]
            for name in differing
        },
    }


def unlike(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Names of the tests that turned out differently."""
    return sorted(name for name in one["outcomes"] if one["outcomes"][name] != other["outcomes"].get(name))


def main() -> None:
    """Run what has no result yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tree", type=Path, help="folder that holds `tests`")
    parser.add_argument("architectures", nargs="*", default=ARCHITECTURES)
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_intermixed_args()
    results = json.loads(options.results.read_text(encoding="utf-8")) if options.results.exists() else {}
    options.results.parent.mkdir(parents=True, exist_ok=True)
    os.environ |= ENVIRONMENT
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    importlib.import_module("tools.patched_models")
    package = options.tree / "src" / "transformers"  # which some of the tests import by its path
    if not package.exists():
        package.parent.mkdir(exist_ok=True)
        package.symlink_to(Path(sys.modules["transformers"].__file__ or "").parent)
    for architecture in options.architectures:
        if architecture in results:
            continue
        try:
            results[architecture] = beside(options.tree.resolve(), architecture)
        except RuntimeError as reason:
            print(f"{architecture}: not run: {reason}", flush=True)
            continue
        options.results.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        print(architecture, json.dumps(results[architecture]), flush=True)


if __name__ == "__main__":
    main()
