r"""GSSFAttention: multi-head attention whose score is a learned metric, for people's own models.

    weights = softmax(q M kᵀ / √d)                   normalize=False, M = W ⊙ U per head, the identity at the start
    weights = softmax(α q̂ M k̂ᵀ), α learned per head   normalize=True: cosine attention

The metric is multiplied into the query, so the fused kernels of `scaled_dot_product_attention` go on working.
"""

from collections.abc import Sequence
from typing import cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from gssf_plug.arguments import LARGEST, checked_count, checked_flag, checked_number, described, is_dense
from gssf_plug.errors import ArgumentError
from gssf_plug.metric import GSSFMetric, Term, normalize_rows
from gssf_plug.metric.options import canonical_terms

__all__ = ["GSSFAttention"]

Mask = Bool[Tensor, "..."] | Float[Tensor, "..."]


class GSSFAttention(nn.Module):
    """Attention of queries over keys and values, also of another modality and width.

    Args:
        embed_dim: width E of the queries and of the output; a multiple of `num_heads`.
        num_heads: number H of heads, at least 1.
        terms: structures that are summed in each head's metric, as in `GSSFMetric`; "dense" is a full matrix for each
            head. Default: diagonal and blocks.
        block_size: side of a block, in channels; it must divide the head dimension E / H. Default 8.
        kdim: width of the keys; None (default) takes E.
        vdim: width of the values; None (default) takes E.
        normalize: True scores directions, with a learned factor for each head that starts at √d; False (default) takes
            the product over √d.
        bias: whether the four projections have biases; default True.
        dropout: probability that an attention weight is dropped while training, 0 ≤ p < 1; default 0.

    Shape:
        query (B, T, E), key (B, S, kdim), value (B, S, vdim) -> output (B, T, E), weights (B, H, T, S) or None.
        Batch first, unlike `nn.MultiheadAttention`'s default.

    Raises:
        ArgumentError: a width that its divisor does not divide, a dropout outside its range, inputs of another width,
            or, where no autocast converts them, of another dtype than the weights.

    Example:
        >>> layer = GSSFAttention(32, 4, block_size=4, kdim=16, vdim=16)
        >>> words, patches = torch.randn(2, 7, 32), torch.randn(2, 9, 16)
        >>> layer(words, patches)[0].shape
        torch.Size([2, 7, 32])
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        terms: Sequence[Term] = ("diagonal", "block_diagonal"),
        block_size: int = 8,
        kdim: int | None = None,
        vdim: int | None = None,
        normalize: bool = False,
        bias: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        embed_dim = checked_count("embed_dim", embed_dim, "Give the width of the queries.", most=LARGEST)
        rule, remedy = f"divide embed_dim={embed_dim}", "Use one of its divisors."
        num_heads = checked_count("num_heads", num_heads, remedy, rule=rule)
        if embed_dim % num_heads:
            raise ArgumentError("num_heads", rule, num_heads, remedy)
        kdim, vdim = (
            width if width is None else checked_count(name, width, "None takes embed_dim.", most=LARGEST)
            for name, width in (("kdim", kdim), ("vdim", vdim))
        )
        normalize, bias = checked_flag("normalize", normalize), checked_flag("bias", bias)
        remedy = "Use 0.0 for none."
        dropout = checked_number("dropout", dropout, "lie in [0, 1)", remedy, lambda number: 0 <= number < 1)
        self.embed_dim, self.num_heads, self.head_dim = embed_dim, num_heads, embed_dim // num_heads
        self.normalize, self.dropout = normalize, dropout
        self.q_proj = nn.Linear(embed_dim, embed_dim, bias=bias)
        self.k_proj = nn.Linear(embed_dim if kdim is None else kdim, embed_dim, bias=bias)
        self.v_proj = nn.Linear(embed_dim if vdim is None else vdim, embed_dim, bias=bias)
        self.out_proj = nn.Linear(embed_dim, embed_dim, bias=bias)
        self.metric = self._metric(terms, block_size)
        # log √d for each head: with directions of length 1 the logits begin as large as those of the plain product
        self.log_scale = nn.Parameter(torch.full((num_heads, 1, 1), 0.5).mul(torch.tensor(self.head_dim).log()))
        self.log_scale.requires_grad_(normalize)

    def forward(
        self,
        query: Float[Tensor, "batch t dim"],
        key: Float[Tensor, "batch s kdim"] | None = None,
        value: Float[Tensor, "batch s vdim"] | None = None,
        *,
        key_padding_mask: Bool[Tensor, "batch s"] | None = None,
        attn_mask: Mask | None = None,
        is_causal: bool = False,
        need_weights: bool = False,
    ) -> tuple[Float[Tensor, "batch t dim"], Float[Tensor, "batch heads t s"] | None]:
        """Attend to the keys and mix the values.

        Args:
            query: features that attend, (B, T, E).
            key: features that the queries are compared with, (B, S, kdim); None (default) takes `query`, which is
                self-attention.
            value: features that are mixed by the attention weights, (B, S, vdim); None (default) takes `key`.
            key_padding_mask: True where a key is padding, (B, S), as in `nn.MultiheadAttention`; None (default) masks
                none.
            attn_mask: mask that broadcasts to (B, H, T, S): boolean, True where attention is forbidden, or floating
                point, which is added to the score. None (default) masks nothing.
            is_causal: True forbids keys behind the position of the query. Default False.
            need_weights: True also returns the weights of each head, without dropout, for which the fused kernel is
                left. Default False.
        """
        key = query if key is None else key
        value = key if value is None else value
        self._check_inputs(query, key, value)
        _check_masks(key_padding_mask, attn_mask, query, key, self.num_heads)
        is_causal, need_weights = checked_flag("is_causal", is_causal), checked_flag("need_weights", need_weights)
        q, k, v = (self._heads(x) for x in (self.q_proj(query), self.k_proj(key), self.v_proj(value)))
        if self.normalize:
            q, k = normalize_rows(q), normalize_rows(k)
        # heads side by side as channels: one metric whose blocks never cross a head
        q = self.metric.fold(q.transpose(1, 2).flatten(-2)).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        scale = 1.0 if self.normalize else self.head_dim**-0.5
        q = q * self.log_scale.exp().to(q.dtype) if self.normalize else q
        mask = _joined(key_padding_mask, attn_mask, is_causal, q, k)
        if need_weights:
            weights = (q @ k.mT * scale + (0.0 if mask is None else mask)).softmax(-1)
            mixed = nn.functional.dropout(weights, self.dropout, self.training) @ v
        else:
            weights = None
            dropout = self.dropout if self.training else 0.0
            mixed = scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, scale=scale)
        return self.out_proj(mixed.transpose(1, 2).flatten(-2)), weights

    def _metric(self, terms: Sequence[Term], block_size: int) -> GSSFMetric:
        """One metric over all heads' channels; blocks divide a head, so it is one per head."""
        rule, remedy = f"divide the head dimension {self.head_dim}", "Use one of its divisors."
        block_size = checked_count("block_size", block_size, remedy, rule=rule)
        chosen = list(canonical_terms(terms))
        if "dense" in chosen:
            chosen, block_size = ["block_diagonal" if term == "dense" else term for term in chosen], self.head_dim
        if "block_diagonal" in chosen and self.head_dim % block_size:
            raise ArgumentError("block_size", rule, block_size, remedy)
        return GSSFMetric(self.embed_dim, terms=chosen, block_size=block_size, normalize=False)

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)

    def _check_inputs(self, query: Tensor, key: Tensor, value: Tensor) -> None:
        pairs = (("query", query, self.q_proj), ("key", key, self.k_proj), ("value", value, self.v_proj))
        for name, x, projection in pairs:
            plain = isinstance(x, Tensor) and x.is_floating_point() and x.layout == torch.strided and not x.is_nested
            if not plain or x.ndim != 3 or x.shape[-1] != projection.in_features:
                rule = f"have the shape (batch, length, {projection.in_features})"
                remedy = "Batch comes first; set kdim and vdim for other widths."
                raise ArgumentError(name, rule, tuple(x.shape) if plain else described(x), remedy)
            if x.shape[0] not in (1, query.shape[0]) or (name == "value" and x.shape[:2] != key.shape[:2]):
                rule = "have the keys' batch and length" if name == "value" else "have the queries' batch"
                raise ArgumentError(name, rule, tuple(x.shape), "A value belongs to each key, row by row.")
            wanted = _dtype_of(projection) or x.dtype
            if x.dtype != wanted and not _autocast_converts(x, wanted):
                remedy = f"Convert it, or the layer: layer.to({x.dtype})."
                raise ArgumentError(name, f"be in {wanted}, as the weights of the layer are", x.dtype, remedy)


def _dtype_of(projection: nn.Module) -> torch.dtype | None:
    """What a plain projection multiplies; None where a hook, a wrapper or quantised weights may convert."""
    plain = type(projection) is nn.Linear and type(projection.weight) is nn.Parameter
    return cast(nn.Linear, projection).weight.dtype if plain and not projection._forward_pre_hooks else None


def _autocast_converts(x: Tensor, wanted: torch.dtype) -> bool:
    """Whether autocast is on, which some devices lack, and converts both dtypes, as it does all but float64."""
    device = x.device.type
    on = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    return on and torch.float64 not in (x.dtype, wanted)


def _check_masks(padding: Tensor | None, mask: Tensor | None, query: Tensor, key: Tensor, heads: int) -> None:
    wanted = (query.shape[0], key.shape[1])
    if padding is not None and (not is_dense(padding) or padding.dtype != torch.bool or padding.shape != wanted):
        rule, remedy = f"be boolean of shape {wanted}, one value per key", "True is padding."
        raise ArgumentError("key_padding_mask", rule, described(padding), remedy)
    if mask is None:
        return
    scores = (query.shape[0], heads, query.shape[1], key.shape[1])
    suits = is_dense(mask) and mask.ndim <= 4 and (mask.dtype == torch.bool or mask.is_floating_point())
    # aligned at the last dimension, as torch broadcasts; each is that of the scores, or 1
    if not suits or any(a not in (1, b) for a, b in zip(reversed(mask.shape), reversed(scores), strict=False)):
        rule, remedy = f"be boolean or floating point and broadcast to {scores}", "True forbids; floats are added."
        raise ArgumentError("attn_mask", rule, described(mask), remedy)


def _joined(
    padding: Tensor | None, mask: Tensor | None, is_causal: bool, q: Tensor, k: Tensor
) -> Float[Tensor, "..."] | None:
    """All masks as one that is added to the score; None where nothing is masked."""
    added: Tensor | None = None
    lowest = torch.finfo(q.dtype).min
    # strictly above the diagonal: keys that come after the query
    ahead = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool, device=q.device).triu(1) if is_causal else None
    for part in (None if padding is None else padding[:, None, None, :], mask, ahead):
        if part is not None:
            term = torch.zeros_like(part, dtype=q.dtype).masked_fill(part, lowest) if part.dtype == torch.bool else part
            # the sum of two "never"s would be -inf, and a row of these NaN
            added = term if added is None else (added + term).clamp_min(lowest)
    return None if added is None else added.to(q.dtype)
