"""Doors of `gssf_plug.evaluation`."""

import torch
from wrong_calls.door import Door, features, metric
from wrong_calls.metric import rows_of

from gssf_plug.evaluation import (
    KReciprocal,
    document_ranking,
    image_text_recall,
    image_text_recall_of_scores,
    instance_recall,
    reid_ranking,
)

__all__ = ["EVALUATION"]

EVALUATION = [
    Door(
        instance_recall,
        lambda: {
            "features": features(), "labels": [0, 1, 2, 0, 1, 2], "metric": metric(), "ks": (1, 2),
            "gallery": features(), "gallery_labels": [0, 1, 2, 0, 1, 2], "query_chunk": 4, "distributed": False,
        },
    ),
    Door(
        reid_ranking,
        lambda: {
            "query": features(), "gallery": features(), "query_ids": torch.arange(6), "gallery_ids": torch.arange(6),
            "query_cams": torch.zeros(6).long(), "gallery_cams": torch.ones(6).long(), "metric": metric(),
            "ranks": (1, 5), "rerank": KReciprocal(k1=3, k2=2), "query_chunk": 4, "distributed": False,
        },
    ),
    Door(
        image_text_recall,
        lambda: {
            "image_features": features(), "text_features": features(), "image_of_text": torch.arange(6),
            "metric": metric(), "folds": 2, "image_chunk": 4, "text_chunk": 4, "distributed": False,
        },
    ),
    Door(
        image_text_recall_of_scores,
        lambda: {"scores": features(6, 6), "image_of_text": torch.arange(6), "folds": 2},
    ),
    Door(
        document_ranking,
        lambda: {
            "queries": features(), "documents": features(), "relevant": [[0], [1], [2], [3], [4], [5]],
            "metric": metric(), "ks": (1, 3), "query_chunk": 4, "distributed": False,
        },
    ),
    Door(KReciprocal, lambda: {"k1": 3, "k2": 2, "weight": 0.3}),
    Door(
        KReciprocal(k1=3, k2=2), lambda: {"query": features(), "gallery": features(), "metric": metric()},
        rows_of("query", "gallery"),
    ),
]  # fmt: skip
