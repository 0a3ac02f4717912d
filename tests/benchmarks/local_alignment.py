"""Claim: region–word alignment of 1,000 images × 5,000 captions, 36 × 30 fragments of width 1,024, fits into 4 GiB.

python tests/benchmarks/local_alignment.py                  # all of it: some minutes
python tests/benchmarks/local_alignment.py --captions 500   # a tenth
python tests/benchmarks/local_alignment.py --form "both directions, one metric"
"""

import argparse
import time

import torch
from measure import interleave, machine, peak_megabytes, ratio
from torch import Tensor
from torch.nn.functional import leaky_relu

from gssf_plug import GSSFMetric
from gssf_plug.losses import Hinge
from gssf_plug.retrieval import Fragments, ImageToText, LocalAlignment, TextToImage

REGIONS, WORDS, WIDTH = 36, 30, 1024


def fragments(count: int, width: int) -> Fragments:
    return Fragments(torch.randn(count, width, WIDTH), torch.ones(count, width, dtype=torch.bool))


def trained() -> GSSFMetric:
    metric = GSSFMetric(WIDTH)
    with torch.no_grad():
        for parameter in metric.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return metric


def models(wanted: list[str] | None = None) -> dict[str, LocalAlignment]:
    metric = trained()
    made = {
        "t2i, cosine": LocalAlignment(None, None, alignments=[TextToImage()]),
        "t2i, metric in both places": LocalAlignment(
            None, None, metric=metric, attention_metric=trained(), alignments=[TextToImage()]
        ),
        "i2t, cosine": LocalAlignment(None, None, alignments=[ImageToText()]),
        "both directions, one metric": LocalAlignment(
            None, None, metric=metric, attention_metric=metric, alignments=[TextToImage(), ImageToText()]
        ),
    }
    return {name: model for name, model in made.items() if not wanted or name in wanted}


def published(images: Tensor, captions: Tensor) -> Tensor:
    """SCAN's loop over captions (t2i, LogSumExp), which forms every attended vector; for inputs without padding."""
    v, columns = torch.nn.functional.normalize(images, dim=-1), []
    for caption in torch.nn.functional.normalize(captions, dim=-1):
        logits = leaky_relu(v @ caption.T, 0.1)
        logits = logits / (logits.norm(dim=2, keepdim=True) + 1e-8)
        attended = (9 * logits).softmax(1).mT @ v
        similarity = torch.nn.functional.cosine_similarity(attended, caption[None], dim=-1)
        columns.append((6 * similarity).logsumexp(1) / 6)
    return torch.stack(columns, 1)


@torch.inference_mode()
def evaluation(images: int, captions: int, forms: list[str] | None) -> None:
    v, w = fragments(images, REGIONS), fragments(captions, WORDS)
    inputs = (v.features.numel() + w.features.numel()) * 4 / 1e6
    print(f"Evaluation, {images:,} × {captions:,} pairs of {REGIONS} × {WORDS} fragments; {machine()}\n")
    print("| form | seconds | inputs MB | peak MB beyond | sum, GiB |\n|---|---:|---:|---:|---:|")
    for name, model in models(forms).items():
        began = time.perf_counter()
        peak = peak_megabytes(lambda model=model: model.score(v, w))
        total = (inputs + peak) * 1e6 / 2**30
        print(f"| {name} | {time.perf_counter() - began:.0f} | {inputs:,.0f} | {peak:,.0f} | {total:.2f} |", flush=True)


def training(batch: int, forms: list[str] | None) -> None:
    print(f"\nTraining, a batch of {batch} × {batch} pairs: forward and backward to fragments and metrics\n")
    print("| form | seconds | peak MB beyond the inputs |\n|---|---:|---:|")
    for name, model in models(forms).items():
        v, w = fragments(batch, REGIONS), fragments(batch, WORDS)
        v.features.requires_grad_()
        w.features.requires_grad_()

        def step(model: LocalAlignment = model, v: Fragments = v, w: Fragments = w) -> None:
            Hinge()(model.score(v, w), torch.eye(batch, dtype=torch.bool)).backward()

        began = time.perf_counter()
        peak = peak_megabytes(step)
        print(f"| {name} | {time.perf_counter() - began:.1f} | {peak:,.0f} |", flush=True)


@torch.inference_mode()
def against_the_loop(images: int, captions: int, rounds: int) -> None:
    v, w = fragments(images, REGIONS), fragments(captions, WORDS)
    model = models()["t2i, cosine"]
    candidates = {
        "published loop": lambda: published(v.features, w.features),
        "ours": lambda: model.score(v, w),
    }
    torch.testing.assert_close(*(run() for run in candidates.values()), atol=1e-4, rtol=1e-4)
    seconds = interleave(candidates, rounds, warmup=1)
    print(f"\nAgainst SCAN's own loop over captions, {images} × {captions}, t2i, cosine, {rounds} rounds\n")
    print("| form | ÷ published, median [95%] | peak MB |\n|---|---:|---:|")
    for name, times in seconds.items():
        print(f"| {name} | {ratio(times, seconds['published loop'])} | {peak_megabytes(candidates[name]):,.0f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--captions", type=int, default=5000)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--form", action="append", help="only this form; may be given again")
    options = parser.parse_args()
    torch.manual_seed(0)
    training(options.batch, options.form)
    against_the_loop(min(options.images, 128), min(options.captions, 128), options.rounds)
    evaluation(options.images, options.captions, options.form)


if __name__ == "__main__":
    main()
