r"""Image–text retrieval: recall at 1, 5, 10 in both directions, rSum and median ranks, by counting.

    rank(image) = 1 + #{captions that score higher than the best of its own captions}
    rank(text)  = 1 + #{images that score higher than its own image}

No row is sorted: the score matrix is walked in tiles, and each tile adds to the counts of its rows and its columns;
what its fast product leaves open is looked at closer (`gssf_plug.evaluation.scores`). All captions of an image are
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
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gssf_plug.distributed import add_over_processes, share
from gssf_plug.errors import ArgumentError
from gssf_plug.evaluation.options import Rows, checked_features, checked_labels, checked_metric, promoted
from gssf_plug.evaluation.ranking import COUNTED_AT_ONCE, MOST_PAIRS, OPEN_AT_ONCE
from gssf_plug.evaluation.scores import FeatureScores, GivenScores, ScoredPart, ScoredQueries, Scores
from gssf_plug.metric import GSSFMetric
from gssf_plug.metric.exact.fast_rows import fast_dtype
from gssf_plug.metric.exact.reaching import at_least, places
from gssf_plug.metric.options import checked_count

__all__ = ["image_text_recall", "image_text_recall_of_scores", "tied_too_often"]

KS = (1, 5, 10)
IMAGES_AT_ONCE, TEXTS_AT_ONCE = 512, 25_600
TIED = ("i2t_tied", "t2i_tied")
TIED_AT_MOST = 1.0  # % of the queries; copies among real captions stay below


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


@torch.no_grad()
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
        counted = _Gallery(scores, own, images.stop - images.start, distributed).count(sides.images_at_once)
        measured.append(_measures(*counted))
    found = {name: sum(fold[name] for fold in measured) / len(measured) for name in measured[0]}
    if tied_too_often(found):
        shares = ", ".join(f"{found[name]:.1f} % ({name[:3]})" for name in TIED)
        warnings.warn(
            f"The positive is tied with another item for {shares} of the queries, and wins every tie: these measures "
            "say little. Features that hardly differ (a collapsed encoder) or copies among the items make ties.",
            stacklevel=3,
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


class _Gallery:
    """One gallery of images and captions: scores of the positives, and what is counted above and level with them.

    Args:
        scores: images × captions.
        owners: image of each caption.
        images: how many.
        distributed: share the work among the processes.
    """

    def __init__(self, scores: Scores, owners: Int[Tensor, " m"], images: int, distributed: bool) -> None:
        self.scores, self.owners, self.distributed = scores, owners, distributed
        self.order = owners.argsort(stable=True)
        self.captions = torch.bincount(owners, minlength=images)
        self.ends = self.captions.cumsum(0)  # of each image's captions in `order`
        self.own = torch.zeros(len(owners), dtype=torch.float64, device=owners.device)
        self.slack = torch.zeros(images, dtype=torch.float64, device=owners.device)
        self.settled = torch.zeros(images, dtype=torch.bool, device=owners.device)
        # counts of each image's best caption (row 0) and of each caption (row 1), and which were met by an equal score
        self.above = [torch.zeros(count, dtype=torch.long, device=owners.device) for count in (images, len(owners))]
        self.tied = [torch.zeros_like(count) for count in self.above]

    def count(self, images_at_once: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Ranks from 1 of every image that has captions and of every caption; and of each whether it is tied."""
        chunks = _slices(len(self.captions), images_at_once)
        for rows in share(chunks, self.distributed):
            queries, mine = self.scores.of(rows), self._get_captions(rows)
            self.own[mine] = queries.close(self.owners[mine] - rows.start, mine)
            self.slack[rows] = queries.slack
        add_over_processes(self.own, self.distributed)
        add_over_processes(self.slack, self.distributed)
        self.best = torch.full_like(self.slack, float("-inf")).scatter_reduce_(0, self.owners, self.own, "amax")
        tiles = [(rows, columns) for rows in chunks for columns in self.scores.parts]
        last: tuple[slice, ScoredQueries] | None = None
        for rows, columns in share(tiles, self.distributed):
            if last is None or last[0] != rows:
                last = rows, self.scores.of(rows)
            self._add(rows, last[1], last[1].part(columns))
        for counts in (*self.above, *self.tied):
            add_over_processes(counts, self.distributed)
        asked = self.captions > 0  # an image without a caption is no query
        return self.above[0][asked] + 1, self.above[1] + 1, self.tied[0][asked] > 0, self.tied[1] > 0

    def _get_captions(self, rows: slice) -> Int[Tensor, " some"]:
        first = int(self.ends[rows.start - 1]) if rows.start else 0
        return self.order[first : int(self.ends[rows.stop - 1])]

    def _add(self, rows: slice, queries: ScoredQueries, part: ScoredPart) -> None:
        """Add one tile."""
        at_once = max(1, COUNTED_AT_ONCE // part.fast.shape[1])
        for piece in _slices(len(part.fast), at_once):
            images, used, first = slice(rows.start + piece.start, rows.start + piece.stop), part, rows.start
            open_pairs = self._certain(images, part, piece)
            if open_pairs is None:
                finer = part.finer(piece)
                assert finer is not None
                used, first = finer, images.start
                open_pairs = self._certain(images, finer, slice(0, piece.stop - piece.start), True)
                assert open_pairs is not None
            for side, found in enumerate(open_pairs):
                pairs = self._narrowed(side, used, first, *found)
                for image, caption in zip(*(one.split(OPEN_AT_ONCE) for one in pairs), strict=True):
                    self._resolve(side, queries, rows.start, image, caption)

    def _certain(
        self, images: slice, part: ScoredPart, piece: slice, finest: bool = False
    ) -> list[tuple[Tensor, Tensor]] | None:
        """Count what is certainly above, and return per direction the (image, caption) that are open.

        None, and nothing counted, where these are too many and there is a finer product.
        """
        fast, columns = part.fast[piece], part.columns
        mine = self._get_captions(images)
        mine = mine[(mine >= columns.start) & (mine < columns.stop)]
        fast[self.owners[mine] - images.start, mine - columns.start] = float("-inf")  # no positive meets itself
        best = torch.where(self.captions[images] > 0, self.best[images], float("inf"))
        bounds = part.around_rows(piece, best - self.slack[images], best + self.slack[images])
        own, slack = self.own[columns], self.slack[self.owners[columns]]
        item_bounds = part.around_items(own - slack, own + slack)
        at = places(at_least(fast, bounds.low[:, None]).logical_or_(at_least(fast, item_bounds.low[None])))
        values, image = fast.flatten().index_select(0, at), at.div(fast.shape[1], rounding_mode="floor")
        caption = at - image * fast.shape[1]
        sure, found = [], []
        for number, (low, high) in ((image, bounds), (caption, item_bounds)):
            above = values > high[number]
            sure.append(torch.bincount(number[above], minlength=len(low)))
            undecided = places((values >= low[number]) & ~above)
            found.append((image[undecided] + images.start, caption[undecided] + columns.start))
        if not finest and sum(len(one) for one, _ in found) * MOST_PAIRS > fast.numel() and part.can_be_finer:
            return None
        self.above[0][images] += sure[0]
        self.above[1][columns] += sure[1]
        return found

    def _narrowed(
        self, side: int, part: ScoredPart, first: int, image: Tensor, caption: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Count what closer bounds decide of one direction's open pairs, and return the others.

        Args:
            side: 0 compares with the image's best, 1 with the caption's own score.
            part: whose pairs they are.
            first: the image in its first row.
            image: of each pair.
            caption: of each pair.
        """
        low, high = part.pairs(image - first, caption - part.columns.start)
        number, asks = (image, image) if side == 0 else (caption, self.owners[caption])
        against, slack = (self.best, self.own)[side][number], self.slack[asks]
        above = low > against + slack
        self.above[side] += torch.bincount(number[above], minlength=len(self.above[side]))
        still = places(~above & (high >= against - slack))
        return image[still], caption[still]

    def _resolve(self, side: int, queries: ScoredQueries, start: int, image: Tensor, caption: Tensor) -> None:
        """Count open pairs of one direction by a closer look: against the image's best, or the caption's own."""
        scores = queries.close(image - start, caption)
        number, asks = (image, image) if side == 0 else (caption, self.owners[caption])
        near = (scores - (self.best, self.own)[side][number]).abs() <= 2 * (self.slack[image] + self.slack[asks])
        if bool(near.any()):
            self._settle(asks[near].unique())
            scores[near] = self.scores.canonical(image[near], caption[near])
        against = (self.best, self.own)[side][number]
        self.above[side] += torch.bincount(number[scores > against], minlength=len(self.above[side]))
        self.tied[side] += torch.bincount(number[near & (scores == against)], minlength=len(self.above[side]))

    def _settle(self, images: Int[Tensor, " some"]) -> None:
        """Give the captions of some images their canonical scores."""
        new = images[~self.settled[images]]
        if not len(new):
            return
        self.settled[new] = True
        mine = self.settled.new_zeros(len(self.settled)).index_fill(0, new, True)[self.owners].nonzero()[:, 0]
        self.own[mine] = self.scores.canonical(self.owners[mine], mine)
        self.best[new] = float("-inf")
        self.best.scatter_reduce_(0, self.owners[mine], self.own[mine], "amax")


def _measures(
    image_ranks: Int[Tensor, " n"],
    text_ranks: Int[Tensor, " m"],
    image_tied: Bool[Tensor, " n"],
    text_tied: Bool[Tensor, " m"],
) -> dict[str, float]:
    recall = {
        f"{direction}_R@{k}": 100 * (ranks <= k).double().mean().item()
        for direction, ranks in (("i2t", image_ranks), ("t2i", text_ranks))
        for k in KS
    }
    medians = {"i2t_median_rank": _median(image_ranks), "t2i_median_rank": _median(text_ranks)}
    tied = {name: 100 * one.double().mean().item() for name, one in zip(TIED, (image_tied, text_tied), strict=True)}
    return {**recall, "rsum": sum(recall.values()), **medians, **tied}


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
    if folds is not None:
        rule = f"be None or between 1 and the {images} images"
        checked_count("folds", folds, "COCO 1K uses 5.", rule=rule, most=images)
    for name, size in (("image_chunk", image_chunk), ("text_chunk", text_chunk)):
        checked_count(name, size, "Use the default, or less where memory is short.")
