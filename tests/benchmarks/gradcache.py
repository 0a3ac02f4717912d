"""Claim: a batch of 4,096 takes at most 1.2 times the peak memory of 64, beyond inputs and score strips.

python tests/benchmarks/gradcache.py             # a minute or two
python tests/benchmarks/gradcache.py --small     # a batch of 1,024

One training step of a two-tower model (a BERT of two layers beside a linear layer) under InfoNCE: 64 rows at once, and
a large batch in chunks of 64. Inputs lie in memory before the measurement. What the strips of scores take is measured
by itself: the loss and its gradient on features of the large batch, without the features.
"""

import argparse
import time

import torch
from accelerate import Accelerator
from measure import machine, peak_anonymous
from transformers import BertConfig, BertModel

from gssf_plug import GSSFMetric
from gssf_plug.losses import InfoNCE
from gssf_plug.losses.chunked import loss_of_pairs
from gssf_plug.retrieval import Tower, TwoTower
from gssf_plug.retrieval.training.gradcache import cached_backward
from gssf_plug.retrieval.training.objective import Objective

WIDTH, TOKENS, CHUNK = 128, 32, 64


def build() -> Objective:
    torch.manual_seed(0)
    bert = BertModel(
        BertConfig(
            hidden_size=256, num_hidden_layers=2, num_attention_heads=4, intermediate_size=1024, vocab_size=2000
        ),
        add_pooling_layer=False,
    )
    text = Tower(bert, projection=torch.nn.Linear(256, WIDTH))
    return Objective(TwoTower(torch.nn.Linear(512, WIDTH), text, GSSFMetric(WIDTH)), InfoNCE())


def batch_of(rows: int) -> dict[str, object]:
    ids = torch.arange(rows)
    texts = {"input_ids": torch.randint(2000, (rows, TOKENS)), "attention_mask": torch.ones(rows, TOKENS).long()}
    return {"images": torch.randn(rows, 512), "image_ids": ids, "texts": texts, "text_ids": ids}


def strips(rows: int) -> float:
    """Peak of the loss and its gradient alone, less the gradients of the features."""
    metric, loss, ids = GSSFMetric(WIDTH), InfoNCE(), torch.arange(rows)
    queries, gallery = (torch.randn(rows, WIDTH, requires_grad=True) for _ in range(2))
    peak = peak_anonymous(lambda: loss_of_pairs(loss, metric, queries, ids, gallery, ids).backward())
    return peak - 2 * rows * WIDTH * 4 / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true")
    rows = 1024 if parser.parse_args().small else 4096
    objective, accelerator = build(), Accelerator(cpu=True)
    small, large = batch_of(CHUNK), batch_of(rows)
    objective(small).backward()  # gradients are allocated, kernels chosen
    cached_backward(objective, accelerator, small, CHUNK // 2)
    strips(2304)  # what a first call imports is no cost of the work
    seconds: dict[str, float] = {}

    def timed(name: str, step: object) -> None:
        began = time.process_time()
        step()
        seconds[name] = time.process_time() - began

    direct = peak_anonymous(lambda: timed("direct", lambda: objective(small).backward()))
    cached = peak_anonymous(lambda: timed("cached", lambda: cached_backward(objective, accelerator, large, CHUNK)))
    tiles = strips(rows)
    print(f"One step of BERT 2×256, {TOKENS} tokens, and a linear layer, InfoNCE; {machine()}\n")
    print("| | peak MB | CPU ms per row |\n|---|---:|---:|")
    print(f"| {CHUNK} rows at once | {direct:,.0f} | {1000 * seconds['direct'] / CHUNK:.1f} |")
    print(f"| {rows:,} rows in chunks of {CHUNK} | {cached:,.0f} | {1000 * seconds['cached'] / rows:.1f} |")
    print(f"| of that, strips of scores | {tiles:,.0f} | |\n")
    print(f"{cached / direct:.2f} times as much, beyond score strips {(cached - tiles) / direct:.2f}; claimed 1.2.")


if __name__ == "__main__":
    main()
