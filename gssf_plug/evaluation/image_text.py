r"""Image–text retrieval: recall at 1, 5, 10 in both directions, rSum and median ranks, by counting.

    rank(image) = 1 + #{captions that score higher than the best of its own captions}
    rank(text)  = 1 + #{images that score higher than its own image}

No row is sorted: the score matrix is walked in tiles, and each tile adds to the counts of its rows and its columns. An
item is only ever compared with a score from the very same tile product: two products of one pair can differ in the last
bit, the same tile scored twice cannot. A tie is won by the positive, as in a strict comparison; all captions of an
image are positives, however many it has.

Source: protocol of VSE++ and its successors (Flickr30K 1K, COCO 5K; COCO 1K is the mean over five folds of 1,000
images). Public code prints rSum, mean i2t and mean t2i of the folds under exchanged names; here every value is the mean
of the same value over the folds.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from gssf_plug.distributed import add_over_processes, share
from gssf_plug.errors import ArgumentError
from gssf_plug.evaluation.options import (
    Rows,
    checked_features,
    checked_labels,
    checked_metric,
    finite_scores,
    promoted,
)
from gssf_plug.metric.metric import GSSFMetric

__all__ = ["image_text_recall", "image_text_recall_of_scores"]

KS = (1, 5, 10)
IMAGES_AT_ONCE, TEXTS_AT_ONCE = 512, 2560
KEPT_SCORES = 16_777_216  # of tiles with positives, which are needed twice: 64 MB in float32
Tile = tuple[slice, slice]


@torch.no_grad()
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
        text_chunk: captions in a tile, default 2,560. A tile takes image_chunk · text_chunk · 4 bytes, 5 MB;
            up to 64 MB of them are held.
        distributed: share the tiles among the processes, all of which call with the same arguments.

    Returns:
        "i2t_R@1", "i2t_R@5", "i2t_R@10", "t2i_R@1", "t2i_R@5", "t2i_R@10" and their sum "rsum", in %;
        "i2t_median_rank", "t2i_median_rank", from 1.

    Raises:
        ArgumentError: no images or captions, widths that differ, NaN in features or metric, an `image_of_text` of
            another length or outside the images, a fold without captions.

    Example:
        >>> images, texts = torch.eye(4), torch.eye(4).repeat_interleave(2, dim=0)
        >>> image_text_recall(images, texts, torch.arange(4).repeat_interleave(2))["rsum"]
        600.0
    """
    image_features = checked_features("image_features", image_features, metric)
    text_features = checked_features("text_features", text_features, metric, image_features.shape[1])
    image_of_text = _checked_owners(image_of_text, text_features, image_features, ("text_features", "image_features"))
    _check_sizes(len(image_features), folds, image_chunk, text_chunk)
    sides = _FeaturePairs(checked_metric(metric, image_features), image_features, text_features)
    return _recall(sides, image_of_text, folds, image_chunk, text_chunk, distributed)


@torch.no_grad()
def image_text_recall_of_scores(
    scores: Float[Tensor, "n m"], image_of_text: Int[Tensor, " m"], *, folds: int | None = None
) -> dict[str, float]:
    """The measures of `image_text_recall` from a score matrix: for models that compare more than one vector per item.

    Means of several models' matrices rank as well (SCAN's ensembles of both directions).

    Args:
        scores: N images × M captions, larger is better.
        image_of_text: for each caption the row of its image, 0 … N-1.
        folds: as in `image_text_recall`.

    Raises:
        ArgumentError: scores that are no finite matrix, an `image_of_text` of another length or outside the images.

    Example:
        >>> scores = torch.eye(4).repeat_interleave(2, dim=1)
        >>> image_text_recall_of_scores(scores, torch.arange(4).repeat_interleave(2))["rsum"]
        600.0
    """
    scores = checked_features("scores", scores, None)
    image_of_text = _checked_owners(image_of_text, scores.T, scores, ("scores.T", "scores"))
    _check_sizes(len(scores), folds, IMAGES_AT_ONCE, TEXTS_AT_ONCE)
    return _recall(_ScoredPairs(scores), image_of_text, folds, IMAGES_AT_ONCE, TEXTS_AT_ONCE, False)


def _recall(
    sides: "_FeaturePairs | _ScoredPairs",
    image_of_text: Int[Tensor, " m"],
    folds: int | None,
    image_chunk: int,
    text_chunk: int,
    distributed: bool,
) -> dict[str, float]:
    """The mean over the folds of their measures."""
    order = image_of_text.argsort(stable=True)
    owners = image_of_text[order]
    measured = []
    for number, images in enumerate(_fold_slices(sides.images, folds or 1)):
        bounds = torch.searchsorted(owners, torch.tensor([images.start, images.stop], device=owners.device)).tolist()
        own = slice(*bounds)
        if bounds[0] == bounds[1]:
            raise ArgumentError(
                "folds", "leave captions in every fold", f"none in fold {number}", "Use fewer folds, or None."
            )
        pairs = _Pairs(sides, images, order[own], owners[own] - images.start)
        measured.append(_measures(*_ranks(pairs, image_chunk, text_chunk, distributed)))
    return {name: sum(fold[name] for fold in measured) / len(measured) for name in measured[0]}


class _FeaturePairs:
    """Scores of features under a metric."""

    def __init__(self, metric: GSSFMetric, images: Tensor, texts: Tensor) -> None:
        self.metric, self.features, self.texts = metric, images, texts
        self.images = len(images)
        self.dtype = promoted(images[:1], texts).dtype
        self._prepared: tuple[Tensor, Tensor] | None = None  # the captions of the last tile, normalised

    def scores(self, images: slice, captions: Int[Tensor, " tile"]) -> Float[Tensor, "n tile"]:
        if self._prepared is None or self._prepared[0] is not captions:
            self._prepared = captions, self.metric.gallery(promoted(self.texts[captions], self.features))
        return finite_scores(self.metric.fold(promoted(self.features[images], self.texts)) @ self._prepared[1].T)


class _ScoredPairs:
    """Scores that are known."""

    def __init__(self, scores: Tensor) -> None:
        self.matrix, self.images = scores, len(scores)
        self.dtype = torch.promote_types(scores.dtype, torch.float32)

    def scores(self, images: slice, captions: Int[Tensor, " tile"]) -> Float[Tensor, "n tile"]:
        return promoted(self.matrix[images][:, captions])


class _Pairs:
    """One gallery of images and its captions sorted by image; scores of a tile on demand, to the bit the same."""

    def __init__(self, sides: _FeaturePairs | _ScoredPairs, images: slice, order: Tensor, owners: Tensor) -> None:
        self.sides, self.gallery = sides, images
        self.images = images.stop - images.start
        self.order, self.owners = order, owners
        self._captions: tuple[slice, Tensor] | None = None  # of the last tile

    def scores(self, tile: Tile) -> Float[Tensor, "n m"]:
        images, captions = tile
        if self._captions is None or self._captions[0] != captions:
            self._captions = captions, self.order[captions]
        first = self.gallery.start
        return self.sides.scores(slice(first + images.start, first + images.stop), self._captions[1])

    def tiles(self, image_chunk: int, text_chunk: int) -> list[Tile]:
        return [
            (images, captions)
            for captions in _slices(len(self.owners), text_chunk)
            for images in _slices(self.images, image_chunk)
        ]

    def holds_positives(self, tile: Tile) -> bool:
        images, captions = tile
        first, last = self.owners[captions.start], self.owners[captions.stop - 1]
        return bool((first < images.stop) & (last >= images.start))


def _ranks(
    pairs: _Pairs, image_chunk: int, text_chunk: int, distributed: bool
) -> tuple[Int[Tensor, " queries"], Int[Tensor, " m"]]:
    """Ranks from 1 of every image that has captions, and of every caption."""
    tiles = pairs.tiles(image_chunk, text_chunk)
    positives = [number for number, tile in enumerate(tiles) if pairs.holds_positives(tile)]
    own, known = _positive_scores(pairs, tiles, share(positives, distributed))
    add_over_processes(own, distributed)
    best = torch.full((pairs.images,), float("-inf"), dtype=own.dtype, device=own.device)
    best.scatter_reduce_(0, pairs.owners, own, "amax")
    above_image = torch.zeros(pairs.images, dtype=torch.long, device=own.device)
    above_text = torch.zeros(len(own), dtype=torch.long, device=own.device)
    for number in share(range(len(tiles)), distributed):
        images, captions = tiles[number]
        scores = known.pop(number) if number in known else pairs.scores(tiles[number])
        above_image[images] += torch.count_nonzero(scores > best[images, None], dim=1)
        above_text[captions] += torch.count_nonzero(scores > own[captions], dim=0)
    add_over_processes(above_image, distributed)
    add_over_processes(above_text, distributed)
    return above_image[best > float("-inf")] + 1, above_text + 1


def _positive_scores(
    pairs: _Pairs, tiles: list[Tile], numbers: Sequence[int]
) -> tuple[Float[Tensor, " m"], dict[int, Tensor]]:
    """Score of every caption with its own image, from the tiles `numbers`, and some of these tiles' scores.

    Captions of other tiles are left at zero. Tiles are kept up to `KEPT_SCORES` and scored again beyond it.
    """
    own = torch.zeros(len(pairs.owners), dtype=pairs.sides.dtype, device=pairs.owners.device)
    known: dict[int, Tensor] = {}
    for number in numbers:
        images, captions = tiles[number]
        scores = pairs.scores(tiles[number])
        rows = pairs.owners[captions] - images.start
        here = ((rows >= 0) & (rows < images.stop - images.start)).nonzero()[:, 0]
        own[captions.start + here] = scores[rows[here], here]
        if sum(kept.numel() for kept in known.values()) + scores.numel() <= KEPT_SCORES:
            known[number] = scores
    return own, known


def _measures(image_ranks: Int[Tensor, " n"], text_ranks: Int[Tensor, " m"]) -> dict[str, float]:
    recall = {
        f"{direction}_R@{k}": 100 * (ranks <= k).double().mean().item()
        for direction, ranks in (("i2t", image_ranks), ("t2i", text_ranks))
        for k in KS
    }
    medians = {"i2t_median_rank": _median(image_ranks), "t2i_median_rank": _median(text_ranks)}
    return {**recall, "rsum": sum(recall.values()), **medians}


def _median(ranks: Int[Tensor, " n"]) -> float:
    """The median, rounded down between two middle ranks as in the usual protocol."""
    ranks = ranks.sort().values
    return float((ranks[(len(ranks) - 1) // 2] + ranks[len(ranks) // 2]) // 2)


def _slices(count: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


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
    if folds is not None and not 1 <= folds <= images:
        raise ArgumentError("folds", f"be None or between 1 and the {images} images", folds, "COCO 1K uses 5.")
    for name, size in (("image_chunk", image_chunk), ("text_chunk", text_chunk)):
        if size < 1:
            raise ArgumentError(name, "be at least 1", size, "Use the default, or less where memory is short.")
