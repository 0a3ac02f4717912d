"""Claims: each measure ÷ the float32 product of all its pairs, which any ranking by torch has to make first.

python tests/benchmarks/ranking_products.py [--rounds 5] [--only instance]

Instance retrieval (16,000 × 256) at most 0.8, re-identification at Market-1501's size 0.8 at 150 MB, image ↔ text at
COCO 5K's size 0.6 at 300 MB. The product is torch's, in chunks of as many queries as ours takes; what oneDNN's float32
product and bfloat16 would need stands beside it. Everything interleaved in one process.
"""

import argparse
from collections.abc import Callable
from statistics import median
from typing import NamedTuple

import torch
from measure import interleave, machine, peak_megabytes, ratio
from ranking_image_text import coco
from ranking_reidentification import market
from torch import Tensor
from torch.nn.functional import normalize

from gssf_plug.evaluation import image_text_recall, instance_recall, reid_ranking


class Work(NamedTuple):
    """A measure, the features that it multiplies, and how many queries it takes at once."""

    measure: Callable[[], object]
    queries: Tensor
    gallery: Tensor
    chunk: int


def instance() -> Work:
    labels = torch.randint(0, 1600, (16000,))
    rows = torch.randn(1600, 256)[labels] + 2.0 * torch.randn(16000, 256)
    return Work(lambda: instance_recall(rows, labels), rows, rows, 524)


def reid() -> Work:
    data = market(3368, 15913)
    return Work(lambda: reid_ranking(**data), data["query"], data["gallery"], 527)


def image_text() -> Work:
    images, texts, owners = coco(5000)
    return Work(lambda: image_text_recall(images, texts, owners), images, texts, 335)


WORKS = {"instance": instance, "reid": reid, "image_text": image_text}


def products(work: Work) -> dict[str, Callable[[], object]]:
    """All pairs, chunk by chunk, in three ways."""
    queries, gallery = normalize(work.queries), normalize(work.gallery)
    linear = torch.ops.mkldnn._linear_pointwise

    def in_chunks(multiply: Callable[[Tensor], Tensor], rows: Tensor) -> Callable[[], object]:
        return lambda: [multiply(chunk)[:0] for chunk in rows.split(work.chunk)]

    half = gallery.bfloat16()
    return {
        "float32 product, torch": in_chunks(lambda chunk: chunk @ gallery.T, queries),
        "float32 product, oneDNN": in_chunks(lambda chunk: linear(chunk, gallery, None, "none", [], ""), queries),
        "bfloat16 product": in_chunks(lambda chunk: chunk @ half.T, queries.bfloat16()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=sorted(WORKS))
    options = parser.parse_args()
    print(f"{machine()}\n\n| work | ÷ float32 product, torch, median [95%] | ms | peak MB |\n|---|---:|---:|---:|")
    for name in [options.only] if options.only else WORKS:
        torch.manual_seed(0)
        work = WORKS[name]()
        candidates = {name: work.measure, **products(work)}
        seconds = interleave(candidates, options.rounds, warmup=1)
        for row, times in seconds.items():
            memory = f"{peak_megabytes(work.measure):.0f}" if row == name else ""
            against = ratio(times, seconds["float32 product, torch"])
            print(f"| {row} | {against} | {1e3 * median(times):.0f} | {memory} |")


if __name__ == "__main__":
    main()
