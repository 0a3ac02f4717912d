"""Model and loss as one module: a batch of this process in, the loss of the whole batch of all processes out.

Being one module, the loss's parameters (a learned scale) reach the optimizer, the checkpoint and DDP together with the
model's. Scores and loss are computed in float32 or better, also under autocast.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from gssf_plug.losses.chunked import loss_of_pairs
from gssf_plug.losses.embedding_loss import loss_of_features
from gssf_plug.losses.pair_masks import relevance_by_id
from gssf_plug.retrieval.models.embedding import Embedding, Fragments, gather_embedding
from gssf_plug.retrieval.models.neck import check_neck
from gssf_plug.retrieval.models.two_tower import RetrievalModel

__all__ = ["Objective", "gather_embedding"]


class Objective(nn.Module):
    """Encode the own rows → gather → score all pairs → loss.

    Args:
        model: model that makes an `Embedding` of a batch.
        loss: loss that is called as `loss(scores, relevance, exclude=...)`, or an `EmbeddingLoss`; see
            `gssf_plug.losses`.
        precision: function that makes the context in which the model runs, such as `accelerator.autocast`. Default
            none: under DDP Accelerate enters one by itself.
    """

    def __init__(
        self,
        model: RetrievalModel,
        loss: nn.Module,
        *,
        precision: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        super().__init__()
        check_neck(model, loss)
        self.model = model
        self.loss = loss
        self.precision = precision

    @property
    def _no_split_modules(self) -> list[str]:
        """Blocks of transformers' encoders: what Accelerate shards one by one under TRANSFORMER_BASED_WRAP."""
        modules = list(self.model.modules())
        blocks = {name for one in modules if isinstance(one, PreTrainedModel) for name in one._no_split_modules or ()}
        return sorted(blocks & {type(one).__name__ for one in modules})

    def forward(self, batch: Mapping[str, Any] | None, then: Callable[[Any], Any] | None = None) -> Any:
        """Encode a batch of this process.

        Args:
            batch: what the model reads. None encodes nothing: under FSDP2 parameters are whole in here alone, so what
                was encoded before is compared in here, by a `then` that holds it.
            then: function that is called with the embedding; default `compute_loss`, the loss of the whole batch.
        """
        with self.precision():
            own: Any = None if batch is None else self.model(batch)
            return (then or self.compute_loss)(own)

    def compute_loss(self, own: Embedding) -> Float[Tensor, ""]:
        """The loss of the rows of all processes; the same number on every process."""
        whole = gather_embedding(own)
        queries, query_ids, gallery, gallery_ids = whole
        with torch.autocast(query_ids.device.type, enabled=False):
            if isinstance(queries, Fragments) or isinstance(gallery, Fragments):  # scored in blocks by the model
                scores = self.model.score(queries, gallery)
                loss: Tensor = self.loss(scores, relevance_by_id(query_ids, gallery_ids))
                return loss
            if whole.one_sided:
                return loss_of_features(self.loss, queries, query_ids, self.model.score)
            return loss_of_pairs(self.loss, self.model.score, queries, query_ids, gallery, gallery_ids)
