"""Claims: exact `topk` at the speed of half precision; every ratio is a median of runs interleaved in one process.

python tests/benchmarks/search_ties.py            # about three minutes, 2 GB
python tests/benchmarks/search_ties.py --part one # many, busy, one, few or small; --rounds for other than 7
python tests/benchmarks/search_ties.py --part many --cosine 0.8 # features that share a direction, as most encoders' do

| work | ÷ | claimed |
|---|---|---:|
| many: 1,000 queries × 200,000 × 512, k = 100, prepared and plain | faiss `IndexFlatIP`, index built beforehand | 0.5 |
| busy: the same beside four processes that do nothing but count | the same, beside them, too | that of many |
| one: one query × 200,000 × 512, k = 10, on a prepared gallery | the same | 1.0 |
| one: the same, on plain features | the same | 1.5 |
| few: 2, 4, 16 and 64 queries, the same, prepared and plain | the same | |
| small: 1,000 × 3,000 × 512, k = 10, 100, 1,000, 3,000 | float32 product of unit rows and stable sort | 1.1 |

Results are compared, too: with faiss by items in common, with the stable sort by canonical scores in the tests.
"""

import argparse
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median

import faiss
import torch
from measure import interleave, machine, ratio

from gssf_plug import GSSFMetric
from gssf_plug.metric import normalize_rows, prepare_gallery, topk

DIM = 512
PARTS = ("many", "busy", "one", "few", "small")


def trained_metric() -> GSSFMetric:
    torch.manual_seed(1)
    metric = GSSFMetric(DIM, block_size=16)
    with torch.no_grad():
        for parameter in metric.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return metric


def against_faiss(parts: tuple[str, ...], rounds: int, cosine: float) -> None:
    shared = (cosine / (1 - cosine)) ** 0.5 * torch.randn(1, DIM)
    metric, gallery, queries = trained_metric(), shared + torch.randn(200_000, DIM), shared + torch.randn(1000, DIM)
    index = faiss.IndexFlatIP(DIM)
    index.add(metric.gallery(gallery).numpy())
    prepared = prepare_gallery(gallery)

    def of_some(some: torch.Tensor) -> dict[str, Callable[[], object]]:
        return {
            "ours, prepared": lambda: topk(metric, some, prepared, 10),
            "ours": lambda: topk(metric, some, gallery, 10),
            "faiss": lambda: index.search(metric.fold(some).numpy(), 10),
        }

    if "many" in parts:
        k = 100
        found = index.search(metric.fold(queries).numpy(), k)[1]
        ours = topk(metric, queries, gallery, k).indices
        shared = sum(len(set(a.tolist()) & set(b.tolist())) for a, b in zip(ours, found, strict=True))
        low = queries.bfloat16(), metric.gallery(gallery).bfloat16()
        candidates = {
            "ours, prepared": lambda: topk(metric, queries, prepared, k),
            "ours": lambda: topk(metric, queries, gallery, k),
            "faiss": lambda: index.search(metric.fold(queries).numpy(), k),
            "bfloat16 product alone": lambda: [low[0] @ part.T for part in low[1].split(8192)],
        }
        show("many", interleave(candidates, rounds, warmup=1), "faiss", f"{shared / found.size:.5%} items in common")
    if "busy" in parts:
        candidates = {
            "ours, prepared": lambda: topk(metric, queries, prepared, 100),
            "ours": lambda: topk(metric, queries, gallery, 100),
            "faiss": lambda: index.search(metric.fold(queries).numpy(), 100),
        }
        show("alone", interleave(candidates, rounds, warmup=1), "faiss")
        with busy_processes(4):
            show("beside four busy processes", interleave(candidates, rounds, warmup=1), "faiss")
    if "one" in parts:
        show("one", interleave(of_some(queries[:1]), 4 * rounds), "faiss")
    if "few" in parts:
        for count in (2, 4, 16, 64):
            show(f"{count} queries", interleave(of_some(queries[:count]), rounds), "faiss")


@contextmanager
def busy_processes(count: int) -> Iterator[None]:
    """So many processes beside this one that each want a core."""
    counting = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in counting:
            process.kill()
            process.wait()


def against_sort(rounds: int) -> None:
    metric, gallery, queries = trained_metric(), torch.randn(3000, DIM), torch.randn(1000, DIM)

    def plain() -> object:
        return (metric.fold(queries) @ normalize_rows(gallery).T).sort(dim=1, descending=True, stable=True)

    candidates = {f"k = {k:,}": lambda k=k: topk(metric, queries, gallery, k) for k in (10, 100, 1000, 3000)}
    show("small", interleave({**candidates, "product and stable sort": plain}, rounds), "product and stable sort")


def show(part: str, seconds: dict[str, list[float]], peer: str, note: str = "") -> None:
    print(f"| {part} | ms | ÷ {peer}, median [95 %] |\n|---|---:|---:|")
    for name, times in seconds.items():
        print(f"| {name} | {1000 * median(times):.1f} | {ratio(times, seconds[peer])} |")
    print(f"\n{note}\n" if note else "")


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=PARTS)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument(
        "--cosine", type=float, default=0.0, help="that of two features of the large gallery, on average"
    )
    options = parser.parse_args()
    parts = PARTS if options.part is None else (options.part,)
    faiss.omp_set_num_threads(torch.get_num_threads())
    print(machine(), "\n")
    if {"many", "busy", "one", "few"} & set(parts):
        against_faiss(parts, options.rounds, options.cosine)
    if "small" in parts:
        against_sort(options.rounds)


if __name__ == "__main__":
    main()
