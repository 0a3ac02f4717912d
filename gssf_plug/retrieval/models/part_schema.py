"""What a description of parts may say: every kind, key, argument and number, looked at before anything is built.

A slot says what may stand at one place: a number in a range, a choice, or a part of some kinds. The slots of a class's
arguments stand in `ARGUMENTS`; a place of a model is a slot too. Nothing is imported or allocated for a description;
classes of transformers are only looked up by name.
"""

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import transformers
from transformers import PreTrainedModel

from gssf_plug.adapters import fitting_adapters
from gssf_plug.errors import CheckpointError
from gssf_plug.metric import GSSFMetric

__all__ = ["PARTS_LIMIT", "Slot", "check_parts", "transformers_class"]

PARTS_LIMIT = 1_000  # parts of one model; the largest of ours has 40
TEXT_LIMIT = 200  # characters of a name
WIDTH_LIMIT = 2**24
KINDS = {"transformers", "metric", "class", "function", "same_as", "given"}
KEYS = {"class": {"arguments"}, "transformers": {"add_pooling_layer", "adapters"}}  # beside the kind itself
CHILD = re.compile(r"[A-Za-z0-9_-]{1,100}")
DAMAGED = "It is damaged, or of a newer gssf-plug."


@dataclass(frozen=True)
class Slot:
    """What may stand at one place of a description.

    Args:
        says: what may stand here in words, for the error; it completes "where … belongs".
        plain: function that says whether a JSON value that is no part may stand here; default never.
        classes: names of the classes of ours and of torch that may stand here; default none.
        functions: names of the functions that may stand here; default none.
        kinds: further kinds of parts that may stand here, of "transformers" and "metric"; default none. A part that the
            caller gives may stand wherever some part may.
        many: True where a list of such may stand here, too; default False.
    """

    says: str
    plain: Callable[[Any], bool] = lambda value: False
    classes: frozenset[str] = frozenset()
    functions: frozenset[str] = frozenset()
    kinds: frozenset[str] = frozenset()
    many: bool = False

    @property
    def holds_parts(self) -> bool:
        """Whether anything but plain JSON may stand here."""
        return bool(self.classes or self.functions or self.kinds)

    def takes(self, part: Mapping[str, Any], kind: str) -> bool:
        """Whether a part of this kind and name may stand here."""
        named = {"class": self.classes, "function": self.functions}
        return self.holds_parts and (kind == "given" or kind in self.kinds or part[kind] in named.get(kind, ()))


def _is_int(value: Any, low: int, high: int) -> bool:
    return type(value) is int and low <= value <= high


def _is_number(value: Any, low: float, high: float) -> bool:
    return type(value) in (int, float) and low <= value <= high  # NaN is neither


def _is_shape(value: Any) -> bool:
    sides = value if isinstance(value, list) else [value]
    return 1 <= len(sides) <= 8 and all(_is_int(side, 1, WIDTH_LIMIT) for side in sides)


def _integer(low: int, high: int) -> Slot:
    return Slot(f"a whole number from {low} to {high:,}", lambda value: _is_int(value, low, high))


def _number(low: float, high: float) -> Slot:
    return Slot(f"a number from {low:g} to {high:g}", lambda value: _is_number(value, low, high))


WIDTH = _integer(1, WIDTH_LIMIT)
SHARE = _number(0.0, 1.0)
POSITIVE = _number(1e-30, 1e30)
FLAG = Slot("true or false", lambda value: type(value) is bool)
AXIS = _integer(-16, 16)
NORM = {"eps": _number(0.0, 1e30)}

MODULES = frozenset(
    {
        "Tower", "GPO", "BNNeck", "SizeAugmentation", "WordGRU", "ResidualMLP", "LastStrideOne", "AnySize",
        "FrozenNorms", "Sequential", "Linear", "BatchNorm1d", "LayerNorm", "Dropout", "Flatten", "Identity", "ReLU",
        "GELU", "Tanh",
    }
)  # fmt: skip
POOLINGS = frozenset({"mean_pool", "max_pool", "cls_pool", "last_pool", "mean_max_pool"})
MODULE = Slot("a module", classes=MODULES, kinds=frozenset({"transformers"}))
OPTIONAL = Slot("a module or null", lambda value: value is None, MODULES, kinds=frozenset({"transformers"}))
POOLING = Slot("a pooling", classes=frozenset({"GPO", "SizeAugmentation"}), functions=POOLINGS)
AGGREGATE = Slot("an aggregate", classes=frozenset({"LogSumExp"}), functions=frozenset({"average"}))
ALIGNMENTS = Slot("a list of alignments", classes=frozenset({"TextToImage", "ImageToText"}), many=True)
METRIC = Slot("a metric or null", lambda value: value is None, kinds=frozenset({"metric"}))
TOWER = Slot("a tower", classes=frozenset({"Tower"}))
ENCODER = Slot("a model of transformers", kinds=frozenset({"transformers"}))
ANY = Slot(
    "a part, or a number, text or null",
    lambda value: value is None or type(value) in (bool, str) or _is_number(value, -1e300, 1e300),
    MODULES | {"LogSumExp", "TextToImage", "ImageToText"},
    POOLINGS | {"average"},
    frozenset({"transformers", "metric"}),
    many=True,
)
OUTPUT = Slot("a name or null", lambda value: value is None or (isinstance(value, str) and len(value) <= TEXT_LIMIT))
MOMENTUM = Slot("a number or null", lambda value: value is None or _is_number(value, 0.0, 1.0))
SHAPE = Slot("one to eight widths", _is_shape)
CODE = Slot("an even number from 2 to 65,536", lambda value: _is_int(value, 2, 2**16) and value % 2 == 0)
GELU = Slot("'none' or 'tanh'", lambda value: value in ("none", "tanh"))

ARGUMENTS: dict[str, dict[str, Slot]] = {
    "Tower": {
        "encoder": OPTIONAL,
        "token_projection": OPTIONAL,
        "pooling": POOLING,
        "projection": OPTIONAL,
        "output": OUTPUT,
    },
    "GPO": {"code": CODE, "hidden": _integer(1, 2**16)},
    "BNNeck": {"dim": WIDTH},
    "SizeAugmentation": {"pooling": POOLING, "share": SHARE},
    "WordGRU": {
        "vocabulary": WIDTH,
        "dim": WIDTH,
        "embedding": WIDTH,
        "layers": _integer(1, 64),
        "bidirectional": FLAG,
        "dropout": SHARE,
    },
    "ResidualMLP": {"inputs": WIDTH, "outputs": WIDTH},
    "LastStrideOne": {"encoder": MODULE},
    "AnySize": {"encoder": MODULE},
    "FrozenNorms": {"encoder": MODULE},
    "TextToImage": {"temperature": POSITIVE, "aggregate": AGGREGATE},
    "ImageToText": {"temperature": POSITIVE, "aggregate": AGGREGATE},
    "LogSumExp": {"sharpness": POSITIVE},
    "Linear": {"in_features": WIDTH, "out_features": WIDTH, "bias": FLAG},
    "BatchNorm1d": {"num_features": WIDTH, **NORM, "momentum": MOMENTUM, "affine": FLAG, "track_running_stats": FLAG},
    "LayerNorm": {"normalized_shape": SHAPE, **NORM, "elementwise_affine": FLAG, "bias": FLAG},
    "Dropout": {"p": SHARE},
    "Flatten": {"start_dim": AXIS, "end_dim": AXIS},
    "Identity": {},
    "ReLU": {},
    "GELU": {"approximate": GELU},
    "Tanh": {},
}

PAIR = {"image_tower": TOWER, "text_tower": TOWER, "metric": METRIC}
PLACES: dict[str, dict[str, Slot]] = {  # of our models; those of others may hold anything that we can build
    "TwoTower": PAIR,
    "OneTower": {"tower": TOWER, "metric": METRIC, "neck": OPTIONAL},
    "DualEncoder": {"encoder": ENCODER, "metric": METRIC},
    "LocalAlignment": {**PAIR, "attention_metric": METRIC, "alignments": ALIGNMENTS},
}


def check_parts(model: str, parts: Mapping[str, Any], folder: str | os.PathLike[str]) -> None:
    """Whether a description is one that can be built: of every place, all that it says.

    Args:
        model: name of the model's class.
        parts: description of each place, in the order in which the places are built.
        folder: folder that they came from, for the error.

    Raises:
        CheckpointError: a part cannot stand at its place, which is named, or there are more than 1,000 parts.
    """
    checker = _Checker(folder)
    slots = PLACES.get(model, {})
    for place, saved in parts.items():
        checker.check(saved, place, slots.get(place, ANY))


@dataclass
class _Checker:
    """Walks through descriptions in the order in which they are built.

    Args:
        folder: folder that the parts came from, for the error.
        seen: filled while walking: what stands at each place, for parts that say "the same as there".
    """

    folder: str | os.PathLike[str]
    seen: dict[str, tuple[Mapping[str, Any], str]] = field(default_factory=dict)

    def check(self, saved: Any, place: str, slot: Slot) -> None:
        """One value or part, or a list of them where the slot says so."""
        if not isinstance(saved, dict):
            if slot.many and isinstance(saved, list) and saved:
                for number, item in enumerate(saved):
                    self.check(item, f"{place}.{number}", replace(slot, many=False))
                return
            if slot.plain(saved):
                return
            raise self.odd(place, f"{_short(saved)} where {slot.says} belongs")
        kind = self._kind(saved, place)
        target = self.seen.get(saved[kind]) if kind == "same_as" else (saved, kind)
        if target is None:
            raise self.odd(place, f"the unknown same_as {_short(saved[kind])}")
        if target[0] is saved:
            self._check_name(saved, kind, place)
        if not slot.takes(*target):
            raise self.odd(place, f"the {target[1]} {_short(target[0][target[1]])} where {slot.says} belongs")
        self._enter(saved, kind, place)
        self.seen[place] = target
        if len(self.seen) > PARTS_LIMIT:
            raise CheckpointError(self.folder, f"describes more than {PARTS_LIMIT:,} parts", DAMAGED)

    def odd(self, place: str, what: str) -> CheckpointError:
        """The error for what stands at a place."""
        return CheckpointError(self.folder, f"has in its configuration, for '{place}', {what}", DAMAGED)

    def _kind(self, saved: dict[str, Any], place: str) -> str:
        kinds = KINDS & saved.keys()
        if len(kinds) != 1 or not isinstance(saved[min(kinds)], str) or len(saved[min(kinds)]) > TEXT_LIMIT:
            raise self.odd(place, f"a part of no known kind, {_short(sorted(saved))}")
        kind = kinds.pop()
        allowed = {"children"} if saved[kind] == "Sequential" and kind == "class" else KEYS.get(kind, set())
        for key in sorted(saved.keys() - {kind} - allowed):
            raise self.odd(place, f"the unknown key {_short(key)}")
        return kind

    def _check_name(self, saved: Mapping[str, Any], kind: str, place: str) -> None:
        name = saved[kind]
        if kind == "transformers":
            if transformers_class(name, PreTrainedModel) is None:
                version = transformers.__version__
                raise self.odd(place, f"the model {name!r}, which this transformers {version} lacks")
            if "adapters" in saved and not fitting_adapters(saved["adapters"]):
                raise self.odd(place, f"the adapters {_short(saved['adapters'])}, which are none")
            known = saved.get("add_pooling_layer", False) is False
        else:
            names = {"class": ANY.classes, "function": ANY.functions, "metric": {GSSFMetric.file_format.kind}}
            known = kind == "given" or name in names[kind]
        if not known:
            raise self.odd(place, f"the unknown {kind} {_short(name)}")

    def _enter(self, saved: Mapping[str, Any], kind: str, place: str) -> None:
        """What is below a part: children of a sequence, arguments of a class."""
        if kind != "class":
            return
        if saved["class"] == "Sequential":
            self._children(saved.get("children"), place)
            return
        slots, given = ARGUMENTS[saved["class"]], saved.get("arguments")
        if not isinstance(given, dict):
            raise self.odd(place, f"{_short(given)} where a table of arguments belongs")
        for name in sorted(given.keys() ^ slots.keys()):
            problem = "unknown" if name in given else "missing"
            raise self.odd(place, f"arguments that {saved['class']} refuses ({_short(name)} is {problem})")
        for name, slot in slots.items():  # in the order in which they are built: a copy comes after what it copies
            self.check(given[name], f"{place}.{name}", slot)

    def _children(self, children: Any, place: str) -> None:
        if not isinstance(children, list) or not all(isinstance(c, list) and len(c) == 2 for c in children):
            raise self.odd(place, f"{_short(children)} where a list of named children belongs")
        taken: set[str] = set()
        for name, child in children:
            if not isinstance(name, str) or not CHILD.fullmatch(name) or name in taken:
                raise self.odd(place, f"a child named {_short(name)}")
            taken.add(name)
            self.check(child, f"{place}.{name}", MODULE)


def transformers_class(name: Any, kind: type) -> type | None:
    """The class of transformers that is called `name`, where it is one and a `kind`."""
    if not isinstance(name, str) or not name.isidentifier() or name.startswith("_"):
        return None
    try:
        found = getattr(transformers, name, None)
    except Exception:  # its module asks for a package that is not there
        return None
    return found if isinstance(found, type) and issubclass(found, kind) else None


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= TEXT_LIMIT else f"{text[:TEXT_LIMIT]}…"
