"""One training of a study: a metric over frozen features, beside a trained head, or beside an encoder from scratch.

Every row trains the same 300 steps of 256 pairs. Its rate is the best of three and its step the best of three, both by
validation mAP; the test split is measured once per seed with what was chosen.
"""

import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from shared.baselines import FixedCosine, LowRank, ScaledCosine
from shared.emoji_drawings import small_cnn
from torch import Tensor, nn

from gssf_plug import GSSFMetric
from gssf_plug.losses import Hinge, InfoNCE
from studies.tasks import PIXELS, Split, Task, average_precision

__all__ = ["LOSSES", "ROWS", "Scorer", "fitted", "mean_ap", "measured", "train"]

STEPS, BATCH, LOOKS = 300, 256, 3
CHANNELS, WIDTH, ENCODER_RATE = (16, 32, 64), 256, 1e-3
LOSSES: dict[str, Callable[[], nn.Module]] = {"hinge": Hinge, "softmax": InfoNCE}


class Options(NamedTuple):
    """What every structure is built with."""

    dim: int
    constraint: str | None


def _structured(*terms: str, block_size: int = 16) -> Callable[[Options], nn.Module]:
    return lambda o: GSSFMetric(o.dim, terms=terms, block_size=block_size, constraint=o.constraint)


ROWS: dict[str, Callable[[Options], nn.Module]] = {
    "cosine": lambda o: FixedCosine(o.dim),
    "cosine + scale": lambda o: ScaledCosine(o.dim),
    "Diag": _structured("diagonal"),
    "B-Diag 16": _structured("block_diagonal"),
    "B-Diag 64": _structured("block_diagonal", block_size=64),
    "both 16": _structured("diagonal", "block_diagonal"),
    "low-rank as 16": lambda o: LowRank(o.dim, 8),
    "full": _structured("dense"),
}


class Scorer(nn.Module):
    """Encoders and the metric.

    Args:
        metric: the last step.
        encoders: one module per side, the same one twice in tasks of one kind of item.
    """

    def __init__(self, metric: nn.Module, encoders: tuple[nn.Module, nn.Module]) -> None:
        super().__init__()
        self.metric = metric
        self.query_encoder, self.gallery_encoder = encoders

    def forward(self, queries: Tensor, gallery: Tensor) -> Tensor:
        """(N, ...), (M, ...) -> (N, M)."""
        return self.metric(self.query_encoder(queries), self.gallery_encoder(gallery))


def train(
    task: Task,
    build: Callable[[Options], nn.Module],
    loss: nn.Module,
    *,
    encoder: str,
    seed: int,
    rate: float,
    **more: Any,
) -> dict[str, Any]:
    """The measures of `fitted`, which has the arguments."""
    return fitted(task, build, loss, encoder=encoder, seed=seed, rate=rate, **more)[1]


def fitted(
    task: Task,
    build: Callable[[Options], nn.Module],
    loss: nn.Module,
    *,
    encoder: str,
    seed: int,
    rate: float,
    penalty: float = 0.0,
    metric_from: int = 0,
    encoder_from: int = 0,
    encoder_until: int = STEPS,
    encoder_rate: float = ENCODER_RATE,
    fraction: float = 1.0,
) -> tuple[Scorer, dict[str, Any]]:
    """Train one row: what was chosen, with its mAP on validation and test, per query on test, parameters and seconds.

    Args:
        task: features and splits.
        build: makes the metric.
        loss: on a score matrix.
        encoder: "frozen", the metric is all that learns; "heads", linear ones over frozen features; "scratch", a small
            CNN over pixels, which the task must then hold.
        seed: of batches and of encoders.
        rate: of the metric.
        penalty: weight of the metric's distance from neutral.
        metric_from: steps before the metric trains.
        encoder_from: steps before the encoder trains.
        encoder_until: steps after which it does not any more.
        encoder_rate: learning rate of encoders and of the loss's own scale.
        fraction: share of the training queries.
    """
    torch.manual_seed(seed)
    began, scorer = time.perf_counter(), _scorer(task, build, encoder)
    metric = list(scorer.metric.parameters())
    encoders = list(dict.fromkeys([*scorer.query_encoder.parameters(), *scorer.gallery_encoder.parameters()]))
    groups = [{"params": metric, "lr": rate}, {"params": [*encoders, *loss.parameters()], "lr": encoder_rate}]
    optimizer = torch.optim.AdamW([group for group in groups if group["params"]] or [nn.Parameter(torch.zeros(()))])
    for group in optimizer.param_groups:
        group["weight_decay"] = 0.0
    frozen = encoder == "frozen"
    looks = [(mean_ap(scorer, task.splits["validation"]), 0, _copy(scorer))] if frozen else []
    learns = bool(metric) or not frozen
    for step, (queries, gallery, relevant, hidden) in enumerate(_batches(task.splits["train"], fraction), start=1):
        if not learns:
            break
        for parameter in metric:
            parameter.requires_grad_(step > metric_from)
        for parameter in encoders:
            parameter.requires_grad_(encoder_from < step <= encoder_until)
        value = loss(scorer(queries, gallery), relevant, forbidden=hidden)
        if penalty and isinstance(scorer.metric, GSSFMetric):
            value = value + penalty * scorer.metric.penalty()
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        if step % (STEPS // LOOKS) == 0:
            looks.append((mean_ap(scorer, task.splits["validation"]), step, _copy(scorer)))
    best, step, weights = max(looks, key=lambda look: look[0])
    scorer.load_state_dict(weights)
    return scorer, {
        "validation": best,
        **measured(scorer, task.splits["test"]),
        "parameters": sum(parameter.numel() for parameter in metric),
        "step": step,
        "seconds": time.perf_counter() - began,
    }


def _scorer(task: Task, build: Callable[[Options], nn.Module], encoder: str) -> Scorer:
    sides = task.splits["train"].queries, task.splits["train"].gallery
    constraint = "symmetric" if task.one_sided else None
    if encoder == "frozen":
        return Scorer(build(Options(sides[0].shape[1], constraint)), (nn.Identity(), nn.Identity()))
    made = [small_cnn(CHANNELS, PIXELS, WIDTH) if side.ndim == 4 else nn.Linear(side.shape[1], WIDTH) for side in sides]
    if task.name != "image-text":
        made[1] = made[0]  # one encoder for both sides
    return Scorer(build(Options(WIDTH, constraint)), (made[0], made[1]))


def _batches(split: Split, fraction: float) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """STEPS batches of pairs that belong together; what belongs together by chance counts as positive, too."""
    kept = torch.rand(len(split.queries), generator=torch.Generator().manual_seed(0)) < fraction
    pairs = split.pairs[kept[split.pairs[:, 0]]]
    for _ in range(STEPS):
        rows, columns = pairs[torch.randint(len(pairs), (BATCH,))].T
        chosen = split.relevant[rows][:, columns], split.hidden[rows][:, columns]
        yield split.queries[rows], split.gallery[columns], *chosen


@torch.no_grad()
def _scores(scorer: Scorer, split: Split) -> Tensor:
    scores = scorer.eval()(split.queries, split.gallery)
    scorer.train()
    return scores


def measured(scorer: Scorer, split: Split) -> dict[str, Any]:
    """MAP, AP of each query, hubness and asymmetry."""
    scores = _scores(scorer, split)
    per_query = average_precision(scores, split)
    return {
        "mAP": per_query.mean().item(),
        "per_query": [round(value, 2) for value in per_query.tolist()],
        "hubness": _hubness(scores),
        "asymmetry": _asymmetry(scorer.metric),
    }


def mean_ap(scorer: Scorer, split: Split) -> float:
    """MAP of what is there now, in %."""
    return average_precision(_scores(scorer, split), split).mean().item()


def _copy(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def _hubness(scores: Tensor, k: int = 10) -> float:
    """Skewness of how often an item is among the first k of a query; 0 where all come up alike."""
    counts = torch.bincount(scores.topk(k, dim=1).indices.flatten(), minlength=scores.shape[1]).double()
    centred = counts - counts.mean()
    return (centred.pow(3).mean() / centred.pow(2).mean().pow(1.5)).item()


def _asymmetry(metric: nn.Module) -> float:
    """‖M − Mᵀ‖ / ‖M − I‖ of a structured metric: 0 symmetric, 2 antisymmetric; 0 where nothing was learned."""
    if not isinstance(metric, GSSFMetric):
        return 0.0
    matrix = metric.matrix().detach()
    change = torch.linalg.matrix_norm(matrix - torch.eye(len(matrix)))
    return (torch.linalg.matrix_norm(matrix - matrix.T) / change).item() if change > 0 else 0.0
