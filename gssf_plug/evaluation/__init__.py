"""Ranking measures: exact, chunked, in %; `metric=None` means cosine.

The same measures as `evaluate` modules, loaded by path: `evaluate.load(str(MODULES / "reid_ranking"))`.
"""

from pathlib import Path

from gssf_plug.evaluation.documents import document_ranking
from gssf_plug.evaluation.image_text import image_text_recall, image_text_recall_of_scores
from gssf_plug.evaluation.instance import instance_recall
from gssf_plug.evaluation.reidentification import reid_ranking
from gssf_plug.evaluation.reranking import KReciprocal

MODULES = Path(__file__).parent / "modules"

__all__ = [
    "MODULES",
    "KReciprocal",
    "document_ranking",
    "image_text_recall",
    "image_text_recall_of_scores",
    "instance_recall",
    "reid_ranking",
]
