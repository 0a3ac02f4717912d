r"""DualEncoder: a CLIP-style model of transformers as it is, with the metric between its embeddings.

    score(image, text) = exp(logit_scale) · s(f(image), g(text)) + logit_bias

With a neutral metric these are the model's own logits. Nothing of the model is copied or replaced: its projections, its
scale, its processor; and `save_pretrained` keeps it as a folder that plain transformers loads.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from gssf_plug.arguments import check_module
from gssf_plug.errors import ArgumentError
from gssf_plug.features import feature_tensor
from gssf_plug.metric import GSSFMetric
from gssf_plug.retrieval.models.embedding import Side
from gssf_plug.retrieval.models.tower import Inputs
from gssf_plug.retrieval.models.two_tower import ImageTextModel

__all__ = ["DualEncoder"]


class DualEncoder(ImageTextModel):
    """A model of transformers with `get_image_features` and `get_text_features`, and a metric.

    Its logits have a scale of their own, which is trained: use `InfoNCE(scale=1.0, learned_scale=False)`, or for SigLIP
    `Sigmoid()`. A loss with a margin would see scores of about ±100.

    Args:
        encoder: CLIPModel, SiglipModel, VisionTextDualEncoderModel, or another model with the same methods.
        metric: GSSFMetric as wide as the encoder's embeddings; None (default) compares them by cosine.
        processors: processors that are saved and loaded with the model, by name, such as {"processor": CLIPProcessor};
            default none.

    Shape:
        A batch has "images" {"pixel_values"} and "texts" {"input_ids", "attention_mask"}, with "image_ids" (N,) and
        "text_ids" (M,).

    Raises:
        ArgumentError: the model lacks the two methods, or the metric has another width.

    References:
        Radford et al., CLIP, arXiv 2103.00020; Zhai et al., SigLIP, arXiv 2303.15343.
    """

    published: ClassVar = {"encoder": "encoder", "metric": "metric"}

    def __init__(
        self,
        encoder: PreTrainedModel,
        metric: GSSFMetric | None = None,
        *,
        processors: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(metric, processors=processors)
        check_module("encoder", encoder, "Such as CLIPModel of transformers.")
        needed = ("get_image_features", "get_text_features", "vision_model", "text_model")
        lacking = [name for name in needed if not hasattr(encoder, name)]
        if lacking:
            raise ArgumentError(
                "encoder",
                f"have {', '.join(needed)}, as CLIPModel has",
                f"{type(encoder).__name__} without {lacking[0]}",
                "Use TwoTower for two separate encoders.",
            )
        self.encoder: Any = encoder

    def encode_image(self, images: Inputs) -> Float[Tensor, "n dim"]:
        """The model's image embeddings, projected; not normalised."""
        images = images if isinstance(images, Mapping) else {"pixel_values": images}
        return feature_tensor(self.encoder.get_image_features(**images), name="pooler_output")

    def encode_text(self, texts: Inputs) -> Float[Tensor, "n dim"]:
        """The model's text embeddings, projected; not normalised."""
        texts = texts if isinstance(texts, Mapping) else {"input_ids": texts}
        return feature_tensor(self.encoder.get_text_features(**texts), name="pooler_output")

    def score(self, queries: Side, gallery: Side) -> Float[Tensor, "n m"]:
        """The model's logits of all pairs, under the metric."""
        scores = super().score(queries, gallery)
        bias = getattr(self.encoder, "logit_bias", None)
        # the scale is kept as a logarithm; exp in float32 or better, since exp(ln 100) in bfloat16 is 99
        scores = scores * self.encoder.logit_scale.to(torch.promote_types(scores.dtype, torch.float32)).exp()
        return scores if bias is None else scores + bias.to(scores.dtype)

    def encoders(self) -> list[nn.Module]:
        """The whole model, projections and scale included: all of it is pretrained."""
        return [self.encoder]

    def image_encoders(self) -> list[nn.Module]:
        """Its vision model."""
        return [self.encoder.vision_model]

    def text_encoders(self) -> list[nn.Module]:
        """Its text model."""
        return [self.encoder.text_model]
