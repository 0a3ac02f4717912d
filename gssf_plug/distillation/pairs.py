"""Which student feature meets which teacher feature: paths, globs, taps, or a rule over the stacked layers.

{"encoder.layer.1": "encoder.layer.5"}                 one pair
{"encoder.layer.{0,1}": "encoder.layer.{2,5}"}         two, in order
[("", Tap("encoder.layer.5", pooling=mean_pool))]      pairs as a list; "" is the model's own output
"last"                                                 last layer with last layer
"uniform"                                              layer i of n with layer ⌈(i + 1) m / n⌉ - 1 of m
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from torch import nn

from gssf_plug.distillation.paths import find_modules, layer_paths
from gssf_plug.distillation.taps import Tap
from gssf_plug.errors import ArgumentError, near_matches

__all__ = ["Pairs", "resolve_pairs"]

Side = str | Tap
Pairs = str | Mapping[str, Side] | Sequence[tuple[Side, Side]]
RULES = ("last", "uniform")


def resolve_pairs(
    student: nn.Module, pairs: Pairs, layers: Callable[[], list[str]], find: Callable[[str], list[str]]
) -> list[tuple[Tap, Tap]]:
    """Every pair as two taps, each on one module.

    Args:
        student: the student.
        pairs: see the module's text.
        layers: the teacher's stacked layers.
        find: the teacher's paths that match a pattern.

    Raises:
        ArgumentError: an unknown rule, a rule on a model without a stack, no pair, a path that matches nothing, or
            different numbers of matches on the two sides.
    """
    if isinstance(pairs, str):
        return [(Tap(ours), Tap(theirs)) for ours, theirs in _by_rule(pairs, layer_paths(student), layers())]
    listed = list(pairs.items()) if isinstance(pairs, Mapping) else list(pairs)
    if not listed:
        raise ArgumentError("pairs", "name at least one pair", "none", "Give {student path: teacher path}.")
    resolved: list[tuple[Tap, Tap]] = []
    for ours, theirs in listed:
        left, right = (side if isinstance(side, Tap) else Tap(side) for side in (ours, theirs))
        left_paths = find_modules(student, left.path, argument="pairs (student)")
        right_paths = find(right.path)
        if len(left_paths) != len(right_paths):
            raise ArgumentError(
                "pairs",
                f"match as many modules on both sides, but {left.path!r} matches {len(left_paths)} of the student",
                f"{len(right_paths)} of the teacher for {right.path!r}",
                "Write the paths in full, or use braces: 'encoder.layer.{0,1}'.",
            )
        for a, b in zip(left_paths, right_paths, strict=True):
            resolved.append((replace(left, path=a), replace(right, path=b)))
    return resolved


def _by_rule(rule: str, ours: list[str], theirs: list[str]) -> list[tuple[str, str]]:
    if rule not in RULES:
        raise ArgumentError("pairs", f"be pairs of paths or one of {RULES}", repr(rule), near_matches(rule, RULES))
    for side, layers in (("student", ours), ("teacher", theirs)):
        if not layers:
            raise ArgumentError(
                "pairs", f"be given as paths, since the {side} has no stack of layers", repr(rule), "See suggest_taps."
            )
    if rule == "last":
        return [(ours[-1], theirs[-1])]
    return [(path, theirs[-(-(i + 1) * len(theirs) // len(ours)) - 1]) for i, path in enumerate(ours)]
