"""Doors of `gssf_plug.features`."""

from typing import Any

import torch
from wrong_calls.door import Door, features, tokens

from gssf_plug.features import (
    GPO,
    BNNeck,
    SizeAugmentation,
    as_tokens,
    cls_pool,
    feature_tensor,
    last_pool,
    max_pool,
    mean_max_pool,
    mean_pool,
)

__all__ = ["FEATURES"]


def _masked() -> dict[str, Any]:
    return {"tokens": tokens(), "mask": torch.ones(6, 3).long()}


def _pooled(given: dict[str, Any]) -> tuple[int, ...]:
    return (*given["tokens"].shape[:1], given["tokens"].shape[-1])


def _as_tokens(given: dict[str, Any]) -> tuple[int, ...]:
    shape = given["features"].shape
    return {2: lambda: (shape[0], 1, shape[1]), 3: lambda: shape, 4: lambda: (shape[0], -1, shape[1])}[len(shape)]()


FEATURES = [
    *(
        Door(pool, _masked, _pooled, True)
        for pool in (cls_pool, last_pool, mean_pool, max_pool, mean_max_pool)
    ),
    Door(GPO().forward, _masked, _pooled, True),
    Door(SizeAugmentation(mean_pool).forward, _masked, _pooled, True),
    Door(GPO, lambda: {"code": 4, "hidden": 4}, check=lambda made: made(tokens())),
    Door(SizeAugmentation, lambda: {"pooling": mean_pool, "share": 0.2}, check=lambda made: made(tokens())),
    Door(BNNeck, lambda: {"dim": 8}, check=lambda made: made(features(6, made.dim))),
    Door(as_tokens, lambda: {"features": features()}, _as_tokens, True),
    Door(
        feature_tensor, lambda: {"output": {"last_hidden_state": tokens()}, "name": "last_hidden_state"},
        nan_passes=True,
    ),
]  # fmt: skip
