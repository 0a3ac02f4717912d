"""Distillation: match a student's features with a teacher's through the metric, in any loop or a Trainer."""

from gssf_plug.distillation.cache import TeacherCache as TeacherCache
from gssf_plug.distillation.cache import precompute as precompute
from gssf_plug.distillation.distiller import Distiller as Distiller
from gssf_plug.distillation.paths import suggest_taps as suggest_taps
from gssf_plug.distillation.taps import Feature as Feature
from gssf_plug.distillation.taps import FeatureTaps as FeatureTaps
from gssf_plug.distillation.taps import Tap as Tap
from gssf_plug.distillation.teacher import TeacherModel as TeacherModel
from gssf_plug.distillation.trainer import DistillationTrainer as DistillationTrainer
from gssf_plug.distillation.trainer import distillation_trainer as distillation_trainer

__all__ = [
    "DistillationTrainer",
    "Distiller",
    "Feature",
    "FeatureTaps",
    "Tap",
    "TeacherCache",
    "TeacherModel",
    "distillation_trainer",
    "precompute",
    "suggest_taps",
]
