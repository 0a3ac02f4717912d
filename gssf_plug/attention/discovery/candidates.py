"""All layouts that could fit one attention module, as concrete places to read and change: what the probe tries."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gssf_plug.attention.discovery.layouts import (
    KEY_HEADS,
    KEY_SIZES,
    QUERY_HEADS,
    QUERY_SIZES,
    Heads,
    Layout,
    Packing,
    head_counts,
    query_norms,
    resolve,
)
from gssf_plug.attention.discovery.query_access import HeadView, OutputSite, Site, WeightSite

__all__ = ["Candidate", "candidates"]

Shapes = dict[nn.Module, torch.Size]


@dataclass(frozen=True)
class Candidate:
    """One layout with its numbers filled in.

    Args:
        layout: the layout that this candidate makes concrete.
        heads: numbers and widths of the heads.
        query: where the query is changed: after its norm, at its projection, or in its weight.
        key: where the key is changed; None where another layer makes it.
        norm: path of the query norm whose output `query` is; None where it is no norm.
        bias: name of the parameter of the attention module that is added to the query behind `query`; None where there
            is none.
    """

    layout: Layout
    heads: Heads
    query: Site
    key: Site | None
    norm: str | None
    bias: str | None = None

    def __str__(self) -> str:
        after = f" after {self.norm}" if self.norm else ""
        return f"{self.layout.name}{after}, {self.heads.query_heads} heads of {self.heads.head_dim}"


def candidates(owner: nn.Module, layouts: Iterable[Layout], shapes: Shapes, *, after_norm: bool) -> Iterator[Candidate]:
    """Every way to read `owner`, likeliest first.

    Args:
        owner: the attention module.
        layouts: the layouts that fit it, likeliest first.
        shapes: output shape of each module that ran and may make the query or the key, by path.
        after_norm: True changes the query after a query norm that follows the projection; False changes it before.
    """
    for layout in layouts:
        for heads in _head_guesses(owner, layout, shapes):
            key = _site(owner, layout.key, layout.key_packing, "k", heads, shapes) if layout.key else None
            if key is None and layout.key is not None:
                continue
            # behind a norm first: where there is one, the true query is its output
            for norm in query_norms(owner) if after_norm else ():
                for site in _norm_sites(owner, norm, "q", heads, shapes):
                    yield Candidate(layout, heads, site, key, norm)
            query = _site(owner, layout.query, layout.query_packing, "q", heads, shapes, layout.bias)
            if query is not None:
                apart = layout.bias is not None and isinstance(resolve(owner, layout.bias), Tensor)
                bias = layout.bias if apart and isinstance(query, OutputSite) else None
                yield Candidate(layout, heads, query, key, None, bias)


def _head_guesses(owner: nn.Module, layout: Layout, shapes: Shapes) -> Iterator[Heads]:
    """Numbers of heads that the module or its configuration names and that its widths allow."""
    width = _width(owner, layout.query, shapes)
    if width is None:
        return
    # what is named counts first: numbers of heads, else numbers that follow from a named head size
    sizes = head_counts(owner, QUERY_SIZES)
    own = [size for name in QUERY_SIZES if type(size := getattr(owner, name, None)) is int]
    key_sizes = head_counts(owner, KEY_SIZES) if "v" in layout.key_packing.order and layout.key != layout.query else []
    seen = set()
    named = head_counts(owner, QUERY_HEADS)
    gated = "g" in layout.query_packing.order
    derived = [] if gated else [width // size for size in sizes if width % size == 0]
    for query_heads in [*named, *derived] or [1]:
        for size in _sizes(width, query_heads, layout, own if layout.query_packing.order == "q" else sizes):
            for key_heads in _key_heads(owner, layout, query_heads, size, shapes):
                for key_size in [*key_sizes, size]:
                    heads = Heads(query_heads, key_heads, size, key_size)
                    if heads not in seen and query_heads and query_heads % key_heads == 0:
                        seen.add(heads)
                        yield heads


def _sizes(width: int, query_heads: int, layout: Layout, named: list[int]) -> list[int]:
    if layout.query_packing.order == "q":
        size = width // query_heads
        fits = width % query_heads == 0 and size > 0 and (not named or size in named)
        return [size] if fits else []
    if "g" in layout.query_packing.order:
        return named
    # fused q, k, v of equal width; a named size stands for grouped keys
    thirds = [width // (3 * query_heads)] if width % (3 * query_heads) == 0 else []
    return list(dict.fromkeys([*thirds, *named]))


def _key_heads(owner: nn.Module, layout: Layout, query_heads: int, size: int, shapes: Shapes) -> list[int]:
    width = _width(owner, layout.key, shapes) if layout.key else None
    if layout.key is None:
        return [query_heads]
    if layout.key_packing.order == "k":
        return [width // size] if width and width % size == 0 and width >= size else []
    return list(dict.fromkeys([*head_counts(owner, KEY_HEADS), query_heads, 1]))


def _width(owner: nn.Module, path: str | None, shapes: Shapes) -> int | None:
    found = resolve(owner, path) if path else None
    if isinstance(found, Tensor):
        # a bare weight is (out, in), or XLNet's (model, heads, size)
        return found.shape[0] if found.ndim == 2 else found.shape[-2] * found.shape[-1]
    if found not in shapes:
        weight = getattr(found, "weight", None)
        return weight.shape[0] if isinstance(weight, Tensor) and weight.ndim == 2 else None
    shape = shapes[found]
    if _is_norm(path):
        # (…, heads, tokens, size) or (…, tokens, heads, size): of the two middle axes the smaller is taken for heads
        return shape[-1] if len(shape) < 4 else min(shape[-2], shape[-3]) * shape[-1]
    return shape[1] if _is_convolution(found) else shape[-1]


def _site(
    owner: nn.Module, path: str, packing: Packing, part: str, heads: Heads, shapes: Shapes, bias: str | None = None
) -> Site | None:
    found = resolve(owner, path)
    if isinstance(found, Tensor):
        return _weight_site("", owner, path, found, packing, part, heads, bias)
    assert found is not None
    if _is_norm(path):
        return next(_norm_sites(owner, path, part, heads, shapes), None)
    if found not in shapes:  # never called: the layer hands its weight to a function
        weight = getattr(found, "weight", None)
        if not isinstance(weight, nn.Parameter) or weight.ndim != 2:
            return None
        name = "bias" if isinstance(getattr(found, "bias", None), Tensor) else None
        return _weight_site(path, found, "weight", weight, packing, part, heads, name)
    axis = 1 if _is_convolution(found) else -1
    width = shapes[found][axis]
    index = packing.channels(part, width, heads)
    return None if index is None else OutputSite(path, found, HeadView(index, width, axis=axis))


def _weight_site(
    path: str,
    module: nn.Module,
    name: str,
    weight: Tensor,
    packing: Packing,
    part: str,
    heads: Heads,
    bias: str | None,
) -> WeightSite | None:
    if weight.ndim == 3:  # XLNet keeps (model, heads, size)
        whole = HeadView.whole(weight.shape[-2], weight.shape[-1], head_axis=-2)
        return WeightSite(path, module, {name: whole})
    index = packing.channels(part, weight.shape[0], heads)
    if index is None:
        return None
    views = {name: HeadView(index, weight.shape[0], axis=0)}
    if bias is not None and isinstance(getattr(module, bias, None), Tensor):
        length = getattr(module, bias).shape[0]
        apart = part == "k" and packing.order == "k" and length > len(weight)  # MultiheadAttention: one bias for all
        views[bias] = HeadView(index + (len(weight) if apart else 0), length)
    return WeightSite(path, module, views)


def _norm_sites(owner: nn.Module, path: str, part: str, heads: Heads, shapes: Shapes) -> Iterator[OutputSite]:
    """The output of a norm: flat (…, heads·size), or with an axis of heads behind or before the tokens."""
    norm = resolve(owner, path)
    if not isinstance(norm, nn.Module) or norm not in shapes:
        return
    shape = shapes[norm]
    count = heads.query_heads if part == "q" else heads.key_heads
    size = heads.head_dim if part == "q" else heads.key_dim
    if shape[-1] == count * size:
        yield OutputSite(path, norm, HeadView.whole(count, size))
    elif shape[-1] == size and len(shape) >= 3:
        if shape[-2] == count:
            yield OutputSite(path, norm, HeadView.whole(count, size, head_axis=-2))
        if shape[-3] == count:
            yield OutputSite(path, norm, HeadView.whole(count, size, head_axis=-3))


def _is_norm(path: str | None) -> bool:
    return path is not None and "norm" in path


def _is_convolution(module: object) -> bool:
    return isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d))
