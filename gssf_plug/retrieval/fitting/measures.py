"""The measures a fit can be chosen by: the keys of `document_ranking`, one value per query."""

import re

from jaxtyping import Float
from torch import Tensor

from gssf_plug.errors import ArgumentError, near_matches
from gssf_plug.evaluation.documents import ranked_measures
from gssf_plug.evaluation.ranking import Ranked

__all__ = ["checked_measure", "measured"]

WHOLE = ("mAP", "map@100", "mrr@10", "ndcg@10")
AT_PLACE = re.compile(r"(?:accuracy|precision|recall)@([1-9]\d*)")


def checked_measure(measure: str) -> str:
    """A key of `document_ranking`.

    Raises:
        ArgumentError: another word.
    """
    if not isinstance(measure, str) or (measure not in WHOLE and not AT_PLACE.fullmatch(measure)):
        known = (*WHOLE, "accuracy@1", "precision@10", "recall@10")
        rule = "be a key of document_ranking: mAP, map@100, mrr@10, ndcg@10, or accuracy@k, precision@k, recall@k"
        raise ArgumentError("measure", rule, repr(measure), near_matches(str(measure), known))
    return measure


def measured(ranked: Ranked, measure: str) -> Float[Tensor, " queries"]:
    """The measure of each query, between 0 and 1."""
    place = AT_PLACE.fullmatch(measure)
    return ranked_measures(ranked, (int(place[1]),) if place else ())[measure]
