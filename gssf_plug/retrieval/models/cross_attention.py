r"""Scores of images and captions from all pairs of regions and words: cross-attention, without its weighted sums.

    g_rt = s(v_r, w_t)     fragment similarity            l_rt: attention logits, a similarity too
    l̄_rt = leaky(l_rt) / ‖leaky(l_··)‖                    norm over what asks (t2i: words; i2t: regions)
    t2i    α_·t = softmax_r(λ l̄_·t),   a_t = Σ_r α_rt v̂_r,   s_t = s(a_t, w_t),   score = aggregate_t s_t
    i2t    β_r· = softmax_t(λ l̄_r·),   b_r = Σ_t β_rt ŵ_t,   s_r = s(v_r, b_r),   score = aggregate_r s_r

The attended vectors a_t and b_r (D numbers for every pair and word) are never formed. A metric is linear in each
normalised side, so

    s(a_t, w_t) = Σ_r α_rt g_rt / ‖a_t‖,        ‖a_t‖² = αᵀ (V̂ V̂ᵀ) α

which needs the fragment similarities and the small Gram matrix of the regions alone: half of the arithmetic, and 1/D of
the memory. "leaky" is LeakyReLU of slope 0.1. Pairs are computed in blocks; with gradients each block is computed again
in the backward pass.

Source: Lee et al., SCAN, "Stacked cross attention for image-text matching", arXiv 1803.08024, with "clipped_l2norm".
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from gssf_plug.arguments import check_function, checked_number, described, holds_floats, is_dense
from gssf_plug.errors import ArgumentError

__all__ = ["Aggregate", "Alignment", "Block", "ImageToText", "LogSumExp", "TextToImage", "align", "average"]

Aggregate = Callable[[Tensor, Tensor], Tensor]
SLOPE = 0.1  # of LeakyReLU for negative logits
EPSILON = 1e-8


@dataclass(frozen=True)
class Block:
    """Some images with some captions. Fragments under a False mask are zero vectors, and so their scores are 0.

    Args:
        similarity: g, the score of every region with every word, (n, R, m, T).
        logits: l, what the attention weights are made of, (n, R, m, T).
        regions: v̂, region vectors of length 1, (n, R, D).
        words: ŵ, word vectors of length 1, (m, T, D).
        region_mask: True where there is a region, (n, R).
        word_mask: True where there is a word, (m, T).
    """

    similarity: Float[Tensor, "n r m t"]
    logits: Float[Tensor, "n r m t"]
    regions: Float[Tensor, "n r dim"]
    words: Float[Tensor, "m t dim"]
    region_mask: Bool[Tensor, "n r"]
    word_mask: Bool[Tensor, "m t"]


Alignment = Callable[[Block], Tensor]


def _check_positive(name: str, value: float) -> None:
    checked_number(name, value, "be above 0", "SCAN uses values from 4 to 20.", lambda number: number > 0)


def _check_values(values: Tensor, mask: Tensor) -> None:
    if not holds_floats(values) or values.ndim == 0:
        raise ArgumentError("values", "be floating-point numbers (..., K)", described(values), "Give similarities.")
    if not is_dense(mask) or mask.dtype != torch.bool or mask.shape != values.shape:
        rule, remedy = f"be boolean, of the shape of `values`, {tuple(values.shape)}", "Convert it with .bool()."
        raise ArgumentError("mask", rule, described(mask), remedy)


def average(values: Float[Tensor, "*batch k"], mask: Bool[Tensor, "*batch k"]) -> Float[Tensor, "*batch"]:
    """The mean over the last dimension where the mask is True; 0 where it is nowhere."""
    _check_values(values, mask)
    return values.masked_fill(~mask, 0.0).sum(-1) / mask.sum(-1).clamp_min(1)


@dataclass(frozen=True)
class LogSumExp:
    """log Σ exp(λ s) / λ over the last dimension: between the sum (small λ) and the maximum (large λ).

    Args:
        sharpness: sharpness λ, above 0. SCAN takes 6 for text to image, and 5 (Flickr30K) or 20 (COCO) for image to
            text.
    """

    sharpness: float = 6.0

    def __post_init__(self) -> None:
        """Check the sharpness."""
        _check_positive("sharpness", self.sharpness)

    def __call__(self, values: Float[Tensor, "*batch k"], mask: Bool[Tensor, "*batch k"]) -> Float[Tensor, "*batch"]:
        """Over the values where the mask is True; 0 where it is nowhere."""
        _check_values(values, mask)
        if values.shape[-1] == 0:
            return values.sum(-1)
        anywhere = mask.any(-1)
        # rows without any valid value are left unmasked, since log Σ of nothing is −∞ and its gradient NaN
        scaled = (self.sharpness * values).masked_fill(~mask & anywhere[..., None], float("-inf"))
        return (scaled.logsumexp(-1) / self.sharpness).masked_fill(~anywhere, 0.0)


@dataclass(frozen=True)
class _CrossAttention:
    """What both directions have: a temperature λ above 0, and what makes one score of many similarities."""

    temperature: float
    aggregate: Aggregate

    def __post_init__(self) -> None:
        """Check the temperature and the function."""
        _check_positive("temperature", self.temperature)
        check_function("aggregate", self.aggregate, "Such as LogSumExp(6.0) or average.", takes=2)


@dataclass(frozen=True)
class TextToImage(_CrossAttention):
    """Every word attends to the regions.

    Args:
        temperature: factor λ of the softmax over regions, above 0; default 9 (SCAN).
        aggregate: function that makes one score of word similarities (…, T) and their mask; default `LogSumExp(6)`;
            `average` is another.
    """

    temperature: float = 9.0
    aggregate: Aggregate = LogSumExp(6.0)

    def __call__(self, block: Block) -> Float[Tensor, "n m"]:
        """Scores of the block's pairs."""
        asking = block.word_mask
        logits = _clipped(block.logits, dim=3) * self.temperature
        attention = _softmax(logits, block.region_mask[:, :, None, None], dim=1)
        gram = block.regions @ block.regions.mT
        # ‖a_t‖² = αᵀ (V̂ V̂ᵀ) α for every image and word at once; a_t itself is never formed
        norms = (gram @ attention.flatten(2)).unflatten(2, attention.shape[2:]).mul(attention).sum(1)
        similarity = (attention * block.similarity).sum(1) / _root(norms)
        return self.aggregate(similarity, asking.expand(similarity.shape))


@dataclass(frozen=True)
class ImageToText(_CrossAttention):
    """Every region attends to the words.

    Args:
        temperature: factor λ of the softmax over words, above 0; default 4 (SCAN).
        aggregate: function that makes one score of region similarities (…, R) and their mask; default `LogSumExp(5)`;
            `average` is another.
    """

    temperature: float = 4.0
    aggregate: Aggregate = LogSumExp(5.0)

    def __call__(self, block: Block) -> Float[Tensor, "n m"]:
        """Scores of the block's pairs."""
        asking = block.region_mask
        logits = _clipped(block.logits, dim=1) * self.temperature
        attention = _softmax(logits, block.word_mask, dim=3)
        gram = block.words @ block.words.mT
        # as above with words: (m, n·r, t) rows of β times the Gram matrix (m, t, t), then the product with β
        spread = (attention.permute(2, 0, 1, 3).flatten(1, 2) @ gram).unflatten(1, attention.shape[:2])
        norms = (spread.permute(1, 2, 0, 3) * attention).sum(3)
        similarity = ((attention * block.similarity).sum(3) / _root(norms)).mT
        return self.aggregate(similarity, asking[:, None].expand(similarity.shape))


def align(
    alignments: Sequence[Alignment],
    regions: Float[Tensor, "n r dim"],
    words: Float[Tensor, "m t dim"],
    region_mask: Bool[Tensor, "n r"],
    word_mask: Bool[Tensor, "m t"],
    *,
    similarity: Callable[[Tensor], Tensor],
    logits: Callable[[Tensor], Tensor] | None = None,
    pairs: int = 2048,
) -> Float[Tensor, "n m"]:
    """Scores of all images with all captions: the mean of the alignments.

    Args:
        alignments: alignments whose scores are averaged, at least one.
        regions: region vectors v̂ of length 1, (N, R, D); what stands under a False mask is zero.
        words: word vectors ŵ of length 1, (M, T, D); what stands under a False mask is zero.
        region_mask: True where there is a region, (N, R).
        word_mask: True where there is a word, (M, T).
        similarity: function that folds regions such that `similarity(v̂) @ ŵ` is s(v, w): a metric's `fold`.
        logits: function that folds regions for the attention logits, likewise; None (default) attends by `similarity`.
        pairs: number of image–caption pairs in a block; default 2,048. A block holds about eight tensors of pairs·R·T
            numbers.
    """
    # 64 captions wide, so that padding to the longest caption of a strip stays small, and as many images as fit
    captions = min(max(1, len(words)), 64)
    images = max(1, pairs // captions)
    folded = similarity(regions).split(images)
    asked = folded if logits is None else logits(regions).split(images)
    rows = list(zip(folded, asked, regions.split(images), region_mask.split(images), strict=True))
    strips = [
        torch.cat([_scored(alignments, *row, *column) for row in rows])
        for column in zip(words.split(captions), word_mask.split(captions), strict=True)
    ]
    return torch.cat(strips, dim=1)


def _scored(alignments: Sequence[Alignment], *tensors: Tensor) -> Float[Tensor, "n m"]:
    if not torch.is_grad_enabled():
        return _block_scores(alignments, *tensors)
    # a block keeps no (images, regions, captions, words) for backward: it is made again there
    scores: Tensor = checkpoint(_block_scores, alignments, *tensors, use_reentrant=False, preserve_rng_state=False)
    return scores


def _block_scores(
    alignments: Sequence[Alignment],
    folded: Float[Tensor, "n r dim"],
    asked: Float[Tensor, "n r dim"],
    regions: Float[Tensor, "n r dim"],
    region_mask: Bool[Tensor, "n r"],
    words: Float[Tensor, "m t dim"],
    word_mask: Bool[Tensor, "m t"],
) -> Float[Tensor, "n m"]:
    similarity = _products(folded, words)
    logits = similarity if asked is folded else _products(asked, words)
    block = Block(similarity, logits, regions, words, region_mask, word_mask)
    return torch.stack([alignment(block) for alignment in alignments]).mean(0)


def _products(a: Float[Tensor, "n r dim"], b: Float[Tensor, "m t dim"]) -> Float[Tensor, "n r m t"]:
    # all regions of all images with all words of all captions as one matrix product
    products = a.flatten(0, 1) @ b.flatten(0, 1).mT
    return products.unflatten(0, a.shape[:2]).unflatten(2, b.shape[:2])


def _clipped(logits: Float[Tensor, "n r m t"], dim: int) -> Float[Tensor, "n r m t"]:
    """LeakyReLU, then each row over what asks has length 1."""
    clipped = torch.nn.functional.leaky_relu(logits, SLOPE)
    return clipped / (torch.linalg.vector_norm(clipped, dim=dim, keepdim=True) + EPSILON)


def _softmax(logits: Float[Tensor, "n r m t"], mask: Bool[Tensor, "..."], dim: int) -> Float[Tensor, "n r m t"]:
    """Softmax over what the mask leaves. Where it leaves nothing the weights meet zero vectors alone."""
    return logits.masked_fill(~mask, torch.finfo(logits.dtype).min).softmax(dim)


def _root(squares: Tensor) -> Tensor:
    """‖a‖ from ‖a‖², never below 1e-8: rounding may leave a small negative number."""
    return squares.clamp_min(EPSILON**2).sqrt()
