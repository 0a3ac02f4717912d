"""Claim: batch-hard and semi-hard triplets by masks cost no more than pytorch-metric-learning's miners, at any batch.

python tests/benchmarks/ranking_mining.py            # batches of 256, 512, 1,024 features of 512; a minute
python tests/benchmarks/ranking_mining.py --small

Forward and backward of one loss on the same features, four images per identity. The batch-hard losses are equal. The
semi-hard ones are not: ours takes for each positive pair the nearest negative beyond it, theirs every semi-hard
triplet, which it finds in a list of all triplets; the cost is what is compared.
"""

import argparse
from collections.abc import Callable

import torch
from measure import interleave, machine, peak_megabytes, ratio
from pytorch_metric_learning import losses, miners
from pytorch_metric_learning.distances import CosineSimilarity
from pytorch_metric_learning.reducers import MeanReducer
from torch import Tensor, nn
from torch.nn.functional import normalize

from gssf_plug.losses import BatchHardTriplet, SemiHardTriplet, relevance_by_id


def ours(loss: nn.Module, features: Tensor, labels: Tensor) -> Tensor:
    x = normalize(features)
    itself = torch.eye(len(x), dtype=torch.bool)
    return loss(x @ x.T, relevance_by_id(labels, labels), forbidden=itself)


def theirs(miner: nn.Module, features: Tensor, labels: Tensor) -> Tensor:
    triplet = losses.TripletMarginLoss(margin=0.3, distance=CosineSimilarity(), reducer=MeanReducer())
    return triplet(features, labels, miner(features, labels))


def step(loss: Callable[[Tensor], Tensor], features: Tensor) -> float:
    features.grad = None
    value = loss(features)
    value.backward()
    return value.item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true")
    sizes = (64, 128) if parser.parse_args().small else (256, 512, 1024)
    cosine = CosineSimilarity()
    pairs = {
        "batch-hard": (BatchHardTriplet(), miners.BatchHardMiner(distance=cosine)),
        "semi-hard": (SemiHardTriplet(), miners.TripletMarginMiner(0.3, type_of_triplets="semihard", distance=cosine)),
    }
    print(f"Forward and backward, features of 512, medians of 7 interleaved rounds; {machine()}\n")
    print("| | batch | ours ÷ PML, median [95%] | ours, ms | PML, ms | ours, MB | PML, MB |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for size in sizes:
        torch.manual_seed(0)
        labels = torch.arange(size // 4).repeat_interleave(4)
        features = (torch.randn(size // 4, 512)[labels] + 3 * torch.randn(size, 512)).requires_grad_()
        for name, (loss, miner) in pairs.items():
            print(row(name, loss, miner, features, labels), flush=True)


def row(name: str, loss: nn.Module, miner: nn.Module, features: Tensor, labels: Tensor) -> str:
    candidates = {
        "ours": lambda: step(lambda x: ours(loss, x, labels), features),
        "PML": lambda: step(lambda x: theirs(miner, x, labels), features),
    }
    seconds = interleave(candidates, 7)
    middle = [1000 * sorted(times)[3] for times in seconds.values()]
    peaks = [peak_megabytes(candidate) for candidate in candidates.values()]
    paired = ratio(seconds["ours"], seconds["PML"])
    return (
        f"| {name} | {len(features):,} | {paired} | {middle[0]:.1f} | {middle[1]:.1f} | "
        f"{peaks[0]:,.0f} | {peaks[1]:,.0f} |"
    )


if __name__ == "__main__":
    main()
