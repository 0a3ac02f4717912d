"""The features of one side: numpy or torch, any float dtype, memory-mapped or not; rows come out normalised in float32.

A side of up to 256 MB in float32 is normalised once and kept. A larger one is read where it lies: only the rows of a
batch, or of one chunk of a ranking, are ever held.
"""

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gssf_plug.evaluation.options import checked_features
from gssf_plug.metric import normalize_rows

__all__ = ["Side", "read_side"]

KEPT_NUMBERS = 67_108_864  # of a side that is normalised once: 256 MB in float32
CHUNK_NUMBERS = 8_388_608  # of one chunk of a larger one: 32 MB


class Side:
    """Features N×D behind one door, `rows`.

    Args:
        features: finite features of any float dtype.
        device: device on which rows are wanted.
    """

    def __init__(self, features: Float[Tensor, "n dim"], device: torch.device) -> None:
        self.features, self.device = features, device
        self.dim = features.shape[1]
        self._kept = self._normalised(features) if features.numel() <= KEPT_NUMBERS else None

    def __len__(self) -> int:
        return len(self.features)

    def rows(self, index: Int[Tensor, " n"] | slice) -> Float[Tensor, "n dim"]:
        """These rows, normalised; zero rows stay zero."""
        held = self.features if self._kept is None else self._kept
        found = held[index] if isinstance(index, slice) else held.index_select(0, index.to(held.device))
        return self._normalised(found) if self._kept is None else found

    def chunks(self) -> Iterator[slice]:
        """Slices over all rows, of some 32 MB each."""
        size = max(1, CHUNK_NUMBERS // self.dim)
        return (slice(start, min(start + size, len(self))) for start in range(0, len(self), size))

    def _normalised(self, features: Tensor) -> Tensor:
        return normalize_rows(features.to(self.device, torch.float32))


def read_side(name: str, features: Any, device: torch.device | None, dim: int | None = None) -> Side:
    """A side of what the caller gave, checked.

    Args:
        name: the argument as the caller writes it.
        features: N×D, a torch tensor or whatever numpy reads as an array.
        device: device on which rows are wanted; None takes the features' own.
        dim: the width of the other side, where it is known.

    Raises:
        ArgumentError: not a floating-point matrix, empty, of another width, or a row with NaN or infinity.
    """
    tensor = checked_features(name, features, None, dim).detach()
    return Side(tensor, device or tensor.device)
