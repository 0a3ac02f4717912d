"""Doors of `gssf_plug.retrieval`."""

import dataclasses
from typing import Any

from wrong_calls.door import Door, features

from gssf_plug.retrieval import RetrievalConfig, fit_metric

__all__ = ["RETRIEVAL"]


def _config() -> dict[str, Any]:
    given = {field.name: field.default for field in dataclasses.fields(RetrievalConfig)}
    return {**given, "output_dir": "run"}


RETRIEVAL = [
    Door(RetrievalConfig, _config),
    Door(
        fit_metric,
        lambda: {
            "queries": features(), "documents": features(5), "pairs": [[0], [1], [2], [3], [4], [0]], "ignored": None,
            "validation": 0.5, "test": None, "measure": "mAP", "structures": [{"terms": ("diagonal",)}],
            "loss": "softmax", "constraint": None, "patience": 1, "max_epochs": 1, "batch_size": 4, "seed": 0,
            "progress": False, "device": None,
        },
        right=(("max_epochs", "None"), ("max_epochs", "2**70")),
    ),
]  # fmt: skip
