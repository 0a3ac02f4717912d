"""Folds of noisy channels, one small candidate, and a schedule."""

from retrieval.fitting.noisy_channels import noisy_channels

from gssf_plug.retrieval.fitting.batches import Batches
from gssf_plug.retrieval.fitting.candidates import Candidate, make_candidates
from gssf_plug.retrieval.fitting.splits import read_part, split_queries
from gssf_plug.retrieval.fitting.training import Schedule
from gssf_plug.retrieval.fitting.trials import Fold
from gssf_plug.retrieval.fitting.validation import make_look

NAMES = ("queries", "documents", "pairs", "ignored")
SCHEDULE = Schedule(batch_size=256, max_epochs=None, patience=2, seed=0)


def folds_of(share: float = 0.2) -> list[Fold]:
    whole = read_part(NAMES, (*noisy_channels(), None), None, None)
    splits = split_queries(whole, share, 0)
    return [Fold(Batches(train, 256, 0), look := make_look(held, "mAP", 0), look) for train, held in splits]


def candidate(loss: str = "softmax") -> Candidate:
    return make_candidates([{"terms": ("diagonal",)}], loss, None, 24)[0]
