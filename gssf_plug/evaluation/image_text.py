r"""Image–text retrieval: recall at 1, 5, 10 in both directions, rSum and median ranks, by counting.

    rank(image) = 1 + #{captions that score higher than the best of its own captions}
    rank(text)  = 1 + #{images that score higher than its own image}

No row is sorted: ranks are counted (`gssf_plug.evaluation.image_text_ranks`). All captions of an image are
positives, however many it has. A tie is won by the positive, as in a strict comparison, and counted: "i2t_tied" and
"t2i_tied" say for how many queries the positive that counts is level with another item.

Source: protocol of VSE++ and its successors (Flickr30K 1K, COCO 5K; COCO 1K is the mean over five folds of 1,000
images). Public code prints rSum, mean i2t and mean t2i of the folds under exchanged names; here every value is the mean
of the same value over the folds.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from gssf_plug.arguments import checked_count
from gssf_plug.errors import ArgumentError
from gssf_plug.evaluation.image_text_ranks import ImageTextRanks, Ranks
from gssf_plug.evaluation.options import Rows, checked_features, checked_labels, checked_metric, promoted
from gssf_plug.evaluation.scores import FeatureScores, GivenScores, Scores
from gssf_plug.metric import GSSFMetric
from gssf_plug.metric.exact.fast_rows import fast_dtype
from gssf_plug.metric.exact.plain_tensors import on_plain_tensors

__all__ = ["image_text_recall", "image_text_recall_of_scores", "tied_too_often"]

KS = (1, 5, 10)
IMAGES_AT_ONCE, TEXTS_AT_ONCE = 512, 25_600
TIED = ("i2t_tied", "t2i_tied")
TIED_AT_MOST = 1.0  # % of the queries; copies among real captions stay below


@on_plain_tensors
def image_text_recall(
    image_features: Float[Tensor | np.ndarray, "n dim"] | Rows,
    text_features: Float[Tensor | np.ndarray, "m dim"] | Rows,
    image_of_text: Int[Tensor | np.ndarray, " m"] | Sequence[int],
    *,
    metric: GSSFMetric | None = None,
    folds: int | None = None,
    image_chunk: int = IMAGES_AT_ONCE,
    text_chunk: int = TEXTS_AT_ONCE,
    distributed: bool = False,
) -> dict[str, float]:
    """Recall in % and median ranks of image ↔ text retrieval, exactly.

    Args:
        image_features: N×D, the metric's query side in both directions, as in `TwoTower`.
        text_features: M×D captions, any number per image, in any order.
        image_of_text: for each caption the row of its image, 0 … N-1. An image without a caption is no query of i2t
            but stays in the gallery of t2i.
        metric: the similarity; None (default) means cosine.
        folds: None (default): all images in one gallery. F: the images are cut, in order, into F galleries of
            equal size (up to one), and every measure is averaged over them; `folds=5` of COCO's 5,000 is "COCO 1K".
        image_chunk: images in a tile, default 512.
        text_chunk: captions in a tile, default 25,600. A tile takes image_chunk · text_chunk scores of 2 or 4 bytes,
            26 or 52 MB.
        distributed: share the tiles among the processes, all of which call with the same arguments.

    Returns:
        "i2t_R@1", "i2t_R@5", "i2t_R@10", "t2i_R@1", "t2i_R@5", "t2i_R@10" and their sum "rsum", in %;
        "i2t_median_rank", "t2i_median_rank", from 1; "i2t_tied", "t2i_tied", the share of queries in % whose positive
        is level with another item. Above 1 % the measures say little, and a warning gives the reason.

    Raises:
        ArgumentError: no images or captions, widths that differ, NaN in features or metric, an `image_of_text` of
            another length or outside the images, a fold without captions.

    Example:
        >>> import torch
        >>> images, texts = torch.eye(4), torch.eye(4).repeat_interleave(2, dim=0)
        >>> image_text_recall(images, texts, torch.arange(4).repeat_interleave(2))["rsum"]
        600.0
    """
    image_features = checked_features("image_features", image_features, metric)
    text_features = checked_features("text_features", text_features, metric, image_features.shape[1])
    owners = _checked_owners(image_of_text, text_features, image_features, ("text_features", "image_features"))
    _check_sizes(len(image_features), folds, image_chunk, text_chunk)
    metric, images, texts = checked_metric(metric, image_features), image_features, text_features
    dtype = fast_dtype(images.device)

    def scores(gallery: slice, captions: slice | Tensor) -> FeatureScores:
        return FeatureScores(metric, images[gallery], texts[captions], dtype, text_chunk)

    return _recall(_Sides(scores, len(images), image_chunk), owners, folds, distributed)


@on_plain_tensors
def image_text_recall_of_scores(
    scores: Float[Tensor, "n m"], image_of_text: Int[Tensor, " m"], *, folds: int | None = None
) -> dict[str, float]:
    """The measures of `image_text_recall` from a score matrix: for models that compare more than one vector per item.

    Means of several models' matrices rank as well (SCAN's ensembles of both directions).

    Args:
        scores: N images × M captions, larger is better.
        image_of_text: for each caption the row of its image, 0 … N-1.
        folds: number of galleries that the images are cut into, as in `image_text_recall`.

    Raises:
        ArgumentError: scores that are no finite matrix, an `image_of_text` of another length or outside the images.

    Example:
        >>> import torch
        >>> scores = torch.eye(4).repeat_interleave(2, dim=1)
        >>> image_text_recall_of_scores(scores, torch.arange(4).repeat_interleave(2))["rsum"]
        600.0
    """
    scores = checked_features("scores", scores, None)
    owners = _checked_owners(image_of_text, scores.T, scores, ("scores.T", "scores"))
    _check_sizes(len(scores), folds, IMAGES_AT_ONCE, TEXTS_AT_ONCE)
    matrix = promoted(scores)
    sides = _Sides(lambda images, texts: GivenScores(matrix[images][:, texts]), len(matrix), IMAGES_AT_ONCE)
    return _recall(sides, owners, folds, False)


def _recall(sides: "_Sides", owners: Int[Tensor, " m"], folds: int | None, distributed: bool) -> dict[str, float]:
    """The mean over the folds of their measures."""
    measured = []
    for number, images in enumerate(_fold_slices(sides.images, folds or 1)):
        captions = ((owners >= images.start) & (owners < images.stop)).nonzero()[:, 0]
        if not len(captions):
            raise ArgumentError(
                "folds", "leave captions in every fold", f"none in fold {number}", "Use fewer folds, or None."
            )
        scores = sides.scores(images, captions if folds else slice(None))
        own = owners[captions] - images.start if folds else owners
        ranks = ImageTextRanks(scores, own, images.stop - images.start, distributed).count(sides.images_at_once)
        measured.append(_measures(ranks))
    found = {name: sum(fold[name] for fold in measured) / len(measured) for name in measured[0]}
    if tied_too_often(found):
        shares = ", ".join(f"{found[name]:.1f} % ({name[:3]})" for name in TIED)
        warnings.warn(
            f"The positive is tied with another item for {shares} of the queries, and wins every tie: these measures "
            "say little. Features that hardly differ (a collapsed encoder) or copies among the items make ties.",
            stacklevel=4,
        )
    return found


def tied_too_often(measures: Mapping[str, float]) -> bool:
    """Whether more than `TIED_AT_MOST` % of a direction's queries have a tied positive: no result to choose by."""
    return any(measures.get(name, 0.0) > TIED_AT_MOST for name in TIED)


class _Sides(NamedTuple):
    """Where scores come from: `scores(images, captions)`, the number of images, and how many are scored at once."""

    scores: Callable[[slice, slice | Tensor], Scores]
    images: int
    images_at_once: int


def _measures(counted: Ranks) -> dict[str, float]:
    recall = {
        f"{direction}_R@{k}": 100 * (ranks <= k).double().mean().item()
        for direction, ranks in (("i2t", counted.images), ("t2i", counted.texts))
        for k in KS
    }
    medians = {"i2t_median_rank": _median(counted.images), "t2i_median_rank": _median(counted.texts)}
    both = zip(TIED, (counted.images_tied, counted.texts_tied), strict=True)
    tied = {name: 100 * one.double().mean().item() for name, one in both}
    return {**recall, "rsum": sum(recall.values()), **medians, **tied}


def _median(ranks: Int[Tensor, " n"]) -> float:
    """The median, rounded down between two middle ranks as in the usual protocol."""
    ranks = ranks.sort().values
    return float((ranks[(len(ranks) - 1) // 2] + ranks[len(ranks) // 2]) // 2)


def _fold_slices(count: int, folds: int) -> list[slice]:
    return [slice(count * fold // folds, count * (fold + 1) // folds) for fold in range(folds)]


def _checked_owners(image_of_text: Any, texts: Tensor, images: Tensor, names: tuple[str, str]) -> Int[Tensor, " m"]:
    owners = checked_labels("image_of_text", image_of_text, texts, names[0])
    outside = ((owners < 0) | (owners >= len(images))).nonzero()
    if len(outside):
        caption = int(outside[0])
        got = f"{int(owners[caption])} for caption {caption}"
        raise ArgumentError("image_of_text", f"name rows of `{names[1]}`, 0 … {len(images) - 1}", got, "Renumber it.")
    return owners


def _check_sizes(images: int, folds: int | None, image_chunk: int, text_chunk: int) -> None:
    if folds is not None:
        rule = f"be None or between 1 and the {images} images"
        checked_count("folds", folds, "COCO 1K uses 5.", rule=rule, most=images)
    for name, size in (("image_chunk", image_chunk), ("text_chunk", text_chunk)):
        checked_count(name, size, "Use the default, or less where memory is short.")
