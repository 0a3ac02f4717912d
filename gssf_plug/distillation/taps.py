"""FeatureTaps: read features by module path while a model runs, without editing the model.

Promises:
- One record per forward of the model. It is complete when the forward returns and does not change until the next one
  begins: modules that run again in backward (gradient checkpointing) are ignored.
- Masks are known: the 2-d `attention_mask` that the model was called with travels with the tokens.
- Paths are those of the plain model, so DDP, FSDP, `torch.compile` and PEFT around it change nothing. The hooks are
  bound methods: a deep copy of the model feeds its own copy of the taps.
- Only the tapped tensors are kept, and only until the next forward or `clear()`. They are pooled when they are asked
  for, after the forward, so that nothing is computed inside a block that is checkpointed.
- Inside `recording()` alone, where the taps were made with `attach=False`: before and after, the model has no hook. A
  compiled model keeps them, doing nothing, until `remove()`: its code does not notice hooks that come later.
- With `stop_when_complete` a forward ends at its last tap, by the exception `Complete` (a teacher's, see `teacher`).

It refuses: a path that matches nothing or several; a module that did not run, or ran several times; a tap inside a
reentrant-checkpointed block (or a no_grad block) of a forward that has gradients: it would silently train nothing.
"""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from gssf_plug.arguments import check_function, check_module, check_text, checked_flag, described, listed
from gssf_plug.distillation.module_paths import find_modules, is_compiled
from gssf_plug.errors import ArgumentError
from gssf_plug.features import Pooling, feature_tensor
from gssf_plug.wrappers import plain_modules, unwrap

__all__ = ["Complete", "Feature", "FeatureTaps", "Tap"]


class Complete(Exception):  # noqa: N818 - no error: the way out of a forward whose rest nobody needs
    """Raised inside a forward as soon as every tap has read, where `FeatureTaps.stop_when_complete` is set."""


class Feature(NamedTuple):
    """What a tap read: vectors (N, D), tokens (N, T, D) or a map (N, C, H, W), and the tokens' mask where known."""

    tensor: Tensor
    mask: Tensor | None = None


@dataclass(frozen=True)
class Tap:
    """Where to read and what to keep.

    Args:
        path: path of a module in the plain model, "" for the model itself; globs and braces as in `module_paths`.
        output: the part of the module's output to read: a key of a mapping, or an index of a tuple. None (default)
            takes the first tensor, as `feature_tensor` does.
        pooling: function from tokens (N, T, D) and mask (N, T) to vectors (N, D), such as `mean_pool`; None (default)
            keeps the tokens.
        token: number of the one token to keep, such as 0 for the class token; None (default) keeps all. Not together
            with `pooling`.
        masked: True (default) lets the attention mask travel with the tokens; False is for a module whose tokens are
            not those of the mask.
    """

    path: str
    output: str | int | None = None
    pooling: Pooling | None = None
    token: int | None = None
    masked: bool = True

    def __post_init__(self) -> None:
        check_text("path", self.path, "be the path of a module", "Such as 'encoder.layer.2'; '' is the model.")
        if self.output is not None and (isinstance(self.output, bool) or not isinstance(self.output, str | int)):
            rule, remedy = "be None, a key or an index of the output", "Such as 'last_hidden_state' or 0."
            raise ArgumentError("output", rule, described(self.output), remedy)
        check_function("pooling", self.pooling, "Such as mean_pool.", takes=2, optional=True)
        if self.token is not None and (isinstance(self.token, bool) or not isinstance(self.token, int)):
            remedy = "Such as 0 for the class token."
            raise ArgumentError("token", "be None or the place of a token", described(self.token), remedy)
        checked_flag("masked", self.masked)
        if self.pooling is not None and self.token is not None:
            raise ArgumentError("token", "not be used together with pooling", self.token, "Choose one of the two.")

    def __str__(self) -> str:
        """Where and what, in as few words as tell it from other taps of the model."""
        part = ".".join(str(word) for word in (self.path, self.output) if word not in ("", None)) or "output"
        pooling = "" if self.pooling is None else f":{getattr(self.pooling, '__name__', type(self.pooling).__name__)}"
        return part + ("" if self.token is None else f"[{self.token}]") + pooling

    def read(self, output: Any, mask: Tensor | None) -> Feature:
        """The feature in a module's output."""
        tensor = self.select(output)
        self.check(tensor, mask)
        return self.reduce(tensor, mask)

    def select(self, output: Any) -> Tensor:
        """The tensor in a module's output, as it is."""
        return feature_tensor(self._part(output))

    def check(self, tensor: Tensor, mask: Tensor | None) -> None:
        """Raise `ArgumentError` where the tensor has no such token, or not the tokens of the mask."""
        self._token_mask(tensor, mask)
        token = self.token
        if token is not None and (tensor.ndim != 3 or not -tensor.shape[1] <= token < tensor.shape[1]):
            gives = f"{tensor.shape[1]} tokens" if tensor.ndim == 3 else f"no tokens but shape {tuple(tensor.shape)}"
            raise ArgumentError(
                "token",
                f"be the place of a token of '{self.path or 'the output'}', which gives {gives}",
                token,
                "Tap a layer that keeps its tokens, and count them from 0, or from the end by -1.",
            )

    def reduce(self, tensor: Tensor, mask: Tensor | None) -> Feature:
        """The feature in that tensor: one token, a pooling of the tokens, or all of them with their mask."""
        mask = self._token_mask(tensor, mask)
        if self.token is not None:
            return Feature(tensor[:, self.token])
        if self.pooling is not None:
            return Feature(self.pooling(tensor, mask))
        return Feature(tensor, mask)

    def _part(self, output: Any) -> Any:
        if self.output is None:
            return output
        try:
            return output[self.output]
        except (KeyError, IndexError, TypeError, ValueError) as error:
            has = sorted(map(str, output)) if isinstance(output, Mapping) else type(output).__name__
            raise ArgumentError(
                "output", f"be a part of what '{self.path}' returns", repr(self.output), f"It returns {has}."
            ) from error

    def _token_mask(self, tensor: Tensor, mask: Tensor | None) -> Tensor | None:
        if mask is None or not self.masked or tensor.ndim != 3:
            return None
        if mask.shape != tensor.shape[:2]:
            raise ArgumentError(
                "attention_mask",
                f"have one value per token of '{self.path}', shape {tuple(tensor.shape[:2])}",
                tuple(mask.shape),
                "Give Tap(path, masked=False) if its tokens are not those of the mask.",
            )
        return mask.bool()


class FeatureTaps:
    """Read the outputs of chosen modules in every forward of a model.

    Args:
        model: any module, wrapped or not. It is not edited: only hooks are added, and `remove` takes them away.
        taps: a path or `Tap` by name, each of which must match one module; or a list of paths, globs and braces, whose
            names are then the paths found.
        mask_argument: name of the argument of the model's forward that holds the mask; default "attention_mask".
        attach: True (default) reads in every forward from now on; False reads only in the forwards inside
            `recording()`.

    Raises:
        ArgumentError: a path matches nothing (near matches are named), or several modules.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> taps = FeatureTaps(model, {"hidden": "0"})
        >>> _ = model(torch.zeros(3, 4))
        >>> taps["hidden"].tensor.shape
        torch.Size([3, 8])
        >>> taps.remove()
    """

    def __init__(
        self,
        model: nn.Module,
        taps: Mapping[str, str | Tap] | Sequence[str],
        *,
        mask_argument: str = "attention_mask",
        attach: bool = True,
    ) -> None:
        check_module("model", model, "Give the model itself.")
        check_text("mask_argument", mask_argument, "be the name of an argument", "Such as 'attention_mask'.")
        attach = checked_flag("attach", attach)
        self.taps = _resolve(model, taps)
        self.mask_argument = mask_argument
        self.forwards = 0  # of the model, since the taps were attached
        self.stop_when_complete = False  # see Complete; the caller catches it
        self._record: dict[str, Tensor] = {}
        self._mask: Tensor | None = None
        self._running = self._with_gradients = False
        self._handles: list[RemovableHandle] = []
        self._model = model
        self._reading = attach
        if attach:
            self._attach()

    @property
    def features(self) -> dict[str, Feature]:
        """The record of the last forward, by name.

        Raises:
            ArgumentError: a tapped module has not run, a token is not there, or the mask has another shape.
        """
        for name, tap in self.taps.items():
            if name not in self._record:
                raise ArgumentError(
                    name,
                    "have run in the last forward",
                    f"nothing from '{tap.path}'",
                    "Call the model first; a compiled model must be compiled after the taps are attached.",
                )
        return {name: tap.reduce(self._record[name], self._mask) for name, tap in self.taps.items()}

    def __getitem__(self, name: str) -> Feature:
        return self.features[name]

    @contextmanager
    def recording(self) -> Iterator[Self]:
        """Read in the forwards of this block only; an error inside leaves neither hooks nor a record behind."""
        self._attach()
        self._reading = True
        try:
            yield self
        except BaseException:
            self.remove()
            raise
        finally:
            self._reading = self._running = False
            if not is_compiled(self._model):
                self._detach()

    def clear(self) -> None:
        """Forget the record, so that its memory is free."""
        self._record = {}
        self._mask = None

    def remove(self) -> None:
        """Take the hooks away and forget the record. The model is as it was."""
        self._detach()
        self.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles go without the record: tensors inside a graph can be neither copied nor pickled."""
        return {**self.__dict__, "_record": {}, "_mask": None}

    def _attach(self) -> None:
        if self._handles:
            return
        plain, modules = unwrap(self._model), plain_modules(self._model)
        self._parameters = list(inspect.signature(plain.forward).parameters)
        self._handles.append(plain.register_forward_pre_hook(self._begin, with_kwargs=True))
        # A hook is told its module, not its path: one reader per tap.
        for name, tap in self.taps.items():
            self._handles.append(modules[tap.path].register_forward_hook(_Reader(self, name, tap).read))
        self._handles.append(plain.register_forward_hook(self._end, always_call=True))

    def _detach(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not self._reading:
            return
        self.clear()
        self.forwards += 1
        self._running = True
        self._with_gradients = torch.is_grad_enabled()
        given = {**dict(zip(self._parameters, args, strict=False)), **kwargs}
        mask = given.get(self.mask_argument)
        self._mask = mask if isinstance(mask, Tensor) and mask.ndim == 2 else None

    def _end(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self._running = False

    def _store(self, name: str, tap: Tap, output: Any) -> None:
        if not self._running:  # recomputation in backward, or the module called on its own
            return
        if self._with_gradients and not torch.is_grad_enabled():
            raise ArgumentError(
                name,
                "lie where gradients flow",
                f"'{tap.path}', which runs without them: inside a reentrant-checkpointed or no_grad block",
                "It would silently train nothing. Checkpoint with use_reentrant=False, or tap the block's own output.",
            )
        if name in self._record:
            raise ArgumentError(
                name,
                "run once in a forward",
                f"'{tap.path}', which ran again",
                "Tap a module that is not shared between layers.",
            )
        try:
            tensor = tap.select(output)
            tap.check(tensor, self._mask)
        except ArgumentError as error:
            error.tap = name  # a Distiller says of which pair that is
            raise
        self._record[name] = tensor  # it is pooled later: a checkpointed block computes nothing that it will not again
        if self.stop_when_complete and len(self._record) == len(self.taps):
            raise Complete


@dataclass
class _Reader:
    """The hook of one tap; its bound method follows a deep copy of the model."""

    taps: FeatureTaps
    name: str
    tap: Tap

    def read(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self.taps._store(self.name, self.tap, output)


def _resolve(model: nn.Module, taps: Mapping[str, str | Tap] | Sequence[str]) -> dict[str, Tap]:
    rule, remedy = "be a mapping of names to paths, or a list of paths", "Name a module."
    names = listed(taps)
    if not names:
        raise ArgumentError("taps", rule, repr(taps) if names is not None else described(taps), remedy)
    for name in names:
        check_text("taps", name, rule, remedy)
    if not isinstance(taps, Mapping):
        return {path: Tap(path) for pattern in names for path in find_modules(model, pattern, argument="taps")}
    resolved = {}
    for name, tap in taps.items():
        if not isinstance(tap, Tap):
            check_text(name, tap, "be a path or a Tap", "Such as 'encoder.layer.2'.")
            tap = Tap(tap)
        found = find_modules(model, tap.path, argument=name)
        if len(found) > 1:
            raise ArgumentError(
                name,
                "match one module",
                f"{tap.path!r}, which matches {len(found)}: {', '.join(map(repr, found[:3]))}, …",
                "Write the whole path, or give a list of patterns instead of a mapping.",
            )
        resolved[name] = replace(tap, path=found[0])
    return resolved
