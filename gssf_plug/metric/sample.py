"""Where to begin in a large gallery: scores that k of its items are expected to reach, by a sample of them.

Nothing rests on it: where fewer reach them, which shows at the end (`Candidates.missed`), a query is searched again.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gssf_plug.metric.exact.fast_rows import given_rows
from gssf_plug.metric.exact.first_look import FirstLook, Part

__all__ = ["Sample"]

SAMPLED = 4096  # items of a gallery that is at least so many times as large
TIMES = 16
IN_A_ROW = 8  # of the sample: single rows of a file would cost as much to read


class Sample(NamedTuple):
    """Items from all over a gallery, and the rank that nearly always stands below the k-th best of these."""

    items: Int[Tensor, " items"]
    rank: int

    @classmethod
    def of(cls, parts: list[slice], k: int) -> "Sample | None":
        """From the parts of a gallery where k items are asked for; None where they are small."""
        size = sum(part.stop - part.start for part in parts)
        if size < TIMES * SAMPLED:
            return None
        step = IN_A_ROW * (size // SAMPLED)
        ends = [max(part.start, part.stop - IN_A_ROW + 1) for part in parts]  # a part may be too short
        first = torch.cat([torch.arange(part.start, end, step) for part, end in zip(parts, ends, strict=True)])
        items = (first[:, None] + torch.arange(IN_A_ROW)).flatten()
        expected = k * len(items) / size  # of the k best, and by chance some more
        return cls(items, math.ceil(expected + 4 * math.sqrt(expected) + 4))

    def least(
        self,
        first: FirstLook,
        features: Float[Tensor, "m dim"],
        normalize: bool,
        hidden: Callable[[Int[Tensor, " items"]], Bool[Tensor, "n items"] | None],
    ) -> Float[Tensor, " n"] | None:
        """Scores that k items are expected to reach, one for each query; None where an item is not finite.

        Args:
            first: the queries.
            features: the gallery.
            normalize: whether the metric normalises.
            hidden: gives the pairs that are left out.
        """
        sampled = features[self.items.to(features.device)].to(first.usual.rows.device)
        rows = given_rows(sampled, normalize)
        if not math.isfinite(rows.rest):
            return None
        return first.roughly(Part.of(rows), hidden(self.items)).at_least(self.rank, surely=False)
