"""Doors of what is trained for retrieval, and of what measures it."""

import copy
import functools
from typing import Any

import torch
from torch import nn
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig, ResNetConfig, ResNetModel
from wrong_calls.door import Door, features, label_ids, metric, tokens

from gssf_plug.features import BNNeck, mean_pool
from gssf_plug.losses import BatchHardTriplet, IdentityLoss, InfoNCE
from gssf_plug.metric import GSSFMetric
from gssf_plug.retrieval import (
    AnySize,
    DualEncoder,
    Embedding,
    Fragments,
    FrozenNorms,
    ImageToText,
    LastStrideOne,
    LocalAlignment,
    LogSumExp,
    NeckLoss,
    OneTower,
    RandomBatches,
    ResidualMLP,
    RetrievalConfig,
    RetrievalTrainer,
    TextToImage,
    Tower,
    TwoTower,
    WordGRU,
    alignment_measures,
    average,
    document_measures,
    image_text_measures,
    instance_measures,
    reid_measures,
)

__all__ = ["MODELS"]


def symmetric() -> GSSFMetric:
    return GSSFMetric(8, block_size=4, constraint="symmetric")


def embedding() -> Embedding:
    ids = torch.arange(6)
    return Embedding(features(), ids, features(), ids)


def _fragments() -> Fragments:
    return Fragments(tokens(), torch.ones(6, 3).bool())


def _batch() -> dict[str, Any]:
    return {"images": features(), "image_ids": torch.arange(6), "texts": features(), "text_ids": torch.arange(6)}


def encoded(images: Any, image_ids: Any, texts: Any, text_ids: Any) -> Any:
    """A batch of a model of two towers without encoders."""
    batch = {"images": images, "image_ids": image_ids, "texts": texts, "text_ids": text_ids}
    return TwoTower(None, None).forward(batch)


def measured(queries: Any, query_ids: Any, gallery: Any, gallery_ids: Any) -> Any:
    """The measures of an embedding of these parts."""
    return image_text_measures(Embedding(queries, query_ids, gallery, gallery_ids), None)


@functools.cache
def _clip() -> CLIPModel:
    small = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = CLIPTextConfig(vocab_size=16, max_position_embeddings=8, **small)
    vision = CLIPVisionConfig(image_size=8, patch_size=4, **small)
    return CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=8))


def _cnn() -> ResNetModel:
    return ResNetModel(ResNetConfig(embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic"))


def _collate(rows: list[Any]) -> dict[str, Any]:
    images, ids = torch.stack([row["features"] for row in rows]), torch.tensor([row["label"] for row in rows])
    return {"images": images, "image_ids": ids, "texts": images, "text_ids": ids}


def _data() -> list[dict[str, Any]]:
    return [{"features": row, "label": number} for number, row in enumerate(features())]


def _trainer() -> dict[str, Any]:
    config = RetrievalConfig(output_dir="run", batch_size=2, epochs=1, progress=False, plot=False)
    return {
        "model": TwoTower(None, None, metric()), "loss": InfoNCE(), "config": config, "train_data": _data(),
        "collate": _collate, "eval_data": _data(), "eval_gallery": None, "eval_collate": _collate,
        "batches": RandomBatches(6, 2), "evaluation": image_text_measures, "accelerator": None,
    }  # fmt: skip


def _neck_loss() -> NeckLoss:
    return NeckLoss(BNNeck(8), after=IdentityLoss(8, 3), before=BatchHardTriplet())


def _labelled() -> dict[str, Any]:
    return {"features": features(), "labels": label_ids(), "score": metric()}


def _scored() -> dict[str, Any]:
    return {"queries": features(), "gallery": features(4)}


def _pairs(given: dict[str, Any]) -> tuple[int, int]:
    return len(given["queries"]), len(given["gallery"])


MODELS = [
    Door(
        Tower,
        lambda: {
            "encoder": nn.Linear(8, 8), "token_projection": nn.Linear(8, 8), "pooling": mean_pool,
            "projection": nn.Linear(8, 8), "output": None,
        },
    ),
    Door(
        TwoTower,
        lambda: {"image_encoder": nn.Linear(8, 8), "text_encoder": None, "metric": metric(), "processors": {}},
    ),
    Door(OneTower, lambda: {"encoder": None, "metric": symmetric(), "neck": BNNeck(8), "processors": None}),
    Door(DualEncoder, lambda: {"encoder": copy.deepcopy(_clip()), "metric": metric(), "processors": None}),
    Door(
        LocalAlignment,
        lambda: {
            "image_encoder": None, "text_encoder": None, "metric": metric(), "attention_metric": metric(),
            "alignments": (TextToImage(), ImageToText()), "processors": None,
        },
    ),
    *(Door(TwoTower(None, None, made).score, _scored, _pairs, True) for made in (None, metric())),
    Door(
        LocalAlignment(None, None).score, lambda: {"queries": _fragments(), "gallery": _fragments()}, _pairs, True,
    ),
    Door(TwoTower(None, None).forward, lambda: {"batch": _batch()}, name="TwoTower.forward"),
    Door(encoded, _batch, nan_passes=True),
    Door(OneTower(None).forward, lambda: {"batch": {"inputs": features(), "labels": label_ids()}}, name="OneTower"),
    *(
        Door(made, lambda: {"temperature": 9.0, "aggregate": average}) for made in (TextToImage, ImageToText)
    ),
    Door(LogSumExp, lambda: {"sharpness": 6.0}),
    *(
        Door(
            made, lambda: {"values": features(), "mask": torch.ones(6, 8).bool()},
            lambda given: given["values"].shape[:-1], True,
        )
        for made in (average, LogSumExp(6.0))
    ),
    Door(
        NeckLoss, lambda: {"neck": BNNeck(8), "after": IdentityLoss(8, 3), "before": BatchHardTriplet()},
    ),
    Door(_neck_loss().forward, _labelled, lambda given: (), True),
    Door(
        WordGRU,
        lambda: {"vocabulary": 16, "dim": 4, "embedding": 4, "layers": 1, "bidirectional": True, "dropout": 0.0},
        check=lambda made: made(torch.zeros(2, 3).long()),
        right=(("layers", "a thousand times"),),
    ),
    Door(
        WordGRU(16, 4, embedding=4).forward,
        lambda: {"input_ids": torch.ones(6, 3).long(), "attention_mask": torch.ones(6, 3).long()},
        lambda given: (*given["input_ids"].shape, 4),
    ),
    Door(ResidualMLP, lambda: {"inputs": 8, "outputs": 4}),
    Door(ResidualMLP(8, 4).forward, lambda: {"rows": features()}, lambda given: (len(given["rows"]), 4), True),
    Door(LastStrideOne, lambda: {"encoder": _cnn()}),
    *(Door(made, lambda: {"encoder": nn.Linear(2, 2)}) for made in (AnySize, FrozenNorms)),
    Door(document_measures, lambda: {"relevant": torch.ones(2, 2).long(), "ks": (1, 2)}),
    Door(
        instance_measures, lambda: {"labels": label_ids(), "is_query": torch.ones(6).bool(), "ks": (1, 2)},
        left_out=("asks",),  # the former name of `is_query`
    ),
    Door(
        reid_measures,
        lambda: {
            "ids": label_ids(), "cameras": torch.arange(6), "is_query": torch.arange(6) < 3, "ranks": (1, 5),
        },
        left_out=("asks",),  # the former name of `is_query`
    ),
    Door(alignment_measures, lambda: {"model": LocalAlignment(None, None), "folds": None}),
    Door(image_text_measures, lambda: {"embedding": embedding(), "metric": metric(), "folds": 2}),
    Door(measured, lambda: embedding()._asdict()),
    Door(
        RetrievalTrainer, _trainer,
        # tensors have rows, and classes can be called
        open=("train_data", "eval_data", "eval_gallery", "collate", "eval_collate"),
    ),
]  # fmt: skip
