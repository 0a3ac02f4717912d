"""Ranking measures: exact, chunked, in %; `metric=None` means cosine."""

from gssf_plug.evaluation.image_text import image_text_recall as image_text_recall

__all__ = ["image_text_recall"]
