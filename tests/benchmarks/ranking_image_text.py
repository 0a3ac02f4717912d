"""Claim: exact rSum of COCO 5K and of its five folds in at most half of the VSE++ numpy protocol's time, under 300 MB.

python tests/benchmarks/ranking_image_text.py            # 5,000 images × 25,000 captions × 1,024; a minute or two
python tests/benchmarks/ranking_image_text.py --small    # a fifth of it

The numpy protocol is timed on the whole set alone: its time does not even contain the folds. It is shown as VSE++ wrote
it, with one product per query, and with the one product for all pairs that later code uses; the claim is against the
faster.
"""

import numpy as np
import torch
from ranking_reidentification import installed
from ranking_table import compare, parse_options
from torch.nn.functional import normalize

from gssf_plug.evaluation import image_text_recall


def coco(images: int, dim: int = 1024) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Random features, five captions around each image."""
    torch.manual_seed(0)
    owners = torch.arange(images).repeat_interleave(5)
    centres = torch.randn(images, dim)
    return centres, centres[owners] + 9 * torch.randn(len(owners), dim), owners


def vsepp(images: torch.Tensor, texts: torch.Tensor, owners: torch.Tensor) -> dict[str, float]:
    """i2t and t2i of public code: one matmul per query or chunk, a full argsort per query."""
    images, texts = normalize(images).numpy(), normalize(texts).numpy()
    i2t, t2i = np.zeros(len(images)), np.zeros(len(texts))
    for index, image in enumerate(images):
        order = np.argsort(image[None] @ texts.T)[0][::-1]
        i2t[index] = min(np.where(order == place)[0][0] for place in range(5 * index, 5 * index + 5))
    for index in range(len(images)):
        scores = texts[5 * index : 5 * index + 5] @ images.T
        for place in range(5):
            t2i[5 * index + place] = np.where(np.argsort(scores[place])[::-1] == index)[0][0]
    return _recalls(i2t, t2i)


def vsepp_one_product(images: torch.Tensor, texts: torch.Tensor, owners: torch.Tensor) -> dict[str, float]:
    """The same with one product for all pairs, as VSE∞ and later code does."""
    scores = (normalize(images) @ normalize(texts).T).numpy()
    i2t, t2i = np.zeros(len(images)), np.zeros(len(texts))
    for index in range(len(images)):
        order = np.argsort(scores[index])[::-1]
        i2t[index] = min(np.where(order == place)[0][0] for place in range(5 * index, 5 * index + 5))
    columns = scores.T
    for index in range(len(texts)):
        t2i[index] = np.where(np.argsort(columns[index])[::-1] == index // 5)[0][0]
    return _recalls(i2t, t2i)


def pml(images: torch.Tensor, texts: torch.Tensor, owners: torch.Tensor) -> dict[str, float]:
    from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator

    calculator = AccuracyCalculator(include=("precision_at_1",), k=10)
    own = torch.arange(len(images))
    texts, images = normalize(texts), normalize(images)
    i2t = calculator.get_accuracy(images, own, texts, owners)["precision_at_1"]
    t2i = calculator.get_accuracy(texts, owners, images, own)["precision_at_1"]
    return {"i2t_R@1": 100 * i2t, "t2i_R@1": 100 * t2i}


def sentence_transformers(images: torch.Tensor, texts: torch.Tensor, owners: torch.Tensor) -> dict[str, float]:
    from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator

    def direction(queries: torch.Tensor, corpus: torch.Tensor, relevant: dict[str, set[str]]) -> dict[int, float]:
        evaluator = InformationRetrievalEvaluator(
            dict.fromkeys(relevant, ""),
            {str(i): "" for i in range(len(corpus))},
            relevant,
            accuracy_at_k=[1, 5, 10],
            mrr_at_k=[10],
            ndcg_at_k=[10],
            precision_recall_at_k=[10],
            map_at_k=[10],
            score_functions={"cosine": lambda x, y: normalize(x) @ normalize(y).T},
            write_csv=False,
        )
        evaluator.embed_inputs = lambda *_, **__: queries
        return evaluator.compute_all_metrics(None, corpus_embeddings=corpus)["cosine"]["accuracy@k"]

    captions = {f"q{i}": {str(j) for j in range(5 * i, 5 * i + 5)} for i in range(len(images))}
    i2t = direction(images, texts, captions)
    t2i = direction(texts, images, {f"q{i}": {str(int(owner))} for i, owner in enumerate(owners)})
    return {f"{name}_R@{k}": 100 * found[k] for name, found in (("i2t", i2t), ("t2i", t2i)) for k in (1, 5, 10)}


def _recalls(i2t: np.ndarray, t2i: np.ndarray) -> dict[str, float]:
    found = {f"{n}_R@{k}": 100 * np.mean(r < k) for n, r in (("i2t", i2t), ("t2i", t2i)) for k in (1, 5, 10)}
    return {**found, "rsum": sum(found.values())}


def ours(images: torch.Tensor, texts: torch.Tensor, owners: torch.Tensor) -> dict[str, float]:
    whole = image_text_recall(images, texts, owners)
    return {**whole, "rsum of 5 folds": image_text_recall(images, texts, owners, folds=5)["rsum"]}


@torch.inference_mode()
def main() -> None:
    options = parse_options(__doc__ or "")
    data = coco(1000 if options.small else 5000)
    peers = {
        "VSE++ numpy protocol, no folds": lambda: vsepp(*data),
        "the same, one product for all pairs": lambda: vsepp_one_product(*data),
        "pytorch-metric-learning, k=10, R@1 alone": installed("pytorch_metric_learning", lambda: pml(*data)),
        "sentence-transformers, R@1, 5, 10": installed("sentence_transformers", lambda: sentence_transformers(*data)),
    }
    title = f"rSum and 5-fold rSum, {len(data[0]):,} images × {len(data[1]):,} captions × 1,024, float32"
    chosen = {name: peer for name, peer in peers.items() if options.only in name}
    compare(title, lambda: ours(*data), chosen, {name: 0.5 for name in list(peers)[:2]} | {"MB": 300})


if __name__ == "__main__":
    main()
