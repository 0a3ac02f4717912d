"""Encoders of the classic frameworks that transformers does not have: recurrent text, projected regions, CNN variants.

    WordGRU          word ids -> one vector per word                    VSE++, SCAN, VSE∞
    ResidualMLP      region features -> the joint space                 VSE∞
    LastStrideOne    a CNN whose last stage keeps the resolution        BoT
    AnySize          a ViT on images of another size than its own       BoT with ViT
    FrozenNorms      an encoder whose batch normalisation stays put     Proxy-Anchor

Every argument of a constructor is kept as an attribute of the same name: files rebuild the parts from that.
"""

from typing import Any, Self

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from gssf_plug.arguments import (
    LARGEST,
    check_module,
    checked_count,
    checked_flag,
    checked_number,
    described,
    holds_floats,
    holds_whole_numbers,
    is_dense,
)
from gssf_plug.errors import ArgumentError

__all__ = ["AnySize", "FrozenNorms", "LastStrideOne", "ResidualMLP", "WordGRU"]


class WordGRU(nn.Module):
    """Word embeddings and a GRU; the states of two directions are averaged.

    Args:
        vocabulary: number of word ids, which is `len(tokenizer)`.
        dim: width of the GRU's states, which are the output.
        embedding: width of the word embeddings, which start uniform in ±0.1; default 300.
        layers: number of layers of the GRU; default 1.
        bidirectional: whether the words are read both ways (default), or forwards alone as VSE++ does, with
            `last_pool`.
        dropout: probability that a number of a word embedding is dropped while training, 0 ≤ p < 1; default 0
            (SGRAF: 0.4).

    Shape:
        input_ids (N, T), attention_mask (N, T), padding on the right -> (N, T, dim), zero where padded.

    Raises:
        ArgumentError: padding does not lie on the right.

    References:
        Faghri et al., VSE++, arXiv 1707.05612; Lee et al., SCAN, arXiv 1803.08024.
    """

    def __init__(
        self,
        vocabulary: int,
        dim: int,
        *,
        embedding: int = 300,
        layers: int = 1,
        bidirectional: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.vocabulary = checked_count("vocabulary", vocabulary, "Give len(tokenizer).", most=LARGEST)
        self.dim = checked_count("dim", dim, "Give the width of the features.", most=LARGEST)
        self.embedding = checked_count("embedding", embedding, "The usual width is 300.", most=LARGEST)
        self.layers = checked_count("layers", layers, "The usual number is 1.", most=LARGEST)
        self.bidirectional = checked_flag("bidirectional", bidirectional)
        rule, remedy = "be at least 0 and below 1", "Use 0.0 for none."
        self.dropout = checked_number("dropout", dropout, rule, remedy, lambda number: 0 <= number < 1)
        self.words = nn.Embedding(self.vocabulary, self.embedding)
        nn.init.uniform_(self.words.weight, -0.1, 0.1)
        self.gru = nn.GRU(self.embedding, self.dim, self.layers, batch_first=True, bidirectional=self.bidirectional)

    def forward(
        self, input_ids: Int[Tensor, "n t"], attention_mask: Int[Tensor, "n t"] | Bool[Tensor, "n t"] | None = None
    ) -> Float[Tensor, "n t dim"]:
        """States of the words; a row without words is zero."""
        _check_ids(input_ids, attention_mask)
        valid = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
        lengths = valid.sum(dim=1)
        # right-padded means: position t is valid exactly where t < length
        if bool((valid != (torch.arange(valid.shape[1], device=valid.device) < lengths[:, None])).any()):
            raise ArgumentError(
                "attention_mask",
                "have its padding on the right",
                "padding before or between words",
                "Set tokenizer.padding_side = 'right'.",
            )
        words = nn.functional.dropout(self._embedded(input_ids), self.dropout, self.training)
        # a row without words counts as one word, since a GRU refuses length 0; it is masked below
        packed = pack_padded_sequence(words, lengths.clamp_min(1).cpu(), batch_first=True, enforce_sorted=False)
        states, _ = pad_packed_sequence(self.gru(packed)[0], batch_first=True, total_length=input_ids.shape[1])
        if self.bidirectional:
            states = states.unflatten(-1, (2, -1)).mean(dim=-2)  # (n, t, 2·dim): the two directions stand side by side
        return states.masked_fill(~valid[..., None], 0.0)

    def _embedded(self, input_ids: Int[Tensor, "n t"]) -> Float[Tensor, "n t embedding"]:
        try:
            embedded: Tensor = self.words(input_ids.long())
            return embedded
        except IndexError as error:  # on a GPU torch itself can only abort
            raise ArgumentError(
                "input_ids",
                f"lie in 0 … {self.vocabulary - 1}",
                f"{int(input_ids.min())} … {int(input_ids.max())}",
                "Build WordGRU(len(tokenizer), ...) for the tokenizer that made them.",
            ) from error


def _check_ids(input_ids: Tensor, attention_mask: Tensor | None) -> None:
    if not holds_whole_numbers(input_ids) or input_ids.ndim != 2 or input_ids.shape[1] == 0:
        rule = "be whole numbers (N, T) with T of at least 1"
        raise ArgumentError("input_ids", rule, described(input_ids), "Take them from a tokenizer.")
    if attention_mask is None:
        return
    if not is_dense(attention_mask) or attention_mask.is_complex() or attention_mask.shape != input_ids.shape:
        rule, remedy = f"have the shape of `input_ids`, {tuple(input_ids.shape)}", "Take both from one tokenizer."
        raise ArgumentError("attention_mask", rule, described(attention_mask), remedy)


class ResidualMLP(nn.Module):
    """A linear map and, added to it, an MLP of two layers with batch normalisation: VSE∞ on regions.

    y = A x + C relu(BN(B x))

    Args:
        inputs: width of the region features, such as 2,048.
        outputs: width of the joint space, such as 1,024; the hidden layer has half of it.

    Shape:
        rows (V, inputs) -> (V, outputs). As `token_projection` of a `Tower` it sees valid regions only.

    References:
        Chen et al., VSE∞, arXiv 2011.04305, and its code (there padded rows enter the batch statistics).
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        inputs = checked_count("inputs", inputs, "Give the width of the regions.", most=LARGEST)
        rule, remedy = "be a whole number of at least 2, twice the hidden width", "Give the width of the joint space."
        outputs = checked_count("outputs", outputs, remedy, rule=rule, least=2, most=LARGEST)
        self.inputs, self.outputs = inputs, outputs
        self.in_features = inputs
        hidden = outputs // 2
        self.linear = nn.Linear(inputs, outputs)
        nn.init.xavier_uniform_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        self.mlp = nn.Sequential(
            nn.Linear(inputs, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, outputs)
        )

    def forward(self, rows: Float[Tensor, "rows inputs"]) -> Float[Tensor, "rows outputs"]:
        """Project rows."""
        if not holds_floats(rows) or rows.ndim != 2 or rows.shape[1] != self.inputs:
            rule = f"be a floating-point matrix of {self.inputs} columns"
            raise ArgumentError("rows", rule, described(rows), "Build ResidualMLP for the width of the regions.")
        return self.linear(rows) + self.mlp(rows)


class LastStrideOne(nn.Module):
    """A CNN whose last stage does not halve the resolution: a finer map for re-identification.

    Args:
        encoder: a CNN of transformers with stages, such as ResNetModel or ResNetBackbone; changed in place. The
            weights fit both strides; a ResNetModel loaded without this class has stride 2 again.

    Raises:
        ArgumentError: the encoder has no stages, or nothing in the last one has a stride.

    References:
        Sun et al., PCB, arXiv 1711.09349; Luo et al., "Bag of tricks", arXiv 1903.07071.
    """

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        check_module("encoder", encoder, "Such as ResNetModel of transformers.")
        self.encoder = encoder
        stages = getattr(getattr(encoder, "encoder", None), "stages", None)
        convolutions = [part for part in stages[-1].modules() if isinstance(part, nn.Conv2d)] if stages else []
        if not any(part.stride != (1, 1) for part in convolutions):
            raise ArgumentError(
                "encoder",
                "be a CNN with `encoder.stages` whose last stage has a stride",
                type(encoder).__name__,
                "Use ResNetModel of transformers, or change your network's stride yourself.",
            )
        for part in convolutions:
            part.stride = (1, 1)

    def forward(self, pixel_values: Float[Tensor, "n channels h w"]) -> Any:
        """The encoder's output."""
        return self.encoder(pixel_values)


class AnySize(nn.Module):
    """A ViT on images of another size than it was trained with, such as 256×128: its position embeddings interpolated.

    Args:
        encoder: a model of transformers that takes `interpolate_pos_encoding`, such as ViTModel.

    References:
        He et al., TransReID, arXiv 2102.04378 (its ViT baseline).
    """

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        check_module("encoder", encoder, "Such as ViTModel of transformers.")
        self.encoder = encoder

    def forward(self, pixel_values: Float[Tensor, "n channels h w"]) -> Any:
        """The encoder's output."""
        return self.encoder(pixel_values=pixel_values, interpolate_pos_encoding=True)


class FrozenNorms(nn.Module):
    """An encoder whose batch normalisation keeps its statistics and its parameters while the rest trains.

    Args:
        encoder: any module; the parameters of its batch normalisation layers no longer require a gradient.

    References:
        Kim et al., Proxy Anchor, arXiv 2003.13911 (its code); Musgrave et al., arXiv 2003.08505.
    """

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        check_module("encoder", encoder, "Give the encoder itself.")
        self.encoder = encoder
        for norm in self._norms():
            norm.requires_grad_(False)
            norm.eval()

    def forward(self, *inputs: Tensor, **named: Tensor) -> Any:
        """The encoder's output."""
        return self.encoder(*inputs, **named)

    def train(self, mode: bool = True) -> Self:
        """Training mode for everything but the batch normalisation."""
        super().train(mode)
        for norm in self._norms():
            norm.eval()
        return self

    def _norms(self) -> list[nn.Module]:
        kinds = (nn.modules.batchnorm._BatchNorm, nn.SyncBatchNorm)
        return [part for part in self.encoder.modules() if isinstance(part, kinds)]
