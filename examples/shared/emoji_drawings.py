"""The emoji data for models of one tower: pixels in memory, identity, camera and subgroup; a small CNN; the table.

Shared by re_identification.py and fine_grained_retrieval.py, which differ in protocol and loss alone.
"""

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from data.emoji import VENDORS, load_emoji
from torch import Tensor, nn
from tqdm.auto import tqdm

from gssf_plug import GSSFMetric
from gssf_plug.features import BNNeck
from gssf_plug.retrieval import OneTower, RetrievalConfig, RetrievalTrainer, Tower
from gssf_plug.retrieval.data.images import image_tensor
from gssf_plug.retrieval.data.samplers import IdentityBatches
from gssf_plug.retrieval.evaluation import Evaluation

SIZE, WIDTH = 32, 256
Collate = Callable[[Sequence[dict[str, Any]]], Mapping[str, Tensor]]
SHOWN = "GSSF both, block 16"  # the variant that is drawn beside cosine


class Drawings:
    """One split in memory.

    Args:
        split: "train", "validation" or "test"; no emoji is in two of them.
        every: keep every n-th emoji.
        vendors: whose drawings.
    """

    def __init__(self, split: str, every: int, vendors: Sequence[str] = VENDORS) -> None:
        rows = load_emoji(split, vendors)
        rows = rows.select([row for row, label in enumerate(rows["label"][:]) if label % every == 0])
        images = tqdm(rows["image"], desc=f"reading {split} images", total=len(rows))
        self.images = torch.stack([image_tensor(image, SIZE) for image in images])
        self.labels = _numbered(rows["label"][:])
        self.cameras = torch.tensor(rows["camera"][:])
        self.subgroups = _numbered(rows["subgroup"][:])

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> dict[str, Any]:
        return {"row": row, "image": self.images[row], "label": int(self.labels[row])}

    @property
    def classes(self) -> int:
        """How many emoji there are."""
        return int(self.labels.max()) + 1


def _numbered(values: Sequence[Any]) -> Tensor:
    numbers = {value: number for number, value in enumerate(sorted(set(values)))}
    return torch.tensor([numbers[value] for value in values])


def train_batch(rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
    """Every drawing shifted by up to two pixels."""
    images = nn.functional.pad(_pixels(rows), (2, 2, 2, 2), value=1.0)
    shifts = torch.randint(0, 5, (len(rows), 2)).tolist()
    moved = [image[:, dy : dy + SIZE, dx : dx + SIZE] for image, (dy, dx) in zip(images, shifts, strict=True)]
    return {"inputs": torch.stack(moved), "labels": torch.tensor([row["label"] for row in rows])}


def eval_batch(rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
    """Labels are row numbers, by which an evaluation finds identity, camera and subgroup."""
    return {"inputs": _pixels(rows), "labels": torch.tensor([row["row"] for row in rows])}


def _pixels(rows: Sequence[dict[str, Any]]) -> Tensor:
    return torch.stack([row["image"] for row in rows]).float() / 255


@dataclass(frozen=True)
class Variant:
    """One row of the table."""

    name: str
    metric: Callable[[], GSSFMetric | None]
    learned_scale: bool = False


def variants() -> list[Variant]:
    """Baselines first. All are symmetric: in a model of one tower s(a, b) = s(b, a)."""

    def structured(*terms: str, block_size: int = 16) -> Callable[[], GSSFMetric]:
        return lambda: GSSFMetric(WIDTH, terms=terms, block_size=block_size, constraint="symmetric")

    return [
        Variant("cosine", lambda: None),
        Variant("cosine + scale", lambda: None, learned_scale=True),
        Variant("GSSF Diag", structured("diagonal")),
        Variant("GSSF B-Diag, block 16", structured("block_diagonal")),
        Variant(SHOWN, structured("diagonal", "block_diagonal")),
        Variant("full matrix", structured("dense")),
    ]


def build_model(metric: GSSFMetric | None, seed: int) -> OneTower:
    """A small CNN and BNNeck; the same start for the same seed, whatever the metric."""
    torch.manual_seed(seed)
    return OneTower(Tower(small_cnn((24, 48, 96, 192), SIZE, WIDTH), projection=BNNeck(WIDTH)), metric)


def small_cnn(channels: Sequence[int], size: int, width: int) -> nn.Sequential:
    """Strided convolutions, each halving the image, and a linear layer: (N, 3, size, size) -> (N, width)."""
    layers: list[nn.Module] = []
    for inputs, outputs in zip((3, *channels), channels, strict=False):
        layers += [nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
        size = (size + 1) // 2
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels[-1] * size**2, width))


def make_trainer(
    folder: Path,
    seed: int,
    epochs: int,
    data: Mapping[str, Any],
    model: OneTower,
    loss: nn.Module,
    evaluation: Callable[[Any], Evaluation],
    best: str,
    collates: tuple[Collate, Collate] = (train_batch, eval_batch),
) -> RetrievalTrainer:
    """The recipe of both examples: batches of 32 emoji with three drawings each, AdamW, a cosine schedule."""
    identities = min(32, data["train"].classes)
    config = RetrievalConfig(
        output_dir=folder,
        epochs=epochs,
        batch_size=3 * identities,
        learning_rate=2e-3,
        metric_learning_rate=2e-3,
        weight_decay=1e-2,
        seed=seed,
        keep_checkpoints=1,
        best=best,
    )
    return RetrievalTrainer(
        model=model,
        loss=loss,
        config=config,
        train_data=data["train"],
        collate=collates[0],
        eval_data=data["validation"],
        eval_collate=collates[1],
        batches=IdentityBatches(data["train"].labels, identities=identities, images=3, seed=seed),
        evaluation=evaluation(data["validation"]),
    )


Run = Callable[[Variant, int], dict[str, float]]


def run_all(output: Path, rows: Sequence[Variant], seeds: int, run: Run) -> list[dict[str, Any]]:
    """Every row with every seed; what results.json already holds is not run again."""
    path = output / "results.json"
    results = json.loads(path.read_text()) if path.exists() else []
    done = {(result["variant"], result["seed"]) for result in results}
    asked = [(variant, seed) for seed in range(seeds) for variant in rows]
    for variant, seed in tqdm(asked, desc="runs", unit="run"):
        if (variant.name, seed) not in done:
            began = time.perf_counter()
            result = {"variant": variant.name, "seed": seed, **run(variant, seed)}
            results.append({**result, "seconds": time.perf_counter() - began})
            path.write_text(json.dumps(results, indent=1))
    return results


def render(results: list[dict[str, Any]], measures: Sequence[str]) -> str:
    """A Markdown table, mean ± standard deviation over seeds, in %."""
    lines = ["| | " + " | ".join((*measures, "parameters", "seconds")) + " |", "|---|" + "---:|" * (len(measures) + 2)]
    for name in dict.fromkeys(result["variant"] for result in results):
        rows = [result for result in results if result["variant"] == name]
        cells = [_spread([row[measure] for row in rows]) for measure in measures]
        cells += [f"{rows[0]['parameters']:,}", f"{mean(row['seconds'] for row in rows):.0f}"]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    seeds = len({result["seed"] for result in results})
    return "\n".join(lines) + f"\n\n{seeds} seed(s); parameters are the metric's; seconds of training and evaluation.\n"


def metric_parameters(model: OneTower) -> int:
    """How many numbers the metric learned."""
    return sum(parameter.numel() for parameter in model.metric.parameters()) if model.metric is not None else 0


def folder_name(variant: Variant, seed: int) -> str:
    """Of one run."""
    return variant.name.replace(" ", "-").replace(",", "").replace("+", "and") + f"-seed{seed}"


def options_parser(description: str, name: str, epochs: int) -> argparse.ArgumentParser:
    """The options that both examples have."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="an eighth of the emoji, one epoch, one seed: for CI")
    parser.add_argument("--epochs", type=int, help=f"default {epochs}")
    parser.add_argument("--seeds", type=int, help="default 3")
    parser.add_argument("--output", type=Path, default=Path("outputs") / name, help="folder to write to")
    parser.add_argument("--resume", action="store_true", help="go on with what is in --output")
    parser.set_defaults(usual_epochs=epochs)
    return parser


def parse_options(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The command line; --quick shortens what is not given."""
    options = parser.parse_args()
    options.every = 8 if options.quick else 1
    options.epochs = options.epochs or (1 if options.quick else options.usual_epochs)
    options.seeds = options.seeds or (1 if options.quick else 3)
    return options


def _spread(values: list[float]) -> str:
    return f"{mean(values):.1f} ± {stdev(values):.1f}" if len(values) > 1 else f"{values[0]:.1f}"
