"""The picture at the top of the README: the first five results of cosine and of the metric on the same frozen features.

    cd examples
    python -m studies.first_five                # three minutes on one quiet core; the features are kept for next time

Task re-id of `studies.three_tasks`, its row B-Diag 64 with the hinge loss, seed 0. What is shown follows a rule that
takes no side: all test drawings are sorted by how much their average precision changes from cosine to the metric, and
the one in the middle of each fifth is drawn. So the first row has lost, if a fifth of the queries has, and the last one
has gained. How many queries gain and lose is printed.
"""

import argparse
from typing import NamedTuple

import torch
from data.emoji import load_emoji
from matplotlib.figure import Figure
from torch import Tensor

from gssf_plug import GSSFMetric
from gssf_plug.retrieval.data.images import image_tensor
from gssf_plug.retrieval.plots import plot_retrieved
from studies.drawing import darkened
from studies.grid import RATES, parser
from studies.tasks import Split, average_precision, load_task
from studies.training import LOSSES, ROWS, fitted

__all__ = ["Compared", "compared", "draw", "main", "middles", "train_metric"]

ROW, LOSS, SYSTEMS = "B-Diag 64", "hinge", ("cosine", "GSSF, blocks of 64")
SHOWN, FIRST = 5, 5  # queries, results of each
SIZE = 128  # pixels of a drawing: double, so that it is not blurred where a picture is shown at half its size


class Compared(NamedTuple):
    """Two rankings of one test split."""

    split: Split
    scores: tuple[Tensor, Tensor]  # (N, M) by cosine and by the metric
    precision: tuple[Tensor, Tensor]  # average precision of each query, in %


def train_metric(options: argparse.Namespace) -> tuple[GSSFMetric, Split]:
    """The row as the study trains it, the rate chosen on validation drawings, and the test split."""
    task, rates = load_task("re-id", options.cache), RATES[:1] if options.quick else RATES
    runs = [fitted(task, ROWS[ROW], LOSSES[LOSS](), encoder="frozen", seed=0, rate=rate) for rate in rates]
    scorer, _ = max(runs, key=lambda run: run[1]["validation"])
    assert isinstance(scorer.metric, GSSFMetric)
    return scorer.metric, task.splits["test"]


@torch.no_grad()
def compared(metric: GSSFMetric, split: Split) -> Compared:
    """Both rankings; the neutral metric is cosine."""
    scores = tuple(scorer(split.queries, split.gallery) for scorer in (GSSFMetric(metric.dim), metric))
    return Compared(split, scores, tuple(average_precision(score, split) for score in scores))


def middles(change: Tensor, parts: int) -> Tensor:
    """Positions of the values in the middle of each of `parts` equal parts of the sorted values, least first."""
    places = (torch.arange(parts) + 0.5) * len(change) / parts
    return change.argsort(stable=True)[places.long()]


def draw(both: Compared) -> tuple[Figure, str]:
    """The picture, and in words how many queries gain."""
    change = both.precision[1] - both.precision[0]
    positive = both.split.positive.any(1).nonzero()[:, 0]  # the queries that have a precision
    queries = positive[middles(change, SHOWN)]
    visible = [score.masked_fill(both.split.hidden, float("-inf"))[queries] for score in both.scores]
    found = torch.cat([score.topk(FIRST).indices for score in visible], dim=1)
    drawings = load_emoji("test")["image"]
    figure = plot_retrieved(
        [image_tensor(drawings[row], SIZE) for row in queries.tolist()],
        [[image_tensor(drawings[item], SIZE) for item in items] for items in found.tolist()],
        both.split.relevant[queries[:, None], found],
        systems=SYSTEMS,
    )
    gained, lost = int((change > 0).sum()), int((change < 0).sum())
    told = f"{len(change)} queries: {gained} gain, {lost} lose, {len(change) - gained - lost} stay; mAP "
    return figure, told + " -> ".join(f"{precision.mean().item():.2f}" for precision in both.precision)


def main() -> None:
    """Train, count, draw."""
    options = parser(__doc__ or "", "first_five").parse_args()
    torch.set_num_threads(1)
    options.output.mkdir(parents=True, exist_ok=True)
    figure, told = draw(compared(*train_metric(options)))
    figure.savefig(options.output / "first_five.png", dpi=160)
    darkened(figure).savefig(options.output / "first_five_dark.png", dpi=160)
    (options.output / "first_five.txt").write_text(told + "\n")
    print(told)


if __name__ == "__main__":
    main()
