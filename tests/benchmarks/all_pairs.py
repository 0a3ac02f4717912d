"""Claim: scoring all pairs with the metric costs at most 1.10 times the plain normalised matmul, and little memory.

python tests/benchmarks/all_pairs.py            # 5,000 × 25,000 × 1,024, block 16; some minutes
python tests/benchmarks/all_pairs.py --small    # a tenth of it
"""

import argparse

import torch
from measure import interleave, machine, peak_megabytes, ratio
from torch import Tensor
from torch.nn.functional import normalize

from gssf_plug import GSSFMetric


def trained(dim: int, **options: object) -> GSSFMetric:
    metric = GSSFMetric(dim, **options)
    with torch.no_grad():
        for parameter in metric.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return metric


def plain(queries: Tensor, gallery: Tensor) -> Tensor:
    return normalize(queries, dim=-1) @ normalize(gallery, dim=-1).T


def dense_bilinear(queries: Tensor, gallery: Tensor, matrix: Tensor) -> Tensor:
    return normalize(queries, dim=-1) @ matrix @ normalize(gallery, dim=-1).T


def broadcast(queries: Tensor, gallery: Tensor, weight: Tensor) -> Tensor:
    """Σ_m w_m x_m y_m as it is often written: N×M×D in memory. Diagonal only."""
    return (normalize(queries, dim=-1)[:, None] * weight * normalize(gallery, dim=-1)[None]).sum(-1)


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--rounds", type=int, default=30)
    options = parser.parse_args()
    n, m, dim = (500, 2500, 1024) if options.small else (5000, 25000, 1024)
    torch.manual_seed(0)
    queries, gallery = torch.randn(n, dim), torch.randn(m, dim)
    metrics = {
        "GSSF Diag": trained(dim, terms=("diagonal",)),
        "GSSF both, block 16": trained(dim),
    }
    candidates = {"plain normalised matmul": lambda: plain(queries, gallery)}
    candidates |= {name: (lambda metric=metric: metric(queries, gallery)) for name, metric in metrics.items()}
    matrix = metrics["GSSF both, block 16"].matrix()
    candidates["dense bilinear x̂ᵀMŷ"] = lambda: dense_bilinear(queries, gallery, matrix)
    seconds = interleave(candidates, options.rounds)
    base = seconds["plain normalised matmul"]
    print(f"All pairs, {n:,} × {m:,} × {dim:,}, float32, {options.rounds} interleaved rounds; {machine()}\n")
    print("| form | ÷ plain, median [95%] | seconds | peak MB beyond the inputs |\n|---|---:|---:|---:|")
    for name, times in seconds.items():
        middle = sorted(times)[len(times) // 2]
        print(f"| {name} | {ratio(times, base)} | {middle:.3f} | {peak_megabytes(candidates[name]):,.0f} |")
    allowed = 4 * (n * dim + m * dim + n * dim + n * m) / 1e6
    print(f"\nNormalised copies + fold + result: {allowed:,.0f} MB.\n")
    small_broadcast(dim)


def small_broadcast(dim: int, n: int = 256, m: int = 512) -> None:
    queries, gallery = torch.randn(n, dim), torch.randn(m, dim)
    metric = trained(dim, terms=("diagonal",))
    weight = metric.structures["diagonal"].weight
    candidates = {
        "GSSF Diag": lambda: metric(queries, gallery),
        "N×M×D broadcast": lambda: broadcast(queries, gallery, weight),
    }
    torch.testing.assert_close(*(run() for run in candidates.values()))
    seconds = interleave(candidates, 30)
    print(f"The same at a size that the broadcast can bear, {n} × {m} × {dim:,}:\n")
    print("| form | ÷ GSSF, median [95%] | peak MB |\n|---|---:|---:|")
    for name, times in seconds.items():
        print(f"| {name} | {ratio(times, seconds['GSSF Diag'])} | {peak_megabytes(candidates[name]):,.0f} |")


if __name__ == "__main__":
    main()
