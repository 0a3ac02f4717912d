r"""Models of retrieval: any encoder, a pooling, a projection, and the metric that compares their features.

    TwoTower    s(image, text) = metric(f(image), g(text))       two modalities; image is the metric's query side
    OneTower    s(a, b) = metric(f(a), f(b)), symmetric          one modality; an item is never its own match

Both turn a batch (a mapping with the keys named in their docstrings) into an `Embedding`: features of two sides with
the ids that say what belongs together. Loss, evaluation and trainer know nothing else of a model. An encoder is any
module that returns a tensor, a tuple or a transformers ModelOutput; None stands for features that are already computed.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from jaxtyping import Float, Int
from torch import Tensor, nn

from gssf_plug.errors import ArgumentError
from gssf_plug.features import Pooling, as_tokens, feature_tensor, mean_pool
from gssf_plug.metric.metric import GSSFMetric, normalize_rows

__all__ = ["Embedding", "OneTower", "RetrievalModel", "Tower", "TwoTower"]

Inputs = Tensor | Mapping[str, Tensor]
Batch = Mapping[str, Any]


class Embedding(NamedTuple):
    """What a model makes of a batch.

    Queries (N, D) with ids (N,), gallery (M, D) with ids (M,); equal ids belong together. In a model of one tower the
    two sides are the same tensor.
    """

    queries: Float[Tensor, "n dim"]
    query_ids: Int[Tensor, " n"]
    gallery: Float[Tensor, "m dim"]
    gallery_ids: Int[Tensor, " m"]

    @property
    def one_sided(self) -> bool:
        """Whether items are compared with items of the same list, and so also with themselves."""
        return self.gallery is self.queries


class Tower(nn.Module):
    """Encoder, pooling and projection: inputs to feature vectors.

    Args:
        encoder: any module. A tensor is passed as its only argument, a mapping (input_ids, attention_mask, …) as
            keywords. None: the inputs are the features, (N, D) or tokens (N, T, D).
        pooling: tokens (N, T, D) and mask (N, T) to vectors; default `mean_pool`. Maps (N, C, H, W) are seen as H·W
            tokens; vectors are not pooled. A module with parameters is trained.
        projection: applied to the vectors, such as `nn.Linear(768, 512)`; default none.
        output: entry of a ModelOutput to read, such as "pooler_output"; default see `feature_tensor`.

    Raises:
        ArgumentError: features that are neither vectors, tokens nor maps.
    """

    def __init__(
        self,
        encoder: nn.Module | None,
        *,
        pooling: Pooling = mean_pool,
        projection: nn.Module | None = None,
        output: str | None = None,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.pooling = pooling
        self.projection = projection
        self.output = output

    def forward(self, inputs: Inputs) -> Float[Tensor, "n dim"]:
        """Features of a batch of inputs; the inputs' "attention_mask", where there is one, masks the pooling."""
        mask = inputs.get("attention_mask") if isinstance(inputs, Mapping) else None
        features = feature_tensor(self._encode(inputs), name=self.output)
        if features.ndim != 2:
            tokens = as_tokens(features)
            fits = mask is not None and mask.shape == tokens.shape[:2]
            features = self.pooling(tokens, mask if fits else None)
        return features if self.projection is None else self.projection(features)

    def _encode(self, inputs: Inputs) -> Any:
        if self.encoder is None:
            return inputs
        return self.encoder(**inputs) if isinstance(inputs, Mapping) else self.encoder(inputs)


class RetrievalModel(nn.Module):
    """What the trainer asks of a model: `forward(batch) -> Embedding`, `score`, and `metric`.

    Args:
        metric: the similarity; None means cosine.
    """

    def __init__(self, metric: GSSFMetric | None) -> None:
        super().__init__()
        self.metric = metric

    def forward(self, batch: Batch) -> Embedding:
        """Encode both sides of a batch."""
        raise NotImplementedError

    def encoders(self) -> list[nn.Module]:
        """The encoders, without poolings and projections: what a recipe gives its own learning rate."""
        towers = [module for module in self.modules() if isinstance(module, Tower)]
        return [tower.encoder for tower in towers if tower.encoder is not None]

    def score(self, queries: Float[Tensor, "n dim"], gallery: Float[Tensor, "m dim"]) -> Float[Tensor, "n m"]:
        """All pairs of features under the metric, or cosine."""
        if self.metric is None:
            return normalize_rows(queries) @ normalize_rows(gallery).mT
        scores: Tensor = self.metric(queries, gallery)
        return scores


class TwoTower(RetrievalModel):
    """Two encoders and a metric between their features.

    Args:
        image_encoder: a module, a `Tower` with its own pooling and projection, or None for computed features.
        text_encoder: likewise. The two sides must give features of one width.
        metric: GSSFMetric of that width; None (default) means cosine.

    Shape:
        A batch has "images" and "texts" (tensors, or mappings of an encoder's keywords) with "image_ids" (N,) and
        "text_ids" (M,): a text belongs to the images of the same id; N and M may differ.

    Example:
        >>> import torch
        >>> model = TwoTower(nn.Linear(6, 4), None, GSSFMetric(4, block_size=2))
        >>> model.score(model.encode_image(torch.randn(3, 6)), model.encode_text(torch.randn(5, 4))).shape
        torch.Size([3, 5])
    """

    def __init__(
        self,
        image_encoder: nn.Module | None,
        text_encoder: nn.Module | None,
        metric: GSSFMetric | None = None,
    ) -> None:
        super().__init__(metric)
        self.image_tower = _as_tower(image_encoder)
        self.text_tower = _as_tower(text_encoder)

    def forward(self, batch: Batch) -> Embedding:
        """Images as queries, texts as gallery."""
        images, image_ids, texts, text_ids = _take(batch, "images", "image_ids", "texts", "text_ids")
        return Embedding(self.encode_image(images), image_ids, self.encode_text(texts), text_ids)

    def encode_image(self, images: Inputs) -> Float[Tensor, "n dim"]:
        """Features of images, the metric's query side; not normalised."""
        features: Tensor = self.image_tower(images)
        return features

    def encode_text(self, texts: Inputs) -> Float[Tensor, "n dim"]:
        """Features of texts, the metric's gallery side; not normalised."""
        features: Tensor = self.text_tower(texts)
        return features


class OneTower(RetrievalModel):
    """One encoder and a symmetric metric between its features: re-identification, fine-grained retrieval.

    Args:
        encoder: a module, a `Tower`, or None for computed features.
        metric: GSSFMetric with `constraint` "symmetric" or "psd", or of the diagonal alone, so that
            s(a, b) = s(b, a); None (default) means cosine.

    Shape:
        A batch has "inputs" (a tensor or a mapping) and "labels" (N,).

    Raises:
        ArgumentError: a metric that is not symmetric.
    """

    def __init__(self, encoder: nn.Module | None, metric: GSSFMetric | None = None) -> None:
        super().__init__(metric)
        if metric is not None and metric.constraint is None and metric.terms != ("diagonal",):
            raise ArgumentError(
                "metric",
                "be symmetric in a model of one tower, or s(a, b) and s(b, a) differ",
                "constraint=None",
                "Build it with GSSFMetric(..., constraint='symmetric').",
            )
        self.tower = _as_tower(encoder)

    def forward(self, batch: Batch) -> Embedding:
        """Every item both as query and as gallery."""
        inputs, labels = _take(batch, "inputs", "labels")
        features = self.encode(inputs)
        return Embedding(features, labels, features, labels)

    def encode(self, inputs: Inputs) -> Float[Tensor, "n dim"]:
        """Features of inputs; not normalised."""
        features: Tensor = self.tower(inputs)
        return features


def _as_tower(encoder: nn.Module | None) -> Tower:
    return encoder if isinstance(encoder, Tower) else Tower(encoder)


def _take(batch: Batch, *keys: str) -> list[Any]:
    for key in keys:
        if key not in batch:
            raise ArgumentError(
                "batch", f"have the keys {keys}", f"the keys {tuple(batch)}", "Name them so in the collate function."
            )
    return [batch[key] for key in keys]
