"""Doors of `gssf_plug.losses`."""

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from wrong_calls.door import Door, features, metric

from gssf_plug.losses import (
    BatchHardTriplet,
    Hinge,
    IdentityLoss,
    InfoNCE,
    SemiHardTriplet,
    Sigmoid,
    WeightedSum,
    relevance_by_id,
)

__all__ = ["LOSSES", "weighted_sum"]


def _scores() -> dict[str, Any]:
    return {"scores": features(6, 6), "relevance": torch.eye(6).bool(), "exclude": torch.zeros(6, 6).bool()}


def _labelled() -> dict[str, Any]:
    return {"features": features(), "labels": torch.arange(6) % 3, "score": metric()}


def weighted_sum(losses: tuple[nn.Module, ...], weights: Sequence[float] | None) -> WeightedSum:
    return WeightedSum(*losses, weights=weights) if isinstance(losses, tuple | list) else WeightedSum(losses)


LOSSES = [
    # `forbidden` is the older name of `exclude`: all losses read both by one function, so one loss below stands for all
    *(Door(loss().forward, _scores, lambda given: (), True, left_out=("forbidden",)) for loss in (
        Hinge, lambda: Hinge(warmup_steps=2**60), InfoNCE, Sigmoid, BatchHardTriplet, SemiHardTriplet,
    )),
    Door(
        InfoNCE().forward, lambda: {**_scores(), "exclude": None, "forbidden": torch.zeros(6, 6).bool()},
        lambda given: (), True,
    ),
    Door(
        Hinge, lambda: {"margin": 0.2, "warmup_steps": 1, "learned_scale": True, "scale_range": (0.1, 10.0)},
        check=lambda loss: loss(**_scores()),
    ),
    Door(
        InfoNCE, lambda: {"scale": 2.0, "scale_range": (1.0, 100.0), "learned_scale": True},
        check=lambda loss: loss(**_scores()),
    ),
    Door(Sigmoid, lambda: {"learned": True, "scale_range": (1.0, 100.0)}, check=lambda loss: loss(**_scores())),
    *(Door(loss, lambda: {"margin": 0.2, "learned_scale": True}, check=lambda loss: loss(**_scores())) for loss in (
        BatchHardTriplet, SemiHardTriplet,
    )),
    Door(
        IdentityLoss, lambda: {"dim": 8, "identities": 3, "smoothing": 0.1},
    ),
    Door(
        functools.partial(IdentityLoss(8, 3).forward, score=None),
        lambda: {"features": features(), "labels": torch.arange(6) % 3},
        lambda given: (),
        True,
        left_out=("score",),  # which it does not read
    ),
    Door(
        WeightedSum(IdentityLoss(8, 3), BatchHardTriplet(), weights=[1.0, 0.5]).forward, _labelled, lambda given: (),
        True,
    ),
    Door(weighted_sum, lambda: {"losses": (Hinge(), InfoNCE()), "weights": [1.0, 0.5]}),
    Door(
        relevance_by_id, lambda: {"query_ids": torch.arange(6), "gallery_ids": torch.arange(4)},
        lambda given: (len(given["query_ids"]), len(given["gallery_ids"])),
    ),
]  # fmt: skip
