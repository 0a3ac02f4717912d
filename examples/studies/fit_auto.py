"""`fit_metric` as it comes on the three tasks of the study with frozen features: does it end where the best row ends?

    cd examples
    python -m studies.fit_auto                 # some minutes on two cores
    python -m studies.fit_auto --quick         # one task, one structure: shows that it runs

Training, validation and test emoji are those of `studies.three_tasks`; nothing is tuned here. Test data are measured
once per seed, with cosine and with what was taken.
"""

import argparse
from statistics import mean, stdev

from torch import Tensor

from gssf_plug.retrieval import fit_metric
from studies.grid import parser
from studies.tasks import Split, load_task

__all__ = ["main"]


def main() -> None:
    """One line per task."""
    options = parse_options()
    print("| task | cosine | fit_metric | taken | seconds |\n|---|---:|---:|---|---:|")
    for name in options.tasks:
        task = load_task(name, options.cache)
        train, validation, test = (
            given(task.splits[split], task.one_sided) for split in ("train", "validation", "test")
        )
        asked = {"structures": [{"terms": ("diagonal",)}], "max_epochs": 1} if options.quick else {}
        fits = [
            fit_metric(*train[:3], ignored=train[3], validation=validation, test=test, seed=seed, **asked)
            for seed in range(options.seeds)
        ]
        cosine, ours = fits[0].test["cosine"], [fit.test[fit.taken] for fit in fits]
        spread = stdev(ours) if len(ours) > 1 else 0.0
        seconds = mean(sum(row.seconds for row in fit.table) for fit in fits)
        taken = "; ".join(dict.fromkeys(fit.taken for fit in fits))
        print(f"| {name} | {cosine:.2f} | {mean(ours):.2f} ± {spread:.2f} | {taken} | {seconds:.0f} |", flush=True)


def given(split: Split, one_sided: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Queries, documents (the queries themselves where there is one kind of item), pairs, ignored pairs."""
    documents = split.queries if one_sided else split.gallery
    return split.queries, documents, split.positive, split.hidden


def parse_options() -> argparse.Namespace:
    """The command line."""
    made = parser(__doc__ or "", "fit_auto")
    made.set_defaults(seeds=3)
    made.add_argument("--tasks", nargs="+", default=["text", "re-id", "fine-grained"])
    options = made.parse_args()
    if options.quick:
        options.tasks, options.seeds = ["text"], 1
    return options


if __name__ == "__main__":
    main()
