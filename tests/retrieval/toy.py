"""A small retrieval run with everything in it that a resumed run could get wrong; shared by tests and workers.

Dropout, random augmentation in the collate function from all three generators, a hinge that counts its warm-up, a
metric, accumulation that does not divide the epoch, evaluations and checkpoints at different steps.
"""

import random
from typing import Any

import numpy as np
import torch
from torch import nn

from gssf_plug import GSSFMetric
from gssf_plug.losses import Hinge
from gssf_plug.retrieval import OneTower, RetrievalConfig, RetrievalTrainer, TwoTower

ROWS = 46


def rows(count: int = ROWS, seed: int = 1) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(count, 10, generator=generator)
    mix = torch.randn(10, 6, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(count, 6, generator=generator)
    return [
        {"image": x, "text": x @ mix + n, "id": torch.tensor(i)}
        for i, (x, n) in enumerate(zip(images, noise, strict=True))
    ]


def collate(rows: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    images, texts, ids = (torch.stack([row[key] for row in rows]) for key in ("image", "text", "id"))
    return {"images": images, "image_ids": ids, "texts": texts, "text_ids": ids}


def augment(rows: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    batch = collate(rows)
    shift = random.random() + float(np.random.rand())  # noqa: NPY002
    return {**batch, "images": batch["images"] + 0.1 * shift * torch.randn_like(batch["images"])}


def model(*, dropout: float = 0.2, width: int = 8) -> TwoTower:
    torch.manual_seed(3)
    image = nn.Sequential(nn.Linear(10, 16), nn.Tanh(), nn.Dropout(dropout), nn.Linear(16, width))
    return TwoTower(image, nn.Linear(6, width), GSSFMetric(width, block_size=4))


def recipe(folder: Any, **changes: Any) -> RetrievalConfig:
    values = {
        "output_dir": str(folder),
        "epochs": 9,
        "batch_size": 9,
        "accumulation": 2,
        "learning_rate": 1e-2,
        "metric_learning_rate": 1e-2,
        "eval_every": 4,
        "checkpoint_every": 3,
        "log_every": 5,
        "progress": False,
        "plot": False,
    }
    return RetrievalConfig(**{**values, **changes})


def trainer(folder: Any, *, changes: dict[str, Any] | None = None, **parts: Any) -> RetrievalTrainer:
    given = {
        "model": model(),
        "loss": Hinge(warmup_steps=7, learned_scale=True),
        "train_data": rows(),
        "eval_data": rows(20, seed=2),
        "collate": augment,
        "eval_collate": collate,
        **parts,
    }
    return RetrievalTrainer(config=recipe(folder, **(changes or {})), **given)


class Labelled:
    """Rows for one tower."""

    def __init__(self, count: int = 24) -> None:
        self.inputs = torch.randn(count, 10, generator=torch.Generator().manual_seed(4))

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"inputs": self.inputs[index], "labels": index % 6}


def collate_labelled(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    return {
        "inputs": torch.stack([row["inputs"] for row in rows]),
        "labels": torch.tensor([row["labels"] for row in rows]),
    }


def one_tower() -> OneTower:
    torch.manual_seed(3)
    return OneTower(nn.Linear(10, 8), GSSFMetric(8, block_size=4, constraint="symmetric"))


def perturbed_two_towers() -> TwoTower:
    """No dropout; far from neutral."""
    return perturbed(model(dropout=0.0))


def perturbed_one_tower() -> OneTower:
    """Likewise."""
    return perturbed(one_tower())


def perturbed(model: Any) -> Any:
    """Its metric, moved away from neutral."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.metric.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def checkpoints(trainer: RetrievalTrainer) -> list[str]:
    """Names of a run's checkpoints."""
    return sorted(path.name for path in (trainer.folder / "checkpoints").iterdir())


def weights(trainer: RetrievalTrainer) -> dict[str, torch.Tensor]:
    """A copy of the model's numbers."""
    return {name: value.detach().clone() for name, value in trainer.model.state_dict().items()}


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    """To the bit."""
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name
