"""Alongside the metric: models of towers, and a trainer on Accelerate that survives what may happen to it."""

from gssf_plug.retrieval.batches import RandomBatches as RandomBatches
from gssf_plug.retrieval.config import RetrievalConfig as RetrievalConfig
from gssf_plug.retrieval.measures import image_text_measures as image_text_measures
from gssf_plug.retrieval.models import Embedding as Embedding
from gssf_plug.retrieval.models import OneTower as OneTower
from gssf_plug.retrieval.models import Tower as Tower
from gssf_plug.retrieval.models import TwoTower as TwoTower
from gssf_plug.retrieval.progress import NotFiniteError as NotFiniteError
from gssf_plug.retrieval.progress import Progress as Progress
from gssf_plug.retrieval.samplers import IdentityBatches as IdentityBatches
from gssf_plug.retrieval.trainer import RetrievalTrainer as RetrievalTrainer

__all__ = [
    "Embedding",
    "IdentityBatches",
    "NotFiniteError",
    "OneTower",
    "Progress",
    "RandomBatches",
    "RetrievalConfig",
    "RetrievalTrainer",
    "Tower",
    "TwoTower",
    "image_text_measures",
]
