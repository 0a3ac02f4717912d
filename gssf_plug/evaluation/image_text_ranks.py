"""Ranks of images and of captions by counting in tiles: each adds to the counts of its rows and of its columns.

What the fast product of a tile leaves open waits until some tiles are through, and is then looked at closer
(`gssf_plug.evaluation.scores`).
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gssf_plug.distributed import add_over_processes, share
from gssf_plug.evaluation.negatives import MANY_OPEN, MOST_AFTER_SHORT, MOST_PAIRS, WAITING_AT_MOST
from gssf_plug.evaluation.scores import ScoredPart, ScoredQueries, Scores
from gssf_plug.metric.exact.fast_scores import Open
from gssf_plug.metric.exact.reaching import places, places_at_least
from gssf_plug.metric.exact.threads import slices

__all__ = ["ImageTextRanks", "Ranks"]

LOOKED_AT_ONCE = 2_097_152  # scores: 4 MB in bfloat16


class Ranks(NamedTuple):
    """Ranks from 1 of every image that has captions and of every caption, and whether an item is level with it."""

    images: Int[Tensor, " n"]
    texts: Int[Tensor, " m"]
    images_tied: Bool[Tensor, " n"]
    texts_tied: Bool[Tensor, " m"]


class _Tile(NamedTuple):
    """Images × captions that are scored at once; `block` are the images whose queries are made together."""

    block: slice
    columns: slice
    rows: slice


class _OpenPairs(NamedTuple):
    """Pairs that fast scores leave open against the image's best caption, or against the caption's own image.

    `between` is what their canonical scores lie between, None where products of single pairs are to tell.
    """

    image: Int[Tensor, " pairs"]
    caption: Int[Tensor, " pairs"]
    against_best: Bool[Tensor, " pairs"]
    against_own: Bool[Tensor, " pairs"]
    between: Open | None


class ImageTextRanks:
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

    def count(self, images_at_once: int) -> Ranks:
        """The ranks, from tiles of so many images."""
        block_size = images_at_once * max(1, self.scores.rows_together // images_at_once)
        blocks = slices(len(self.captions), block_size)
        for rows in share(blocks, self.distributed):
            queries, mine = self.scores.of(rows), self._get_captions(rows)
            self.own[mine] = queries.close(self.owners[mine] - rows.start, mine)
            self.slack[rows] = queries.slack
        add_over_processes(self.own, self.distributed)
        add_over_processes(self.slack, self.distributed)
        self.best = torch.full_like(self.slack, float("-inf")).scatter_reduce_(0, self.owners, self.own, "amax")
        tiles = [
            _Tile(block, columns, slice(block.start + rows.start, block.start + rows.stop))
            for block in blocks
            for columns in self.scores.parts
            for rows in slices(block.stop - block.start, images_at_once)
        ]
        self._add(share(tiles, self.distributed))
        for counts in (*self.above, *self.tied):
            add_over_processes(counts, self.distributed)
        asked = self.captions > 0  # an image without a caption is no query
        return Ranks(self.above[0][asked] + 1, self.above[1] + 1, self.tied[0][asked] > 0, self.tied[1] > 0)

    def _get_captions(self, rows: slice) -> Int[Tensor, " some"]:
        first = int(self.ends[rows.start - 1]) if rows.start else 0
        return self.order[first : int(self.ends[rows.stop - 1])]

    def _add(self, tiles: Sequence[_Tile]) -> None:
        """Add tiles, those of one block and of the same captions one after the other."""
        for block, of_block in itertools.groupby(tiles, key=lambda tile: (tile.block.start, tile.block.stop)):
            queries = self.scores.of(slice(*block))
            for _, of_columns in itertools.groupby(of_block, key=lambda tile: tile.columns.start):
                together = list(of_columns)
                waiting: list[_OpenPairs] = []
                for tile in together:
                    waiting += self._tile(tile, queries)
                    if sum(len(one.image) for one in waiting) > WAITING_AT_MOST:
                        self._look_closer(tile, queries, waiting)
                        waiting = []
                self._look_closer(together[-1], queries, waiting)

    def _tile(self, tile: _Tile, queries: ScoredQueries) -> list[_OpenPairs]:
        """Count what is certain of a tile, and return what waits for a closer look."""
        pieces = slices(tile.rows.stop - tile.rows.start, LOOKED_AT_ONCE // (tile.columns.stop - tile.columns.start))
        if queries.wants_table:
            for piece in pieces:
                self._add_table(tile, slice(tile.rows.start + piece.start, tile.rows.start + piece.stop), queries)
            return []
        part, waiting = queries.part(tile.columns, _within(tile.block, tile.rows)), []
        bounds = self._bounds(part, tile.rows, tile.columns)
        for piece in pieces:
            images = slice(tile.rows.start + piece.start, tile.rows.start + piece.stop)
            begins = piece is pieces[0]
            many = MOST_AFTER_SHORT if begins and part.fast.dtype.itemsize == 2 else MANY_OPEN
            found = self._certain(images, tile.columns, part, piece, bounds, many)
            if found is None and queries.has_table:
                self._add_table(tile, images, queries)
                continue
            if found is None and begins and queries.look_closer():
                return self._tile(tile, queries)
            if found is None:
                most = MOST_PAIRS if part.can_be_finer else 0
                found = self._certain(images, tile.columns, part, piece, bounds, most)
            if found is not None:
                waiting.append(found)
                continue
            finest = queries.part(tile.columns, _within(tile.block, images), finest=True)
            bounds_there = self._bounds(finest, images, tile.columns)
            found = self._certain(images, tile.columns, finest, slice(0, len(finest.fast)), bounds_there, 0)
            assert found is not None
            self._look_closer(tile, queries, [found])
        return waiting

    def _bounds(self, part: ScoredPart, images: slice, columns: slice) -> tuple[Open, Open]:
        """Around the best score of each image, and around each caption's own, on the scale of fast scores."""
        best, slack = torch.where(self.captions[images] > 0, self.best[images], float("inf")), self.slack[images]
        own, own_slack = self.own[columns], self.slack.index_select(0, self.owners[columns])
        of_rows = part.around((best - slack)[:, None], (best + slack)[:, None])
        return of_rows, part.around_items(own - own_slack, own + own_slack)

    def _certain(
        self, images: slice, columns: slice, part: ScoredPart, piece: slice, bounds: tuple[Open, Open], most: int
    ) -> _OpenPairs | None:
        """Count what is certainly above, and return what is open; None, and nothing counted, where that is too much.

        Args:
            images: whose scores are looked at.
            columns: the captions of the part.
            part: scores; overwritten.
            piece: the rows of the part that are the images'.
            bounds: bounds of the part's rows and of its columns.
            most: one pair in so many may be open; 0 for all.
        """
        fast, of_rows = part.fast[piece], Open(*(bound[piece, 0] for bound in bounds[0]))
        mine = self._get_captions(images)
        mine = mine[(mine >= columns.start) & (mine < columns.stop)]
        fast[self.owners[mine] - images.start, mine - columns.start] = float("-inf")  # no positive meets itself
        at = places_at_least(fast, of_rows.low[:, None], bounds[1].low[None])
        values, image = fast.take(at), at.div(fast.shape[1], rounding_mode="floor")
        caption = at - image * fast.shape[1]
        sure, undecided = [], []
        for number, (low, high) in ((image, of_rows), (caption, bounds[1])):
            above = values > high.index_select(0, number)
            sure.append(torch.bincount(number.index_select(0, places(above)), minlength=len(low)))
            undecided.append((values >= low.index_select(0, number)).logical_and_(above.logical_not_()))
        kept = places(undecided[0] | undecided[1])
        if len(kept) * most > fast.numel():
            return None
        self.above[0][images] += sure[0]
        self.above[1][columns] += sure[1]
        image, caption = image.index_select(0, kept), caption.index_select(0, kept)
        between = part.between(image + piece.start, values.index_select(0, kept))
        sides = undecided[0].index_select(0, kept), undecided[1].index_select(0, kept)
        return _OpenPairs(image + images.start, caption + columns.start, *sides, between)

    def _add_table(self, tile: _Tile, images: slice, queries: ScoredQueries) -> None:
        """Count some images of a tile by canonical scores of all pairs."""
        columns, asked = tile.columns, torch.arange(images.start, images.stop, device=self.owners.device)
        table = queries.table(columns, _within(tile.block, images))
        self._settle(torch.cat([asked, self.owners[columns]]).unique())
        mine = self._get_captions(images)
        mine = mine[(mine >= columns.start) & (mine < columns.stop)]
        table[self.owners[mine] - images.start, mine - columns.start] = float("-inf")  # no positive meets itself
        best = torch.where(self.captions[images] > 0, self.best[images], float("inf"))[:, None]
        for side, (numbers, against) in enumerate(((images, best), (columns, self.own[columns]))):
            self.above[side][numbers] += (table > against).sum(1 - side)
            self.tied[side][numbers] += (table == against).sum(1 - side)

    def _look_closer(self, tile: _Tile, queries: ScoredQueries, found: list[_OpenPairs]) -> None:
        """Count open pairs of a tile's block by closer bounds, and what these leave open by float64 scores and ties."""
        if not sum(len(one.image) for one in found):
            return
        image, caption, *sides = (torch.cat(parts) for parts in zip(*(one[:4] for one in found), strict=True))
        bounds = [one.between for one in found if one.between is not None]
        if len(bounds) == len(found):
            between = Open(*(torch.cat(parts) for parts in zip(*bounds, strict=True)))
        else:
            between = queries.pairs(tile.columns, image - tile.block.start, caption - tile.columns.start)
        still = [self._narrowed(side, asked, image, caption, between) for side, asked in enumerate(sides)]
        kept = places(still[0] | still[1])
        image, caption = image[kept], caption[kept]
        scores = queries.close(image - tile.block.start, caption)
        for side, asked in enumerate(still):
            asks = asked[kept]
            self._resolve(side, image[asks], caption[asks], scores[asks])

    def _narrowed(
        self, side: int, asked: Bool[Tensor, " pairs"], image: Tensor, caption: Tensor, between: Open
    ) -> Bool[Tensor, " pairs"]:
        """Count what closer bounds decide of one direction's open pairs, and say which are still open.

        Args:
            side: 0 compares with the image's best, 1 with the caption's own score.
            asked: whether a pair is open in this direction.
            image: image of each pair.
            caption: caption of each pair.
            between: bounds between which the score of each pair lies.
        """
        number, asks = (image, image) if side == 0 else (caption, self.owners[caption])
        against, slack = (self.best, self.own)[side][number], self.slack[asks]
        above = asked & (between.low > against + slack)
        self.above[side] += torch.bincount(number[above], minlength=len(self.above[side]))
        return asked & ~above & (between.high >= against - slack)

    def _resolve(self, side: int, image: Tensor, caption: Tensor, scores: Float[Tensor, " pairs"]) -> None:
        """Count open pairs of one direction by float64 scores: against the image's best, or the caption's own."""
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


def _within(block: slice, rows: slice) -> slice:
    """Rows counted from the first of a block."""
    return slice(rows.start - block.start, rows.stop - block.start)
