"""What came of a fit: the metric, a table that starts with cosine, and why this row was taken."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from jaxtyping import Float
from torch import Tensor

from gssf_plug.figures import make_figure
from gssf_plug.metric import GSSFMetric

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["BEYOND", "FitResult", "FitRow", "compare"]

BEYOND = 2.0  # standard errors by which a gain must exceed zero


@dataclass(frozen=True)
class FitRow:
    """One similarity on the validation queries.

    Args:
        name: structure and loss.
        parameters: number of values that were learned, or computed from the pairs.
        value: the measure, in %: mean over validation queries.
        gain: mean difference from cosine, query by query.
        error: standard error of `gain`; infinite for a single query.
        seconds: wall time, looks at validation included.
        steps: batches until the best look; 0 where nothing was trained.
        metric: True where it folds into the query; False for whitening, which changes both sides.
        curve: (step, seconds, measure) of each look.
        note: a remark for the table.
    """

    name: str
    parameters: int
    value: float
    gain: float
    error: float
    seconds: float
    steps: int = 0
    metric: bool = True
    curve: tuple[tuple[int, float, float], ...] = ()
    note: str = ""

    @property
    def beyond(self) -> bool:
        """Whether the gain over cosine is more than twice its standard error."""
        return self.gain > BEYOND * self.error


def compare(values: Float[Tensor, " n"], cosine: Float[Tensor, " n"]) -> tuple[float, float, float]:
    """Mean, mean gain over cosine and its standard error over the queries."""
    gains = (values - cosine).double()
    error = (gains.std() / len(gains) ** 0.5).item() if len(gains) > 1 else float("inf")
    return values.double().mean().item(), gains.mean().item(), error


@dataclass(frozen=True)
class FitResult:
    """What `fit_metric` returns; `print(result)` shows the table and the reason.

    Args:
        metric: the metric that was taken; neutral, which is cosine, where nothing was beyond cosine.
        metrics: every row of the table that is a metric, by name.
        table: cosine first, then whitening by pairs, the closed form and every candidate.
        taken: name of the row that was taken.
        reason: why, in a sentence.
        measure: measure that the table shows, a key of `document_ranking`.
        queries: number of validation queries.
        documents: number of documents that these were ranked among.
        folds: 1 where these queries were held back; more where all queries were measured, each by a metric that was
            fitted without its fold.
        test: the measure of cosine and of the metric on the test set, where one was given.
        interrupted: True where Ctrl-C ended the fit before every candidate was trained.
    """

    metric: GSSFMetric
    metrics: Mapping[str, GSSFMetric]
    table: tuple[FitRow, ...]
    taken: str
    reason: str
    measure: str
    queries: int
    documents: int
    folds: int = 1
    test: dict[str, float] | None = None
    interrupted: bool = False

    def with_test(self, test: dict[str, float] | None, interrupted: bool) -> "FitResult":
        """The same result, with the measures on a test set and whether the fit was interrupted."""
        return replace(self, test=test, interrupted=interrupted)

    def __str__(self) -> str:
        lines = [
            f"| similarity | parameters | {self.measure} | over cosine | seconds | |",
            "|---|---:|---:|---:|---:|---|",
        ]
        for row in self.table:
            gain = "" if row.name == "cosine" else f"{row.gain:+.2f} ± {row.error:.2f}"
            mark = "taken" if row.name == self.taken else row.note
            cells = (row.name, f"{row.parameters:,}", f"{row.value:.2f}", gain, f"{row.seconds:.1f}", mark)
            lines.append("| " + " | ".join(cells) + " |")
        said = [f"{self.measure} in %, of {self.queries:,} validation queries among {self.documents:,} documents"]
        said.append(f", in {self.folds} folds, each measured by a metric fitted without it" if self.folds > 1 else "")
        said.append("; ± is the standard error of the gain over these queries.\n" + self.reason)
        if self.interrupted:
            said.append("\nInterrupted: candidates after the last row were not tried.")
        if self.test is not None:
            scores = ", ".join(f"{name} {value:.2f}" for name, value in self.test.items())
            said.append(f"\nTest queries, {self.measure}: {scores}.")
        return "\n".join(lines) + "\n\n" + "".join(said)

    def plot(self) -> "Figure":
        """Left: the measure on validation while each candidate trained. Right: where each ended, by parameters.

        Raises:
            ModuleNotFoundError: matplotlib is not installed.
        """
        figure = make_figure(11, 4.2)
        left, right = figure.subplots(1, 2, sharey=True)
        cosine = self.table[0]
        for row in self.table[1:]:
            style = {"linewidth": 2.4} if row.name == self.taken else {"linewidth": 1.0}
            if row.curve:
                left.plot(
                    [step for step, _, _ in row.curve], [value for _, _, value in row.curve], label=row.name, **style
                )
            mark = "*" if row.name == self.taken else "o" if row.metric else "x"
            error = row.error if row.error < float("inf") else None
            right.errorbar(
                max(row.parameters, 1), row.value, yerr=error, fmt=mark, markersize=5, capsize=2, label=row.name
            )
        for axis in (left, right):
            axis.axhline(cosine.value, color="grey", linestyle="--", linewidth=1, label="cosine")
            axis.grid(alpha=0.3)
            axis.legend(fontsize=7)
        left.set(xlabel="step", ylabel=f"{self.measure} of validation", title="while training")
        right.set(xlabel="parameters", xscale="log", title=f"at its best look; taken: {self.taken}")
        return figure
