"""Doors of `gssf_plug.distillation`."""

from typing import Any

import torch
from torch import nn
from wrong_calls.door import Door, features, metric, tokens

from gssf_plug.distillation import Distiller
from gssf_plug.distillation.losses import (
    CKA,
    CRD,
    MGD,
    MSE,
    PKT,
    RKD,
    SP,
    VID,
    AttentionTransfer,
    Contrastive,
    Cosine,
    LogitKL,
    Regression,
    Relation,
)
from gssf_plug.metric import GSSFMetric

__all__ = ["DISTILLATION"]


def _models() -> dict[str, Any]:
    return {
        "student": nn.Sequential(nn.Linear(8, 6)), "teacher": nn.Sequential(nn.Linear(8, 8)), "pairs": {"0": "0"},
        "loss": "mse", "weight": 1.0, "projector": "auto", "task_weight": 0.0, "student_inputs": None,
        "teacher_inputs": None, "teacher_dtype": None, "teacher_device": None,
    }  # fmt: skip


def precision() -> GSSFMetric:
    return GSSFMetric(8, block_size=4, constraint="psd", normalize=False)


DISTILLATION = [
    Door(Distiller, _models, check=lambda made: (made.plan(features()), made(features()))),
    *(Door(loss, lambda: {"metric": metric()}) for loss in (SP, PKT)),
    Door(RKD, lambda: {"metric": metric(), "distance_weight": 25.0, "angle_weight": 50.0}),
    Door(CRD, lambda: {"metric": metric(), "temperature": 0.07}),
    Door(LogitKL, lambda: {"temperature": 4.0}),
    Door(MGD, lambda: {"dim": 8, "share": 0.15}),
    Door(VID, lambda: {"dim": 8, "initial_variance": 5.0}),
    Door(Contrastive, lambda: {"metric": metric(), "scale": 14.0}),
    Door(Regression, lambda: {"metric": precision()}),
    Door(Relation, lambda: {"metric": metric(), "projected": False, "temperature": 0.1}),
    *(
        Door(
            loss.forward,
            lambda: {"student": tokens(), "teacher": tokens(), "mask": torch.ones(6, 3).long()},
            lambda given: (),
            True,
        )
        for loss in (
            AttentionTransfer(), CKA(), CRD(), CRD(metric()), Contrastive(metric()), Cosine(), LogitKL(), MGD(8), MSE(),
            PKT(), RKD(), Regression(precision()), Relation(metric()), SP(), VID(8),
        )
    ),
]  # fmt: skip
