"""From the embedding of a whole data set to measures: what a trainer calls at each evaluation.

An evaluation is any function `(embedding, metric) -> {"name": number}`, called on every process with the embedding of
all rows in the order of the data set. Pass your own for several galleries, cameras or folds.
"""

from collections.abc import Callable, Mapping

import torch
from jaxtyping import Int
from torch import Tensor

from gssf_plug.distributed import process_count
from gssf_plug.errors import ArgumentError
from gssf_plug.evaluation import image_text_recall
from gssf_plug.metric.metric import GSSFMetric
from gssf_plug.retrieval.models import Embedding

__all__ = ["Evaluation", "first_of_each", "image_text_measures"]

Evaluation = Callable[[Embedding, GSSFMetric | None], Mapping[str, float]]


def image_text_measures(embedding: Embedding, metric: GSSFMetric | None) -> dict[str, float]:
    """`image_text_recall` of an embedding: each text belongs to the image of its id.

    Where rows are (image, caption) pairs an image comes several times; its first row counts.

    Raises:
        ArgumentError: a text whose id no image has.
    """
    first = first_of_each(embedding.query_ids)
    ids, order = embedding.query_ids[first].sort()
    owner = torch.searchsorted(ids, embedding.gallery_ids).clamp_max(len(ids) - 1)
    strangers = ids[owner] != embedding.gallery_ids
    if bool(strangers.any()):
        stranger = int(embedding.gallery_ids[strangers][0])
        raise ArgumentError("text_ids", "be ids of images", stranger, "Drop texts without an image.")
    images = embedding.queries[first]
    shared = process_count() > 1
    return image_text_recall(images, embedding.gallery, order[owner], metric=metric, distributed=shared)


def first_of_each(ids: Int[Tensor, " n"]) -> Int[Tensor, " k"]:
    """Position of the first appearance of every id, in the order of appearance."""
    _, group = ids.unique(return_inverse=True)
    positions = torch.arange(len(ids), device=ids.device)
    first = torch.full((int(group.max()) + 1,), len(ids), device=ids.device)
    return first.scatter_reduce(0, group, positions, "amin").sort().values
