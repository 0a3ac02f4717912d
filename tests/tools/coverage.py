"""The results of the sweep, and of transformers' own tests, as the page docs/attention_coverage.md.

python tests/tools/sweep.py && python tests/tools/coverage.py
"""

import argparse
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import transformers
from tools.sweep import CACHE
from tools.tiny import model_types
from tools.transformers_suite import EXPLAINED, LEFT_OUT, RESULTS

ROOT = Path(__file__).resolve().parents[2]
Record = Mapping[str, Any]


def page(records: Iterable[Record], every: int, suite: Record) -> str:
    """Markdown: the count, transformers' own tests, what held, what was refused and why.

    Args:
        records: the sweep's results.
        every: the number of model types there are.
        suite: the results of transformers' own tests by architecture.
    """
    by_type = {record["type"]: record for record in records}
    groups: dict[str, list[Record]] = {}
    for name in sorted(by_type):
        groups.setdefault(by_type[name]["status"], []).append(by_type[name])
    held, tried = groups.get("held", []), [r for s in TRIED for r in groups.get(s, [])]
    counts = Counter(record["status"] for record in by_type.values())
    lines = [
        "# Attention: which architectures",
        "",
        f"transformers {transformers.__version__}, {len(by_type)} of its {every} model types run. Of {len(tried)} that "
        f"have attention and that a tiny configuration builds, **{len(held)} hold "
        f"({len(held) / max(1, len(tried)):.1%})**: patched before they ever ran, neutral at start, alive once "
        "perturbed, a gradient for every parameter; at both sites all outputs, recorded hidden states and attentions "
        "among them, are those of a twin that was never patched, to the bit; merged equals patched (or the merge is "
        "refused because a query norm stands between), unmerge and remove exact. Made by "
        "`python tests/tools/sweep.py` and `python tests/tools/coverage.py`.",
        "",
        f"{counts['no attention']} types have no attention; {counts['not built']} were not built, and the last table "
        "says why: parts of other models, missing packages, configurations that do not shrink. A refused type is "
        "refused whole: one of its attention modules ran and was not proven, or none could be run. Modules left alone, "
        "beside those that are patched, were run by no example, or the model does not use what they put out.",
        "",
        "Patching and removing, or a refusal, leaves every object that can be reached from the model as it was: looked "
        f"at, at both sites, on {sum('objects' in r for r in tried)} of these types, "
        f"{sum(r.get('objects', False) for r in tried)} as they were.",
        *suite_section(suite),
        "",
        "## Held",
        "",
        "| type | layers patched | query | merges | left alone |",
        "|---|---:|---|---|---:|",
    ]
    lines += [_row(record) for record in held]
    lines += ["", "## Not patched, or not held", "", "| type | outcome | reason |", "|---|---|---|"]
    lines += [f"| {r['type']} | {r['status']} | {_reason(r)} |" for r in tried if r["status"] != "held"]
    lines += ["", "## Not built", "", "| type | reason |", "|---|---|"]
    lines += [f"| {r['type']} | {_reason(r)} |" for r in groups.get("not built", [])]
    return "\n".join(lines) + "\n"


def suite_section(suite: Record) -> list[str]:
    """transformers' own tests, bare and patched, and why a test turned out differently."""
    left_out = "; ".join(f"`{name}` ({why})" for name, why in LEFT_OUT.items())
    lines = [
        "",
        "## transformers' own tests, with every model patched",
        "",
        f"`python tests/tools/transformers_suite.py TREE` runs transformers' common tests of a model and those of "
        f"generation twice, on {len(suite)} architectures: as they are, and with each model patched as soon as it is "
        "built or loaded, never having run. A fresh patch is neutral, so no test may turn out differently. The sdist "
        "of 5.24 holds the shared files (`test_modeling_common.py`, `causal_lm_tester.py`) but neither `tests/models` "
        "nor `tests/generation`; those are of a public checkout of 5.6.0.dev0, and some tests fail bare, too; "
        "`tests/distributed_testing_utils.py`, which neither has, is a stand-in: its tests need several GPUs. "
        f"Left out: {left_out}; and, by transformers itself, what is slow or needs a GPU.",
        "",
        "| architecture | bare: passed | failed | skipped | patched: passed | failed | skipped | models | bare only |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    differing: dict[str, list[str]] = {}
    for name, record in sorted(suite.items()):
        counts = [record[way].get(key, 0) for way in ("bare", "patched") for key in ("passed", "failed", "skipped")]
        patched = record["models"].get("patched", 0)
        numbers = [*counts, f"{patched:,}", counts[0] - counts[3]]
        lines.append(f"| {name} | {' | '.join(map(str, numbers))} |")
        for test in record["differing"]:
            differing.setdefault(test.rpartition("::")[2], []).append(name)
    refused = {
        name: sum(record["models"].values()) - record["models"].get("patched", 0) for name, record in suite.items()
    }
    said = ", ".join(f"{count} of {name}" for name, count in sorted(refused.items()) if count)
    why = " Those tests build models with weights of 1e-10, in which no output depends on a key." if said else ""
    lines += ["", f"Models that were refused, and so ran bare both times: {said or 'none'}.{why}"]
    lines += ["", "| passes bare, fails patched | architectures | why |", "|---|---|---|"]
    for test, names in sorted(differing.items()):
        which = "all" if len(set(names)) == len(suite) else ", ".join(dict.fromkeys(names))
        lines.append(f"| `{test}` | {which} | {EXPLAINED.get(test, '**not explained**')} |")
    return lines


TRIED = ("held", "refused", "failed", "no layout", "patched, not run", "crashed")


def _row(record: Record) -> str:
    merges = _merges(record.get("merge_refused"))
    left = len(record["left_alone"])
    return f"| {record['type']} | {record['patched']} | {', '.join(record['layouts'])} | {merges} | {left or ''} |"


def _merges(refusal: str | None) -> str:
    if refusal is None:
        return "yes"
    return "no: after a query norm" if "query norm" in refusal else "no: its projection holds more than a linear map"


def _reason(record: Record) -> str:
    found = ", ".join(record.get("wrong", [])) or ", ".join(record.get("attention_classes", []))
    text = " ".join(str(record.get("reason") or found).split())
    text = text.replace(f"{Path(transformers.__file__).parents[1]}/", "")  # where this machine keeps its packages
    _, _, after = text.partition(", where ")
    return (after or text).partition(". Declare its layout")[0].replace("|", "\\|")[:300]


def main() -> None:
    """Read the sweep's log, write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache", type=Path, default=CACHE)
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "attention_coverage.md")
    options = parser.parse_args()
    records = map(json.loads, options.cache.read_text().splitlines())
    suite = json.loads(RESULTS.read_text(encoding="utf-8"))
    options.output.write_text(page(records, len(model_types()), suite))


if __name__ == "__main__":
    main()
