"""Claim: k-reciprocal re-ranking at Market-1501 size in at most 0.05 of the dense algorithm's time, under 800 MB.

python tests/benchmarks/ranking_reranking.py            # 3,368 × 15,913 × 512; four minutes, 10 GB
python tests/benchmarks/ranking_reranking.py --small    # a tenth of it
"""

import numpy as np
import torch
from ranking_reidentification import market
from ranking_table import compare, parse_options
from torch.nn.functional import normalize

from gssf_plug.evaluation import KReciprocal, reid_ranking


def dense(query: torch.Tensor, gallery: torch.Tensor, k1: int = 20, k2: int = 6, weight: float = 0.3) -> torch.Tensor:
    """The authors' numpy code on N×N matrices, from squared Euclidean distances of unit vectors."""
    unit = normalize(torch.cat([query, gallery]))
    original = (2 - 2 * unit @ unit.T).numpy()
    original = np.transpose(original / np.max(original, axis=0))
    encoding = np.zeros_like(original)
    ranking = np.argsort(original).astype(np.int32)
    queries, items = len(query), len(original)
    half = int(np.around(k1 / 2)) + 1
    for i in range(items):
        forward = ranking[i, : k1 + 1]
        reciprocal = forward[np.where(ranking[forward, : k1 + 1] == i)[0]]
        expanded = reciprocal
        for candidate in reciprocal:
            around = ranking[candidate, :half]
            mutual = around[np.where(ranking[around, :half] == candidate)[0]]
            if len(np.intersect1d(mutual, reciprocal)) > 2 / 3 * len(mutual):
                expanded = np.append(expanded, mutual)
        expanded = np.unique(expanded)
        weights = np.exp(-original[i, expanded])
        encoding[i, expanded] = weights / np.sum(weights)
    original = original[:queries]
    if k2 != 1:
        averaged = np.zeros_like(encoding)
        for i in range(items):
            averaged[i] = np.mean(encoding[ranking[i, :k2]], axis=0)
        encoding = averaged
    inverse = [np.where(encoding[:, i] != 0)[0] for i in range(items)]
    jaccard = np.zeros_like(original)
    for i in range(queries):
        shared = np.zeros(items, dtype=np.float32)
        for column in np.where(encoding[i] != 0)[0]:
            images = inverse[column]
            shared[images] += np.minimum(encoding[i, column], encoding[images, column])
        jaccard[i] = 1 - shared / (2 - shared)
    final = jaccard * (1 - weight) + original * weight
    return -torch.from_numpy(final[:, queries:])


@torch.inference_mode()
def main() -> None:
    options = parse_options(__doc__ or "")
    data = market(337, 1591) if options.small else market(3368, 15913)
    labels = {name: data[name] for name in ("query_ids", "gallery_ids", "query_cams", "gallery_cams")}
    scores: dict[str, torch.Tensor] = {}

    def keep(name: str, value: torch.Tensor) -> dict[str, float]:
        scores[name] = value[:300].clone()
        return {"sum of scores": value.double().sum().item()}

    compare(
        f"Re-ranking of {len(data['query']):,} × {len(data['gallery']):,} × 512, k1 = 20, k2 = 6, float32",
        lambda: keep("ours", KReciprocal()(data["query"], data["gallery"])),
        {"dense algorithm (numpy)": lambda: keep("dense", dense(data["query"], data["gallery"]))},
        {"dense algorithm (numpy)": 0.05, "MB": 800},
    )
    print(f"Largest difference of the first 300 queries: {(scores['ours'] - scores['dense']).abs().max():.1e}")
    plain, better = reid_ranking(**data), reid_ranking(data["query"], data["gallery"], **labels, rerank=KReciprocal())
    print(f"mAP {plain['mAP']:.2f} before, {better['mAP']:.2f} after")


if __name__ == "__main__":
    main()
