"""Claim: exact top-100 of 1,000 queries in a memory-mapped 1,000,000 × 512 float16 gallery, at least as fast as faiss.

python tests/benchmarks/search.py             # some minutes, 1 GB of disk, 4 GB of memory for faiss
python tests/benchmarks/search.py --small     # a tenth of the gallery; --items for any other size

`topk` scores in float32 under a trained metric and holds one chunk; faiss `IndexFlatIP` holds the gallery as float32
in memory and is asked with the folded queries. Both use the same number of threads, interleaved. Memory is what a
process cannot give back to the page cache: anonymous pages, read every few milliseconds.
"""

import argparse
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import faiss
import torch
from measure import interleave, machine, peak_anonymous, ratio

from gssf_plug import GSSFMetric
from gssf_plug.metric import topk

DIM, QUERIES, K = 512, 1000, 100


def write_gallery(path: Path, items: int) -> torch.Tensor:
    """Random rows, written in parts; returned as a memory map."""
    generator = torch.Generator().manual_seed(0)
    with path.open("wb") as file:
        for start in range(0, items, 50_000):
            rows = torch.randn(min(50_000, items - start), DIM, generator=generator)
            file.write(rows.half().numpy().tobytes())
    return torch.from_file(str(path), size=items * DIM, dtype=torch.float16).view(items, DIM)


def trained_metric() -> GSSFMetric:
    torch.manual_seed(1)
    metric = GSSFMetric(DIM, block_size=16)
    with torch.no_grad():
        for parameter in metric.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return metric


def flat_index(metric: GSSFMetric, gallery: torch.Tensor) -> faiss.IndexFlatIP:
    index = faiss.IndexFlatIP(DIM)
    for part in gallery.split(50_000):
        index.add(metric.gallery(part.float()).numpy())
    return index


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    items = 100_000 if options.small else options.items
    faiss.omp_set_num_threads(torch.get_num_threads())
    with TemporaryDirectory() as folder:
        gallery, metric = write_gallery(Path(folder) / "gallery.bin", items), trained_metric()
        queries = torch.randn(QUERIES, DIM, generator=torch.Generator().manual_seed(2))
        ours = topk(metric, queries, gallery, K)
        peak = peak_anonymous(lambda: topk(metric, queries, gallery, K))
        index = flat_index(metric, gallery)
        scores, found = index.search(metric.fold(queries).numpy(), K)
        candidates = {
            "gssf_plug": lambda: topk(metric, queries, gallery, K),
            "faiss": lambda: index.search(metric.fold(queries).numpy(), K),
        }
        seconds = interleave(candidates, options.rounds, warmup=0)
    same = (ours.indices == torch.from_numpy(found)).double().mean().item()
    shared = sum(len(set(a.tolist()) & set(b.tolist())) for a, b in zip(ours.indices, found, strict=True))
    print(f"Top-{K} of {QUERIES:,} queries in {items:,} × {DIM}, float16, memory-mapped; {machine()}\n")
    print("| | seconds | queries per second | memory, MB |\n|---|---:|---:|---:|")
    memory = {"gssf_plug": f"{peak:,.0f} beyond the page cache", "faiss": f"{items * DIM * 4 / 1e6:,.0f} for its index"}
    for name, times in seconds.items():
        print(f"| {name} | {median(times):.2f} | {QUERIES / median(times):,.0f} | {memory[name]} |")
    print(f"\nThroughput ÷ faiss: {ratio(seconds['faiss'], seconds['gssf_plug'])}, claimed 1.0.")
    print(f"Same item in the same place: {100 * same:.3f} %; in the top {K} at all: {100 * shared / found.size:.4f} %;")
    print(f"largest difference of a score {abs(ours.scores.numpy() - scores).max():.1e}.")


if __name__ == "__main__":
    main()
