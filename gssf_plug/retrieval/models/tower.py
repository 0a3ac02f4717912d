"""Tower: encoder, token projection, pooling and projection, each passed in; inputs to one vector per item, or to many.

    encoder → tokens (N, T, D) → token_projection, on every valid token → pooling under the mask → projection

An encoder is any module that returns a tensor, a tuple or a transformers ModelOutput; None stands for features that
are already computed. Promises: padding enters neither a pooling nor the batch statistics of a token projection.
"""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from gssf_plug.arguments import check_function, check_module, check_text
from gssf_plug.errors import ArgumentError
from gssf_plug.features import Mask, Pooling, as_tokens, feature_tensor, mean_pool
from gssf_plug.retrieval.models.embedding import Fragments

__all__ = ["Inputs", "Tower", "as_tower"]

Inputs = Tensor | Mapping[str, Tensor]


class Tower(nn.Module):
    """Inputs to feature vectors, or by `fragments` to the vectors of their parts.

    Args:
        encoder: any module. It gets a tensor as its only argument, and a mapping (input_ids, attention_mask, …) as
            keywords. None means that the inputs are the features: (N, D), tokens (N, T, D), or a mapping with
            "features".
        token_projection: module that is applied to every valid token, as rows (V, D) -> (V, D'), such as
            `nn.Linear(2048, 1024)`; None (default) leaves the tokens as they are.
        pooling: function or module that makes vectors (N, D) of tokens (N, T, D) and a mask (N, T); default
            `mean_pool`. Maps (N, C, H, W) are seen as H·W tokens; vectors are not pooled. A module with parameters is
            trained.
        projection: module that is applied to the vectors, such as `nn.Linear(768, 512)`; None (default) leaves them.
        output: name of the entry of a ModelOutput that is read, such as "pooler_output"; None (default) takes the
            first one that `feature_tensor` finds.

    Shape:
        inputs' "attention_mask" (N, T), where there is one, masks projection and pooling -> features (N, D).

    Raises:
        ArgumentError: the features are neither vectors, tokens nor maps, or of another width than the token projection
            reads; or a mapping without "features" comes where there is no encoder.
    """

    def __init__(
        self,
        encoder: nn.Module | None,
        *,
        token_projection: nn.Module | None = None,
        pooling: Pooling = mean_pool,
        projection: nn.Module | None = None,
        output: str | None = None,
    ) -> None:
        super().__init__()
        for name, part in (("encoder", encoder), ("token_projection", token_projection), ("projection", projection)):
            check_module(name, part, "Wrap a function in a module.", optional=True)
        check_function("pooling", pooling, "Such as mean_pool.", takes=2)
        if output is not None:
            check_text("output", output, "be None or the name of an entry", "Such as 'pooler_output'.")
        self.encoder = encoder
        self.token_projection = token_projection
        self.pooling = pooling
        self.projection = projection
        self.output = output

    def forward(self, inputs: Inputs) -> Float[Tensor, "n dim"]:
        """Features of a batch of inputs, not normalised."""
        features = self._encode(inputs)
        pooled = self._projected(features) if features.ndim == 2 else self.pooling(*self._tokens(features, inputs))
        return pooled if self.projection is None else self.projection(pooled)

    def fragments(self, inputs: Inputs) -> Fragments:
        """The projected tokens themselves; neither pooling nor `projection` is used."""
        tokens, mask = self._tokens(self._encode(inputs), inputs)
        return Fragments(tokens, torch.ones_like(tokens[..., 0], dtype=torch.bool) if mask is None else mask.bool())

    def _encode(self, inputs: Inputs) -> Tensor:
        if self.encoder is None:
            return _given_features(inputs)
        output = self.encoder(**inputs) if isinstance(inputs, Mapping) else self.encoder(inputs)
        return feature_tensor(output, name=self.output)

    def _tokens(self, features: Tensor, inputs: Inputs) -> tuple[Tensor, Mask | None]:
        """Projected tokens and their mask, where there is one that fits."""
        tokens = as_tokens(features)
        mask = inputs.get("attention_mask") if isinstance(inputs, Mapping) else None
        if mask is not None and mask.shape != tokens.shape[:2]:
            mask = None
        if self.token_projection is None:
            return tokens, mask
        if mask is None:
            return self._projected(tokens.flatten(0, 1)).unflatten(0, tokens.shape[:2]), None
        valid = mask.bool()
        # as rows (V, D): padding must not enter the batch statistics of a projection with normalisation
        projected = self._projected(tokens[valid])
        # the rows go back to where their tokens were, in the same order; what is masked stays zero
        empty = projected.new_zeros(*valid.shape, projected.shape[-1])
        return empty.masked_scatter(valid[..., None], projected), mask

    def _projected(self, rows: Float[Tensor, "rows dim"]) -> Float[Tensor, "rows out"]:
        if self.token_projection is None:
            return rows
        width = getattr(self.token_projection, "in_features", None)
        if width is not None and rows.shape[1] != width:
            raise ArgumentError(
                "features",
                f"have the {width} channels that the token projection reads",
                rows.shape[1],
                "Build the projection for the width of your features.",
            )
        projected: Tensor = self.token_projection(rows)
        return projected


def as_tower(encoder: nn.Module | None) -> Tower:
    """`encoder` in a tower of its own, unless it is one."""
    return encoder if isinstance(encoder, Tower) else Tower(encoder)


def _given_features(inputs: Any) -> Tensor:
    if not isinstance(inputs, Mapping):
        return feature_tensor(inputs)
    if "features" not in inputs:
        raise ArgumentError(
            "inputs",
            "hold 'features' where a tower has no encoder",
            f"the keys {sorted(inputs)}",
            "Name them so in the collate function, or give the tower an encoder.",
        )
    features: Tensor = inputs["features"]
    return features
