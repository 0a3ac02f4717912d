"""Distillation losses: `loss(student, teacher, mask=None)` -> scalar; `feature_loss.py` states what all hold."""

from gssf_plug.distillation.losses.feature_loss import FeatureLoss as FeatureLoss
from gssf_plug.distillation.losses.gssf import Contrastive as Contrastive
from gssf_plug.distillation.losses.gssf import Regression as Regression
from gssf_plug.distillation.losses.gssf import Relation as Relation
from gssf_plug.distillation.losses.pointwise import MGD as MGD
from gssf_plug.distillation.losses.pointwise import MSE as MSE
from gssf_plug.distillation.losses.pointwise import VID as VID
from gssf_plug.distillation.losses.pointwise import AttentionTransfer as AttentionTransfer
from gssf_plug.distillation.losses.pointwise import Cosine as Cosine
from gssf_plug.distillation.losses.pointwise import LogitKL as LogitKL
from gssf_plug.distillation.losses.relational import CKA as CKA
from gssf_plug.distillation.losses.relational import CRD as CRD
from gssf_plug.distillation.losses.relational import PKT as PKT
from gssf_plug.distillation.losses.relational import RKD as RKD
from gssf_plug.distillation.losses.relational import SP as SP

__all__ = [
    "CKA",
    "CRD",
    "MGD",
    "MSE",
    "PKT",
    "RKD",
    "SP",
    "VID",
    "AttentionTransfer",
    "Contrastive",
    "Cosine",
    "FeatureLoss",
    "LogitKL",
    "Regression",
    "Relation",
]
