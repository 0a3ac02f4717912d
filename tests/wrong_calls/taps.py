"""Doors of what reads teachers and students, and keeps what teachers gave."""

import functools
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel, Trainer, TrainingArguments
from wrong_calls.door import Door, features, tokens

from gssf_plug.distillation import (
    DistillationTrainer,
    Distiller,
    FeatureTaps,
    Tap,
    TeacherCache,
    TeacherModel,
    distillation_trainer,
    precompute,
    suggest_taps,
)
from gssf_plug.features import mean_pool

__all__ = ["TAPS"]


def _model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))


def _read(taps: FeatureTaps) -> Any:
    try:
        taps._model(features())
        return taps.features if taps.taps else None
    finally:
        taps.remove()


def _collate(rows: list[Any]) -> torch.Tensor:
    return torch.tensor([row["x"] for row in rows])


def _rows() -> Dataset:
    return Dataset.from_dict({"x": features().tolist()})


def _made() -> dict[str, Any]:
    return {
        "teacher": _model(), "taps": {"hidden": Tap("0")}, "dataset": _rows().to_list(), "folder": "kept",
        "collate": _collate, "batch_size": 2, "shard_batches": 2, "columns": ["x"], "teacher_inputs": None,
    }  # fmt: skip


@functools.cache
def _cache(folder: Path) -> TeacherCache:
    cache = precompute(_model(), [Tap("0")], _rows(), folder / "read", collate=_collate)
    cache.watch({"hidden": Tap("0")})
    return cache


def _cached() -> dict[str, Any]:
    _cache(Path.cwd())
    return {"folder": "read", "teacher": _model(), "verify": True}


def rows_read(rows: Any) -> Any:
    """Features that a cache holds of these rows."""
    return _cache(Path.cwd()).features({"teacher_row": rows}, torch.device("cpu"))


def _distiller() -> Distiller:
    return Distiller(_model(), _model(), {"0": "0"}, "mse")


def distilled(batch: Any) -> Any:
    """The losses of a batch."""
    distiller = _distiller()
    distiller.plan(features())
    return distiller(batch)


def planned(batch: Any) -> Any:
    """The plan of a batch."""
    return _distiller().plan(batch)


class Student(PreTrainedModel):
    """As much of a model as a Trainer asks for."""

    config_class = PretrainedConfig

    def __init__(self) -> None:
        super().__init__(PretrainedConfig())
        self.layer = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"logits": self.layer(x)}


def _training() -> dict[str, Any]:
    student = Student()
    distiller = Distiller(student, Student(), {"layer": "layer"}, "mse")
    arguments = TrainingArguments("run", report_to=[], per_device_train_batch_size=2, use_cpu=True)
    return {"model": student, "args": arguments, "distiller": distiller}


TRAINER = (  # what the Trainer of transformers reads, and answers for
    "train_dataset", "eval_dataset", "data_collator", "processing_class", "model_init", "compute_loss_func",
    "compute_metrics", "callbacks", "optimizers", "optimizer_cls_and_kwargs", "preprocess_logits_for_metrics",
)  # fmt: skip

TAPS = [
    Door(
        FeatureTaps,
        lambda: {"model": _model(), "taps": {"a": "0"}, "mask_argument": "attention_mask", "attach": True},
        check=_read,
    ),
    Door(functools.partial(FeatureTaps, _model()), lambda: {
        "taps": ["{0,2}"], "mask_argument": "attention_mask", "attach": False}, name="FeatureTaps",
    ),
    Door(
        Tap, lambda: {"path": "0", "output": None, "pooling": mean_pool, "token": None, "masked": True},
        check=lambda tap: tap.read(tokens(), torch.ones(6, 3).bool()),
    ),
    Door(
        Tap, lambda: {"path": "0", "output": "a", "pooling": None, "token": 0, "masked": False},
        check=lambda tap: tap.read({"a": tokens()}, torch.ones(6, 3).bool()),
    ),
    Door(
        TeacherModel,
        lambda: {"model": _model(), "inputs": None, "dtype": None, "device": None, "early_exit": None},
        open=("inputs",),  # a class can be called
    ),
    Door(suggest_taps, lambda: {"model": _model()}),
    Door(precompute, _made, right=(("shard_batches", "a thousand times"),)),
    Door(TeacherCache, _cached),
    Door(rows_read, lambda: {"rows": torch.tensor([0, 1])}),
    Door(distilled, lambda: {"batch": features()}),
    Door(planned, lambda: {"batch": features()}),
    Door(distillation_trainer, lambda: {"base": Trainer}),
    Door(
        functools.partial(DistillationTrainer, train_dataset=_rows().with_format("torch")), _training,
        left_out=TRAINER, name="DistillationTrainer",
    ),
]  # fmt: skip
