"""One candidate trained: batches of known pairs, noise on both sides, a look at validation every so often.

The batch is sampled pairs; every pair of it that is known to belong together is a positive, so there are no false
negatives among known pairs. Both sides are normalised beforehand, so a step costs one fold, one product and the loss.

Noise as long as the rows themselves may be added to both sides and normalised away again. It keeps a matrix of many
parameters from fitting single pairs, which helps on texts and hurts on images; `Comparison` finds out which.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from gssf_plug.metric.metric import GSSFMetric, normalize_rows
from gssf_plug.retrieval.fitting.candidates import Candidate
from gssf_plug.retrieval.fitting.splits import Part
from gssf_plug.retrieval.fitting.validation import Ranking

__all__ = ["Look", "Run", "Schedule"]

RATE, NARROW_RATE, LOSS_RATE = 1.2e-3, 2e-2, 1e-2  # of Adam, see `_groups`
EPOCHS, LEAST_STEPS = 20, 1_000  # where the caller leaves it open
LOOK_EVERY = 25  # steps between the first looks
GROWTH = 1.15  # of that distance from look to look
ANNEALINGS, ANNEALED = 2, 0.25  # how often, and by what factor, rates are lowered before a candidate stops


@dataclass(frozen=True)
class Schedule:
    """How long and in what pieces a candidate trains.

    Args:
        batch_size: pairs in a batch.
        max_epochs: passes over the pairs, at most; None takes 20, or 1,000 batches where those are more.
        patience: looks without a gain before rates are lowered and, the third time, training stops.
        seed: of the batches and the noise.
    """

    batch_size: int
    max_epochs: int | None
    patience: int
    seed: int

    def steps(self, pairs: int) -> int:
        """Batches in all epochs."""
        epoch = max(1, -(-pairs // self.batch_size))
        return max(EPOCHS * epoch, LEAST_STEPS) if self.max_epochs is None else self.max_epochs * epoch


class Look(NamedTuple):
    """What validation said at a step, after so many seconds: the measure of each query, in %."""

    step: int
    seconds: float
    values: Float[Tensor, " n"]

    @property
    def mean(self) -> float:
        """Over the queries."""
        return self.values.double().mean().item()


@dataclass
class Run:
    """A candidate, and the best that training has found so far; whole at any moment, also where it is interrupted.

    Args:
        candidate: what is trained.
        part: the data.
        look: validation; None trains all steps unwatched.
        schedule: of the training.
        noise: its length, where the rows have length 1; 0 for none.
    """

    candidate: Candidate
    part: Part
    look: Ranking | None
    schedule: Schedule
    noise: float = 0.0
    looks: list[Look] = field(default_factory=list)
    best: Look | None = None
    weights: dict[str, Tensor] = field(default_factory=dict)

    def train(self, advance: Callable[[int], object], steps: int | None = None) -> None:
        """Train until validation stops gaining.

        Args:
            advance: told of every step done.
            steps: at most; None takes those of the schedule.
        """
        device, began = self.part.documents.device, time.perf_counter()
        metric, loss = self.candidate.metric(normalize=False).to(device), self.candidate.make_loss().to(device)
        optimizer = torch.optim.Adam(_groups(metric, loss), betas=(0.9, 0.99))
        noise = torch.Generator(device).manual_seed(self.schedule.seed)
        places, items = self.part.pairs.select(self.part.rows)
        pairs = self.part.rows[places], items
        steps = self.schedule.steps(len(items)) if steps is None else steps
        wait, left, due, distance = 0, ANNEALINGS, LOOK_EVERY, float(LOOK_EVERY)
        for step, batch in enumerate(self._batches(*pairs, steps), start=1):
            value = self._loss(metric, loss, batch, noise)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            advance(1)
            if self.look is not None and step in (due, steps):
                distance *= GROWTH
                due += round(distance)
                wait = 0 if self._looked(metric, Look(step, 0.0, self.look.values(metric)), began) else wait + 1
                if wait >= self.schedule.patience:
                    if left == 0:
                        return
                    self._anneal(metric, optimizer)
                    wait, left, due, distance = 0, left - 1, step + LOOK_EVERY, float(LOOK_EVERY)
        if self.look is None:
            self.weights = _copied(metric)

    def _anneal(self, metric: GSSFMetric, optimizer: torch.optim.Optimizer) -> None:
        """Back to the best weights, and on from there in smaller steps."""
        metric.load_state_dict(self.weights)
        for group in optimizer.param_groups:
            group["lr"] *= ANNEALED

    def metric(self, *, normalize: bool) -> GSSFMetric:
        """The best metric so far; neutral before the first look."""
        metric = self.candidate.metric(normalize=normalize).to(self.part.documents.device)
        if self.weights:
            metric.load_state_dict(self.weights)
        return metric.eval()

    def _loss(
        self, metric: GSSFMetric, loss: nn.Module, batch: tuple[Tensor, Tensor], noise: torch.Generator
    ) -> Float[Tensor, ""]:
        rows, items = batch
        known, ignored = self.part.masks(rows, items, self._column_of)
        queries = _noisy(self.part.queries.rows(rows), self.noise, noise)
        documents = _noisy(self.part.documents.rows(items), self.noise, noise)
        device = documents.device
        masked = ignored if ignored is None else ignored.to(device)
        value: Tensor = loss(metric.fold(queries) @ documents.T, known.to(device), forbidden=masked)
        return value

    def _looked(self, metric: GSSFMetric, look: Look, began: float) -> bool:
        look = look._replace(seconds=time.perf_counter() - began)
        self.looks.append(look)
        better = self.best is None or look.mean > self.best.mean
        if better:
            self.best, self.weights = look, _copied(metric)
        return better

    def _batches(
        self, rows: Int[Tensor, " p"], items: Int[Tensor, " p"], steps: int
    ) -> Iterator[tuple[Int[Tensor, " n"], Int[Tensor, " m"]]]:
        """Different queries and different documents of `batch_size` pairs; every pair once an epoch."""
        self._column_of = torch.full((len(self.part.documents),), -1)
        generator = torch.Generator().manual_seed(self.schedule.seed)
        done = 0
        while done < steps:
            for batch in torch.randperm(len(rows), generator=generator).split(self.schedule.batch_size)[: steps - done]:
                yield rows[batch].unique(), items[batch].unique()
                done += 1


def _groups(metric: GSSFMetric, loss: nn.Module) -> list[dict[str, Any]]:
    """Rates: a score sums D·b products of about 1/D, so the weights of smaller blocks may move further, by √(D/b).

    Below a width of some 280 that would be slower than need be.
    """
    size = max(int(part.block_size) for part in metric.structures.values())  # type: ignore[arg-type]
    groups = [{"params": [*metric.parameters()], "lr": max(RATE * (metric.dim / size) ** 0.5, NARROW_RATE / size**0.5)}]
    own = [parameter for parameter in loss.parameters() if parameter.requires_grad]
    return [*groups, {"params": own, "lr": LOSS_RATE}] if own else groups


def _copied(metric: GSSFMetric) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in metric.state_dict().items()}


def _noisy(rows: Float[Tensor, "n dim"], length: float, generator: torch.Generator) -> Float[Tensor, "n dim"]:
    if not length:
        return rows
    noise = torch.randn(rows.shape, generator=generator, device=rows.device)
    return normalize_rows(rows.add(noise, alpha=length / rows.shape[1] ** 0.5))
