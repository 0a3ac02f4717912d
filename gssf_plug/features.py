"""From what an encoder returns to feature vectors: find the tensor, see it as tokens, pool it under its mask.

    feature_tensor(output)     tensor, tuple, dict or transformers ModelOutput -> the tensor of features
    as_tokens(features)        (N, D), (N, T, D) or (N, C, H, W) -> (N, T, D)
    cls_pool, last_pool, mean_pool, max_pool, mean_max_pool, GPO() : (N, T, D), mask (N, T) -> (N, D)
    SizeAugmentation(pooling)  a pooling that leaves out random tokens while training
    BNNeck(D)                  (N, D) -> (N, D), the last step of a re-identification tower

A pooling is any callable of that form, plain function or module (one with parameters is trained with its tower); it is
passed in, never chosen by name. Promises: a masked position never counts, whatever it holds; a row without any valid
position gives the zero vector; sums are taken in float32 or better and results keep the dtype.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from gssf_plug.arguments import (
    FLOATS,
    LARGEST,
    check_function,
    check_text,
    checked_count,
    checked_number,
    described,
)
from gssf_plug.errors import ArgumentError

__all__ = [
    "GPO",
    "BNNeck",
    "Mask",
    "Pooling",
    "SizeAugmentation",
    "as_tokens",
    "cls_pool",
    "feature_tensor",
    "last_pool",
    "max_pool",
    "mean_max_pool",
    "mean_pool",
]

Mask = Bool[Tensor, "n t"] | Int[Tensor, "n t"] | Float[Tensor, "n t"]
Pooling = Callable[[Tensor, Tensor | None], Tensor]

# Where transformers' models keep features, the finest first: tokens before one pooled vector.
_NAMES = ("last_hidden_state", "image_embeds", "text_embeds", "sentence_embedding", "pooler_output", "feature_maps")


def feature_tensor(output: Any, *, name: str | None = None) -> Tensor:
    """The tensor of features in an encoder's output.

    Args:
        output: output of an encoder: a tensor, a mapping, a ModelOutput of transformers, or a tuple or list, of which
            the first tensor is taken.
        name: name of the entry of a mapping to take. None (default) takes the first that is present of
            last_hidden_state, image_embeds, text_embeds, sentence_embedding, pooler_output, and feature_maps (the last
            map of an AutoBackbone).

    Raises:
        ArgumentError: there is no such entry, or nothing in the output is a tensor.
    """
    if name is not None:
        check_text("name", name, "be None or the name of an entry", "Such as 'pooler_output'.")
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Mapping):
        names = (name,) if name is not None else _NAMES
        entries = [output[key] for key in names if output.get(key) is not None]
        # `hidden_states` and `feature_maps` are one tensor for each layer: the last is the model's
        last = [entry[-1] if isinstance(entry, tuple | list) and entry else entry for entry in entries]
        found = [entry for entry in last if isinstance(entry, Tensor)]
        described = f"entries {sorted(map(str, output))}"
    else:
        found = [part for part in output if isinstance(part, Tensor)] if isinstance(output, tuple | list) else []
        names, described = ("a tensor",), type(output).__name__
    if not found:
        raise ArgumentError(
            "output",
            f"hold one of {names}",
            described,
            "Name the entry to take, or wrap the encoder in a module that returns the tensor.",
        )
    return found[0]


def as_tokens(features: Tensor) -> Float[Tensor, "n t dim"]:
    """Features as tokens: vectors become one token, maps (N, C, H, W) become H·W tokens of C channels.

    Raises:
        ArgumentError: the tensor has another number of dimensions than 2, 3 or 4.
    """
    if not isinstance(features, Tensor) or features.is_nested:
        raise ArgumentError("features", "be a tensor", described(features), "Take it from what the encoder returns.")
    if features.ndim == 2:
        return features[:, None]
    if features.ndim == 3:
        return features
    if features.ndim == 4:
        return features.flatten(2).mT
    raise ArgumentError(
        "features",
        "be vectors (N, D), tokens (N, T, D) or maps (N, C, H, W)",
        f"shape {tuple(features.shape)}",
        "Reshape them in the encoder.",
    )


def cls_pool(tokens: Float[Tensor, "n t dim"], mask: Mask | None = None) -> Float[Tensor, "n dim"]:
    """The first valid token of each row (the first of all where padding is on the right)."""
    _check_tokens(tokens)
    if mask is None:
        return tokens[:, 0]
    valid = _valid(tokens, mask)
    # argmax gives the first of equal values
    first = valid.int().argmax(dim=1)
    chosen = tokens[torch.arange(len(tokens), device=tokens.device), first]
    return torch.where(valid.any(dim=1, keepdim=True), chosen, 0.0)


def last_pool(tokens: Float[Tensor, "n t dim"], mask: Mask | None = None) -> Float[Tensor, "n dim"]:
    """The last valid token of each row: the state of a forward GRU that has read all words."""
    _check_tokens(tokens)
    return cls_pool(tokens.flip(1), None if mask is None else _valid(tokens, mask).flip(1))


def mean_pool(tokens: Float[Tensor, "n t dim"], mask: Mask | None = None) -> Float[Tensor, "n dim"]:
    """The mean of the valid tokens."""
    _check_tokens(tokens)
    dtype = torch.promote_types(tokens.dtype, torch.float32)
    if mask is None:
        return tokens.mean(dim=1, dtype=dtype).to(tokens.dtype)
    valid = _valid(tokens, mask)[..., None]
    total = torch.where(valid, tokens, 0.0).sum(dim=1, dtype=dtype)
    return (total / valid.sum(dim=1).clamp_min(1)).to(tokens.dtype)


def max_pool(tokens: Float[Tensor, "n t dim"], mask: Mask | None = None) -> Float[Tensor, "n dim"]:
    """The largest value of each channel over the valid tokens."""
    _check_tokens(tokens)
    if mask is None:
        return tokens.amax(dim=1)
    valid = _valid(tokens, mask)[..., None]
    largest = tokens.masked_fill(~valid, float("-inf")).amax(dim=1)
    return torch.where(valid.any(dim=1), largest, 0.0)


def mean_max_pool(tokens: Float[Tensor, "n t dim"], mask: Mask | None = None) -> Float[Tensor, "n dim"]:
    """Mean plus maximum of each channel: the pooling of Proxy-Anchor's code."""
    return mean_pool(tokens, mask) + max_pool(tokens, mask)


class SizeAugmentation(nn.Module):
    """A pooling that, while training, leaves out a random share of each row's tokens: VSE∞'s size augmentation.

    Args:
        pooling: pooling that the tokens are given to, such as `GPO()`.
        share: probability that a token is left out, 0 ≤ share < 1; default 0.2. A row that would lose all its tokens
            keeps them all.

    Raises:
        ArgumentError: the share is outside its range.

    References:
        Chen et al., VSE∞, arXiv 2011.04305. Its code drops regions before they are projected (which changes the batch
        statistics there), and grids of four images in five by a share that is itself random up to 0.2.
    """

    def __init__(self, pooling: Pooling, share: float = 0.2) -> None:
        super().__init__()
        check_function("pooling", pooling, "Such as GPO().", takes=2)
        rule, remedy = "be at least 0 and below 1", "VSE∞ uses 0.2."
        self.pooling = pooling
        self.share = checked_number("share", share, rule, remedy, lambda number: 0 <= number < 1)

    def forward(self, tokens: Float[Tensor, "n t dim"], mask: Mask | None = None) -> Float[Tensor, "n dim"]:
        """Pool what is left."""
        _check_tokens(tokens)
        if self.training and self.share > 0:
            valid = torch.ones_like(tokens[..., 0], dtype=torch.bool) if mask is None else _valid(tokens, mask)
            kept = valid & (torch.rand(tokens.shape[:2], device=tokens.device) >= self.share)
            # a row whose tokens would all go keeps them all
            mask = torch.where(kept.any(dim=1, keepdim=True), kept, valid)
        return self.pooling(tokens, mask)


class GPO(nn.Module):
    r"""Generalized pooling operator: a learned weight for the largest, second largest, … value of each channel.

    pooled_d = Σ_k θ_k sort_desc(x_d)_k,    θ = softmax(w · BiGRU(p)_k / 0.1) over the L valid tokens

    p_k is a sinusoidal code of the place k, so θ depends on L alone: one learned curve for every length that contains
    mean, max and k-max pooling.

    Args:
        code: width of the code of a place, an even number; default 32.
        hidden: width of the GRU; default 32.

    Shape:
        tokens (N, T, D), mask (N, T) -> (N, D).

    References:
        Chen et al., VSE∞, "Learning the best pooling strategy", CVPR 2021, arXiv 2011.04305; temperature 0.1 from its
        code.
    """

    def __init__(self, *, code: int = 32, hidden: int = 32) -> None:
        super().__init__()
        rule, remedy = "be even and at least 2", "VSE∞ uses 32."
        code = checked_count("code", code, remedy, rule=rule, least=2, most=LARGEST)
        if code % 2:
            raise ArgumentError("code", rule, code, remedy)
        hidden = checked_count("hidden", hidden, remedy, most=LARGEST)
        self.code = code
        self.hidden = hidden
        self.gru = nn.GRU(code, hidden, batch_first=True, bidirectional=True)
        self.weight = nn.Linear(hidden, 1, bias=False)

    def forward(self, tokens: Float[Tensor, "n t dim"], mask: Mask | None = None) -> Float[Tensor, "n dim"]:
        """Pooled features; a row without any valid token gives zeros."""
        _check_tokens(tokens)
        valid = torch.ones_like(tokens[..., 0], dtype=torch.bool) if mask is None else _valid(tokens, mask)
        hidden = ~valid[..., None]
        # -inf sorts behind everything: the valid values come first, channel by channel
        ordered = tokens.masked_fill(hidden, float("-inf")).sort(dim=1, descending=True).values
        # one curve for each length that occurs, not for each row
        lengths, which = valid.sum(dim=1).unique(return_inverse=True)
        weights = self.weights(lengths, tokens.shape[1]).to(tokens.dtype)[which]
        inside = torch.arange(tokens.shape[1], device=tokens.device) < lengths[which][:, None]
        return (ordered.masked_fill(~inside[..., None], 0.0) * weights[..., None]).sum(dim=1)

    def weights(self, lengths: Int[Tensor, " lengths"], width: int) -> Float[Tensor, "lengths width"]:
        """θ for each number of valid tokens, zero beyond it."""
        places = self._codes(width).expand(len(lengths), -1, -1)
        packed = pack_padded_sequence(places, lengths.clamp_min(1).cpu(), batch_first=True, enforce_sorted=False)
        states, _ = pad_packed_sequence(self.gru(packed)[0], batch_first=True, total_length=width)
        # the two directions of the GRU are averaged, as in the source
        logits = self.weight(states.unflatten(-1, (2, -1)).mean(dim=-2))[..., 0] / 0.1
        inside = torch.arange(width, device=logits.device) < lengths.to(logits.device)[:, None]
        return logits.masked_fill(~inside, -1e4).softmax(dim=1) * inside

    def _codes(self, width: int) -> Float[Tensor, "width code"]:
        weight = self.weight.weight
        rates = torch.exp(torch.arange(0, self.code, 2, device=weight.device) * (-math.log(10_000) / self.code))
        angles = torch.arange(width, device=weight.device)[:, None] * rates
        return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1).to(weight.dtype)


class BNNeck(nn.BatchNorm1d):
    """Batch normalisation whose bias stays zero, after the pooling of a re-identification tower.

    Bag of tricks puts its triplet loss before the neck, classifier and search after it: `OneTower(encoder,
    neck=BNNeck(dim))` with `NeckLoss`. As `Tower(encoder, projection=BNNeck(dim))` all three see the features after it,
    so that the metric that is trained is the metric that searches.

    Args:
        dim: width D of the features.

    References:
        Luo et al., "Bag of tricks and a strong baseline for deep person re-identification", arXiv 1903.07071.
    """

    def __init__(self, dim: int) -> None:
        dim = checked_count("dim", dim, "Give the width of the features.", most=LARGEST)
        super().__init__(dim)
        self.dim = dim
        self.bias.requires_grad_(False)


def _check_tokens(tokens: Tensor) -> None:
    plain = isinstance(tokens, Tensor) and tokens.dtype in FLOATS and tokens.layout == torch.strided
    if not plain or tokens.is_nested or tokens.ndim != 3 or tokens.shape[1] == 0:
        rule, remedy = "be floating-point tokens (N, T, D) with T of at least 1", "See as_tokens for maps and vectors."
        raise ArgumentError("tokens", rule, described(tokens), remedy)


def _valid(tokens: Tensor, mask: Tensor) -> Bool[Tensor, "n t"]:
    remedy = "Give the attention mask that the encoder was given."
    rule = f"have shape {tuple(tokens.shape[:2])}, one value per token"
    if not isinstance(mask, Tensor) or mask.is_nested or mask.layout != torch.strided or mask.is_quantized:
        raise ArgumentError("mask", rule, described(mask), remedy)
    if mask.shape != tokens.shape[:2] or mask.is_complex():
        raise ArgumentError("mask", rule, described(mask) if mask.is_complex() else tuple(mask.shape), remedy)
    if mask.device != tokens.device:
        rule, remedy = f"be on the device of the tokens, {tokens.device}", "Move it with .to(tokens.device)."
        raise ArgumentError("mask", rule, mask.device, remedy)
    return mask.bool()
