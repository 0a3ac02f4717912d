r"""What needs no training: whitening by the differences of pairs, and the same matrix folded into the query.

    P = (C + λ t I)^(-1/2),  t = tr(C) / D         cosine, whitened by pairs: cos(P(x̂ − μ), P(ŷ − μ))
    M = (C + λ t I)^(-1) · (1 + λ) t               closed form: x̂ᵀ M ŷ, a metric

C is the covariance of differences x̂ − ŷ of pairs that belong together (within-class covariance normalisation), and μ
the mean of both sides. λ is chosen on validation. Whitening changes both sides and normalises again: no metric, and a
new P needs a new index. M leaves the documents as they are. On rows that are turned into the eigenvectors of C once,
both are diagonal for every λ: `turned`.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from gssf_plug.metric import GSSFMetric, normalize_rows
from gssf_plug.metric.options import Term
from gssf_plug.retrieval.fitting.splits import Part

__all__ = ["SHRINKAGES", "PairCovariance", "Whitening"]

SHRINKAGES = (1e-2, 3e-2, 1e-1, 3e-1, 1.0, 3.0, 10.0)
MOST = 20_000  # pairs, and rows of a side, that the covariance and the mean are made of
AT_ONCE = 2_048  # of these: what is made of more would leave the cache


class Whitening:
    """Cosine of transformed rows, in the form of a metric: `fold` and `gallery`.

    Args:
        mean: μ.
        root: P, or its diagonal.
    """

    def __init__(self, mean: Float[Tensor, " dim"], root: Float[Tensor, "*dims"]) -> None:
        self.mean, self.root = mean, root

    def fold(self, rows: Float[Tensor, "n dim"]) -> Float[Tensor, "n dim"]:
        """Either side: P(x̂ − μ), normalised."""
        centred = rows - self.mean
        return normalize_rows(centred * self.root if self.root.ndim == 1 else centred @ self.root)

    gallery = fold


class PairCovariance:
    """C and μ of the pairs of a part, as eigenvalues and vectors.

    Args:
        part: part whose pairs and rows are read, at most 20,000 of either.
        seed: seed of the draw where there are more.
    """

    def __init__(self, part: Part, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        places, items = part.pairs.select(part.rows)
        rows = part.rows[places]
        if part.itself:
            rows, items = rows[rows != items], items[rows != items]
        drawn = torch.randperm(len(rows), generator=generator)[:MOST]
        dim, device = part.documents.dim, part.documents.device
        total, within = torch.zeros(dim, device=device), torch.zeros(dim, dim, device=device)
        for some in drawn.split(AT_ONCE):
            queries, documents = part.queries.rows(rows[some]), part.documents.rows(items[some])
            gaps = queries - documents
            total, within = total + (queries + documents).sum(0), within + gaps.T @ gaps
        self.mean = total / (2 * len(drawn))
        self.values, self.vectors = torch.linalg.eigh(within.double() / len(drawn))
        self.values = self.values.clamp_min(0)

    def whitening(self, shrinkage: float, *, turned: bool = False) -> Whitening:
        """P for one λ; `turned`: of rows in the axes of `vectors`."""
        if turned:
            return Whitening(self.mean @ self.axes, self._powers(shrinkage, -0.5).to(self.mean.dtype))
        return Whitening(self.mean, self._matrix(shrinkage, -0.5))

    def metric(self, shrinkage: float, *, normalize: bool, turned: bool = False) -> GSSFMetric:
        """M for one λ, as a dense metric; `turned`: as a diagonal one, of rows in the axes of `vectors`."""
        term: Term = "diagonal" if turned else "dense"
        metric = GSSFMetric(len(self.values), terms=(term,), normalize=normalize).to(self.mean.device)
        weights = self._powers(shrinkage, -1.0) if turned else self._matrix(shrinkage, -1.0)[None]
        with torch.no_grad():
            next(metric.parameters()).copy_(weights)  # the one weight of such a metric
        return metric

    @property
    def axes(self) -> Float[Tensor, "dim dim"]:
        """`vectors` in the dtype of the rows."""
        return self.vectors.to(self.mean.dtype)

    def _powers(self, shrinkage: float, exponent: float) -> Float[Tensor, " dim"]:
        scale = self.values.mean().clamp_min(1e-12)
        return ((self.values / scale + shrinkage) / (1 + shrinkage)) ** exponent  # 1 where an axis is average

    def _matrix(self, shrinkage: float, exponent: float) -> Float[Tensor, "dim dim"]:
        return ((self.vectors * self._powers(shrinkage, exponent)) @ self.vectors.T).to(self.mean.dtype)
