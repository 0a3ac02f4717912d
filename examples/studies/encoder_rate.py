"""Is what a metric gains beside an encoder trained from scratch with the hinge loss only a better learning rate?

    cd examples
    python -m studies.encoder_rate             # some ten minutes on one core; resumable
    python -m studies.encoder_rate --quick

In `three_tasks` the metric's rate is chosen and the encoder's is fixed, which favours rows with a metric. Here both are
chosen on validation data with seed 0, for cosine with a learned scale and for the metric; and the softmax beside them.
"""

from pathlib import Path

import torch
from shared.runs import append, finished

from studies.grid import chance, paired, parser, spread
from studies.tasks import Task, load_task
from studies.training import LOSSES, ROWS, train

ENCODER_RATES, METRIC_RATES = (3e-4, 1e-3, 3e-3), (1e-3, 3e-3)
BASELINE = "cosine + scale"
NAMES = (BASELINE, "B-Diag 16", "B-Diag 64")


def main() -> None:
    """Run what is missing, then print the table."""
    options = parser(__doc__ or "", "encoder_rate").parse_args()
    torch.set_num_threads(1)
    options.output.mkdir(parents=True, exist_ok=True)
    task, rows, seeds = load_task("re-id", options.cache, pixels=True), NAMES, options.seeds
    if options.quick:
        rows, seeds = NAMES[:1], 1
    for loss in LOSSES:
        for seed in range(seeds):
            for name in rows:
                fill(options.output / f"{loss}.jsonl", task, loss, name, seed, options.quick)
    text = table({loss: options.output / f"{loss}.jsonl" for loss in LOSSES})
    (options.output / "encoder_rate.md").write_text(text + "\n")
    print(text)


def fill(log: Path, task: Task, loss: str, name: str, seed: int, quick: bool) -> None:
    """One row with one seed, unless the log holds it; rates by validation with seed 0."""
    done = finished(log)
    if (name, seed) in done:
        return
    if seed:
        pairs = [tuple(done[name, 0]["rates"])]
    else:
        pairs = [(e, m) for e in ENCODER_RATES for m in (METRIC_RATES[:1] if name == BASELINE else METRIC_RATES)]
    runs = [
        train(task, ROWS[name], LOSSES[loss](), encoder="scratch", seed=seed, rate=metric, encoder_rate=encoder)
        | {"rates": [encoder, metric]}
        for encoder, metric in pairs[: 1 if quick else None]
    ]
    append(log, name, seed, max(runs, key=lambda run: run["validation"]))


def table(logs: dict[str, Path]) -> str:
    """Mean ± sd over seeds, gain over the baseline of the same loss, p over queries, and the chosen rates."""
    lines = ["**re-id · scratch, rates of encoder and metric chosen**", ""]
    lines += [f"| loss | | encoder's rate | mAP | over {BASELINE} | p |", "|---|---|" + "---:|" * 4]
    for loss, log in logs.items():
        runs = finished(log)
        for name in dict.fromkeys(name for name, _ in runs):
            own = [run for (other, _), run in runs.items() if other == name]
            gain, p = paired(runs, name, BASELINE)
            told = ["", ""] if name == BASELINE else [f"{gain:+.2f}", chance(p)]
            cells = [f"{own[0]['rates'][0]:g}", spread([run["mAP"] for run in own]), *told]
            lines.append(f"| {loss} | {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
