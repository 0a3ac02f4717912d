r"""What needs no training: whitening by the differences of pairs, and the same matrix folded into the query.

    P = (C + λ t I)^(-1/2),  t = tr(C) / D         cosine, whitened by pairs: cos(P(x̂ − μ), P(ŷ − μ))
    M = (C + λ t I)^(-1) · (1 + λ) t               closed form: x̂ᵀ M ŷ, a metric

C is the covariance of differences x̂ − ŷ of pairs that belong together (within-class covariance normalisation), and μ
the mean of both sides. λ is chosen on validation. Whitening changes both sides and normalises again: no metric, and a
new P needs a new index. M leaves the documents as they are.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from gssf_plug.metric import GSSFMetric, normalize_rows
from gssf_plug.retrieval.fitting.splits import Part

__all__ = ["SHRINKAGES", "PairCovariance", "Whitening"]

SHRINKAGES = (1e-2, 3e-2, 1e-1, 3e-1, 1.0, 3.0, 10.0)
MOST = 20_000  # pairs, and rows of a side, that the covariance and the mean are made of


class Whitening:
    """Cosine of transformed rows, in the form of a metric: `fold` and `gallery`.

    Args:
        mean: μ.
        root: P.
    """

    def __init__(self, mean: Float[Tensor, " dim"], root: Float[Tensor, "dim dim"]) -> None:
        self.mean, self.root = mean, root

    def fold(self, rows: Float[Tensor, "n dim"]) -> Float[Tensor, "n dim"]:
        """Either side: P(x̂ − μ), normalised."""
        return normalize_rows((rows - self.mean) @ self.root)

    gallery = fold


class PairCovariance:
    """C and μ of the pairs of a part, as eigenvalues and vectors.

    Args:
        part: its pairs and rows; at most 20,000 of either are read.
        seed: of the draw where there are more.
    """

    def __init__(self, part: Part, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        places, items = part.pairs.select(part.rows)
        rows = part.rows[places]
        if part.itself:
            rows, items = rows[rows != items], items[rows != items]
        drawn = torch.randperm(len(rows), generator=generator)[:MOST]
        queries, documents = part.queries.rows(rows[drawn]), part.documents.rows(items[drawn])
        differences = queries - documents
        self.mean = torch.cat([queries, documents]).mean(0)
        self.values, self.vectors = torch.linalg.eigh((differences.T @ differences).double() / len(differences))
        self.values = self.values.clamp_min(0)

    def whitening(self, shrinkage: float) -> Whitening:
        """P for one λ."""
        return Whitening(self.mean, self._power(shrinkage, -0.5))

    def metric(self, shrinkage: float, *, normalize: bool) -> GSSFMetric:
        """M for one λ, as a dense metric."""
        metric = GSSFMetric(len(self.values), terms=("dense",), normalize=normalize).to(self.mean.device)
        with torch.no_grad():
            next(metric.parameters()).copy_(self._power(shrinkage, -1.0)[None])  # the one weight of a dense metric
        return metric

    def _power(self, shrinkage: float, exponent: float) -> Float[Tensor, "dim dim"]:
        scale = self.values.mean().clamp_min(1e-12)
        powers = ((self.values / scale + shrinkage) / (1 + shrinkage)) ** exponent  # 1 where an axis is average
        return ((self.vectors * powers) @ self.vectors.T).to(self.mean.dtype)
