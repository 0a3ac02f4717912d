"""LocalAlignment: images and captions compared region by word, with a metric in the similarity and in the attention.

Published as SCAN with cosine in both places, which a neutral metric equals. The scores of all pairs are computed in
blocks (`gssf_plug.retrieval.models.cross_attention`); there is no vector per item that an index could hold, so an
evaluation ranks by a score matrix: pass `evaluation=alignment_measures(model)` to the trainer.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from gssf_plug.arguments import check_function, described, listed
from gssf_plug.errors import ArgumentError
from gssf_plug.metric import GSSFMetric, normalize_rows
from gssf_plug.metric.options import check_metric
from gssf_plug.retrieval.models.cross_attention import Alignment, TextToImage, align
from gssf_plug.retrieval.models.embedding import Fragments, Side
from gssf_plug.retrieval.models.tower import Inputs, as_tower
from gssf_plug.retrieval.models.two_tower import ImageTextModel

__all__ = ["LocalAlignment"]


class LocalAlignment(ImageTextModel):
    """Stacked cross-attention between regions and words.

    Args:
        image_encoder: a module or a `Tower` whose `fragments` are the regions (its pooling is not used), or None.
        text_encoder: a module or a `Tower` whose `fragments` are the words, of the same width D, or None.
        metric: GSSFMetric of width D that compares fragments; None (default) compares them by cosine.
        attention_metric: GSSFMetric of width D that the attention logits are made with; give the same object as
            `metric` to share it. None (default) attends by cosine.
        alignments: `TextToImage(...)`, `ImageToText(...)`, or both, whose scores are averaged; default TextToImage().
        processors: tokenizers and image processors that are saved and loaded with the model, by name; default none.

    Shape:
        A batch has "images" and "texts", mappings with "attention_mask" (N, T) where there is padding, and "image_ids"
        (N,), "text_ids" (M,).

    Raises:
        ArgumentError: there is no alignment, or a metric does not normalise.

    References:
        Lee et al., SCAN, arXiv 1803.08024. The metric in both places is ours; the paper's own placement is not known.

    Example:
        >>> metric = GSSFMetric(4, block_size=2)
        >>> model = LocalAlignment(nn.Linear(6, 4), None, metric=metric, attention_metric=metric)
        >>> images, texts = model.encode_image(torch.randn(3, 7, 6)), model.encode_text(torch.randn(5, 9, 4))
        >>> model.score(images, texts).shape
        torch.Size([3, 5])
    """

    published: ClassVar = {
        "image_tower": "image_encoder",
        "text_tower": "text_encoder",
        "metric": "metric",
        "attention_metric": "attention_metric",
        "alignments": "alignments",
    }

    def __init__(
        self,
        image_encoder: nn.Module | None,
        text_encoder: nn.Module | None,
        *,
        metric: GSSFMetric | None = None,
        attention_metric: GSSFMetric | None = None,
        alignments: Sequence[Alignment] = (TextToImage(),),
        processors: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(metric, processors=processors)
        given, remedy = listed(alignments), "Give TextToImage() or ImageToText()."
        if not given:
            got = "none" if given is not None else described(alignments)
            raise ArgumentError("alignments", "hold at least one alignment", got, remedy)
        for alignment in given:
            check_function("alignments", alignment, remedy, takes=1)
        check_metric(attention_metric, name="attention_metric")
        for name, part in (("metric", metric), ("attention_metric", attention_metric)):
            if part is not None and not part.normalize:
                remedy = "Build it with GSSFMetric(..., normalize=True)."
                raise ArgumentError(name, "normalise where fragments are aligned", "normalize=False", remedy)
        self.image_tower = as_tower(image_encoder)
        self.text_tower = as_tower(text_encoder)
        self.attention_metric = attention_metric
        self.alignments = given

    def encode_image(self, images: Inputs) -> Fragments:
        """Regions, the metric's query side; not normalised."""
        return self.image_tower.fragments(images)

    def encode_text(self, texts: Inputs) -> Fragments:
        """Words, the metric's gallery side; not normalised."""
        return self.text_tower.fragments(texts)

    def score(self, queries: Side, gallery: Side) -> Float[Tensor, "n m"]:
        """Scores of all images with all captions, in float32 or better, block by block.

        Raises:
            ArgumentError: a side holds no fragments, or has another width than a metric.
        """
        images, texts = _fragments("queries", queries), _fragments("gallery", gallery)
        if images.features.shape[-1] != texts.features.shape[-1]:
            rule, remedy = f"have the {images.features.shape[-1]} channels of `queries`", "Project both to one width."
            raise ArgumentError("gallery", rule, described(texts.features), remedy)
        regions, words = _directions(images.features, images.mask), _directions(texts.features, texts.mask)
        return align(
            self.alignments,
            regions,
            words,
            images.mask,
            texts.mask,
            similarity=_fold(self.metric),
            # a shared metric is folded once: the logits are then the similarities themselves
            logits=None if self.attention_metric is self.metric else _fold(self.attention_metric),
        )

    def image_encoders(self) -> list[nn.Module]:
        """The encoder of the image tower, if any."""
        return [] if self.image_tower.encoder is None else [self.image_tower.encoder]

    def text_encoders(self) -> list[nn.Module]:
        """The encoder of the text tower, if any."""
        return [] if self.text_tower.encoder is None else [self.text_tower.encoder]


def _fold(metric: GSSFMetric | None) -> Any:
    return _as_they_are if metric is None else metric.fold


def _as_they_are(regions: Tensor) -> Tensor:
    return regions


def _directions(features: Float[Tensor, "n t dim"], mask: Bool[Tensor, "n t"]) -> Float[Tensor, "n t dim"]:
    """Normalised in float32 or better, zero where masked, whatever stands there."""
    features = features.to(torch.promote_types(features.dtype, torch.float32))
    return normalize_rows(features.masked_fill(~mask[..., None], 0.0))


def _fragments(name: str, side: Side) -> Fragments:
    if isinstance(side, Fragments):
        return side
    remedy = "Take them from encode_image and encode_text of this model."
    raise ArgumentError(name, "be Fragments", described(side), remedy)
