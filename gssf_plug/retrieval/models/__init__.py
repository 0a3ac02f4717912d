"""What is trained: encoders and towers put together to models that embed and score. Knows no run and no data set."""

from gssf_plug.retrieval.models.dual_encoder import DualEncoder
from gssf_plug.retrieval.models.embedding import Embedding, Fragments
from gssf_plug.retrieval.models.local_alignment import LocalAlignment
from gssf_plug.retrieval.models.tower import Tower
from gssf_plug.retrieval.models.two_tower import ImageTextModel, OneTower, RetrievalModel, TwoTower

__all__ = [
    "DualEncoder",
    "Embedding",
    "Fragments",
    "ImageTextModel",
    "LocalAlignment",
    "OneTower",
    "RetrievalModel",
    "Tower",
    "TwoTower",
]
