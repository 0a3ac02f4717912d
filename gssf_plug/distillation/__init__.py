"""Distillation: match a student's features with a teacher's through the metric, in any loop or a Trainer."""

from gssf_plug.distillation.cache.teacher_cache import TeacherCache, precompute
from gssf_plug.distillation.distiller import Distiller
from gssf_plug.distillation.module_paths import suggest_taps
from gssf_plug.distillation.taps import Feature, FeatureTaps, Tap
from gssf_plug.distillation.teacher import TeacherModel
from gssf_plug.distillation.trainer import DistillationTrainer, distillation_trainer

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
