"""Claim: exact mAP, CMC, mINP at Market-1501 size in <= 0.02 of the plain protocol and <= 0.15 of PML, under 200 MB.

python tests/benchmarks/ranking_reidentification.py            # 3,368 × 15,913 × 512, six cameras; some minutes, 16 GB
python tests/benchmarks/ranking_reidentification.py --small    # a tenth of the queries and of the gallery

Peers outside the test extra (sentence-transformers, torchmetrics) are timed where they can be imported. Those without a
camera filter rank more items than the protocol allows: their values differ, the cost is what is compared.
"""

import numpy as np
import torch
from ranking_table import compare, optional, parse_options
from torch.nn.functional import normalize

from gssf_plug.evaluation import reid_ranking

RANKS = (1, 5, 10)


def market(queries: int, gallery: int, dim: int = 512) -> dict[str, torch.Tensor]:
    """Random features around 750 identities; distractors are the identity 0."""
    torch.manual_seed(0)
    ids = {"query_ids": torch.randint(1, 751, (queries,)), "gallery_ids": torch.randint(0, 751, (gallery,))}
    centres = torch.randn(751, dim)
    noise = {name: 2.5 * torch.randn(len(labels), dim) for name, labels in ids.items()}
    return {
        "query": centres[ids["query_ids"]] + noise["query_ids"],
        "gallery": centres[ids["gallery_ids"]] * (ids["gallery_ids"] > 0)[:, None] + noise["gallery_ids"],
        **ids,
        "query_cams": torch.randint(6, (queries,)),
        "gallery_cams": torch.randint(6, (gallery,)),
    }


def plain_protocol(data: dict[str, torch.Tensor]) -> dict[str, float]:
    """The loop of public re-ID code: distances whole, sorted whole, one query at a time."""
    distances = -(normalize(data["query"]) @ normalize(data["gallery"]).T).numpy()
    query_ids, gallery_ids = data["query_ids"].numpy(), data["gallery_ids"].numpy()
    query_cams, gallery_cams = data["query_cams"].numpy(), data["gallery_cams"].numpy()
    order = np.argsort(distances, axis=1)
    matches = (gallery_ids[order] == query_ids[:, None]).astype(np.int32)
    all_cmc, all_ap, all_inp = [], [], []
    for query in range(len(query_ids)):
        remove = (gallery_ids[order[query]] == query_ids[query]) & (gallery_cams[order[query]] == query_cams[query])
        raw = matches[query][np.invert(remove)]
        if not np.any(raw):
            continue
        cmc = raw.cumsum()
        last = np.max(np.where(raw == 1))
        all_inp.append(cmc[last] / (last + 1.0))
        cmc[cmc > 1] = 1
        all_cmc.append(cmc[:50])
        hits = raw.cumsum()
        precision = np.asarray([x / (i + 1.0) for i, x in enumerate(hits)]) * raw
        all_ap.append(precision.sum() / raw.sum())
    cmc = 100 * np.asarray(all_cmc).astype(np.float64).mean(0)
    return {"mAP": 100 * np.mean(all_ap), **{f"R@{k}": cmc[k - 1] for k in RANKS}, "mINP": 100 * np.mean(all_inp)}


def pml(data: dict[str, torch.Tensor], k: int | None) -> dict[str, float]:
    from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator

    calculator = AccuracyCalculator(include=("mean_average_precision", "precision_at_1"), k=k)
    found = calculator.get_accuracy(
        normalize(data["query"]), data["query_ids"], normalize(data["gallery"]), data["gallery_ids"]
    )
    return {f"{name} (no cameras)": 100 * value for name, value in found.items()}


def sentence_transformers(data: dict[str, torch.Tensor]) -> dict[str, float]:
    from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator

    gallery_ids = data["gallery_ids"].numpy()
    members = {i: {str(g) for g in np.nonzero(gallery_ids == i)[0]} for i in range(751)}
    matched = [i for i, label in enumerate(data["query_ids"].tolist()) if members[label]]  # it refuses the others
    evaluator = InformationRetrievalEvaluator(
        {f"q{i}": "" for i in matched},
        {str(i): "" for i in range(len(data["gallery"]))},
        {f"q{i}": members[int(data["query_ids"][i])] for i in matched},
        score_functions={"cosine": lambda x, y: normalize(x) @ normalize(y).T},
        write_csv=False,
    )
    evaluator.embed_inputs = lambda *_, **__: data["query"][matched]
    found = evaluator.compute_all_metrics(None, corpus_embeddings=data["gallery"])["cosine"]
    return {"map@100 (no cameras)": 100 * found["map@k"][100]}


def torchmetrics(data: dict[str, torch.Tensor]) -> dict[str, float]:
    from torchmetrics.retrieval import RetrievalMAP

    scores = (normalize(data["query"]) @ normalize(data["gallery"]).T + 1) / 2  # it drops scores of zero and below
    target = data["query_ids"][:, None] == data["gallery_ids"]
    kept = ~(target & (data["query_cams"][:, None] == data["gallery_cams"]))
    index = torch.arange(len(scores))[:, None].expand_as(scores)
    value = RetrievalMAP(empty_target_action="skip")(scores[kept], target[kept], indexes=index[kept])
    return {"mAP": 100 * value.item()}


def installed(module: str, peer: object) -> object:
    def load() -> object:
        __import__(module)
        return peer

    return optional(load)


@torch.inference_mode()
def main() -> None:
    options = parse_options(__doc__ or "")
    data = market(337, 1591) if options.small else market(3368, 15913)
    peers = {
        "plain per-query protocol": lambda: plain_protocol(data),
        "pytorch-metric-learning, k=None": installed("pytorch_metric_learning", lambda: pml(data, None)),
        "pytorch-metric-learning, k=50": installed("pytorch_metric_learning", lambda: pml(data, 50)),
        "sentence-transformers, map@100": installed("sentence_transformers", lambda: sentence_transformers(data)),
        "torchmetrics, mAP only": installed("torchmetrics", lambda: torchmetrics(data)),
    }
    limits = {"plain per-query protocol": 0.02, "pytorch-metric-learning, k=None": 0.15, "MB": 200}
    title = f"mAP, CMC, mINP of {len(data['query']):,} × {len(data['gallery']):,} × 512, cameras, float32"
    chosen = {name: peer for name, peer in peers.items() if options.only in name}
    compare(title, lambda: reid_ranking(**data, ranks=RANKS), chosen, limits)


if __name__ == "__main__":
    main()
