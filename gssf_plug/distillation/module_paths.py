"""Module paths: unwrapping a model, patterns with globs and braces, the stack of layers, suggestions.

    encoder.layer.2          one module
    encoder.layer.{1,3}      braces: both, in the order written
    encoder.layer.*          a glob inside one name, in the order of the model;  ** crosses dots
    ""                       the model itself

Paths are those of the plain model: DDP, FSDP, `torch.compile`, checkpoint wrappers and PEFT change nothing, around the
model or around its parts.
"""

import re
from dataclasses import dataclass

from torch import nn

from gssf_plug.arguments import check_module
from gssf_plug.errors import ArgumentError, near_matches
from gssf_plug.wrappers import plain_modules

__all__ = ["TapSuggestion", "find_modules", "is_compiled", "layer_paths", "suggest_taps"]


@dataclass(frozen=True)
class TapSuggestion:
    """One place worth tapping: path, class, parameters below it, and whether it is one of the stacked layers."""

    path: str
    kind: str
    parameters: int
    layer: bool

    def __str__(self) -> str:
        return f"{self.path:<40} {self.kind:<28} {self.parameters:>12,}{'  layer' if self.layer else ''}"


def is_compiled(model: nn.Module) -> bool:
    """Whether `torch.compile` holds the model or a part of it, as a wrapper or in place (`module.compile()`)."""
    return any(hasattr(part, "_orig_mod") or part._compiled_call_impl is not None for part in model.modules())


def find_modules(model: nn.Module, pattern: str, *, argument: str = "path") -> list[str]:
    """Paths of the plain model that `pattern` matches, at least one.

    Raises:
        ArgumentError: the pattern matches nothing; near matches are named.
    """
    names = list(plain_modules(model))
    found = [name for part in _expand_braces(pattern) for name in names if _glob(part).fullmatch(name)]
    if not found:
        raise ArgumentError(
            argument,
            "be the path of a module",
            repr(pattern),
            near_matches(pattern, names[1:]) if len(names) <= 12 else _near(pattern, names[1:]),
        )
    return list(dict.fromkeys(found))


def layer_paths(model: nn.Module) -> list[str]:
    """Paths of the stacked layers: the children of the ModuleList or Sequential with the most parameters.

    Of stacks that hold each other (stages of blocks) the outer one counts. Empty where a model has no stack.
    """
    stacks = [
        (name, module)
        for name, module in plain_modules(model).items()
        if isinstance(module, nn.ModuleList | nn.Sequential) and len(module) > 1
    ]
    if not stacks:
        return []
    # the first of the largest: an outer stack comes before the stacks inside it
    name, stack = max(stacks, key=lambda entry: sum(p.numel() for p in entry[1].parameters()))
    return [f"{name}.{child}" if name else child for child, _ in stack.named_children()]


def suggest_taps(model: nn.Module) -> list[TapSuggestion]:
    """What there is to tap: the stacked layers first, then every other module down to three names deep.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> [suggestion.path for suggestion in suggest_taps(model)]
        ['0', '1', '2']
    """
    check_module("model", model, "Give the model itself.")
    layers, modules = layer_paths(model), plain_modules(model)
    others = [name for name in modules if name and name.count(".") < 3 and name not in layers]
    return [
        TapSuggestion(
            path, type(modules[path]).__name__, sum(p.numel() for p in modules[path].parameters()), path in layers
        )
        for path in [*layers, *others]
    ]


def _expand_braces(pattern: str) -> list[str]:
    found = re.search(r"\{([^{}]*)\}", pattern)
    if found is None:
        return [pattern]
    head, tail = pattern[: found.start()], pattern[found.end() :]
    # the innermost braces first: what is around or behind them is left to the next call
    return [path for choice in found[1].split(",") for path in _expand_braces(head + choice.strip() + tail)]


def _glob(pattern: str) -> re.Pattern[str]:
    wild = {"**": ".*", "*": r"[^.]*", "?": r"[^.]"}
    # wildcards stay in the list since their group captures; ** is tried before *
    parts = re.split(r"(\*\*|\*|\?)", pattern)
    return re.compile("".join(wild.get(part, re.escape(part)) for part in parts))


def _near(pattern: str, names: list[str]) -> str:
    sentence = near_matches(pattern, names)
    return sentence if sentence.startswith("Did") else "See suggest_taps(model) for what there is."
