"""A gallery that is read once and searched many times."""

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from gssf_plug.arguments import check_flag
from gssf_plug.errors import ArgumentError
from gssf_plug.metric.arrays import Array, check_has_values, float_features
from gssf_plug.metric.exact.fast_rows import FastRows, fast_rows, given_rows
from gssf_plug.metric.exact.plain_tensors import on_plain_tensors

__all__ = ["FEW_QUERIES", "PreparedGallery", "check_finite", "prepare_gallery"]

ROWS_AT_ONCE = 8192
FEW_QUERIES = 2  # up to here, reading the gallery costs more than the product, and converting it more than both


class PreparedGallery:
    """A gallery for many calls of `topk`: checked, normalised and rounded once. Made by `prepare_gallery`.

    Args:
        features: M×D, as they were given; near ties are decided by them, so they are kept.
        fast: the rounded rows.
        normalized: True where these are unit rows.
    """

    def __init__(self, features: Float[Tensor, "m dim"], fast: FastRows, normalized: bool) -> None:
        self.features, self.fast, self.normalized = features, fast, normalized

    def __len__(self) -> int:
        return len(self.features)

    def __repr__(self) -> str:
        rows, dim = self.features.shape
        return f"PreparedGallery({rows} × {dim}, {self.features.dtype}, rounded to {self.fast.rows.dtype})"


@on_plain_tensors
def prepare_gallery(
    features: Float[Array, "m dim"], *, normalize: bool = True, rounded: Float[Tensor, "m dim"] | None = None
) -> PreparedGallery:
    """Read a gallery once, for many searches: `topk(metric, queries, prepared, k)` gives what `topk` on it gives.

    What is kept beside the features is a copy of them in half precision: half the memory of float32 features, and half
    the reading of each search. It is free of the metric's weights, so one serves every metric.

    Args:
        features: M×D, tensor or numpy array, memory-mapped too. They are kept, not copied: do not change them.
        normalize: whether the metric that will search it normalises; default True.
        rounded: where to keep the copy: an M×D tensor of float16, for instance a memory-mapped one,
            `torch.from_file(path, shared=True, size=m * dim, dtype=torch.float16).view(m, dim)`. Default: memory.

    Raises:
        ArgumentError: no matrix of features, an empty one, NaN or infinity, `rounded` of another shape or dtype.

    Example:
        >>> from gssf_plug.metric import topk
        >>> gallery = torch.randn(100, 8)
        >>> prepared = prepare_gallery(gallery)
        >>> found, right = topk(None, gallery[:3], prepared, 5), topk(None, gallery[:3], gallery, 5)
        >>> torch.equal(found.indices, right.indices), torch.equal(found.scores, right.scores)
        (True, True)
    """
    items = float_features("features", features)
    check_has_values("features", items)
    check_flag("normalize", normalize)
    if items.ndim != 2 or items.numel() == 0:
        got = f"shape {tuple(items.shape)}"
        raise ArgumentError("features", "be a matrix of features M×D with at least one row", got, "Give one per item.")
    dtype = torch.float16 if items.device.type == "cpu" else torch.float32
    if rounded is None:
        rounded = torch.empty(items.shape, dtype=dtype, device=items.device)
    elif not isinstance(rounded, Tensor):
        raise ArgumentError("rounded", f"be None or a tensor of {dtype}", type(rounded).__name__, "Leave it out.")
    elif rounded.shape != items.shape or rounded.dtype != dtype:
        got, rule = f"{rounded.dtype} of shape {tuple(rounded.shape)}", f"be {dtype} of shape {tuple(items.shape)}"
        raise ArgumentError("rounded", rule, got, "Make it anew for each gallery.")
    if not normalize:
        check_finite("features", items, 0)
        whole = fast_rows(items, False, dtype)
        rounded.copy_(whole.rows)
        return PreparedGallery(items, FastRows(rounded, whole.exponent, whole.norm, whole.rest), False)
    norm, rest = 0.0, 0.0
    for start in range(0, len(items), ROWS_AT_ONCE):
        part = items[start : start + ROWS_AT_ONCE]
        check_finite("features", part, start)
        unit = fast_rows(part, True, dtype)
        rounded[start : start + ROWS_AT_ONCE] = unit.rows
        norm, rest = max(norm, unit.norm), max(rest, unit.rest)
    return PreparedGallery(items, FastRows(rounded, 0, norm, rest), True)


def read_parts(
    gallery: Tensor | PreparedGallery,
    parts: list[slice],
    normalize: bool,
    queries: int,
    device: torch.device,
    exact: bool,
) -> Iterator[tuple[slice, FastRows]]:
    """The gallery in parts, ready for the fast product of so many queries.

    Args:
        gallery: prepared, or features that are converted here, and checked.
        parts: slices, in order.
        normalize: True where the metric normalises.
        queries: number of queries that will be scored.
        device: device of the product.
        exact: True reads in float64 rather than in float32, or float16 for a few queries.
    """
    few = queries <= FEW_QUERIES and device.type == "cpu"
    for part in parts:
        if isinstance(gallery, PreparedGallery) and not exact:
            rows = gallery.fast.part(part)
            rows = FastRows(rows.rows.to(device), rows.exponent, rows.norm, rows.rest)
            yield part, rows if few else rows.to(torch.float32)
            continue
        features = gallery.features if isinstance(gallery, PreparedGallery) else gallery
        items = features[part].to(device)
        rows = fast_rows(items, normalize, torch.float64) if exact else given_rows(items, normalize)
        # the norms have seen every entry: no NaN or infinity hides from them
        if not rows.norm < float("inf") or not rows.rest < float("inf"):
            check_finite("gallery", items, part.start)
        yield part, rows


def check_finite(name: str, features: Float[Tensor, "n dim"], before: int) -> None:
    """Look at each entry; `before` rows precede these.

    Raises:
        ArgumentError: NaN or infinity, with the first such row and its first such channel.
    """
    if bool(features.sum().isfinite()):  # one pass; a sum that overflows alone is looked at again
        return
    broken = (~features.isfinite()).nonzero()
    if len(broken):
        row, channel = broken[0].tolist()
        remedy = "Find what made it, or drop these rows."
        raise ArgumentError(name, "be finite", f"NaN or infinity in row {before + row}, channel {channel}", remedy)
