"""From vectors and pairs to a metric that is ready to serve, in one call.

Cosine stands first in the table, whitened cosine beside it, and if no candidate beats cosine on validation beyond its
own spread the neutral metric comes back.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from gssf_plug.arguments import LARGEST, WHOLE, checked_count, checked_flag
from gssf_plug.errors import ArgumentError
from gssf_plug.evaluation.options import Rows
from gssf_plug.metric.arrays import checked_device
from gssf_plug.metric.options import Constraint
from gssf_plug.retrieval.fitting.candidates import Loss, make_candidates
from gssf_plug.retrieval.fitting.comparison import Comparison
from gssf_plug.retrieval.fitting.measures import checked_measure
from gssf_plug.retrieval.fitting.report import FitResult
from gssf_plug.retrieval.fitting.splits import Part, Triple, read_part, split_queries
from gssf_plug.retrieval.fitting.training import Schedule

__all__ = ["fit_metric"]


def fit_metric(
    queries: Float[Tensor | np.ndarray, "n dim"] | Rows,
    documents: Float[Tensor | np.ndarray, "m dim"] | Rows,
    pairs: Any,
    *,
    ignored: Any = None,
    validation: float | Triple = 0.2,
    test: Triple | None = None,
    measure: str = "mAP",
    structures: Literal["auto"] | Sequence[Mapping[str, Any]] = "auto",
    loss: Loss = None,
    constraint: Constraint | Literal["auto"] | None = "auto",
    patience: int = 2,
    max_epochs: int | None = None,
    batch_size: int = 256,
    seed: int = 0,
    progress: bool = True,
    device: str | torch.device | None = None,
) -> FitResult:
    """Fit a metric to features that stay as they are: every structure is tried, and validation decides.

    Args:
        queries: N×D features, numpy, torch or lists, any float dtype, memory-mapped or not.
        documents: M×D features of the corpus. Equal rows to `queries` mean one list of items: then an item is never
            compared with itself, and linked items are kept together by the split.
        pairs: which documents answer which query, as `document_ranking` reads it: (P, 2) whole numbers, as an array or
            as tuples (query, document); a boolean or sparse matrix N×M; or a list of document numbers per query.
        ignored: pairs of that form that are neither right nor wrong; default none.
        validation: share of the queries to measure on, default 0.2, among all documents; fold by fold where that is
            under 100 queries. Or a set of its own: (queries, documents, pairs), and `ignored` as a fourth.
        test: another such set, measured once, with cosine and with the metric that was taken.
        measure: what decides, a key of `document_ranking`; default "mAP".
        structures: "auto" (default), diagonal, blocks of about 16, 64 and 128, dense; or a list of `GSSFMetric` options
        loss: None (default) tries "softmax" (InfoNCE) and "hinge" with each; or one of them, or a module to copy.
        constraint: constraint of the metric, as in `GSSFMetric`; "auto" (default) is "symmetric" for one list of items
            and None elsewhere.
        patience: looks at validation without a gain, default 2, before a candidate stops. One that is behind the best
            so far at the same step is dropped: at its first two looks if by five standard errors of the difference,
            later if by one.
        max_epochs: passes over the pairs, at most; None (default) takes 20, or 1,000 batches where those are more.
        batch_size: pairs in a batch; default 256. All pairs known among its items count as positives.
        seed: seed of split, batches and noise; default 0. The same seed gives the same result.
        progress: show one progress bar.
        device: where the work is done; None (default) takes that of the queries.

    Returns:
        `metric`, `table`, `plot()`; `print` it. After Ctrl-C the best so far.

    Raises:
        ArgumentError: features that are not finite or of another width, pairs outside the rows, an invalid option.

    Example:
        >>> result = fit_metric(torch.eye(8).roll(1, 1), torch.eye(8), [[i] for i in range(8)], progress=False)
        >>> result.metric.dim
        8
    """
    where, schedule = checked_device("device", device), _schedule(batch_size, max_epochs, patience, seed)
    checked_flag("progress", progress)
    whole = read_part(("queries", "documents", "pairs", "ignored"), (queries, documents, pairs, ignored), where, None)
    splits = _splits(whole, validation, schedule.seed, where)
    tested = None if test is None else _given("test", test, where, whole.queries.dim)
    candidates = make_candidates(structures, loss, _bound(constraint, whole), whole.queries.dim)
    closed_form = isinstance(structures, str)  # "auto": it is dense, and may be taken
    return Comparison(whole, splits, checked_measure(measure), schedule, progress, closed_form).run(candidates, tested)


def _schedule(batch_size: int, max_epochs: int | None, patience: int, seed: int) -> Schedule:
    epochs = None if max_epochs is None else checked_count("max_epochs", max_epochs, "Use the default.", rule=WHOLE)
    size = checked_count("batch_size", batch_size, "Use the default.", rule=WHOLE)
    looks = checked_count("patience", patience, "Use the default.", rule=WHOLE)
    rule, most = "be a whole number of 64 bits", 2**63 - 1
    seed = checked_count("seed", seed, "Use the default, 0.", rule=rule, least=-most, most=most)
    return Schedule(min(size, LARGEST), epochs, looks, seed)


def _bound(constraint: Constraint | Literal["auto"] | None, whole: Part) -> Constraint | None:
    """What "auto" means here: one list of items is compared with itself, so its scores are symmetric."""
    if isinstance(constraint, str) and constraint == "auto":
        return "symmetric" if whole.itself else None
    return constraint


def _splits(whole: Part, validation: float | Triple, seed: int, device: torch.device | None) -> list[tuple[Part, Part]]:
    if isinstance(validation, tuple | list):
        return [(whole, _given("validation", validation, device, whole.queries.dim))]
    return split_queries(whole, validation, seed)


def _given(name: str, given: Triple, device: torch.device | None, dim: int) -> Part:
    if not isinstance(given, tuple | list) or len(given) not in (3, 4):
        got = f"{len(given)} values" if isinstance(given, tuple | list) else type(given).__name__
        raise ArgumentError(
            name, "be (queries, documents, pairs) or (queries, documents, pairs, ignored)", got, "Give all."
        )
    names = (f"{name}[0]", f"{name}[1]", f"{name}[2]", f"{name}[3]")
    return read_part(names, tuple(given), device, dim)
