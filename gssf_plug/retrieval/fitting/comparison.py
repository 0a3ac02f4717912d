"""All similarities of one fit side by side on the same validation queries, and the choice among them.

Few queries are measured on fold by fold: each fold trains anew, its values are laid beside those of the others, and
what is taken is trained once more on all queries, for as many steps as was best.
"""

import time
from collections.abc import Callable, Sequence
from functools import cache, cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from gssf_plug.metric import GSSFMetric
from gssf_plug.retrieval.fitting.batches import Batches
from gssf_plug.retrieval.fitting.candidates import Candidate
from gssf_plug.retrieval.fitting.closed_form import SHRINKAGES, PairCovariance
from gssf_plug.retrieval.fitting.report import FitResult, FitRow, compare
from gssf_plug.retrieval.fitting.splits import Part
from gssf_plug.retrieval.fitting.training import Run, Schedule
from gssf_plug.retrieval.fitting.trials import Fold, Trial
from gssf_plug.retrieval.fitting.validation import Ranking, Similarity, make_look

__all__ = ["Comparison"]

NOISES = (0.0, 1.0)  # in this order for one list of items, where none was better each time, else the other way round
COSINE, WHITENED, CLOSED = "cosine", "cosine, whitened by pairs", "closed form"


class Comparison:
    """A fit on its way: at any moment the rows so far and the best metric can be told.

    Args:
        whole: all queries.
        splits: pairs of a part to train on and a part to measure on, one or several.
        measure: a key of `document_ranking`.
        schedule: length and pieces of every candidate's training.
        progress: True shows a progress bar.
        closed_form: True where the closed form, a dense metric, may be taken.
    """

    def __init__(
        self,
        whole: Part,
        splits: Sequence[tuple[Part, Part]],
        measure: str,
        schedule: Schedule,
        progress: bool,
        closed_form: bool,
    ) -> None:
        self.whole, self.splits, self.measure = whole, splits, measure
        self.schedule, self.progress, self.closed_form = schedule, progress, closed_form
        self.rows: list[FitRow] = []
        self.metrics: dict[str, GSSFMetric] = {}
        self.noise: dict[str, float] = {}
        self.leader: Trial | None = None

    def run(self, candidates: Sequence[Candidate], test: Part | None) -> FitResult:
        """Baselines, then every candidate, then the choice; Ctrl-C leads to the choice at once."""
        scores, interrupted = None, False
        pairs = max(int(train.pairs.counts[train.rows].sum()) for train, _ in self.splits)
        steps = len(self.splits) * self.schedule.steps(pairs)
        losses, ahead = {candidate.loss for candidate in candidates}, 0
        total = steps * (len(candidates) + (len(NOISES) - 1) * len(losses))
        # no time to go: the total is what it takes if no candidate stops early, and nearly all do
        form = "{l_bar}{bar}| at most {total_fmt} steps [{elapsed}{postfix}]"
        with tqdm(total=total, desc="fitting", disable=not self.progress, bar_format=form) as bar:
            try:
                self._baselines()
                for candidate in _middle_first(candidates):
                    bar.set_postfix_str(candidate.name)
                    ahead += steps * (1 if candidate.loss in self.noise else len(NOISES))
                    self._candidate(candidate, bar.update)
                    bar.update(ahead - bar.n)  # the steps that were not needed
                scores = None if test is None else self._tested(test)
            except KeyboardInterrupt:
                interrupted = True
        name, reason = self._choice()
        queries, documents = sum(len(held.rows) for _, held in self.splits), len(self.splits[0][1].documents)
        order = [COSINE, WHITENED, CLOSED, *(candidate.name for candidate in candidates)]
        rows = tuple(sorted(self.rows, key=lambda row: order.index(row.name)))
        kept = {row.name: self.metrics[row.name] for row in rows if row.name in self.metrics}
        folds = len(self.splits)
        told = FitResult(self._metric(name), kept, rows, name, reason, self.measure, queries, documents, folds)
        return told.with_test(scores, interrupted)

    def _baselines(self) -> None:
        began, seed = time.perf_counter(), self.schedule.seed
        self.folds = []
        for train, held in self.splits:
            look = make_look(held, self.measure, seed)
            batches = Batches(train, self.schedule.batch_size, seed)
            self.folds.append(Fold(batches, look, look if look.covers(held) else Ranking(held, self.measure)))
        neutral = self._neutral(normalize=False)
        self.cosine = torch.cat([fold.full.values(neutral) for fold in self.folds])
        self._add(COSINE, 0, self.cosine, began)
        began = time.perf_counter()
        shrunk = [_Shrunk(fold, seed) for fold in self.folds]
        closed = {} if self.closed_form else {"metric": False, "note": "no structure that was asked for"}
        size = self.whole.queries.dim**2
        _, values = self._best_shrinkage(shrunk, WHITENED)
        self._add(WHITENED, size, values, began, metric=False, note="changes both sides")
        began = time.perf_counter()
        shrinkage, values = self._best_shrinkage(shrunk, CLOSED)
        last = shrunk[0].covariance if len(shrunk) == 1 else PairCovariance(self.whole, seed)
        if self.closed_form:
            self.metrics[CLOSED] = last.metric(shrinkage, normalize=True)
        self._add(CLOSED, size, values, began, **closed)

    def _best_shrinkage(self, shrunk: "Sequence[_Shrunk]", kind: str) -> tuple[float, Float[Tensor, " n"]]:
        """The best by looks, climbing from the middle, and its values on the rankings that count."""

        @cache
        def looked(place: int) -> Tensor:
            return torch.cat([fold.looked(kind, SHRINKAGES[place]) for fold in shrunk])

        best, after = -1, len(SHRINKAGES) // 2
        while after != best:
            best = after
            near = range(max(best - 1, 0), min(best + 2, len(SHRINKAGES)))
            after = max(near, key=lambda place: looked(place).double().mean().item())
        shrinkage = SHRINKAGES[best]
        return shrinkage, self._counted(lambda number: shrunk[number].made(kind, shrinkage), looked(best))

    def _counted(self, make: Callable[[int], Similarity], looked: Tensor) -> Float[Tensor, " n"]:
        """Values on the rankings that count, which are often those of the looks."""
        if all(fold.full is fold.look for fold in self.folds):
            return looked
        return torch.cat([fold.full.values(make(number)) for number, fold in enumerate(self.folds)])

    def _candidate(self, candidate: Candidate, advance: Callable[[int], object]) -> None:
        """Train on every fold. The first candidate of a loss trains with and without noise, others as was better."""
        began, tried = time.perf_counter(), []
        lengths: tuple[float, ...] = NOISES if self.whole.itself else NOISES[::-1]
        if candidate.loss in self.noise:
            lengths = (self.noise[candidate.loss],)
        for length in lengths:
            tried.append(Trial(candidate, self.folds, self.schedule, length))
            try:
                tried[-1].train(advance, self.leader)
            except KeyboardInterrupt:
                self._take(max(tried, key=lambda trial: trial.value), began)
                raise
            if self.leader is None or tried[-1].value > self.leader.value:
                self.leader = tried[-1]
        best = max(tried, key=lambda trial: trial.value)
        self.noise[candidate.loss] = best.noise
        self._take(best, began)

    def _take(self, trial: Trial, began: float) -> None:
        """The row of a trained candidate, and its metric; none before its first look."""
        if trial.best is None:
            return
        candidate, final, best = trial.candidate, trial.runs[0], trial.best
        if len(trial.runs) == 1:
            values = self._counted(lambda _: final.metric(normalize=False), best.values)
        else:  # the folds found how long to train; what is taken learns from all queries
            values = best.values
            final = Run(candidate, self._whole_batches, None, self.schedule, trial.noise)
            for _ in final.train(lambda _: None, best.step):
                pass
        metric = final.metric(normalize=True)
        size = sum(parameter.numel() for parameter in metric.parameters())
        curve = tuple((look.step, look.seconds, look.mean) for look in trial.looks)
        note = f"behind: dropped at step {trial.looks[-1].step}" if trial.dropped else ""
        self._add(candidate.name, size, values, began, steps=best.step, curve=curve, note=note)
        self.metrics[candidate.name] = metric

    @cached_property
    def _whole_batches(self) -> Batches:
        return Batches(self.whole, self.schedule.batch_size, self.schedule.seed)

    def _add(self, name: str, parameters: int, values: Float[Tensor, " n"], began: float, **more: Any) -> None:
        self.rows.append(FitRow(name, parameters, *compare(values, self.cosine), time.perf_counter() - began, **more))

    def _choice(self) -> tuple[str, str]:
        """The best row that folds into the query and is beyond cosine, or cosine."""
        candidates = [row for row in self.rows if row.name in self.metrics]
        if not candidates:
            return COSINE, "Taken: cosine (a neutral metric); no candidate was measured."
        best = max(candidates, key=lambda row: (row.beyond, row.value, -row.parameters))
        if not best.beyond:
            gain = f"{best.gain:+.2f} ± {best.error:.2f}"
            reason = f"the best candidate, {best.name}, gains {gain}, not beyond twice the standard error of that gain."
            return COSINE, f"Taken: cosine (a neutral metric); {reason}"
        reason = f"the best on validation; it gains {best.gain:.2f} ± {best.error:.2f} over cosine."
        return best.name, f"Taken: {best.name}, {reason}"

    def _metric(self, name: str) -> GSSFMetric:
        return self.metrics[name] if name in self.metrics else self._neutral(normalize=True)

    def _neutral(self, *, normalize: bool) -> GSSFMetric:
        side = self.whole.queries
        return GSSFMetric(side.dim, terms=("diagonal",), normalize=normalize).to(side.device).eval()

    def _tested(self, test: Part) -> dict[str, float]:
        ranking, name = Ranking(test, self.measure), self._choice()[0]
        return {each: ranking.values(self._metric(each)).mean().item() for each in dict.fromkeys((COSINE, name))}


class _Shrunk:
    """C of one fold, and its look turned into the axes of C, where each λ costs little."""

    def __init__(self, fold: Fold, seed: int) -> None:
        self.covariance = PairCovariance(fold.batches.part, seed)
        turned = fold.look.turned(self.covariance.axes)
        self._look, self._turned = turned or fold.look, turned is not None

    def looked(self, kind: str, shrinkage: float) -> Float[Tensor, " n"]:
        """What the look says of one λ."""
        return self._look.values(self.made(kind, shrinkage, turned=self._turned))

    def made(self, kind: str, shrinkage: float, *, turned: bool = False) -> Similarity:
        """Whitening or the closed form."""
        if kind == WHITENED:
            return self.covariance.whitening(shrinkage, turned=turned)
        return self.covariance.metric(shrinkage, normalize=False, turned=turned)


def _middle_first(candidates: Sequence[Candidate]) -> list[Candidate]:
    """The candidate in the middle of each loss's first: what it finds out about noise serves the smaller and larger."""
    listed = {
        loss: [each for each in candidates if each.loss == loss] for loss in {each.loss: 0 for each in candidates}
    }
    middle = [same[len(same) // 2] for same in listed.values()]
    return [*middle, *(candidate for candidate in candidates if candidate not in middle)]
