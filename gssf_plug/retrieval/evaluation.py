"""From the embedding of a whole data set to measures: what a trainer calls at each evaluation.

An evaluation is any function `(embedding, metric) -> {"name": number}`, called on every process with the embedding of
all rows in the order of the data set.

    image_text_measures, partial(image_text_measures, folds=5)     images and captions
    alignment_measures(model)                                      likewise, of a model that compares fragments
    document_measures()                                            queries against a corpus, see `eval_gallery`
    reid_measures(ids, cameras), instance_measures(labels)         one tower; the embedding's ids are row numbers

The last two look rows up by number, so that rows that could not be read do no harm: let the collate function give the
row number as label (`WithRowNumbers` adds it to any data set).

A whole data set through a model: features and ids of all rows, in order, on every process.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from jaxtyping import Bool, Int
from torch import Tensor
from tqdm import tqdm

from gssf_plug.arguments import checked_count, described
from gssf_plug.distributed import gather_detached, process_count
from gssf_plug.errors import ArgumentError
from gssf_plug.evaluation import (
    document_ranking,
    image_text_recall,
    image_text_recall_of_scores,
    instance_recall,
    reid_ranking,
)
from gssf_plug.evaluation.ranking import checked_ranks
from gssf_plug.metric import GSSFMetric
from gssf_plug.retrieval.data.batches import BatchReader, load_batches
from gssf_plug.retrieval.data.feeds import check_map_style
from gssf_plug.retrieval.data.images import Rows
from gssf_plug.retrieval.models.embedding import Embedding, gather_embedding, join_embeddings, vectors
from gssf_plug.retrieval.models.two_tower import RetrievalModel
from gssf_plug.retrieval.options import check_embedding, check_relevant, checked_choice, checked_column
from gssf_plug.retrieval.training.sharding import WholeWeights

__all__ = [
    "Evaluation",
    "Numbered",
    "WithRowNumbers",
    "alignment_measures",
    "checked_measures",
    "document_measures",
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
        weights: weights of the model, which is left in the mode that it was in.
        reader: reader of this process's part of each batch.
        accelerator: accelerator that knows device and mixed precision.
        workers: number of processes that read ahead; 0 reads in this one.
        progress: whether a progress bar is shown.

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
        embedding: embedding of all rows.
        metric: metric that ranks; None means cosine.
        folds: number of galleries that the images are cut into, as in `image_text_recall`; 5 on COCO's 5,000 images is
            "COCO 1K".

    Raises:
        ArgumentError: no image has the id of a text, or the embedding holds fragments, which are for
            `alignment_measures`.
    """
    check_embedding(embedding)
    first, owners = _owners(embedding)
    images, texts = vectors("queries", embedding.queries)[first], vectors("gallery", embedding.gallery)
    return image_text_recall(images, texts, owners, metric=metric, folds=folds, distributed=process_count() > 1)


def alignment_measures(model: RetrievalModel, *, folds: int | None = None) -> Evaluation:
    """An evaluation that ranks by `model.score`, each process scoring its share of the images.

    Args:
        model: model that scores fragments, such as `LocalAlignment`; its metrics are used, the evaluation's `metric` is
            not.
        folds: number of galleries, as in `image_text_recall`.
    """
    if not isinstance(model, RetrievalModel):
        remedy = "Give the model that is trained, such as LocalAlignment."
        raise ArgumentError("model", "be a RetrievalModel", described(model), remedy)
    if folds is not None:
        folds = checked_count("folds", folds, "None ranks all images at once.")

    @torch.no_grad()
    def evaluation(embedding: Embedding, metric: GSSFMetric | None) -> dict[str, float]:
        check_embedding(embedding)
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
    is_query: Bool[Tensor, " rows"] | None = None,
    ranks: Sequence[int] = (1, 5, 10),
    asks: Bool[Tensor, " rows"] | None = None,
) -> Evaluation:
    """An evaluation by `reid_ranking`, whose embedding has row numbers as ids.

    Args:
        ids: identity of each row.
        cameras: camera of each row.
        is_query: True for rows that are queries, the others being the gallery; None (default): every row is both.
        ranks: places k of "R@k".
        asks: the former name of `is_query`.

    Raises:
        ArgumentError: no query's identity is seen by another camera in the gallery, as where all rows have one camera.
            This is said when the evaluation is made, before anything is trained.
    """
    ids = checked_column("ids", ids)
    cameras = checked_column("cameras", cameras, len(ids))
    is_query = checked_choice(_renamed(is_query, asks), len(ids))
    ranks = checked_ranks("ranks", ranks)
    _check_cameras(ids, cameras, is_query)

    def evaluation(embedding: Embedding, metric: GSSFMetric | None) -> dict[str, float]:
        features, rows = vectors("queries", embedding.queries), embedding.query_ids.cpu()
        asking = slice(None) if is_query is None else is_query[rows]
        found = slice(None) if is_query is None else ~is_query[rows]
        columns = (features, ids[rows], cameras[rows])
        sides = [column[side] for column in columns for side in (asking, found)]  # queries, gallery, column by column
        return reid_ranking(*sides, metric=metric, ranks=ranks, distributed=process_count() > 1)

    return evaluation


def _check_cameras(ids: Tensor, cameras: Tensor, is_query: Tensor | None) -> None:
    """Raise `ArgumentError` where no query has a positive by another camera."""
    rows = list(zip(ids.tolist(), cameras.tolist(), strict=True))
    asking = [True] * len(rows) if is_query is None else is_query.tolist()
    gallery = [is_query is None or not asks for asks in asking]
    seen: dict[int, set[int]] = {}
    for (identity, camera), found in zip(rows, gallery, strict=True):
        if found:
            seen.setdefault(identity, set()).add(camera)
    if not any(
        asks and seen.get(identity, set()) - {camera} for (identity, camera), asks in zip(rows, asking, strict=True)
    ):
        count = len({camera for _, camera in rows})
        got = "only one camera" if count == 1 else f"{count} cameras, none of which shares an identity with another"
        rule = "show the identity of a query by another camera, since images of the query's own camera are not ranked"
        remedy = "Give each row the camera that took it; without cameras measure with instance_measures."
        raise ArgumentError("cameras", rule, got, remedy)


def instance_measures(
    labels: Int[Tensor, " rows"],
    *,
    is_query: Bool[Tensor, " rows"] | None = None,
    ks: Sequence[int] = (1, 2, 4, 8),
    asks: Bool[Tensor, " rows"] | None = None,
) -> Evaluation:
    """An evaluation by `instance_recall`, whose embedding has row numbers as ids.

    Args:
        labels: class of each row.
        is_query: True for rows that are queries, the others being the gallery, as in In-Shop; None (default): every
            row asks all others.
        ks: places k of "R@k".
        asks: the former name of `is_query`.
    """
    labels = checked_column("labels", labels)
    is_query = checked_choice(_renamed(is_query, asks), len(labels))
    ks = checked_ranks("ks", ks)

    def evaluation(embedding: Embedding, metric: GSSFMetric | None) -> dict[str, float]:
        features, rows = vectors("queries", embedding.queries), embedding.query_ids.cpu()
        own, shared = labels[rows], process_count() > 1
        if is_query is None:
            return instance_recall(features, own, metric=metric, ks=ks, distributed=shared)
        asking = is_query[rows]
        queries, gallery = (features[asking], own[asking]), (features[~asking], own[~asking])
        return instance_recall(
            *queries, metric=metric, ks=ks, gallery=gallery[0], gallery_labels=gallery[1], distributed=shared
        )

    return evaluation


def document_measures(relevant: Int[Tensor, "pairs 2"] | None = None, *, ks: Sequence[int] = (1, 10)) -> Evaluation:
    """An evaluation by `document_ranking`: every query against the whole gallery.

    Args:
        relevant: (P, 2) pairs (id of a query, id of a document); pairs of ids that are not in the data are passed over.
            None (default): a document is relevant where its id is the query's.
        ks: places k of accuracy@k, precision@k and recall@k.

    Raises:
        ArgumentError: the pairs are no two columns of whole numbers.
    """
    ks = checked_ranks("ks", ks)
    check_relevant(relevant)

    def evaluation(embedding: Embedding, metric: GSSFMetric | None) -> dict[str, float]:
        queries, documents = vectors("queries", embedding.queries), vectors("gallery", embedding.gallery)
        asked, held = embedding.query_ids, embedding.gallery_ids
        if relevant is None:
            pairs = _equal_ids(asked, held)
        else:
            first, second = relevant.to(asked.device).unbind(1)
            # a pair of ids becomes pairs of rows by way of its own number, shared by the rows of either id
            left, right = _equal_ids(asked, first), _equal_ids(second, held)
            via = _equal_ids(left[:, 1], right[:, 0])
            pairs = torch.stack([left[via[:, 0], 0], right[via[:, 1], 1]], dim=1)
        return document_ranking(queries, documents, pairs, metric, ks, distributed=process_count() > 1)

    return evaluation


def _equal_ids(ones: Int[Tensor, " n"], others: Int[Tensor, " m"]) -> Int[Tensor, "pairs 2"]:
    """Rows (i, j) with ones[i] == others[j], without an N×M comparison."""
    ones = ones.contiguous()
    ordered, place = others.sort(stable=True)
    start, stop = torch.searchsorted(ordered, ones), torch.searchsorted(ordered, ones, right=True)
    counts = stop - start
    row = torch.repeat_interleave(torch.arange(len(ones), device=ones.device), counts)
    within = torch.arange(len(row), device=ones.device) - (counts.cumsum(0) - counts)[row]
    return torch.stack([row, place[start[row] + within]], dim=1)


def checked_measures(given: Any) -> dict[str, float]:
    """What an evaluation gave, as numbers; tensors and arrays of one number are taken.

    Raises:
        ArgumentError: the evaluation gives no mapping, or a value that is no number.
    """
    remedy = 'Return a dict such as {"mAP": 41.2}; of a tensor of one number take .item().'
    if not isinstance(given, Mapping):
        raise ArgumentError("evaluation", "give a mapping from names to numbers", type(given).__name__, remedy)
    measures: dict[str, float] = {}
    for name, value in given.items():
        try:
            measures[str(name)] = float(value)
        except (TypeError, ValueError, RuntimeError) as error:
            got = f"{type(value).__name__} of shape {tuple(value.shape)}" if hasattr(value, "shape") else repr(value)
            raise ArgumentError("evaluation", f"give a number as '{name}'", got, remedy) from error
    return measures


def _renamed(is_query: Tensor | None, asks: Tensor | None) -> Tensor | None:
    if asks is None:
        return is_query
    warnings.warn("`asks` is now called `is_query`", DeprecationWarning, stacklevel=3)
    return asks


class WithRowNumbers:
    """Rows of a data set with their number in the column "row".

    Args:
        rows: map-style data set of mappings.
    """

    def __init__(self, rows: Rows) -> None:
        check_map_style("rows", rows, optional=False)
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self.rows[index]
        if not isinstance(row, Mapping):
            rule, remedy = "have rows that are mappings from columns to values", "Such as a datasets.Dataset."
            raise ArgumentError("rows", rule, described(row), remedy)
        return {**row, "row": index}


Numbered = WithRowNumbers  # its name before


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
