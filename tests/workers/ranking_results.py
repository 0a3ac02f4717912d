"""Run by evaluation/scores/test_features.py on processor instructions without bfloat16: what ranking finds, as JSON."""

import json

import torch

from gssf_plug import GSSFMetric
from gssf_plug.evaluation import KReciprocal, image_text_recall, instance_recall, reid_ranking
from gssf_plug.metric import prepare_gallery, topk
from gssf_plug.metric.exact.fast_rows import fast_dtype


def results() -> dict[str, object]:
    """Of the search and of each measure, on features of which some are equal and some nearly."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(40, (600,), generator=generator)
    rows = torch.randn(40, 32, generator=generator)[labels] + torch.randn(600, 32, generator=generator)
    rows[::7] = rows[labels[::7]]  # copies, under other labels too
    rows[3::7] = rows[labels[3::7]] * (1 + 2.0**-22)
    metric = GSSFMetric(32, block_size=4)
    with torch.no_grad():
        for weight in metric.parameters():
            weight.add_(0.2 * torch.randn(weight.shape, generator=generator))
    cameras = torch.randint(3, (600,), generator=generator)
    parts = [each[half] for each in (rows, labels, cameras) for half in (slice(0, 100), slice(100, None))]
    found: dict[str, object] = {
        f"topk {k}": [part.tolist() for part in topk(metric, rows[:50], rows, k, gallery_chunk=256)] for k in (5, 400)
    }
    found["prepared"] = topk(metric, rows[:9], prepare_gallery(rows), 5).indices.tolist()
    found["instance"] = instance_recall(rows, labels, metric=metric)
    found["reid"] = reid_ranking(*parts, metric=metric)
    found["image_text"] = image_text_recall(
        rows[1::7], rows[2::7], torch.randperm(86, generator=generator), metric=metric
    )
    found["reranked"] = KReciprocal(k1=6, k2=3)(rows[:20], rows[20:90], metric).tolist()
    return found


def main() -> None:
    name = str(fast_dtype(torch.device("cpu")))
    print(json.dumps({"dtype": name, **results()}))


if __name__ == "__main__":
    main()
