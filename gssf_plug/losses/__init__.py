"""Losses on a score matrix: `loss(scores, relevance, *, exclude=None)` -> scalar.

scores (N, M) are similarities, larger is better; relevance (N, M) is boolean, True where a pair belongs together (see
`relevance_by_id`: positives come from ids, never from positions); exclude (N, M) marks pairs that count neither way,
such as an item with itself. Every loss here sums in float32 or better, is 0 (with a gradient of 0) where nothing can
be learned, and does not depend on the order of rows and columns. A loss with parameters is an `nn.Module` whose
parameters must join the optimizer; RetrievalTrainer sees to that.

For one tower: triplet losses by masks; `IdentityLoss` and `WeightedSum`, which read features (see `EmbeddingLoss`); and
`gssf_plug.losses.pml`, the bridge to pytorch-metric-learning (extra `pml`), imported by name.
"""

from gssf_plug.losses.embedding_loss import EmbeddingLoss, FeatureLoss, IdentityLoss, WeightedSum
from gssf_plug.losses.hinge import Hinge
from gssf_plug.losses.infonce import InfoNCE
from gssf_plug.losses.pair_masks import relevance_by_id
from gssf_plug.losses.sigmoid import Sigmoid
from gssf_plug.losses.triplet import BatchHardTriplet, SemiHardTriplet

__all__ = [
    "BatchHardTriplet",
    "EmbeddingLoss",
    "FeatureLoss",
    "Hinge",
    "IdentityLoss",
    "InfoNCE",
    "SemiHardTriplet",
    "Sigmoid",
    "WeightedSum",
    "relevance_by_id",
]
