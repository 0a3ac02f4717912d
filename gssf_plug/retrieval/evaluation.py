"""From the embedding of a whole data set to measures: what a trainer calls at each evaluation.

An evaluation is any function `(embedding, metric) -> {"name": number}`, called on every process with the embedding of
all rows in the order of the data set.

    image_text_measures, partial(image_text_measures, folds=5)     images and captions
    alignment_measures(model)                                      likewise, of a model that compares fragments
    reid_measures(ids, cameras), instance_measures(labels)         one tower; the embedding's ids are row numbers

The last two look rows up by number, so that rows that could not be read do no harm: let the collate function give the
row number as label (`Numbered` adds it to any data set).

A whole data set through a model: features and ids of all rows, in order, on every process.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from jaxtyping import Bool, Int
from torch import Tensor
from tqdm import tqdm

from gssf_plug.distributed import gather_detached, process_count
from gssf_plug.errors import ArgumentError
from gssf_plug.evaluation import image_text_recall, image_text_recall_of_scores, instance_recall, reid_ranking
from gssf_plug.metric.metric import GSSFMetric
from gssf_plug.retrieval.data.batches import BatchReader, load_batches
from gssf_plug.retrieval.data.images import Rows
from gssf_plug.retrieval.models.embedding import Embedding, gather_embedding, join_embeddings, vectors
from gssf_plug.retrieval.models.two_tower import RetrievalModel
from gssf_plug.retrieval.training.sharding import WholeWeights

__all__ = [
    "Evaluation",
    "Numbered",
    "alignment_measures",
    "embed_rows",
    "first_of_each",
    "image_text_measures",
    "instance_measures",
    "reid_measures",
]


@torch.no_grad()
def embed_rows(
    weights: WholeWeights, reader: BatchReader, accelerator: Accelerator, *, workers: int = 0, progress: bool = False
) -> tuple[Embedding, list[str]]:
    """Encode every batch of `reader` in evaluation mode.

    Args:
        weights: whose model is left in the mode it was in.
        reader: reads this process's part of each batch.
        accelerator: device and mixed precision.
        workers: processes that read ahead.
        progress: show a bar.

    Returns:
        The embedding of all rows that could be read, in their order, and a text for each row of this process's part
        that could not.
    """
    model, parts, unreadable = weights.model, [], []
    training = model.training
    model.eval()
    batches = load_batches(reader, workers=workers)
    for read in tqdm(
        batches, total=len(reader), disable=not progress, leave=False, delay=3, unit="batch", desc="encoding"
    ):
        unreadable += read.unreadable
        with accelerator.autocast():
            own = weights.encode(send_to_device(read.batch, accelerator.device))
        parts.append(gather_embedding(own))
    model.train(training)
    return join_embeddings(parts), unreadable


Evaluation = Callable[[Embedding, GSSFMetric | None], Mapping[str, float]]


def image_text_measures(
    embedding: Embedding, metric: GSSFMetric | None, *, folds: int | None = None
) -> dict[str, float]:
    """`image_text_recall` of an embedding: each text belongs to the image of its id.

    Where rows are (image, caption) pairs an image comes several times; its first row counts.

    Args:
        embedding: of all rows.
        metric: None means cosine.
        folds: as in `image_text_recall`; 5 on COCO's 5,000 images is "COCO 1K".

    Raises:
        ArgumentError: a text whose id no image has; fragments, which are for `alignment_measures`.
    """
    first, owners = _owners(embedding)
    images, texts = vectors("queries", embedding.queries)[first], vectors("gallery", embedding.gallery)
    return image_text_recall(images, texts, owners, metric=metric, folds=folds, distributed=process_count() > 1)


def alignment_measures(model: RetrievalModel, *, folds: int | None = None) -> Evaluation:
    """An evaluation that ranks by `model.score`, each process scoring its share of the images.

    Args:
        model: such as `LocalAlignment`; its metrics are used, the evaluation's `metric` is not.
        folds: as in `image_text_recall`.
    """

    @torch.no_grad()
    def evaluation(embedding: Embedding, metric: GSSFMetric | None) -> dict[str, float]:
        first, owners = _owners(embedding)
        shares = first.tensor_split(process_count())
        rank = torch.distributed.get_rank() if len(shares) > 1 else 0
        scores = model.score(embedding.queries[shares[rank]], embedding.gallery)
        return image_text_recall_of_scores(gather_detached(scores), owners, folds=folds)

    return evaluation


def reid_measures(
    ids: Int[Tensor, " rows"],
    cameras: Int[Tensor, " rows"],
    *,
    asks: Bool[Tensor, " rows"] | None = None,
    ranks: Sequence[int] = (1, 5, 10),
) -> Evaluation:
    """An evaluation by `reid_ranking`, whose embedding has row numbers as ids.

    Args:
        ids: identity of each row.
        cameras: camera of each row.
        asks: rows that are queries, the others being the gallery; None (default): every row is both.
        ranks: places k of R@k.
    """

    def evaluation(embedding: Embedding, metric: GSSFMetric | None) -> dict[str, float]:
        features, rows = vectors("queries", embedding.queries), embedding.query_ids.cpu()
        asking = slice(None) if asks is None else asks[rows]
        found = slice(None) if asks is None else ~asks[rows]
        columns = (features, ids[rows], cameras[rows])
        sides = [column[side] for column in columns for side in (asking, found)]
        return reid_ranking(*sides, metric=metric, ranks=ranks, distributed=process_count() > 1)

    return evaluation


def instance_measures(
    labels: Int[Tensor, " rows"], *, asks: Bool[Tensor, " rows"] | None = None, ks: Sequence[int] = (1, 2, 4, 8)
) -> Evaluation:
    """An evaluation by `instance_recall`, whose embedding has row numbers as ids.

    Args:
        labels: class of each row.
        asks: rows that are queries, the others being the gallery, as in In-Shop; None (default): every row asks all
            others.
        ks: places k of R@k.
    """

    def evaluation(embedding: Embedding, metric: GSSFMetric | None) -> dict[str, float]:
        features, rows = vectors("queries", embedding.queries), embedding.query_ids.cpu()
        own, shared = labels[rows], process_count() > 1
        if asks is None:
            return instance_recall(features, own, metric=metric, ks=ks, distributed=shared)
        asking = asks[rows]
        queries, gallery = (features[asking], own[asking]), (features[~asking], own[~asking])
        return instance_recall(
            *queries, metric=metric, ks=ks, gallery=gallery[0], gallery_labels=gallery[1], distributed=shared
        )

    return evaluation


class Numbered:
    """Rows of a data set with their number in the column "row".

    Args:
        rows: map-style data set of mappings.
    """

    def __init__(self, rows: Rows) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {**self.rows[index], "row": index}


def first_of_each(ids: Int[Tensor, " n"]) -> Int[Tensor, " k"]:
    """Position of the first appearance of every id, in the order of appearance."""
    _, group = ids.unique(return_inverse=True)
    positions = torch.arange(len(ids), device=ids.device)
    first = torch.full((int(group.max()) + 1,), len(ids), device=ids.device)
    return first.scatter_reduce(0, group, positions, "amin").sort().values


def _owners(embedding: Embedding) -> tuple[Int[Tensor, " images"], Int[Tensor, " m"]]:
    """First row of every image, and for every text the place of its image among them."""
    first = first_of_each(embedding.query_ids)
    ids, order = embedding.query_ids[first].sort()
    owner = torch.searchsorted(ids, embedding.gallery_ids).clamp_max(len(ids) - 1)
    strangers = ids[owner] != embedding.gallery_ids
    if bool(strangers.any()):
        stranger = int(embedding.gallery_ids[strangers][0])
        raise ArgumentError("text_ids", "be ids of images", stranger, "Drop texts without an image.")
    return first, order[owner]
