r"""Models of retrieval: towers over any encoder, and the metric that compares their features.

    TwoTower    s(image, text) = metric(f(image), g(text))       two modalities; image is the metric's query side
    OneTower    s(a, b) = metric(f(a), f(b)), symmetric          one modality; an item is never its own match

Both turn a batch (a mapping with the keys named in their docstrings) into an `Embedding`. Loss, evaluation and trainer
know nothing else of a model. Further models: `DualEncoder` (CLIP-style) and `LocalAlignment` (regions and words).
All are published by `save_pretrained`, `from_pretrained` and `push_to_hub`; see `gssf_plug.retrieval.models.saving`.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from gssf_plug.arguments import check_module, described, holds_whole_numbers
from gssf_plug.errors import ArgumentError
from gssf_plug.metric import GSSFMetric, normalize_rows
from gssf_plug.metric.options import check_metric
from gssf_plug.retrieval.models.embedding import Embedding, Side, vectors
from gssf_plug.retrieval.models.saving import PublishedModel
from gssf_plug.retrieval.models.tower import Inputs, Tower, as_tower

__all__ = ["Embedding", "ImageTextModel", "OneTower", "RetrievalModel", "Tower", "TwoTower"]

Batch = Mapping[str, Any]
NEUTRAL = {"images": "queries", "image_ids": "query_ids", "texts": "items", "text_ids": "item_ids"}


class RetrievalModel(PublishedModel):
    """What the trainer asks of a model: `forward(batch) -> Embedding`, `score`, and `metric`.

    Args:
        metric: metric that compares the two sides; None means cosine.
        processors: objects of transformers with `save_pretrained` that turn raw items into this model's inputs, by
            name, such as {"tokenizer": tokenizer}. The model does not use them; they are saved and loaded with it.
    """

    def __init__(self, metric: GSSFMetric | None, *, processors: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        check_metric(metric)
        named = isinstance(processors, Mapping) and all(isinstance(name, str) for name in processors)
        if processors is not None and not named:
            rule, remedy = "be None or a mapping from names to processors", "Such as {'tokenizer': tokenizer}."
            raise ArgumentError("processors", rule, described(processors), remedy)
        self.metric = metric
        self.processors = dict(processors or {})

    def forward(self, batch: Batch) -> Embedding:
        """Encode both sides of a batch."""
        raise NotImplementedError

    def metrics(self) -> list[GSSFMetric]:
        """Every metric of the model, each once: what the recipe's metric_learning_rate is for."""
        return [module for module in self.modules() if isinstance(module, GSSFMetric)]

    def encoders(self) -> list[nn.Module]:
        """The encoders, without poolings and projections: what a recipe gives its own learning rate."""
        towers = [module for module in self.modules() if isinstance(module, Tower)]
        return [tower.encoder for tower in towers if tower.encoder is not None]

    def score(self, queries: Side, gallery: Side) -> Float[Tensor, "n m"]:
        """All pairs of features under the metric, or cosine."""
        queries, gallery = vectors("queries", queries), vectors("gallery", gallery)
        if self.metric is None:
            if queries.shape[1] != gallery.shape[1]:
                rule, remedy = f"have the {queries.shape[1]} channels of `queries`", "Project both sides to one width."
                raise ArgumentError("gallery", rule, described(gallery), remedy)
            common = torch.promote_types(queries.dtype, gallery.dtype)  # as a metric scores sides of two dtypes
            return normalize_rows(queries).to(common) @ normalize_rows(gallery).to(common).mT
        scores: Tensor = self.metric(queries, gallery)
        return scores


class ImageTextModel(RetrievalModel):
    """A model of two modalities; subclasses encode each. Image is the metric's query side.

    Shape:
        A batch has "images" and "texts" (tensors, or mappings of an encoder's keywords) with "image_ids" (N,) and
        "text_ids" (M,): a text belongs to the images of the same id; N and M may differ. Where neither is an image or a
        text, "queries", "query_ids", "items" and "item_ids" say the same, and so do the methods `encode_query` and
        `encode_item`. In evaluation a batch may have one side alone; the other is then empty.
    """

    def forward(self, batch: Batch) -> Embedding:
        """Images as queries, texts as gallery."""
        _check_batch(batch)
        sides = [side for side in ("images", "texts") if side in batch or NEUTRAL[side] in batch]
        if not self.training and sides == ["texts"]:
            texts, text_ids = _take(batch, "texts", "text_ids")
            features = self.encode_text(texts)
            return Embedding(features[:0], text_ids[:0], features, text_ids)
        if not self.training and sides == ["images"]:
            images, image_ids = _take(batch, "images", "image_ids")
            features = self.encode_image(images)
            return Embedding(features, image_ids, features[:0], image_ids[:0])
        images, image_ids, texts, text_ids = _take(batch, "images", "image_ids", "texts", "text_ids")
        return Embedding(self.encode_image(images), image_ids, self.encode_text(texts), text_ids)

    def encode_image(self, images: Inputs) -> Any:
        """Features of images, the metric's query side; not normalised."""
        raise NotImplementedError

    def encode_text(self, texts: Inputs) -> Any:
        """Features of texts, the metric's gallery side; not normalised."""
        raise NotImplementedError

    def encode_query(self, queries: Inputs) -> Any:
        """`encode_image` under a neutral name."""
        return self.encode_image(queries)

    def encode_item(self, items: Inputs) -> Any:
        """`encode_text` under a neutral name."""
        return self.encode_text(items)

    def image_encoders(self) -> list[nn.Module]:
        """The modules of `encoders` that see images."""
        raise NotImplementedError

    def text_encoders(self) -> list[nn.Module]:
        """The modules of `encoders` that see texts."""
        raise NotImplementedError


class TwoTower(ImageTextModel):
    """Two encoders and a metric between their features.

    Args:
        image_encoder: module that encodes images, a `Tower` with its own pooling and projection, or None where the
            batch holds computed features.
        text_encoder: the same for texts. The two sides must give features of one width.
        metric: GSSFMetric of that width; None (default) compares them by cosine.
        processors: tokenizers and image processors that are saved and loaded with the model, by name, such as
            {"tokenizer": tokenizer}; default none.

    Shape:
        A batch has "images" and "texts" (tensors, or mappings of an encoder's keywords) with "image_ids" (N,) and
        "text_ids" (M,): a text belongs to the images of the same id; N and M may differ.

    Example:
        >>> import torch
        >>> model = TwoTower(nn.Linear(6, 4), None, GSSFMetric(4, block_size=2))
        >>> model.score(model.encode_image(torch.randn(3, 6)), model.encode_text(torch.randn(5, 4))).shape
        torch.Size([3, 5])
    """

    published: ClassVar = {"image_tower": "image_encoder", "text_tower": "text_encoder", "metric": "metric"}

    def __init__(
        self,
        image_encoder: nn.Module | None,
        text_encoder: nn.Module | None,
        metric: GSSFMetric | None = None,
        *,
        processors: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(metric, processors=processors)
        self.image_tower = as_tower(image_encoder)
        self.text_tower = as_tower(text_encoder)

    def encode_image(self, images: Inputs) -> Float[Tensor, "n dim"]:
        """Features of images, the metric's query side; not normalised."""
        features: Tensor = self.image_tower(images)
        return features

    def encode_text(self, texts: Inputs) -> Float[Tensor, "n dim"]:
        """Features of texts, the metric's gallery side; not normalised."""
        features: Tensor = self.text_tower(texts)
        return features

    def image_encoders(self) -> list[nn.Module]:
        """The encoder of the image tower, if any."""
        return [] if self.image_tower.encoder is None else [self.image_tower.encoder]

    def text_encoders(self) -> list[nn.Module]:
        """The encoder of the text tower, if any."""
        return [] if self.text_tower.encoder is None else [self.text_tower.encoder]


class OneTower(RetrievalModel):
    """One encoder and a symmetric metric between its features: re-identification, fine-grained retrieval.

    Args:
        encoder: module that encodes the inputs, a `Tower`, or None where the batch holds computed features.
        metric: GSSFMetric with `constraint` "symmetric" or "psd", or of the diagonal alone, so that
            s(a, b) = s(b, a); None (default) compares features by cosine.
        neck: batch normalisation after the features, such as `BNNeck(2048)`. In training mode the features before it
            come out, and `NeckLoss` applies it; in evaluation mode those after it. Default none.
        processors: tokenizers and image processors that are saved and loaded with the model, by name; default none.

    Shape:
        A batch has "inputs" (a tensor or a mapping) and "labels" (N,).

    Raises:
        ArgumentError: the metric is not symmetric.
    """

    published: ClassVar = {"tower": "encoder", "metric": "metric", "neck": "neck"}

    def __init__(
        self,
        encoder: nn.Module | None,
        metric: GSSFMetric | None = None,
        *,
        neck: nn.Module | None = None,
        processors: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(metric, processors=processors)
        check_module("neck", neck, "Such as BNNeck(dim).", optional=True)
        if metric is not None and metric.constraint is None and metric.terms != ("diagonal",):
            raise ArgumentError(
                "metric",
                "be symmetric in a model of one tower, or s(a, b) and s(b, a) differ",
                "constraint=None",
                "Build it with GSSFMetric(..., constraint='symmetric').",
            )
        self.tower = as_tower(encoder)
        self.neck = neck

    def forward(self, batch: Batch) -> Embedding:
        """Every item both as query and as gallery."""
        inputs, labels = _take(batch, "inputs", "labels")
        features = self.encode(inputs)
        return Embedding(features, labels, features, labels)

    def encode(self, inputs: Inputs) -> Float[Tensor, "n dim"]:
        """Features of inputs; not normalised. With a neck: before it in training mode, after it in evaluation mode."""
        features: Tensor = self.tower(inputs)
        return features if self.neck is None or self.training else self.neck(features)


def _check_batch(batch: object) -> None:
    if not isinstance(batch, Mapping):
        raise ArgumentError(
            "batch", "be a mapping from names to inputs and ids", described(batch), "See the collators."
        )


def _take(batch: Batch, *keys: str) -> list[Any]:
    """The entries of these keys, under either name; an error speaks of the names that the batch uses."""
    _check_batch(batch)
    found = [key if key in batch else NEUTRAL.get(key, key) for key in keys]
    if not all(name in batch for name in found):
        neutral = any(name in batch for name in NEUTRAL.values())
        wanted = tuple(NEUTRAL.get(key, key) for key in keys) if neutral else keys
        remedy = "Name them so in the collate function."
        raise ArgumentError("batch", f"have the keys {wanted}", f"the keys {tuple(batch)}", remedy)
    values = [batch[name] for name in found]
    for key, name, value in zip(keys, found, values, strict=True):
        if key.endswith(("ids", "labels")) and not (holds_whole_numbers(value) and value.ndim == 1):
            rule = f"hold one whole number per item in '{name}'"
            raise ArgumentError("batch", rule, described(value), "Let collate make a tensor of them.")
    return values
