"""Doors of `gssf_plug.metric`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from wrong_calls.door import Door, features, metric

from gssf_plug.metric import (
    GSSFMetric,
    block_contributions,
    check_store,
    group_channels,
    normalize_rows,
    prepare_gallery,
    topk,
)

__all__ = ["METRIC", "rows_of"]


def rows_of(*names: str) -> Callable[[dict[str, Any]], tuple[int, ...]]:
    """(N, M): as many as the last dimensions but one of these arguments, behind what is broadcast."""
    return lambda given: (
        *np.broadcast_shapes(*(np.shape(given[name])[:-2] for name in names)),
        *(np.shape(given[name])[-2] for name in names),
    )


def _pairs(*names: str) -> Callable[[dict[str, Any]], tuple[int, ...]]:
    return lambda given: np.broadcast_shapes(*(np.shape(given[name])[:-1] for name in names))


def _search(folded: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """What a store that holds `_items()` answers."""
    numbers = folded @ metric().gallery(_items()).detach().numpy().T
    ids = np.argsort(-numbers, axis=1)[:, :k]
    return np.take_along_axis(numbers, ids, 1), ids


def _items() -> Tensor:
    return features(4)


def _saved() -> dict[str, Any]:
    if not Path("a metric").exists():
        metric().save_pretrained("a metric")
    return {
        "pretrained_model_name_or_path": "a metric", "force_download": False, "token": None, "cache_dir": None,
        "local_files_only": True, "revision": None,
    }  # fmt: skip


METRIC = [
    Door(
        GSSFMetric,
        lambda: {
            "dim": 8, "terms": ("diagonal", "block_diagonal"), "block_size": 4, "normalize": True, "constraint": None,
            "grouping": torch.arange(8), "adjacency": None,
        },
        check=lambda made: made(features(), features()),
    ),
    Door(
        metric().forward, lambda: {"queries": features(), "gallery": features(4)}, rows_of("queries", "gallery"), True
    ),
    Door(metric().pairwise, lambda: {"x": features(), "y": features()}, _pairs("x", "y"), True),
    Door(metric().fold, lambda: {"queries": features()}, lambda given: np.shape(given["queries"]), True),
    Door(metric().gallery, lambda: {"items": features()}, lambda given: np.shape(given["items"]), True),
    Door(metric().prune, lambda: {"threshold": 0.1}),
    Door(
        metric().save_pretrained,
        lambda: {"save_directory": "saved", "model_card_kwargs": {"measures": {"mAP": 1.0}, "datasets": ["a/b"]}},
        left_out=("push_to_hub", "repo_id", "config", "push_to_hub_kwargs"),  # for the Hub, which is not reached here
    ),
    Door(GSSFMetric.from_pretrained, _saved, left_out=("unknown",)),  # which is refused
    Door(normalize_rows, lambda: {"x": features()}, lambda given: np.shape(given["x"]), True),
    Door(
        block_contributions,
        lambda: {"metric": metric(), "queries": features(), "items": features()},
        lambda given: (*_pairs("queries", "items")(given), 2),
        True,
    ),
    Door(
        group_channels, lambda: {"x": features(), "y": features(), "block_size": 4, "swaps": 3}, lambda given: (8,)
    ),
    Door(prepare_gallery, lambda: {"features": features(), "normalize": True, "rounded": None}),
    Door(
        topk,
        lambda: {
            "metric": metric(), "queries": features(), "gallery": features(4), "k": 2, "exclude": None,
            "query_chunk": 4, "gallery_chunk": 3, "distributed": False, "forbidden": None,
        },
        check=lambda found: _check_neighbours(found),
    ),
    Door(
        check_store,
        lambda: {"search": _search, "metric": metric(), "queries": features(), "gallery": _items(), "k": 2},
    ),
    Door(
        check_store(_search, metric(), features(), _items(), 2).scores,
        lambda: {"numbers": torch.ones(6, 2), "folded": features(), "item_lengths": torch.ones(6, 2)},
        lambda given: np.shape(given["numbers"]),
        True,
    ),
]  # fmt: skip


def _check_neighbours(found: Any) -> None:
    assert found.scores.shape == found.indices.shape
    assert found.indices.ndim == 2
