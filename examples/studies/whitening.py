r"""Baselines in closed form: cosine after whitening, whose shrinkage λ is chosen on validation data.

    s(x, y) = cos(P(x̂ − μ), P(ŷ − μ)),    P = (C + λ tr(C)/D · I)^(-1/2)

C is the covariance of all training features ("whitened"), or of the differences of pairs that belong together
("whitened by pairs", known as within-class covariance normalisation). Both use a full D×D matrix. Nothing of this folds
into the query alone: both sides are transformed, and a new P needs a new index.
"""

from collections.abc import Mapping
from typing import Any

import torch
from shared.baselines import FixedCosine
from torch import Tensor, nn
from torch.nn.functional import normalize

from studies.tasks import Split, Task
from studies.training import Scorer, mean_ap, measured

__all__ = ["WHITENINGS", "Whitening", "whiten"]

WHITENINGS = {"cosine, whitened": False, "cosine, whitened by pairs": True}
SHRINKAGES = (1e-2, 3e-2, 1e-1, 3e-1, 1.0, 3.0, 10.0)
PAIRS = 20_000


class Whitening(FixedCosine):
    """Cosine of transformed features.

    Args:
        mean: μ (D,).
        root: P (D, D).
    """

    def __init__(self, mean: Tensor, root: Tensor) -> None:
        super().__init__(len(mean))
        self.mean, self.root = mean, root

    def fold(self, queries: Tensor) -> Tensor:
        """Either side, (..., D) -> (..., D)."""
        return normalize((normalize(queries, dim=-1) - self.mean) @ self.root, dim=-1)

    gallery = fold


def whiten(task: Task, by_pairs: bool) -> Mapping[str, Any]:
    """The run of one row: measures on test data with the shrinkage that is best on validation data."""
    split = task.splits["train"]
    features = normalize(torch.cat([split.queries, split.gallery]), dim=1)
    mean = features.mean(0)
    covered = _differences(split) if by_pairs else features - mean
    values, vectors = torch.linalg.eigh(covered.T @ covered / len(covered))
    best, chosen = -1.0, None
    for shrinkage in SHRINKAGES:
        root = (vectors * (values + shrinkage * values.mean()).rsqrt()) @ vectors.T
        scorer = Scorer(Whitening(mean, root), (nn.Identity(), nn.Identity()))
        score = mean_ap(scorer, task.splits["validation"])
        if score > best:
            best, chosen = score, (scorer, shrinkage)
    assert chosen is not None
    scorer, shrinkage = chosen
    return {
        "validation": best,
        **measured(scorer, task.splits["test"]),
        "parameters": mean.numel() ** 2,
        "shrinkage": shrinkage,
    }


def _differences(split: Split) -> Tensor:
    rows, columns = split.pairs.T
    chosen = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:PAIRS]
    return normalize(split.queries[rows[chosen]], dim=1) - normalize(split.gallery[columns[chosen]], dim=1)
