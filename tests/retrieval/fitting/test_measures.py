"""The measures a fit can be chosen by: known by name, one value for each query."""

import pytest
import torch

from gssf_plug.errors import ArgumentError
from gssf_plug.evaluation import document_ranking
from gssf_plug.evaluation.ranking import Ranked
from gssf_plug.retrieval.fitting.measures import checked_measure, measured

MEASURES = ["mAP", "map@100", "mrr@10", "ndcg@10", "accuracy@1", "precision@10", "recall@3"]


@pytest.mark.parametrize("measure", MEASURES)
def test_a_key_of_document_ranking_is_known(measure: str) -> None:
    assert checked_measure(measure) == measure
    place = int(measure.partition("@")[2] or 1)
    assert measure in document_ranking(torch.eye(2), torch.eye(2), [[0], [1]], ks=(place,))


@pytest.mark.bad_input
@pytest.mark.parametrize("measure", ["map", "recall@0", "recall@", "recall@k", "accuracy", "mrr@5", "", 3, None])
def test_another_word_is_refused_with_what_is_near(measure: object) -> None:
    with pytest.raises(ArgumentError, match="`measure` must be a key of document_ranking: mAP, map@100"):
        checked_measure(measure)
    with pytest.raises(ArgumentError, match="Did you mean 'map@100'"):
        checked_measure("map@10")


def test_each_query_by_hand() -> None:
    """Relevant documents at the places 1 and 3, at 2, and at 4."""
    ranks, positives = torch.tensor([[1, 3], [2, 99], [4, 99]]), torch.tensor([2, 1, 1])
    ranked = Ranked(ranks, positives, torch.ones(3, 2, dtype=torch.float64))
    expected = {
        "accuracy@1": [1.0, 0.0, 0.0], "recall@3": [1.0, 1.0, 0.0], "precision@10": [0.2, 0.1, 0.1],
        "mAP": [(1 + 2 / 3) / 2, 1 / 2, 1 / 4], "mrr@10": [1.0, 1 / 2, 1 / 4],
    }  # fmt: skip
    for measure, values in expected.items():
        assert measured(ranked, measure).tolist() == pytest.approx(values), measure
