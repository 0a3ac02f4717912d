"""Where an architecture keeps its query: candidate layouts, as data. `probe` decides which of them is true.

A layout names the query and the key of one attention module and says how their channels are packed. Nothing here is
trusted: every layout that could fit a module is tried in order, and the first that the probe proves on the real module
is used. A new architecture is one `register(Layout(...))`.

How the channels of one projection are packed: which of them belong to which head, as arithmetic on numbers alone.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from gssf_plug.arguments import check_text, checked_count, checked_flag, described, listed
from gssf_plug.errors import ArgumentError

__all__ = [
    "Heads",
    "Layout",
    "Packing",
    "head_counts",
    "known",
    "query_norms",
    "register",
    "resolve",
    "setting",
    "unregister",
]


PARTS = frozenset("qkvgV")
GROUPS = ("key_heads", "query_heads")


@dataclass(frozen=True)
class Heads:
    """How wide one attention module is.

    Args:
        query_heads: number H of query heads.
        key_heads: number G of key heads; H is a multiple of it.
        head_dim: number d of channels of a query head.
        key_dim: number of channels of a key head that meet the query; less than `head_dim` where a rotary part is kept
            apart.
    """

    query_heads: int
    key_heads: int
    head_dim: int
    key_dim: int


@dataclass(frozen=True)
class Packing:
    """How the channels of one projection are packed.

    The channels are cut into `groups` equal groups, and each group holds its share of every part in `order`.
    "qkv" in 1 group is [Q | K | V] (GPT-2, ViT, Phi-3); in one group per key head it is q|k|v head by head (BLOOM,
    GPT-NeoX, Falcon); "q" alone is a projection of its own; "qg" in one group per query head puts a gate behind each
    query (Qwen3-Next).

    Args:
        order: the parts as letters, in the order in which they lie: q, k, v (as wide as k), and g (a gate) or V (a
            value) of any width.
        groups: number of groups in which the parts repeat, or "key_heads" or "query_heads" for one group for each head.
            Default 1.

    Raises:
        ArgumentError: the order holds other letters or one twice, or the groups are neither a count nor such a name.
    """

    order: str
    groups: int | str = 1

    def __post_init__(self) -> None:
        order: object = self.order
        if not isinstance(order, str) or not order or set(order) - PARTS or len(set(order)) < len(order):
            rule = "hold each of the letters q, k, v, g and V once at most"
            raise ArgumentError("order", rule, repr(order), "Such as 'qkv'.")
        if not isinstance(self.groups, str):
            remedy = "One group is one part after the other."
            checked_count("groups", self.groups, remedy, rule=f"be a count or one of {GROUPS}")
        elif self.groups not in GROUPS:
            raise ArgumentError("groups", f"be a count or one of {GROUPS}", repr(self.groups), "1 is the default.")

    def channels(self, part: str, width: int, heads: Heads) -> Int[Tensor, "heads size"] | None:
        """Indices of the channels of `part` ("q" or "k"), head by head; None where this packing cannot have `width`."""
        named = {"key_heads": heads.key_heads, "query_heads": heads.query_heads}
        groups = named[self.groups] if isinstance(self.groups, str) else self.groups
        sizes = self._sizes(width, heads)
        if sizes is None or any(size % groups or size <= 0 for size in sizes):
            return None
        shares = [size // groups for size in sizes]
        # channel numbers as (groups, width of a group), then each group cut into its share of every part
        per_group = torch.arange(width).view(groups, width // groups).split(shares, dim=1)
        count = heads.query_heads if part == "q" else heads.key_heads
        chosen = per_group[self.order.index(part)]
        return chosen.reshape(count, -1) if chosen.numel() % count == 0 else None

    def _sizes(self, width: int, heads: Heads) -> list[int] | None:
        """Width of each part; values are as wide as keys, except beside keys that are kept apart from a rotary part."""
        # query and key have the widths of their heads; what is left over must be the value or the gate
        fixed = {"q": heads.query_heads * heads.head_dim, "k": heads.key_heads * heads.key_dim}
        rest = width - sum(fixed[part] for part in self.order if part in fixed)
        if "g" in self.order or "V" in self.order:
            right = rest > 0
        elif "v" in self.order:
            right = rest == fixed["k"] or (heads.key_dim != heads.head_dim and rest > 0)
        else:
            right = rest == 0
        if right:
            return [fixed.get(part, rest) for part in self.order]
        return None


@dataclass(frozen=True)
class Layout:
    """One way in which an attention module may keep its query and key.

    Args:
        name: name of the layout, which summaries show and files keep.
        query: path from the attention module to the query's projection, which is a child module or a bare parameter.
        key: path to the key's projection; None where the keys come from another layer's cache.
        query_packing: how the query's channels lie in the projection's output; by default all of it is the query.
        key_packing: how the key's channels lie; by default all of the output is the key.
        besides: names of children and parameters that add to the score what does not depend on this query (position
            biases, position queries). They are silenced while the probe runs, and never changed.
        bias: name of a parameter with the query's bias that is kept apart from the projection (`nn.MultiheadAttention`,
            DeBERTa); None (default) where there is none.
        key_is_value: True where the key's projection makes the value, too (DeepSeek V4), which the probe then takes
            into account.
        only_attention: True considers only classes that call themselves attention; for names that other modules use,
            too.

    Raises:
        ArgumentError: a name is no text, a packing lacks its part, or a flag is neither True nor False.
    """

    name: str
    query: str
    key: str | None
    query_packing: Packing = Packing("q")
    key_packing: Packing = Packing("k")
    besides: tuple[str, ...] = ()
    bias: str | None = None
    key_is_value: bool = False
    only_attention: bool = False

    def __post_init__(self) -> None:
        for name in ("name", "query"):
            check_text(name, getattr(self, name), "be a text", "See gssf_plug.attention.Layout.")
        for name in ("key", "bias"):
            if getattr(self, name) is not None:
                check_text(name, getattr(self, name), "be a text or None", "See gssf_plug.attention.Layout.")
        for name, part in (("query_packing", "q"), ("key_packing", "k")):
            packing = getattr(self, name)
            if not isinstance(packing, Packing) or part not in packing.order:
                got = repr(packing) if isinstance(packing, Packing) else described(packing)
                raise ArgumentError(name, f"be a Packing with the part {part}", got, f"Such as Packing('{part}').")
        besides = listed(self.besides) if isinstance(self.besides, list | tuple) else None
        if besides is None or not all(isinstance(one, str) for one in besides):
            raise ArgumentError("besides", "be a tuple of names", described(self.besides), "Such as ('pos_bias',).")
        object.__setattr__(self, "besides", besides)
        for name in ("key_is_value", "only_attention"):
            checked_flag(name, getattr(self, name))


def register(layout: Layout) -> None:
    """Declare a layout; it is tried before the built-in ones. The probe still has to prove it.

    Args:
        layout: the layout that names the query and the key of your attention class.

    Raises:
        ArgumentError: another layout has this name.

    Example:
        >>> register(Layout("mine", query="make_query", key="make_key"))
        >>> unregister("mine")
    """
    if not isinstance(layout, Layout):
        remedy = 'Such as Layout("mine", query="make_query", key="make_key").'
        raise ArgumentError("layout", "be a Layout", described(layout), remedy)
    if any(layout.name == other.name for other in known()):
        raise ArgumentError("layout", "have a new name", repr(layout.name), "Choose another, or unregister it first.")
    _registered.insert(0, layout)


def unregister(name: str) -> None:
    """Forget a layout that `register` declared, if it is there.

    Raises:
        ArgumentError: the name is no text.
    """
    check_text("name", name, "be the name of a layout", "Such as layout.name.")
    _registered[:] = [layout for layout in _registered if layout.name != name]


def known() -> list[Layout]:
    """All layouts in the order in which they are tried: yours first."""
    return [*_registered, *_BUILT_IN]


def resolve(owner: nn.Module, path: str) -> nn.Module | nn.Parameter | None:
    """The child module or parameter at `path` below `owner`, or None."""
    found: object = owner
    for name in path.split("."):
        found = getattr(found, name, None)
    return found if isinstance(found, (nn.Module, nn.Parameter)) else None


def query_norms(owner: nn.Module) -> Iterator[str]:
    """Names of children that normalise the query after its projection (Qwen3, Gemma3, OLMo2, …)."""
    for name in QUERY_NORMS:
        child = getattr(owner, name, None)
        if isinstance(child, nn.Module) and not isinstance(child, nn.Identity):
            yield name


def head_counts(owner: nn.Module, names: tuple[str, ...]) -> list[int]:
    """Different whole numbers that `owner`, then its `config`, then the layers of that config give under `names`."""
    config = getattr(owner, "config", None)
    layers = config.per_layer_config if config is not None and setting(config, "is_heterogeneous") else ()
    values = [setting(source, name) for source in (owner, config, *layers) for name in names]
    return list(dict.fromkeys(value for value in values if type(value) is int and value > 0))


def setting(source: object, name: str) -> Any:
    """`source.name`, or None; also where a configuration refuses to tell (a value that differs from layer to layer)."""
    try:
        return getattr(source, name, None)
    except (RuntimeError, ValueError, KeyError, TypeError):
        return None


QUERY_HEADS = (
    "num_heads", "num_attention_heads", "n_heads", "n_head", "nhead", "num_q_heads", "num_query_heads", "heads",
    "num_attn_heads", "attention_heads", "encoder_attention_heads", "decoder_attention_heads", "num_attention_head",
    "cross_num_attention_heads", "num_ngram_attn_heads", "num_head", "no_heads", "h",
)  # fmt: skip
KEY_HEADS = ("num_key_value_heads", "num_kv_heads", "n_kv_heads", "num_kv", "kv_n_heads", "kv_heads", "num_key_heads")
QUERY_SIZES = (
    "head_dim", "qk_head_dim", "head_size", "attention_head_size", "key_value_proj_dim", "dim_head", "d_head",
    "key_dim", "head_width", "qk_channels", "hidden_size_per_attention_head", "d_kv", "attention_head_dim", "depth",
)  # fmt: skip
KEY_SIZES = ("qk_nope_head_dim",)
QUERY_NORMS = (
    "q_norm", "query_norm", "q_layernorm", "query_layernorm", "q_layer_norm", "q_b_norm", "norm_q", "ln_q", "q_ln",
)  # fmt: skip

_registered: list[Layout] = []

_QKV = (Packing("qkv"), Packing("qkv", "key_heads"), Packing("qvk", 4), Packing("qkv", 4))
_KV = (Packing("kv"), Packing("kv", "key_heads"))
_BESIDES = (
    "pos_bias_u", "pos_bias_v", "bias_u", "bias_v", "r_w_bias", "r_r_bias", "r_s_bias", "q_bias", "pos_q_proj",
    "pos_query_proj", "layout_query", "q_pos_proj", "q_pos_sine_proj",
)  # fmt: skip


def _gated() -> Iterator[Layout]:
    """A gate of the output behind each head's query; tried first, since its width could pass for twice the heads."""
    gated = Packing("qg", "query_heads")
    yield Layout("q_proj, gated", "q_proj", "k_proj", gated)
    yield Layout("q_gate_proj, gated", "q_gate_proj", "kv_b_proj", gated, _KV[1])


def _separate() -> Iterator[Layout]:
    pairs = (
        "q_proj k_proj", "query key", "q k", "q_lin k_lin", "to_q to_k", "Wq Wk", "wq wk", "query_proj key_proj",
        "linear_q linear_k", "project_q project_k", "q_linear k_linear", "q_head k_head", "to_query to_key",
        "projection_query projection_key", "queries keys", "query_projection key_projection",
        "vision_proj text_proj", "q_content_proj k_content_proj",
        "self_attn_query_content_proj self_attn_key_content_proj",
        "cross_attn_query_content_proj cross_attn_key_content_proj", "query_global key_global", "query key_protein",
    )  # fmt: skip
    for pair in pairs:
        query, key = pair.split()
        ends_of_towers = query == "vision_proj"  # in BLIP; in Grounding DINO's attention they are query and key
        yield Layout(query, query, key, besides=_BESIDES, only_attention=ends_of_towers)


def _compressed() -> Iterator[Layout]:
    """Low-rank queries and keys (DeepSeek), and queries beside a fused key and value."""
    pairs = (
        "q_b_proj kv_b_proj", "q_proj kv_b_proj", "q_b_proj kv_proj", "q_proj kv_proj", "wq_b wkv_b", "wq wkv_b",
        "q_attn c_attn", "to_q to_kv", "q kv", "linear_q linear_kv", "q_proj kv", "query kv", "query key_value",
    )  # fmt: skip
    for pair in pairs:
        query, key = pair.split()
        for packing in (*_KV[::-1], *((Packing("k"),) if key == "kv_proj" else ())):
            yield Layout(f"{query}, {key} as {packing.order}", query, key, key_packing=packing)
    yield Layout("q_b_proj", "q_b_proj", "k_proj")
    yield Layout("experts.input_linear, kv_proj as kv", "experts.input_linear", "kv_proj", key_packing=_KV[0])  # JetMoE
    wide = Packing("kV", "key_heads")
    yield Layout("queries, keys_values", "queries", "keys_values", key_packing=wide)  # LeViT
    wide = Packing("qkV", "key_heads")
    yield Layout("queries_keys_values, wide values", "queries_keys_values", "queries_keys_values", wide, wide)


def _fused() -> Iterator[Layout]:
    names = (
        "c_attn", "qkv", "Wqkv", "qkv_proj", "query_key_value", "in_proj", "att_proj", "to_qkv", "wqkv", "qkv_linear",
        "queries_keys_values",
    )  # fmt: skip
    for name in names:
        for packing in _QKV:
            title = f"{name} as {packing.order} in {packing.groups} group(s)"
            bias = "q_bias" if name in ("in_proj", "qkv_linear") else None  # DeBERTa, LayoutLMv2
            yield Layout(title, name, name, packing, packing, _BESIDES, bias, only_attention=name == "in_proj")


def _through_norms() -> Iterator[Layout]:
    """Where the value is taken from the key's projection, or the key from a layer before: read it at the key's norm."""
    for query, key in (("q_proj", "k_norm"), ("q_proj", "key_layernorm"), ("q_b_proj", "kv_norm")):
        yield Layout(f"{query}, {key}", query, key)
    yield Layout("q_b_proj, kv_norm also the value", "q_b_proj", "kv_norm", key_is_value=True)
    for query in ("q_proj", "query"):
        yield Layout(f"{query}, keys of another layer", query, None, only_attention=True)


_BUILT_IN = (
    *_gated(),
    *_separate(),
    *_compressed(),
    *_fused(),
    Layout("nn.MultiheadAttention", "in_proj_weight", "in_proj_weight", _QKV[0], _QKV[0], bias="in_proj_bias"),
    Layout("nn.MultiheadAttention, widths differ", "q_proj_weight", "k_proj_weight", bias="in_proj_bias"),
    *_through_norms(),
)
