"""Alongside the metric: models of towers, and a trainer on Accelerate that survives what may happen to it."""

from gssf_plug.retrieval.alignment import ImageToText as ImageToText
from gssf_plug.retrieval.alignment import LogSumExp as LogSumExp
from gssf_plug.retrieval.alignment import TextToImage as TextToImage
from gssf_plug.retrieval.alignment import average as average
from gssf_plug.retrieval.batches import RandomBatches as RandomBatches
from gssf_plug.retrieval.bucketing import LengthBatches as LengthBatches
from gssf_plug.retrieval.collators import LabelCollator as LabelCollator
from gssf_plug.retrieval.collators import PairCollator as PairCollator
from gssf_plug.retrieval.collators import ProcessorTransform as ProcessorTransform
from gssf_plug.retrieval.collators import WordAugmentation as WordAugmentation
from gssf_plug.retrieval.config import RetrievalConfig as RetrievalConfig
from gssf_plug.retrieval.dual_encoder import DualEncoder as DualEncoder
from gssf_plug.retrieval.embedding import Embedding as Embedding
from gssf_plug.retrieval.embedding import Fragments as Fragments
from gssf_plug.retrieval.encoders import AnySize as AnySize
from gssf_plug.retrieval.encoders import FrozenNorms as FrozenNorms
from gssf_plug.retrieval.encoders import LastStrideOne as LastStrideOne
from gssf_plug.retrieval.encoders import ResidualMLP as ResidualMLP
from gssf_plug.retrieval.encoders import WordGRU as WordGRU
from gssf_plug.retrieval.local_alignment import LocalAlignment as LocalAlignment
from gssf_plug.retrieval.measures import Numbered as Numbered
from gssf_plug.retrieval.measures import alignment_measures as alignment_measures
from gssf_plug.retrieval.measures import image_text_measures as image_text_measures
from gssf_plug.retrieval.measures import instance_measures as instance_measures
from gssf_plug.retrieval.measures import reid_measures as reid_measures
from gssf_plug.retrieval.models import ImageTextModel as ImageTextModel
from gssf_plug.retrieval.models import OneTower as OneTower
from gssf_plug.retrieval.models import RetrievalModel as RetrievalModel
from gssf_plug.retrieval.models import TwoTower as TwoTower
from gssf_plug.retrieval.neck import NeckLoss as NeckLoss
from gssf_plug.retrieval.progress import NotFiniteError as NotFiniteError
from gssf_plug.retrieval.progress import Progress as Progress
from gssf_plug.retrieval.samplers import IdentityBatches as IdentityBatches
from gssf_plug.retrieval.towers import Tower as Tower
from gssf_plug.retrieval.trainer import RetrievalTrainer as RetrievalTrainer

__all__ = [
    "AnySize",
    "DualEncoder",
    "Embedding",
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
    "WordAugmentation",
    "WordGRU",
    "alignment_measures",
    "average",
    "image_text_measures",
    "instance_measures",
    "reid_measures",
]
