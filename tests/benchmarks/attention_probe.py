"""Seconds that `patch_attention` takes, most of them the probe's, beside building and loading the same model.

    python tests/benchmarks/attention_probe.py            # BERT-base; about three minutes on one thread

The probe runs the model a fixed number of times on about eleven tokens, so its time grows with the model, not the data.
"""

import argparse
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from measure import interleave, machine, ratio
from transformers import BertConfig, BertModel

from gssf_plug.attention import patch_attention

IDS = torch.randint(1000, (1, 128), generator=torch.Generator().manual_seed(0))


def build() -> BertModel:
    """Twelve layers of BERT-base, with its whole vocabulary, at random weights."""
    return BertModel(BertConfig(), add_pooling_layer=False).eval()


def load(folder: Path) -> BertModel:
    """The same from disk, as users get it."""
    return BertModel.from_pretrained(folder, add_pooling_layer=False)


def patch(model: BertModel, sites: str) -> None:
    """Patch and remove; removing takes no time worth the name."""
    patch_attention(model, sites=sites).remove()


@torch.no_grad()
def forward(model: BertModel) -> None:
    """One forward pass over 128 tokens, for scale."""
    model(input_ids=IDS)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = build()
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        candidates: dict[str, Callable[[], object]] = {
            "build at random": build,
            "load from disk": partial(load, Path(folder)),
            "forward, 128 tokens": partial(forward, model),
            "patch_attention": partial(patch, model, "projection"),
            "patch_attention, sites='score'": partial(patch, model, "score"),
        }
        seconds = interleave(candidates, options.rounds, warmup=1)
    print(machine())
    for name, times in seconds.items():
        beside = "" if name == "load from disk" else f"   {ratio(times, seconds['load from disk'])} of loading"
        print(f"{name:<32} {sorted(times)[len(times) // 2]:8.3f} s{beside}")


if __name__ == "__main__":
    main()
