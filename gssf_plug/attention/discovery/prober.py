"""Prober: settles for each attention module of a model how it keeps its query, by running the model.

The model runs on the user's `example_inputs`, or on inputs made from its configuration; parts that such a run does not
reach (a vision tower without an image) are run alone. What could not be proven is said with the reason.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction

from gssf_plug.attention.discovery.attention_module import AttentionModule, settle
from gssf_plug.attention.discovery.candidates import candidates
from gssf_plug.attention.discovery.example_inputs import (
    make_arguments,
    make_arguments_with_image,
    make_layer_arguments,
    runnable_parts,
    takes_images_between_words,
)
from gssf_plug.attention.discovery.probe import Trial, try_all
from gssf_plug.attention.discovery.recording import Recording, Run, record, tensors_in, undisturbed, with_new
from gssf_plug.errors import ArgumentError

__all__ = ["ATTEMPTS", "GradientReach", "Prober"]

ATTEMPTS = 40  # inputs tried per part
ENOUGH = 3  # of them that reach a module whose layout they do not prove


class Prober:
    """Runs one model to find out about its attention modules; the model is as before afterwards.

    Args:
        model: the model; it runs in evaluation mode and without gradients, whatever its mode is.
        after_norm: True looks for the query after a query norm that follows the projection; False looks before it.
        example_inputs: keyword arguments of the model's forward; None makes some from the configuration.
    """

    def __init__(
        self, model: nn.Module, *, after_norm: bool = True, example_inputs: Mapping[str, Any] | None = None
    ) -> None:
        self.model, self.after_norm = model, after_norm
        self.example_inputs = None if example_inputs is None else _without_inference(example_inputs)
        self.failures: list[str] = []
        self.reach: GradientReach | None = None

    def prove(
        self, modules: Mapping[str, AttentionModule], *, follow: Mapping[str, AttentionModule] | None = None
    ) -> None:
        """Give each of `modules` its verdict.

        Args:
            modules: the attention modules by path.
            follow: modules of which `without_gradient` will be asked: one run then answers both questions.

        Raises:
            ArgumentError: the model does not run on `example_inputs`.
        """
        # a text alone says nothing of a vision tower, so where images go between words that is a run of its own
        if follow and (self.example_inputs is not None or not takes_images_between_words(self.model)):
            self.reach = GradientReach({path: module.module for path, module in follow.items()})
        with undisturbed(self.model):
            if self.example_inputs is not None:
                self._prove_on_example(modules, dict(self.example_inputs))
            else:
                for path, part in runnable_parts(self.model):
                    self._prove_part(path, part, make_arguments(part), modules, self.failures)
                for path, module in modules.items():
                    if module.candidate is None and module.layouts:
                        self._prove_part(path, module.module, make_layer_arguments(module), {path: module}, [])
            now = dict(self.model.named_modules())
            for path, module in modules.items():
                module.replaced = now.get(path, module.module) is not module.module
        settle(modules, self.failures)

    def without_gradient(self, modules: Mapping[str, AttentionModule]) -> set[str]:
        """Paths of the modules that the model runs and whose output its own outputs do not depend on.

        A model may run layers whose outputs it throws away: a backbone of twelve of which the head takes the fourth. A
        metric there would change nothing, and a parameter without a gradient stops distributed training. Nothing is
        said of modules that one run of the whole model does not reach, nor where no gradient reaches any.
        """
        if self.reach is None or not self.reach.seen:
            self.reach = GradientReach({path: module.module for path, module in modules.items()})
            with undisturbed(self.model):
                for arguments in islice(self._whole_arguments(), ATTEMPTS):
                    # inputs that do not fit, or a model that cannot be differentiated: the next may
                    with suppress(Exception):
                        self.reach.run(partial(self.model, **arguments))
                        break
        return self.reach.unreached

    def _whole_arguments(self) -> Iterator[dict[str, Any]]:
        """Arguments of the whole model, those that show it an image among words first."""
        if self.example_inputs is not None:
            yield dict(self.example_inputs)
        else:
            yield from make_arguments_with_image(self.model)
            yield from make_arguments(self.model)

    def _prove_on_example(self, modules: Mapping[str, AttentionModule], example: dict[str, Any]) -> None:
        try:
            self._try("", self.model, example, modules)
        except Exception as error:
            raise ArgumentError(
                "example_inputs", "run the model", f"{type(error).__name__}: {error}", "Check model(**example_inputs)."
            ) from error

    def _prove_part(
        self,
        path: str,
        part: nn.Module,
        inputs: Iterator[dict[str, Any]],
        modules: Mapping[str, AttentionModule],
        failures: list[str],
    ) -> None:
        """Run `part` on made inputs until all modules in it are proven, or reached often enough, or inputs run out."""
        prefix = f"{path}." if path else ""
        waiting = {name: module for name, module in modules.items() if f"{name}.".startswith(prefix)}
        reached: Counter[str] = Counter()
        for arguments in islice(inputs, ATTEMPTS):
            waiting = {n: m for n, m in waiting.items() if m.candidate is None and reached[n] < ENOUGH}
            if not waiting:
                return
            try:
                reached.update(self._try(path, part, arguments, waiting))
            except Exception as error:
                called = f"{type(part).__name__}({', '.join(arguments)})"
                failures.append(f"{called}: {type(error).__name__}: {error}"[:200])

    def _try(
        self, path: str, part: nn.Module, arguments: dict[str, Any], modules: Mapping[str, AttentionModule]
    ) -> set[str]:
        """Prove what one run of `part`, which is at `path`, proves; gives the paths of the modules that it reached."""
        run = partial(part, **arguments)
        tried: dict[str, list[str]] = {}
        for among in _inner_then_outer(modules):
            for depth in range(3):  # the attention may be computed by the parent of the projections, or by its parent
                left = {name: module for name, module in among.items() if module.candidate is None}
                above = {name: _ancestor(part, name[len(path) :].lstrip("."), depth) for name in left}
                scopes = {name: scope for name, scope in above.items() if scope is not None}
                if scopes:
                    for name, trial in self._trials(run, scopes, left, whole=not path).items():
                        tried.setdefault(name, []).extend(trial.tried)
                        left[name].candidate, left[name].scope = trial.proven, trial.scope
        for name, failures in tried.items():
            if modules[name].tried is None:
                modules[name].tried = failures
        return set(tried)

    def _trials(
        self, run: Run, scopes: Mapping[str, nn.Module], modules: Mapping[str, AttentionModule], *, whole: bool
    ) -> dict[str, Trial]:
        """The modules that a run reaches, tried."""
        recording = self._record(run, scopes, [m for module in modules.values() for m in module.sources], whole)
        trials = {}
        for name, calls in recording.calls.items():
            module = modules[name]
            pending = candidates(module.module, module.layouts, recording.shapes, after_norm=self.after_norm)
            trials[name] = Trial(module.module, scopes[name], calls, pending)
        try_all(trials, run)
        return trials

    def _record(self, run: Run, scopes: Mapping[str, nn.Module], shaped: Sequence[nn.Module], whole: bool) -> Recording:
        if whole and self.reach is not None and not self.reach.seen:
            with suppress(Exception):  # a model that cannot be differentiated; or the next line says what is wrong
                return record(partial(self.reach.run, run), scopes, shaped)
        return record(run, scopes, shaped)


def _without_inference(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Copies, since tensors that were made in inference mode take no part in gradients."""
    with torch.inference_mode(False):
        return {name: value.clone() if isinstance(value, Tensor) else value for name, value in inputs.items()}


def _inner_then_outer(modules: Mapping[str, AttentionModule]) -> Iterator[Mapping[str, AttentionModule]]:
    """Modules without others inside them, then those with: in whole runs a change in these would show in those."""
    above = set()
    for path in modules:
        while path:
            # every prefix of a path: those of them that are modules here hold another
            path = path.rpartition(".")[0]
            above.add(path)
    outer = modules.keys() & above
    yield {path: module for path, module in modules.items() if path not in outer}
    yield {path: module for path, module in modules.items() if path in outer}


def _ancestor(part: nn.Module, name: str, depth: int) -> nn.Module | None:
    """The module `depth` steps above the one at `name` in `part`; None at `part` itself and beyond."""
    steps = name.split(".") if name else []
    if depth == 0:
        return part.get_submodule(name)
    return part.get_submodule(".".join(steps[:-depth])) if len(steps) > depth else None


class GradientReach:
    """Follows gradients from the outputs of one run back to the layers of a model.

    Args:
        layers: the attention modules by path.
    """

    def __init__(self, layers: Mapping[str, nn.Module]) -> None:
        self.layers = layers
        self.seen = False
        self.unreached: set[str] = set()
        """Layers that the run went through and that no gradient reaches; empty where none reaches any."""

    def run(self, run: Run) -> object:
        """Run with gradients, and see; whatever the run or the gradients raise is raised, and then nothing was seen.

        A zero that asks for a gradient is added to all that a layer puts out: the layer is reached where its zeros are.
        """
        zeros: dict[str, list[Tensor]] = {}

        def add_zero(name: str) -> Callable[[nn.Module, object, object], object]:
            def hook(module: nn.Module, arguments: object, output: object) -> object:
                for found in list(tensors_in(output)):
                    zero = torch.zeros_like(found, requires_grad=True)
                    zeros.setdefault(name, []).append(zero)
                    output = with_new(output, found, found + zero)
                return output

            return hook

        with torch.enable_grad(), ExitStack() as hooks:
            for name, layer in self.layers.items():
                hooks.callback(layer.register_forward_hook(add_zero(name)).remove)
            result = run()
            outputs = [output for output in tensors_in(result) if output.requires_grad]
            reached = _reached(outputs, [zero for own in zeros.values() for zero in own])
        with_gradient = {name for name, own in zeros.items() if any(id(zero) in reached for zero in own)}
        # where no gradient reaches any layer, the outputs say nothing of a single one
        self.unreached, self.seen = zeros.keys() - with_gradient if with_gradient else set(), True
        return result


def _reached(outputs: list[Tensor], zeros: list[Tensor]) -> set[int]:
    """Ids of the zeros that a gradient of the outputs reaches: read off the graph, without computing one."""
    found: set[int] = set()
    pending: list[Any] = [output.grad_fn for output in outputs]
    seen = set(pending)
    while pending:
        node = pending.pop()
        if isinstance(node, BackwardCFunction):  # somebody's own function may give None: only running it tells
            return _computed(outputs, zeros)
        if (leaf := getattr(node, "variable", None)) is not None:
            found.add(id(leaf))
        # a walk over the graph, each node once: no gradient is computed
        fresh = {before for before, _ in node.next_functions if before is not None} - seen
        seen |= fresh
        pending.extend(fresh)
    return found


def _computed(outputs: list[Tensor], zeros: list[Tensor]) -> set[int]:
    if not outputs or not zeros:
        return set()
    gradients = torch.autograd.grad([output.sum() for output in outputs], zeros, allow_unused=True)
    return {id(zero) for zero, gradient in zip(zeros, gradients, strict=True) if gradient is not None}
