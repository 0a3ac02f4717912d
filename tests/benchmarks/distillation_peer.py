"""Claim: a teacher cache gives at least 1.1 times the examples per second of sentence-transformers' route.

python tests/benchmarks/distillation_peer.py [--rounds 4] [--steps 24] [--width 256] [--layers 4] [--equal]

The same BERT student, texts, tokenizer, batch (32), optimizer and loss (squared error of mean-pooled embeddings);
the teacher's embeddings are on disk in both. Theirs: SentenceTransformerTrainer with EmbedDistillLoss or MSELoss, the
embeddings as the column `label`. Ours: DistillationTrainer with a TeacherCache, as it comes ("ours, random") and with
transformers' `train_sampling_strategy="group_by_length"`, which sentence-transformers' trainer does not look at.
Texts have lengths as sentences have (log-normal, median 24 words, at most 128); with --equal all have 48. Both tokenize
in the collator. One process for each run, interleaved; a run is one epoch, and every step of it counts.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from measure import machine, ratio
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast, TrainerCallback, TrainingArguments

SIDES = ("ours", "ours, random", "mse", "embed_distill")
BATCH, LENGTH, LONGEST, WORDS = 32, 48, 128, 500


def tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {"[PAD]": 0, "[UNK]": 1, **{f"w{i}": i + 2 for i in range(WORDS)}}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]", model_max_length=LONGEST
    )


def encoder(options: argparse.Namespace, layers: int) -> BertModel:
    torch.manual_seed(0)
    sizes = {"hidden_size": options.width, "intermediate_size": 4 * options.width, "num_hidden_layers": layers}
    return BertModel(
        BertConfig(vocab_size=WORDS + 2, num_attention_heads=options.width // 64, **sizes), add_pooling_layer=False
    )


def texts(count: int, equal: bool) -> list[str]:
    draw = torch.Generator().manual_seed(1)
    lengths = (24 * torch.randn(count, generator=draw).mul(0.6).exp()).round().clamp(4, LONGEST).long().tolist()
    picks = torch.randint(WORDS, (count, LONGEST), generator=draw).tolist()
    return [
        " ".join(f"w{i}" for i in row[: LENGTH if equal else length])
        for row, length in zip(picks, lengths, strict=True)
    ]


class Clock(TrainerCallback):
    """When the first step began, and the last one ended."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Note it."""
        self.times.append(time.perf_counter())

    on_step_end = on_step_begin


def settings(options: argparse.Namespace) -> dict[str, Any]:
    return {
        "output_dir": str(options.folder / "run"),
        "num_train_epochs": 1,
        "per_device_train_batch_size": BATCH,
        "learning_rate": 1e-4,
        "logging_steps": 100,
        "report_to": "none",
        "save_strategy": "no",
        "use_cpu": True,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }


def ours(options: argparse.Namespace, data: list[str]) -> Any:
    from gssf_plug.distillation import DistillationTrainer, Distiller, Tap, TeacherCache, precompute
    from gssf_plug.features import mean_pool

    reader, place = tokenizer(), Tap("", pooling=mean_pool)

    def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
        batch = dict(reader([row["text"] for row in rows], padding=True, return_tensors="pt"))
        return batch | (
            {"teacher_row": torch.tensor([row["teacher_row"] for row in rows])} if "teacher_row" in rows[0] else {}
        )

    rows = Dataset.from_dict({"text": data, "length": [text.count(" ") + 1 for text in data]})
    cache = options.folder / "cache"
    if not cache.exists():
        precompute(encoder(options, 2), [place], rows, cache, collate=collate, columns=["text"])
    source = TeacherCache(cache)
    student = encoder(options, options.layers)
    distiller = Distiller(student, source, [(place, place)], "mse")
    order = "group_by_length" if options.side == "ours" else "random"
    args = TrainingArguments(**settings(options), remove_unused_columns=False, train_sampling_strategy=order)
    return DistillationTrainer(
        model=student, args=args, train_dataset=source.attach(rows), data_collator=collate, distiller=distiller
    )


def theirs(options: argparse.Namespace, data: list[str]) -> Any:
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers.sentence_transformer import losses
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    folder = options.folder / "bert"
    encoder(options, options.layers).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    student = SentenceTransformer(modules=[Transformer(str(folder)), Pooling(options.width)], device="cpu")
    rows = Dataset.from_dict({"text": data, "label": torch.randn(len(data), options.width).tolist()})
    loss = losses.MSELoss(student) if options.side == "mse" else losses.EmbedDistillLoss(student, distance_metric="l2")
    return SentenceTransformerTrainer(
        model=student, args=SentenceTransformerTrainingArguments(**settings(options)), train_dataset=rows, loss=loss
    )


def child(options: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    data = texts(BATCH * options.steps, options.equal)
    trainer = (ours if options.side.startswith("ours") else theirs)(options, data)
    clock = Clock()
    trainer.add_callback(clock)
    trainer.train()
    assert len(clock.times) == 2 * options.steps, "a step is missing"
    print(f"SECONDS {(clock.times[-1] - clock.times[0]) / options.steps}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--equal", action="store_true")
    parser.add_argument("--side", choices=SIDES)
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    if options.side:
        child(options)
        return
    found: dict[str, list[float]] = {side: [] for side in SIDES}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(options.rounds):
            for side in SIDES:
                command = [sys.executable, __file__, "--side", side, "--folder", folder, "--steps", str(options.steps)]
                command += ["--width", str(options.width), "--layers", str(options.layers)]
                command += ["--equal"] * options.equal
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                line = next(line for line in done.stdout.splitlines() if line.startswith("SECONDS"))
                found[side].append(float(line.split()[1]))
    print(f"Width {options.width}, {options.layers} layers, batch {BATCH}; {machine()}\n")
    print("| route | seconds a step | our examples per second ÷ theirs |\n|---|---:|---:|")
    for side, seconds in found.items():
        middle = sorted(seconds)[len(seconds) // 2]
        print(f"| {side} | {middle:.3f} | {ratio(seconds, found['ours'])} |")


if __name__ == "__main__":
    main()
