"""Distillation losses: `loss(student, teacher, mask=None)` -> scalar; `distillation_loss.py` states what all hold."""

from gssf_plug.distillation.losses.distillation_loss import DistillationLoss, FeatureLoss
from gssf_plug.distillation.losses.gssf import Contrastive, Regression, Relation
from gssf_plug.distillation.losses.pointwise import MGD, MSE, VID, AttentionTransfer, Cosine, LogitKL
from gssf_plug.distillation.losses.relational import CKA, CRD, PKT, RKD, SP

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
    "DistillationLoss",
    "FeatureLoss",
    "LogitKL",
    "Regression",
    "Relation",
]
