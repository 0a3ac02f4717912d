"""Ranking measures: exact, chunked, in %; `metric=None` means cosine."""

from gssf_plug.evaluation.image_text import image_text_recall as image_text_recall
from gssf_plug.evaluation.instance import instance_recall as instance_recall
from gssf_plug.evaluation.reidentification import reid_ranking as reid_ranking

__all__ = ["image_text_recall", "instance_recall", "reid_ranking"]
