"""A patched model under transformers' Trainer: what its checkpoints hold, resuming, the best, evaluation.

Trainer 5 writes a checkpoint with `save_pretrained`, which for some hundred types (ViT, DINOv3, …) puts older names on
the keys, and reads it with a `load_state_dict` that passes over names that it does not know: metric and most of the
base would stay as they are. So while the callback is there, checkpoints hold the names that the model has, and, like
PEFT's, nothing frozen. Without it, a checkpoint that does not bring the metric is an error.
"""

import logging
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any, Protocol, cast

from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel, TrainerCallback
from transformers.utils import SAFE_WEIGHTS_NAME

from gssf_plug.arguments import checked_flag
from gssf_plug.attention.query_layer import CHILD, LayerMetric
from gssf_plug.attention.saving import BESIDE, metric_layers, refill_adapter
from gssf_plug.errors import ArgumentError
from gssf_plug.wrappers import plain_path

__all__ = ["AdapterCallback", "accepted_by_trainer", "forget_files", "refuse_loss"]

CHECKPOINT = re.compile(r"checkpoint-\d+")
RESUMING = ("_load_from_checkpoint", "_load_best_model")  # the methods of Trainer that read a checkpoint

logger = logging.getLogger(__name__)


class Patch(Protocol):
    """What the callback needs of an `AttentionPatch`."""

    model: nn.Module

    @property
    def adapter_names(self) -> tuple[str, ...]: ...

    def save_pretrained(self, path: Path, *, adapter_name: str) -> None: ...

    @property
    def is_folded(self) -> bool: ...

    def folded(self) -> AbstractContextManager[object]: ...


class AdapterCallback(TrainerCallback):
    """Made by `AttentionPatch.callback`; see there."""

    def __init__(self, patch: Patch, *, save_base: bool, fold_evaluation: bool) -> None:
        self.patch = patch
        self.save_base = checked_flag("save_base", save_base)
        self.fold_evaluation = checked_flag("fold_evaluation", fold_evaluation)
        self._evaluation = ExitStack()
        self._before: dict[str, Any] = {}  # what stood in the place of the model's own method already

    def on_init_end(self, args: Any, state: Any, control: Any, model: nn.Module | None = None, **_: Any) -> None:
        """Before anything is resumed."""
        self._watch(model)

    def on_train_begin(self, args: Any, state: Any, control: Any, model: nn.Module | None = None, **_: Any) -> None:
        """Trainer may have been used before."""
        self._evaluation.close()
        self._watch(model)

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """An evaluation that was interrupted did not end."""
        self._evaluation.close()

    def on_prediction_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Behind the first batch, since Trainer has no event before it."""
        if self.fold_evaluation and not self.patch.is_folded:
            try:
                self._evaluation.enter_context(self.patch.folded())
            except ArgumentError as error:
                self.fold_evaluation = False
                logger.info("evaluation goes on with unfolded weights: %s", error)

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """The end of an evaluation."""
        self._evaluation.close()

    def on_predict(self, args: Any, state: Any, control: Any, metrics: Any, **_: Any) -> None:
        """The end of a prediction."""
        self._evaluation.close()

    def on_train_end(self, args: Any, state: Any, control: Any, model: nn.Module | None = None, **_: Any) -> None:
        """The best is loaded by now: the model saves and loads as before."""
        if model is not None:
            model.__dict__.pop("load_adapter", None)
            model.__dict__.pop("save_pretrained", None)
            model.__dict__.update(self._before)

    def _watch(self, model: nn.Module | None) -> None:
        """Let the model that Trainer holds save and load by this callback until the end of the training."""
        if model is None or self.patch.model not in model.modules():
            got = f"a Trainer of a {type(model).__name__}, which does not hold it"
            raise ArgumentError("callbacks", "belong to the patch of the Trainer's model", got, "Use its own patch.")
        self.model = model
        # on the instance: Trainer calls these two methods with the folder, which no event of a callback is told
        if hasattr(model, "save_pretrained") and vars(model).get("save_pretrained") != self.save_pretrained:
            self._before = {n: method for n, method in vars(model).items() if n == "save_pretrained"}
            model.__dict__["save_pretrained"] = self.save_pretrained
        if hasattr(model, "peft_config") and hasattr(model, "load_adapter"):
            model.__dict__["load_adapter"] = self.load_adapter
        hooks = model._load_state_dict_pre_hooks.values()
        if not any(getattr(hook, "hook", None) is fill_in_frozen for hook in hooks):
            model.register_load_state_dict_pre_hook(fill_in_frozen)

    def save_pretrained(self, save_directory: str | PathLike[str], *args: Any, **options: Any) -> None:
        """Stands before the model's own method: another file for a folder that Trainer names, else that method."""
        folder, kind = Path(save_directory), cast(Any, type(self.model))
        if CHECKPOINT.fullmatch(folder.name) is None:
            usual = self._before.get("save_pretrained") or partial(kind.save_pretrained, self.model)
            usual(save_directory, *args, **options)
            return
        if not isinstance(self.model, PreTrainedModel):  # PEFT's own checkpoints hold what they should
            kind.save_pretrained(self.model, save_directory, *args, **options)
        elif self.save_base or all(parameter.requires_grad for parameter in _base(self.model).values()):
            kind.save_pretrained(self.model, save_directory, *args, **options, save_original_format=False)
        elif options.get("is_main_process", True):
            folder.mkdir(parents=True, exist_ok=True)
            state = options.get("state_dict") or self.model.state_dict()
            save_file(_learned(self.model, state), folder / SAFE_WEIGHTS_NAME, {"format": "pt"})
        if options.get("is_main_process", True):
            for name in self.patch.adapter_names:
                self.patch.save_pretrained(folder / BESIDE / name, adapter_name=name)

    def load_adapter(self, model_id: str | PathLike[str], *args: Any, **options: Any) -> Any:
        """Stands before PEFT's method, whose file holds no metric: reads PEFT's adapter, and ours beside it."""
        beside = Path(model_id) / BESIDE
        with _brought() if beside.is_dir() else ExitStack():
            loaded = cast(Any, type(self.model)).load_adapter(self.model, model_id, *args, **options)
        metrics = metric_layers(self.patch.model)
        for folder in sorted(beside.glob("*")):
            refill_adapter(folder, metrics, folder.name)
        return loaded


def forget_files(model: nn.Module) -> None:
    """Take away what `attach` put on the model for its files, once no metric is left in it."""
    if not any(isinstance(module, LayerMetric) for module in model.modules()):
        for key in _refusals(model):
            del model._load_state_dict_pre_hooks[key]
        model.__dict__.pop("save_pretrained", None)


def _refusals(model: nn.Module) -> list[int]:
    return [key for key, hook in model._load_state_dict_pre_hooks.items() if getattr(hook, "hook", None) is refuse_loss]


def refuse_loss(module: nn.Module, state_dict: Mapping[str, Tensor], prefix: str, *rest: Any) -> None:
    """Hook before `load_state_dict` of a patched model: loading without `strict` must not leave a metric as it was.

    Raises:
        ArgumentError: the file holds the metrics under other names, or Trainer resumes from a checkpoint without them.
            Loading the weights of a plain model into a patched one, without `strict`, stays possible.
    """
    own = {key for key in _plain_keys(module) if f".{CHILD}.adapters." in f".{key}"}
    given = {plain_path(key.removeprefix(prefix)) for key in state_dict}
    if not own - given or _BROUGHT:
        return
    renamed = not own & given and any(f".{CHILD}.adapters." in key for key in state_dict)
    if renamed or _resumes():
        what = "under other names, as transformers' save_pretrained renames keys" if renamed else "not at all"
        raise ArgumentError(
            "state_dict",
            "bring the metrics of the patched model",
            f"'{min(own - given)}' {what}",
            "Train with Trainer(..., callbacks=[patch.callback()]), whose checkpoints bring them, or load the adapter "
            "that patch.save_pretrained wrote.",
        )


def fill_in_frozen(module: nn.Module, state_dict: dict[str, Tensor], prefix: str, *rest: Any) -> None:
    """Hook before `load_state_dict`: what a checkpoint leaves out since it is frozen stays as it is, in silence."""
    given = {plain_path(key.removeprefix(prefix)) for key in state_dict}
    absent = {key: value for key, value in _plain_keys(module).items() if key not in given}
    frozen = {id(value) for value in _base(module).values() if not value.requires_grad}
    if all(id(value) in frozen for value in absent.values()):
        state_dict.update({prefix + key: value for key, value in absent.items()})


_BROUGHT: list[bool] = []  # not empty while the callback brings the metrics that PEFT's file does not hold


@contextmanager
def _brought() -> Iterator[None]:
    _BROUGHT.append(True)
    try:
        yield
    finally:
        _BROUGHT.pop()


def _resumes() -> bool:
    """Is it Trainer that loads. It gives no event before, and no sign but its own frames on the stack."""
    frame = sys._getframe(1)
    while frame.f_back is not None:
        frame = frame.f_back
        if frame.f_globals.get("__name__") == "transformers.trainer" and frame.f_code.co_name in RESUMING:
            return True
    return False


def _plain_keys(model: nn.Module) -> dict[str, Tensor]:
    """Parameters by their key in `state_dict` of the plain model."""
    return {plain_path(name): parameter for name, parameter in model.named_parameters()}


def _base(model: nn.Module) -> dict[str, nn.Parameter]:
    """All parameters but the metrics'."""
    metrics = [module for module in model.modules() if isinstance(module, LayerMetric)]
    own = {id(parameter) for metric in metrics for parameter in metric.parameters()}
    return {name: parameter for name, parameter in model.named_parameters() if id(parameter) not in own}


def _learned(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What training may have changed: all of `state` but frozen parameters, each tensor under its first name only."""
    frozen = {plain_path(name) for name, parameter in _base(model).items() if not parameter.requires_grad}
    aliases = {plain_path(name) for name, _ in model.named_parameters(remove_duplicate=False)} - _plain_keys(
        model
    ).keys()
    # tied weights stand in `state` under each of their names; safetensors takes a tensor once
    return {k: v.contiguous() for k, v in state.items() if plain_path(k) not in frozen and plain_path(k) not in aliases}


@contextmanager
def accepted_by_trainer(model: nn.Module) -> Iterator[None]:
    """Let a quantised model say that it is none: a Trainer, which asks for PEFT's adapters there, then takes it."""
    quantised = bool(getattr(model, "is_quantized", False))
    if quantised:
        model.__dict__["is_quantized"] = False  # transformers' attribute, unknown to nn.Module's annotations
    try:
        yield
    finally:
        if quantised:
            model.__dict__["is_quantized"] = True
