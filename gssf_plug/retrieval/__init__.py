"""Alongside the metric: models of towers, and a trainer on Accelerate that survives what may happen to it."""

from gssf_plug.retrieval.data.batches import RandomBatches
from gssf_plug.retrieval.data.collators import LabelCollator, PairCollator, ProcessorTransform, WordAugmentation
from gssf_plug.retrieval.data.samplers import IdentityBatches, LengthBatches
from gssf_plug.retrieval.evaluation import (
    Numbered,
    WithRowNumbers,
    alignment_measures,
    document_measures,
    image_text_measures,
    instance_measures,
    reid_measures,
)
from gssf_plug.retrieval.fit import fit_metric
from gssf_plug.retrieval.fitting.report import FitResult, FitRow
from gssf_plug.retrieval.models.cross_attention import ImageToText, LogSumExp, TextToImage, average
from gssf_plug.retrieval.models.dual_encoder import DualEncoder
from gssf_plug.retrieval.models.embedding import Embedding, Fragments
from gssf_plug.retrieval.models.encoders import AnySize, FrozenNorms, LastStrideOne, ResidualMLP, WordGRU
from gssf_plug.retrieval.models.local_alignment import LocalAlignment
from gssf_plug.retrieval.models.neck import NeckLoss
from gssf_plug.retrieval.models.tower import Tower
from gssf_plug.retrieval.models.two_tower import ImageTextModel, OneTower, RetrievalModel, TwoTower
from gssf_plug.retrieval.trainer import RetrievalTrainer
from gssf_plug.retrieval.training.config import RetrievalConfig
from gssf_plug.retrieval.training.progress import NotFiniteError, Progress

__all__ = [
    "AnySize",
    "DualEncoder",
    "Embedding",
    "FitResult",
    "FitRow",
    "Fragments",
    "FrozenNorms",
    "IdentityBatches",
    "ImageTextModel",
    "ImageToText",
    "LabelCollator",
    "LastStrideOne",
    "LengthBatches",
    "LocalAlignment",
    "LogSumExp",
    "NeckLoss",
    "NotFiniteError",
    "Numbered",
    "OneTower",
    "PairCollator",
    "ProcessorTransform",
    "Progress",
    "RandomBatches",
    "ResidualMLP",
    "RetrievalConfig",
    "RetrievalModel",
    "RetrievalTrainer",
    "TextToImage",
    "Tower",
    "TwoTower",
    "WithRowNumbers",
    "WordAugmentation",
    "WordGRU",
    "alignment_measures",
    "average",
    "document_measures",
    "fit_metric",
    "image_text_measures",
    "instance_measures",
    "reid_measures",
]
