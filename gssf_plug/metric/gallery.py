"""A gallery that is read once and searched many times."""

import math
from dataclasses import replace
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from gssf_plug.arguments import checked_flag, described, is_dense
from gssf_plug.errors import ArgumentError
from gssf_plug.metric.arrays import Array, check_has_values, float_features
from gssf_plug.metric.exact.fast_rows import FastRows, fast_rows, given_rows, plain_rows, raw_exponent
from gssf_plug.metric.exact.first_look import Part
from gssf_plug.metric.exact.int8.whole_numbers import WholeRows, fits_int8, multiplies_int8, shared, whole_rows
from gssf_plug.metric.exact.plain_tensors import on_plain_tensors

__all__ = ["FEW_QUERIES", "PreparedGallery", "check_finite", "prepare_gallery", "read_part"]

ROWS_AT_ONCE = 8192  # whole groups of `WholeRows`
FEW_QUERIES = 2  # up to here, reading the gallery costs more than the product, and converting it more than both


class PreparedGallery:
    """A gallery for many calls of `topk`: checked, normalised and rounded once. Made by `prepare_gallery`.

    Args:
        features: M×D, as they were given; near ties are decided by them, so they are kept.
        rounded: the rounded rows, whole numbers or floats.
        normalized: True where these are unit rows.
        plain: the features beside the inverses of their norms; None where a norm is extreme, or none is needed.
    """

    def __init__(
        self,
        features: Float[Tensor, "m dim"],
        rounded: FastRows | WholeRows,
        normalized: bool,
        plain: FastRows | None = None,
    ) -> None:
        self.features, self.rounded, self.normalized, self.plain = features, rounded, normalized, plain

    def __len__(self) -> int:
        return len(self.features)

    def __repr__(self) -> str:
        rows, dim = self.features.shape
        return f"PreparedGallery({rows} × {dim}, {self.features.dtype}, rounded to {self.rounded.rows.dtype})"


@on_plain_tensors
def prepare_gallery(
    features: Float[Array, "m dim"], *, normalize: bool = True, rounded: Float[Tensor, "m dim"] | None = None
) -> PreparedGallery:
    """Read a gallery once, for many searches: `topk(metric, queries, prepared, k)` gives what `topk` on it gives.

    What is kept beside the features is a rounded copy of them: in int8 on a CPU that multiplies int8, which is a
    quarter of the memory of float32 features and of the reading of a search; in float16 on other CPUs; in float32 on a
    GPU. It is free of the metric's weights, so one serves every metric.

    Args:
        features: M×D, tensor or numpy array, memory-mapped too. They are kept, not copied: do not change them.
        normalize: whether the metric that will search it normalises; default True.
        rounded: where to keep a copy in float16 instead (float32 on a GPU): an M×D tensor, for instance a memory-mapped
            one, `torch.from_file(path, shared=True, size=m * dim, dtype=torch.float16).view(m, dim)`. Default None.

    Raises:
        ArgumentError: no matrix of features, an empty one, NaN or infinity, `rounded` of another shape or dtype, or
            without memory of its own.

    Example:
        >>> from gssf_plug.metric import topk
        >>> gallery = torch.randn(100, 8)
        >>> prepared = prepare_gallery(gallery)
        >>> found, right = topk(None, gallery[:3], prepared, 5), topk(None, gallery[:3], gallery, 5)
        >>> torch.equal(found.indices, right.indices), torch.equal(found.scores, right.scores)
        (True, True)
    """
    items = _without_graph(float_features("features", features))
    check_has_values("features", items)
    checked_flag("normalize", normalize)
    if items.ndim != 2 or items.numel() == 0:
        got = f"shape {tuple(items.shape)}"
        raise ArgumentError("features", "be a matrix of features M×D with at least one row", got, "Give one per item.")
    if rounded is None and items.device.type == "cpu" and multiplies_int8() and fits_int8(items.shape[1]):
        return _in_whole_numbers(items, normalize)
    return _in_floats(items, _checked_room(rounded, items), normalize)


def _checked_room(rounded: object, items: Float[Tensor, "m dim"]) -> Float[Tensor, "m dim"]:
    """Where a copy in floats goes."""
    dtype = torch.float16 if items.device.type == "cpu" else torch.float32
    if rounded is None:
        return torch.empty(items.shape, dtype=dtype, device=items.device)
    if not is_dense(rounded):
        raise ArgumentError("rounded", f"be None or a tensor of {dtype}", described(rounded), "Leave it out.")
    if rounded.shape != items.shape or rounded.dtype != dtype or rounded.device != items.device:
        got = f"{rounded.dtype} of shape {tuple(rounded.shape)} on {rounded.device}"
        remedy = "Make it anew for each gallery, on its device."
        raise ArgumentError("rounded", f"be {dtype} of shape {tuple(items.shape)}", got, remedy)
    repeats = any(step == 0 and size > 1 for step, size in zip(rounded.stride(), rounded.shape, strict=True))
    frozen = rounded.is_inference() and not torch.is_inference_mode_enabled()
    theirs = rounded.untyped_storage().data_ptr() == items.untyped_storage().data_ptr()
    if repeats or frozen or theirs:
        got = "an expanded view" if repeats else "an inference tensor" if frozen else "memory of the features"
        remedy = "Give torch.empty(...), or leave it out."
        raise ArgumentError("rounded", "have memory of its own, to be written", got, remedy)
    return _without_graph(rounded)


def _without_graph(kept: Tensor) -> Tensor:
    """What is kept for long, without what it was made of, which would be kept, too."""
    return kept.detach() if kept.requires_grad else kept


def _in_floats(items: Tensor, room: Tensor, normalize: bool) -> PreparedGallery:
    exponent, norm, rest = 0 if normalize else raw_exponent(items, room.dtype), 0.0, 0.0
    for start in range(0, len(items), ROWS_AT_ONCE):
        part = items[start : start + ROWS_AT_ONCE]
        check_finite("features", part, start)
        rows = fast_rows(part, normalize, room.dtype, exponent=exponent)
        room[start : start + ROWS_AT_ONCE] = rows.rows
        norm, rest = max(norm, rows.norm), max(rest, rows.rest)
    return PreparedGallery(items, FastRows(room, exponent, norm, rest), normalize)


def _in_whole_numbers(items: Tensor, normalize: bool) -> PreparedGallery:
    exponent = 0 if normalize else raw_exponent(items, torch.float32)
    some = given_rows(items[:: -(-len(items) // ROWS_AT_ONCE)], normalize)
    common = shared(some) if normalize and math.isfinite(some.rest) else None
    width = items.shape[1] + (0 if common is None else common.channels)
    room = torch.empty(len(items), width, dtype=torch.int8)
    parts: list[WholeRows] = []
    plain: list[tuple[float, float, Tensor | None]] = []
    for start in range(0, len(items), ROWS_AT_ONCE):
        part = items[start : start + ROWS_AT_ONCE]
        check_finite("features", part, start)
        rows = plain_rows(part, normalize)
        if rows is not None:
            plain.append((rows.norm, rows.rest, rows.factors))
        if rows is None or exponent:
            rows = fast_rows(part, normalize, torch.float32, exponent=exponent)
        parts.append(whole_rows(rows, room[start : start + ROWS_AT_ONCE], common))
    norms, steps, rests = (torch.cat([getattr(part, name) for part in parts]) for name in ("norms", "steps", "rests"))
    whole = WholeRows(room, exponent, norms, steps, rests, common)
    if len(plain) < len(parts):
        return PreparedGallery(items, whole, normalize)
    factors = torch.cat([each for _, _, each in plain if each is not None]) if normalize else None
    norm, rest = max(norm for norm, _, _ in plain), max(rest for _, rest, _ in plain)
    return PreparedGallery(items, whole, normalize, FastRows(items, 0, norm, rest, factors))


def read_part(
    gallery: Tensor | PreparedGallery, part: slice, normalize: bool, queries: int, device: torch.device, exact: bool
) -> Part:
    """A part of the gallery, ready for the fast product of so many queries.

    Args:
        gallery: prepared, or features that are converted here, and checked.
        part: its items; in a gallery of whole numbers they begin with a group.
        normalize: True where the metric normalises.
        queries: number of queries that will be scored.
        device: device of the product.
        exact: True reads in float64 rather than in a shorter dtype.
    """
    if isinstance(gallery, PreparedGallery) and not exact:
        return _prepared_part(gallery, part, queries, device)
    features = gallery.features if isinstance(gallery, PreparedGallery) else gallery
    items = features[part].to(device)
    rows = fast_rows(items, normalize, torch.float64) if exact else given_rows(items, normalize)
    # the norms have seen every entry: no NaN or infinity hides from them
    if not rows.norm < float("inf") or not rows.rest < float("inf"):
        check_finite("gallery", items, part.start)
    return Part.of(rows)


def _prepared_part(gallery: PreparedGallery, part: slice, queries: int, device: torch.device) -> Part:
    rounded = gallery.rounded
    if isinstance(rounded, FastRows):
        rows = rounded.part(part)
        rows = replace(rows, rows=rows.rows.to(device))
        few = queries <= FEW_QUERIES and device.type == "cpu"
        return Part.of(rows if few else rows.to(torch.float32))
    closer = partial(_float32_rows, gallery, part, device)
    # it may come from a machine whose products of int8 are right
    reads_whole = device.type == "cpu" and multiplies_int8()
    return Part(closer, torch.float32, rounded.part(part) if reads_whole else None)


def _float32_rows(gallery: PreparedGallery, part: slice, device: torch.device) -> FastRows:
    """Rows of a gallery whose rounded copy is too coarse for a closer look."""
    if gallery.plain is None or gallery.features.device != device:
        return given_rows(gallery.features[part].to(device), gallery.normalized)
    return gallery.plain.part(part)


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
