"""The features of a teacher, computed once and kept on disk."""

from gssf_plug.distillation.cache.teacher_cache import TeacherCache, precompute

__all__ = ["TeacherCache", "precompute"]
