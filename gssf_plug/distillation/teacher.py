"""Where teacher features come from: a frozen model that runs, or (see `cache`) what it left on disk.

Promises of the model: always in evaluation mode, whatever the caller or a Trainer does; no gradients; in the dtype and
on the device asked for; outside every state dict of the student's side.

It runs no further than its last tapped module. The first forward goes to its end, and proves that every tapped module
runs once; later ones stop at the last tap, by an exception that is caught here. That is exact, but leaves out what
hooks and wrappers do at the end of a forward: so by default only a plain model is stopped, and not one that is wrapped,
compiled, sharded or offloaded.
"""

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from gssf_plug.arguments import check_function, check_module, checked_flag
from gssf_plug.distillation.module_paths import find_modules, is_compiled, layer_paths
from gssf_plug.distillation.taps import Complete, Feature, FeatureTaps, Tap
from gssf_plug.errors import ArgumentError
from gssf_plug.metric.arrays import checked_device
from gssf_plug.wrappers import unwrap

__all__ = [
    "PREFIX",
    "ROW",
    "Teacher",
    "TeacherInputs",
    "TeacherModel",
    "argument_names",
    "call",
    "get_inputs",
    "select_inputs",
]

PREFIX = "teacher_"  # columns of a batch that are the teacher's own: teacher_input_ids, teacher_pixel_values, …
ROW, EXAMPLE = PREFIX + "row", PREFIX + "example_id"  # where a cache keeps an example; which example it is
TeacherInputs = Mapping[str, str] | Callable[[Any], Any] | None


class Teacher(Protocol):
    """What the Distiller asks of a teacher."""

    def layers(self) -> list[str]:
        """Paths that a rule may choose from, first to last."""

    def find(self, path: str) -> list[str]:
        """Paths that a pattern matches."""

    def watch(self, taps: Mapping[str, Tap]) -> None:
        """Say which features will be asked for."""

    def columns(self, available: Iterable[str]) -> list[str]:
        """Which columns of a data set the teacher needs."""

    def features(self, batch: Any, device: torch.device) -> dict[str, Feature]:
        """The features of a batch by tap name, on `device`, without gradients."""


class TeacherModel:
    """A frozen model as a teacher.

    Args:
        model: any module. It is put into evaluation mode, and moved where `dtype` or `device` say so.
        inputs: how the teacher's inputs are made of a batch: a mapping from its arguments to columns, or a function of
            the batch. None (default) takes the columns that begin with `teacher_` (without that prefix) if there are
            any, else those of the student.
        dtype: data type that the model is brought to, such as torch.bfloat16; None (default) leaves it, as quantised
            models need it.
        device: device that the model is moved to; None (default) follows the student.
        early_exit: True stops each forward after the last tapped module, False never; None (default) does so where it
            is safe, see above.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        inputs: TeacherInputs = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        early_exit: bool | None = None,
    ) -> None:
        check_module("model", model, "Give the model itself.")
        if dtype is not None and (not isinstance(dtype, torch.dtype) or not dtype.is_floating_point):
            remedy = "Such as torch.bfloat16; None leaves the teacher as it is."
            raise ArgumentError("dtype", "be None or a floating-point dtype of torch", repr(dtype), remedy)
        self.device = checked_device("device", device)
        self.model = model if dtype is None else model.to(dtype)
        if inputs is not None and not callable(inputs) and not isinstance(inputs, Mapping):
            rule, remedy = "be None, a mapping of arguments to columns, or a function", "None takes the columns."
            raise ArgumentError("inputs", rule, type(inputs).__name__, remedy)
        if callable(inputs):
            check_function("inputs", inputs, "It gets the batch.", takes=1)
        self.inputs = inputs
        self.dtype = dtype
        self.early_exit = None if early_exit is None else checked_flag("early_exit", early_exit)
        self.model.eval()
        self._taps: FeatureTaps | None = None

    def layers(self) -> list[str]:
        """The stacked layers of the model."""
        return layer_paths(self.model)

    def find(self, path: str) -> list[str]:
        """Modules that match a path, a glob or braces."""
        return find_modules(self.model, path, argument="pairs (teacher)")

    def watch(self, taps: Mapping[str, Tap]) -> None:
        """Say which features to read from now on; the model gets its hooks in `features` and loses them there."""
        self.release()
        self._taps = FeatureTaps(self.model, taps, attach=False)
        self.taps = self._taps.taps
        self._proven = False  # that every tapped module runs once in a forward

    @property
    def watching(self) -> bool:
        """Whether it reads for someone already."""
        return self._taps is not None

    def release(self) -> None:
        """Leave nothing on the model."""
        if self._taps is not None:
            self._taps.remove()

    def columns(self, available: Iterable[str]) -> list[str]:
        """Those that it names, those that begin with `"teacher_"`, those that its forward takes; all for a function."""
        if callable(self.inputs):
            return list(available)
        named = set(self.inputs.values()) if self.inputs else set(argument_names(self.model))
        return [name for name in available if name in named or name.startswith(PREFIX) or name == "example_id"]

    @torch.no_grad()
    def features(self, batch: Any, device: torch.device) -> dict[str, Feature]:
        """Run the model and read the taps; raises on NaN and infinity."""
        assert self._taps is not None
        self.model.eval()
        place = self._place(device)
        inputs = self._cast(get_inputs(self.model, batch, self.inputs), place)
        autocast = self.dtype is None and torch.is_autocast_enabled(place.type)
        with torch.autocast(place.type, enabled=autocast), self._taps.recording():
            with suppress(Complete), self._stopping(self._taps):
                call(self.model, inputs, "teacher")
            found = self._taps.features
        self._taps.clear()
        self._proven = True
        for name, feature in found.items():
            check_finite(feature, self._taps.taps[name].path)
        return {name: moved(feature, device) for name, feature in found.items()}

    @contextmanager
    def _stopping(self, taps: FeatureTaps) -> Iterator[None]:
        """Let the forward end at its last tap where it may; only this one: others may use the model, too."""
        later = self._proven and not any(tap.path == "" for tap in self.taps.values())
        taps.stop_when_complete = later and (_is_plain(self.model) if self.early_exit is None else self.early_exit)
        try:
            yield
        finally:
            taps.stop_when_complete = False

    def _place(self, device: torch.device) -> torch.device:
        first = next(self.model.parameters(), None)
        if first is None or _is_placed(self.model):
            return device
        wanted = device if self.device is None else self.device
        if first.device != wanted and not getattr(self.model, "is_quantized", False):
            self.model.to(wanted)
        return wanted

    def _cast(self, inputs: Any, device: torch.device) -> Any:
        if isinstance(inputs, Tensor):
            floating = self.dtype is not None and inputs.is_floating_point()
            return inputs.to(device, self.dtype if floating else inputs.dtype)
        if isinstance(inputs, Mapping):
            return {key: self._cast(value, device) for key, value in inputs.items()}
        return inputs


def _is_placed(model: nn.Module) -> bool:
    """Whether accelerate moves weights and inputs itself, for an offloaded or dispatched model."""
    return any(hasattr(module, "_hf_hook") for module in model.modules())


def _is_plain(model: nn.Module) -> bool:
    """Not wrapped, compiled, sharded or offloaded, in no part: nothing waits for the end of a forward."""
    marks = ("_hf_hook", "_fsdp_wrapped_module", "unshard")  # Accelerate's offload, FSDP 1 and 2
    bound = any(hasattr(module, mark) for module in model.modules() for mark in marks)
    return unwrap(model) is model and not bound and not is_compiled(model)


def moved(feature: Feature, device: torch.device) -> Feature:
    """The feature on `device`."""
    return Feature(feature.tensor.to(device), None if feature.mask is None else feature.mask.to(device))


def get_inputs(model: nn.Module, batch: Any, inputs: TeacherInputs) -> Any:
    """What the teacher is called with; see `TeacherModel`.

    Raises:
        ArgumentError: a named column is not in the batch, or the batch says that the two sides hold different examples.
    """
    if isinstance(batch, Mapping):
        _check_same_examples(batch)
    if callable(inputs):
        return inputs(batch)
    if not isinstance(batch, Mapping):
        return batch
    if isinstance(inputs, Mapping):
        missing = [column for column in inputs.values() if column not in batch]
        if missing:
            raise ArgumentError(
                "teacher_inputs", "name columns of the batch", repr(missing[0]), f"The batch has {sorted(batch)}."
            )
        return {argument: batch[column] for argument, column in inputs.items()}
    own = {
        name.removeprefix(PREFIX): value
        for name, value in batch.items()
        if name.startswith(PREFIX) and name not in (ROW, EXAMPLE)
    }
    return select_inputs(model, own or batch, labels=False)


def select_inputs(model: nn.Module, batch: Any, *, labels: bool = True) -> Any:
    """The columns that the model's forward takes by name; everything where it names none (`*args, **kwargs`)."""
    if not isinstance(batch, Mapping):
        return batch
    named = argument_names(model)
    if not labels:
        named -= {"labels", "label", "label_ids"}
    if not named:
        return {name: value for name, value in batch.items() if not name.startswith(PREFIX)}
    return {name: value for name, value in batch.items() if name in named}


def argument_names(model: nn.Module) -> set[str]:
    """What the plain model's forward takes by name."""
    kinds = inspect.signature(unwrap(model).forward).parameters.values()
    return {p.name for p in kinds if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}


def call(model: nn.Module, inputs: Any, side: str) -> Any:
    """model(**inputs) for a mapping, else model(inputs).

    Args:
        model: the student or the teacher.
        inputs: arguments that the model is called with.
        side: "student" or "teacher", for the message.

    Raises:
        ArgumentError: the model fails and the batch shows why: it holds something that is no tensor, or lacks what the
            model reads.
    """
    try:
        return model(**inputs) if isinstance(inputs, Mapping) else model(inputs)
    except ArgumentError:
        raise
    except (AttributeError, IndexError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        _explain(model, inputs, side, error)
        raise


def _explain(model: nn.Module, inputs: Any, side: str, error: Exception) -> None:
    """Raise the sentence that says why a model failed on its inputs, where they show it."""
    given = inputs if isinstance(inputs, Mapping) else {"batch": inputs}
    if not isinstance(inputs, Mapping | Tensor | list | tuple) and isinstance(error, TypeError):
        remedy = f"Let the collator make them. (The {side} said: {error})"
        raise ArgumentError("batch", "be a tensor, or a mapping of tensors", type(inputs).__name__, remedy) from error
    empty = [name for name, value in given.items() if isinstance(value, Tensor) and value.ndim and not len(value)]
    if empty:
        raise ArgumentError(
            "batch", "hold at least one example", f"none in '{empty[0]}'", "Leave empty batches out."
        ) from error
    odd = [f"{type(value).__name__} in '{name}'" for name, value in given.items() if not _is_fit(value)]
    if odd:
        raise ArgumentError(
            "batch",
            f"hold tensors where the {side} reads",
            ", ".join(odd),
            f"Let the collator make tensors. (The {side} said: {error})",
        ) from error
    _explain_dtype(model, given, side, error)
    # required arguments, and the one that transformers calls the main input, which has a default of None
    main = getattr(unwrap(model), "main_input_name", None)
    signature = inspect.signature(unwrap(model).forward).parameters.values()
    needed = {p.name for p in signature if p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    absent = sorted((needed | ({main} if main else set())) - given.keys()) if isinstance(inputs, Mapping) else []
    if absent and not {"inputs_embeds", "input_features"} & given.keys():
        teaching = f"Name them: teacher_inputs={{'{absent[0]}': COLUMN}}, or add columns 'teacher_{absent[0]}'"
        raise ArgumentError(
            f"{side}_inputs",
            f"give the {side} {absent}, which it reads",
            f"only {sorted(given)}",
            (teaching if side == "teacher" else "Add the columns, or give student_inputs") + f". ({error})",
        ) from error


def _explain_dtype(model: nn.Module, given: Mapping[str, Any], side: str, error: Exception) -> None:
    """Where the model's numbers are of another dtype than the batch's, outside autocast, or are not there at all."""
    own = next((one for one in model.parameters() if one.is_floating_point()), None)
    other = next((one for one in given.values() if isinstance(one, Tensor) and one.is_floating_point()), None)
    if own is not None and own.is_meta:
        remedy = "Load its weights first."
        raise ArgumentError(side, "hold values", "weights on the meta device", remedy) from error
    if own is not None and other is not None and own.dtype != other.dtype and isinstance(error, RuntimeError):
        rule, remedy = f"hold numbers in {own.dtype}, as the {side} has them", f"Convert the batch or the {side}."
        raise ArgumentError("batch", rule, other.dtype, f"{remedy} ({error})") from error


def _is_fit(value: Any) -> bool:
    """Whether a model may take this: no numpy array, and no list with a text, a number or None in it."""
    if isinstance(value, list | tuple):
        return all(isinstance(part, Tensor) or (isinstance(part, list | tuple) and _is_fit(part)) for part in value)
    return isinstance(value, Tensor | bool | int | float) or not (
        value is None or isinstance(value, str) or type(value).__module__ == "numpy"
    )


def check_finite(feature: Feature, path: str) -> None:
    """Raise on NaN or infinity in a feature's valid part."""
    finite = feature.tensor.isfinite()
    # padding may hold anything: a token counts where the mask does
    whole = finite.flatten(1).all(1) if feature.mask is None else (finite.all(-1) | ~feature.mask).all(1)
    if not bool(whole.all()):
        row = int((~whole).nonzero()[0])
        raise ArgumentError(
            "teacher",
            "give finite features",
            f"NaN or infinity from '{path}' in example {row} of the batch",
            "Run the teacher in float32 or bfloat16, and look at that example.",
        )


def _check_same_examples(batch: Mapping[str, Any]) -> None:
    strange = next((name for name in batch if not isinstance(name, str)), None)
    if strange is not None:
        remedy = "Let the collator name them."
        raise ArgumentError("batch", "have names of columns as its keys", repr(strange), remedy)
    ours, theirs = batch.get("example_id"), batch.get(EXAMPLE)
    if ours is not None and theirs is not None and not torch.equal(torch.as_tensor(ours), torch.as_tensor(theirs)):
        raise ArgumentError(
            "batch",
            "hold the same examples for student and teacher",
            "another `teacher_example_id` than `example_id`",
            "Join the two data sets by example before batching.",
        )
