"""Model and loss as one module: a batch of this process in, the loss of the whole batch of all processes out.

Being one module, the loss's parameters (a learned scale) reach the optimizer, the checkpoint and DDP together with the
model's. Scores and loss are computed in float32 or better, also under autocast.
"""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from gssf_plug.distributed import gather, gather_detached
from gssf_plug.losses.features import loss_of_features
from gssf_plug.losses.pairs import relevance_by_id
from gssf_plug.retrieval.models import Embedding, RetrievalModel

__all__ = ["Objective", "gather_embedding"]


class Objective(nn.Module):
    """encode the own rows → gather → score all pairs → loss.

    Args:
        model: batch -> Embedding.
        loss: `loss(scores, relevance, forbidden=...)` -> scalar, or a `FeatureLoss`; see `gssf_plug.losses`.
    """

    def __init__(self, model: RetrievalModel, loss: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.loss = loss

    def forward(self, batch: Mapping[str, Any]) -> Float[Tensor, ""]:
        """The loss of the whole batch; the same number on every process."""
        whole = gather_embedding(self.model(batch))
        with torch.autocast(whole.queries.device.type, enabled=False):
            if whole.one_sided:
                return loss_of_features(self.loss, whole.queries, whole.query_ids, self.model.score)
            scores = self.model.score(whole.queries, whole.gallery)
            relevance = relevance_by_id(whole.query_ids, whole.gallery_ids)
            loss: Tensor = self.loss(scores, relevance)
        return loss


def gather_embedding(own: Embedding) -> Embedding:
    """The embedding of all processes' rows, features in float32 or better; gradients flow back."""
    queries, query_ids = _precise(gather(own.queries)), gather_detached(own.query_ids)
    if own.one_sided:
        return Embedding(queries, query_ids, queries, query_ids)
    return Embedding(queries, query_ids, _precise(gather(own.gallery)), gather_detached(own.gallery_ids))


def _precise(features: Tensor) -> Tensor:
    return features.to(torch.promote_types(features.dtype, torch.float32))
