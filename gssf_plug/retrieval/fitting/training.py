"""One candidate trained on one part: batches of known pairs, noise on both sides, a mean of the weights at every look.

Both sides are normalised beforehand, so a step costs one fold, the scores, their gradient in closed form
(`gssf_plug.losses.score_gradients`) and its product with the documents; autograd knows the fold alone.

Rates fall with the root of the step and later weights count more in the mean, so that a run needs no plan of its
length: at any step it stands about where a run planned to end there would.

Noise as long as the rows themselves may be added to both sides and normalised away again. It keeps a matrix of many
parameters from fitting single pairs, which helps on texts and hurts on images; `Comparison` finds out which.
"""

import copy
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from gssf_plug.losses.score_gradients import score_gradient
from gssf_plug.metric import GSSFMetric, normalize_rows
from gssf_plug.retrieval.fitting.batches import Batches
from gssf_plug.retrieval.fitting.candidates import Candidate
from gssf_plug.retrieval.fitting.validation import Ranking

__all__ = ["Look", "Run", "Schedule"]

RATE, NARROW_RATE, LOSS_RATE = 1.8e-3, 3e-2, 1e-2  # of Adam, see `_groups`
HALVED = 100  # steps after which a rate is half of what it was
EPOCHS, LEAST_STEPS = 20, 1_000  # where the caller leaves it open
LOOK_EVERY = 25  # steps to the first look
GROWTH = 1.15  # of that distance from look to look
RECENT = 8  # η of the mean of weights: it spans about the last t / (η + 1) of t steps
POOL = 4_096  # rows of noise, drawn once


@dataclass(frozen=True)
class Schedule:
    """How long and in what pieces a candidate trains.

    Args:
        batch_size: pairs in a batch.
        max_epochs: passes over the pairs, at most; None takes 20, or 1,000 batches where those are more.
        patience: looks without a gain before training stops.
        seed: seed of the batches and the noise.
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


class Run:
    """A candidate on its way; `weights` are those kept last.

    Args:
        candidate: structure and loss that are trained.
        batches: batches of the part that is trained on.
        look: ranking of validation queries; None trains all steps unwatched.
        schedule: length and pieces of the training.
        noise: length of the noise that is added to rows of length 1; 0 (default) adds none.
    """

    def __init__(
        self, candidate: Candidate, batches: Batches, look: Ranking | None, schedule: Schedule, noise: float = 0.0
    ) -> None:
        self.candidate, self.batches, self.look = candidate, batches, look
        self.part = batches.part
        self.schedule, self.noise = schedule, noise
        self.weights: dict[str, Tensor] = {}

    def train(self, advance: Callable[[int], object], steps: int | None = None) -> Iterator[Look]:
        """Train, and come back at every look: whoever asks no further has stopped it.

        Without looks it trains to the end, and keeps the weights it has there.

        Args:
            advance: function that is called with the number of steps done since its last call.
            steps: number of steps, at most; None takes those of the schedule.
        """
        device, began = self.part.documents.device, time.perf_counter()
        metric, loss = self.candidate.metric(normalize=False).to(device), self.candidate.make_loss().to(device)
        fused = device.type in ("cpu", "cuda")
        optimizer = torch.optim.Adam(_groups(metric, loss), betas=(0.9, 0.99), fused=fused)
        rates = [group["lr"] for group in optimizer.param_groups]
        pool = max(POOL, 2 * min(self.schedule.batch_size, self.batches.pairs)), self.part.documents.dim
        noise = _Noise(self.noise, pool, self.schedule.seed, device)
        self._mean = _MeanWeights(metric)
        steps = self.schedule.steps(self.batches.pairs) if steps is None else steps
        due, distance = LOOK_EVERY, float(LOOK_EVERY)
        for step, batch in enumerate(self.batches.first(steps), start=1):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * (1 + 3 * (step - 1) / HALVED) ** -0.5
            optimizer.zero_grad()
            folded = metric.fold(noise.added(self.part.queries.rows(batch.queries)))
            documents = noise.added(self.part.documents.rows(batch.documents))
            # dL/dF = dL/dS · Y: the graph ends at the folded queries
            folded.backward(score_gradient(loss, folded.detach() @ documents.T, batch.pairs) @ documents)
            optimizer.step()
            self._mean.add(step)
            advance(1)
            if self.look is not None and step in (due, steps):
                distance *= GROWTH
                due += round(distance)
                yield Look(step, time.perf_counter() - began, self.look.values(self._mean.metric))
        if self.look is None:
            self.keep()

    def keep(self) -> None:
        """Keep the weights as a look sees them now."""
        self.weights = {name: value.clone() for name, value in self._mean.metric.state_dict().items()}

    def metric(self, *, normalize: bool) -> GSSFMetric:
        """The metric with the weights kept; neutral before."""
        metric = self.candidate.metric(normalize=normalize).to(self.part.documents.device)
        if self.weights:
            metric.load_state_dict(self.weights)
        return metric.eval()


def _groups(metric: GSSFMetric, loss: nn.Module) -> list[dict[str, Any]]:
    """Rates: a score sums D·b products of about 1/D, so the weights of smaller blocks may move further, by √(D/b).

    Below a width of some 280 that would be slower than need be.
    """
    size = max(int(part.block_size) for part in metric.structures.values())  # type: ignore[arg-type]
    groups = [{"params": [*metric.parameters()], "lr": max(RATE * (metric.dim / size) ** 0.5, NARROW_RATE / size**0.5)}]
    own = [parameter for parameter in loss.parameters() if parameter.requires_grad]
    return [*groups, {"params": own, "lr": LOSS_RATE}] if own else groups


class _MeanWeights:
    """The mean of the weights so far, later ones counting more: what a look sees, without the jitter of single steps.

    After step t it moves towards the newest weights by (η + 1) / (t + η), so that it spans a share of all steps
    whatever t is: polynomial-decay averaging (Shamir and Zhang, ICML 2013, arXiv 1212.1824).
    """

    def __init__(self, metric: GSSFMetric) -> None:
        self.metric = copy.deepcopy(metric).requires_grad_(False)
        self._newest = [parameter.detach() for parameter in metric.parameters()]
        self._means = [*self.metric.parameters()]

    @torch.no_grad()
    def add(self, step: int) -> None:
        for mean, newest in zip(self._means, self._newest, strict=True):
            mean.lerp_(newest, (RECENT + 1) / (step + RECENT))


class _Noise:
    """Random directions of one length, drawn once; each batch gets neighbours from some place of the pool.

    The sum is brought back to length 1 on average: a direction drawn at random is nearly orthogonal to a row.
    """

    def __init__(self, length: float, shape: tuple[int, int], seed: int, device: torch.device) -> None:
        self.length, self._scale = length, (1 + length**2) ** -0.5
        self._places = torch.Generator().manual_seed(seed)
        drawn = torch.Generator(device).manual_seed(seed)
        pool = torch.randn(shape if length else (0, shape[1]), generator=drawn, device=device)
        self._pool = normalize_rows(pool) * (length * self._scale)

    def added(self, rows: Float[Tensor, "n dim"]) -> Float[Tensor, "n dim"]:
        if not self.length:
            return rows
        start = int(torch.randint(len(self._pool) - len(rows) + 1, (), generator=self._places))
        return torch.add(self._pool[start : start + len(rows)], rows, alpha=self._scale)
