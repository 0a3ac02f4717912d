"""Find the layers whose score can be reached, and prove it: run them, and see what arrives at the attention function.

A layer is taken where its forward asks transformers' `AttentionInterface`, an example reaches it, the query arrives as
(batch, heads, tokens, size), and its output is the same, to the bit, when the name of the function is ours and nothing
is changed. Some classes treat certain names in a way of their own; the last test finds them.

Where the metrics of a model go: the children that its attention layers have, or new ones for their proven places.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any, Literal

import torch
from torch import Tensor, nn

from gssf_plug.attention.discovery.candidates import fitting_layouts
from gssf_plug.attention.discovery.discover import ATTEMPTS, attention_modules, discover
from gssf_plug.attention.discovery.example_inputs import arguments_of, arguments_of_layer, parts_of
from gssf_plug.attention.discovery.layouts import Heads
from gssf_plug.attention.discovery.recording import Run
from gssf_plug.attention.discovery.snapshot import undisturbed
from gssf_plug.attention.query_layer import CHILD, LayerMetric, QueryMetric
from gssf_plug.attention.score_layer import ScoreConfig, ScoreMetric, calls_interface, eager_attention, show
from gssf_plug.errors import ArgumentError

__all__ = [
    "LayerCall",
    "Places",
    "QueryNorm",
    "Sites",
    "arriving",
    "find_places",
    "find_scores",
    "record_calls",
    "score_modules",
]


@dataclass(frozen=True)
class LayerCall:
    """The first call of an attention layer in a run: its arguments, and its output's first tensor."""

    arguments: tuple[Any, ...]
    options: dict[str, Any]
    output: Tensor


class _Observing(ScoreConfig):
    """A view that changes nothing and keeps the shapes and values of what arrives."""

    def change(self, layer: nn.Module, query: Tensor) -> Tensor:
        self.__dict__.setdefault("queries", []).append(query)
        return query


def score_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Layers whose forward asks `AttentionInterface`, and other attention modules, by path; unproven yet."""
    others = attention_modules(model)
    return {name: layer for name, layer in model.named_modules() if name in others or calls_interface(layer)}


def find_scores(
    model: nn.Module, owners: Mapping[str, nn.Module], example_inputs: Mapping[str, Any] | None
) -> tuple[dict[str, ScoreMetric], dict[str, str]]:
    """A `ScoreMetric` for each owner whose score is within reach, and why the others' are not."""
    refused = {name: _without_running(owner) for name, owner in owners.items()}
    able = {name: owner for name, owner in owners.items() if not refused[name]}
    heads: dict[str, Heads] = {}
    with undisturbed(model):
        for path, run in _examples(model, able, example_inputs):
            waiting = {n: o for n, o in able.items() if n not in heads and not refused[n] and _inside(n, path)}
            if waiting:
                for name, verdict in _arrivals(run, waiting, example_inputs is not None).items():
                    if isinstance(verdict, Heads):
                        heads[name] = verdict
                    else:
                        refused[name] = verdict
    below = discover(model, {name: owners[name] for name in heads}, after_norm=True, example_inputs=example_inputs)
    metrics = {}
    for name, found in heads.items():
        candidate = below.proven.get(name)
        query = QueryMetric(candidate) if candidate is not None else None
        metrics[name] = ScoreMetric(found, query, (below.refused | below.out_of_reach).get(name, ""))
    unreached = "no example reached it; pass example_inputs= that run it"
    return metrics, {name: reason or unreached for name, reason in refused.items() if name not in heads}


def record_calls(model: nn.Module, owners: Mapping[str, nn.Module]) -> dict[str, LayerCall]:
    """One call of each owner on an example made from the configuration; those that no example reaches are missing."""
    calls: dict[str, LayerCall] = {}
    with undisturbed(model):
        for path, run in _examples(model, owners, None):
            waiting = {name: owner for name, owner in owners.items() if name not in calls and _inside(name, path)}
            if waiting:
                try:
                    calls |= _noted(run, waiting)
                except Exception:  # inputs that do not fit this model; the next may
                    continue
    return calls


@torch.no_grad()
def arriving(owner: nn.Module, call: LayerCall) -> list[Tensor]:
    """The queries that the layer's attention function gets in this call, before any metric."""
    with _observed({"": owner}) as seen:
        owner(*call.arguments, **call.options)
    return seen[""].__dict__.get("queries", [])


def _without_running(owner: nn.Module) -> str:
    """Why the score of `owner` is out of reach; empty where that has to be seen in a run."""
    kind = type(owner).__name__
    if not calls_interface(owner):
        return f"{kind} computes its scores itself, not through transformers' AttentionInterface"
    if eager_attention(owner) is None:
        return f"the eager attention function of {kind} is not where transformers' models keep it"
    return ""


def _examples(
    model: nn.Module, owners: Mapping[str, nn.Module], example_inputs: Mapping[str, Any] | None
) -> Iterator[tuple[str, Run]]:
    """Runs of the model, of its parts, and of single layers, with the path of what runs; likeliest first."""
    if example_inputs is not None:
        yield "", partial(model, **example_inputs)
        return
    for path, part in parts_of(model):
        for arguments in islice(arguments_of(part), ATTEMPTS):
            yield path, partial(part, **arguments)
    for name, owner in owners.items():
        if fitting_layouts(owner):
            for arguments in islice(arguments_of_layer(owner), ATTEMPTS):
                yield name, partial(owner, **arguments)


def _inside(name: str, path: str) -> bool:
    return not path or f"{name}.".startswith(f"{path}.")


def _arrivals(run: Run, owners: Mapping[str, nn.Module], by_user: bool) -> dict[str, Heads | str]:
    """What arrives at each owner that this run reaches, or why that owner is refused."""
    try:
        natural = _noted(run, owners)
        with _observed({name: owners[name] for name in natural}) as seen:
            again = _noted(run, owners)
    except Exception as error:
        if by_user:
            raise ArgumentError(
                "example_inputs", "run the model", f"{type(error).__name__}: {error}", "Check model(**example_inputs)."
            ) from error
        return {}
    return {name: _verdict(natural[name], again.get(name), seen[name]) for name in natural}


def _verdict(natural: LayerCall, again: LayerCall | None, seen: ScoreConfig) -> Heads | str:
    queries = seen.__dict__.get("queries", [])
    if not queries:
        return "it does not use what transformers' AttentionInterface gives it"
    shapes = {(query.ndim, query.shape[1], query.shape[-1]) for query in queries}
    if len(shapes) > 1 or queries[0].ndim != 4:
        return f"its queries arrive in the shapes {[tuple(query.shape) for query in queries]}, not (B, H, T, d)"
    if again is None or not torch.equal(natural.output.nan_to_num(), again.output.nan_to_num()):
        return "its class does other things where the attention function has a name it does not know"
    _, heads, size = shapes.pop()
    return Heads(heads, heads, size, size)


@contextmanager
def _observed(owners: Mapping[str, nn.Module]) -> Iterator[dict[str, _Observing]]:
    """Each owner sees its configuration through an observing view inside the context."""
    before: dict[str, Any] = {name: owner.config for name, owner in owners.items()}
    views = {}
    for name, owner in owners.items():
        eager = eager_attention(owner)
        assert eager is not None
        plain = before[name].base if isinstance(before[name], ScoreConfig) else before[name]
        views[name] = _Observing(plain, eager)
        show(owner, views[name])
    try:
        yield views
    finally:
        for name, owner in owners.items():
            show(owner, before[name])


def _noted(run: Run, owners: Mapping[str, nn.Module]) -> dict[str, LayerCall]:
    """The first call of each owner in one run."""
    calls: dict[str, LayerCall] = {}

    def note(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, arguments: tuple[Any, ...], options: dict[str, Any], output: Any) -> None:
            first = output[0] if isinstance(output, tuple) else output
            if isinstance(first, Tensor):
                calls.setdefault(name, LayerCall(arguments, dict(options), first.detach().clone()))

        return hook

    with ExitStack() as hooks:
        for name, owner in owners.items():
            hooks.callback(owner.register_forward_hook(note(name), with_kwargs=True).remove)
        torch.manual_seed(0)
        run()
    return calls


Sites = Literal["projection", "score"]
QueryNorm = Literal["after", "before"]


@dataclass(frozen=True)
class Places:
    """What was found, by path of the attention layer.

    Args:
        metrics: the layers that take a metric; each with its child, not attached yet where it is new.
        refused: layers that ran and whose place was not proven, and why: such a model is not patched.
        out_of_reach: layers that no example ran, or whose score cannot be reached, and why; they can be left out.
        left_alone: layers that need no metric of their own, and why.
    """

    metrics: dict[str, LayerMetric]
    refused: dict[str, str] = field(default_factory=dict)
    out_of_reach: dict[str, str] = field(default_factory=dict)
    left_alone: dict[str, str] = field(default_factory=dict)

    def why_not(self) -> dict[str, str]:
        """All layers without a metric, and why."""
        return self.refused | self.out_of_reach | self.left_alone


def find_places(
    model: nn.Module,
    owners: Mapping[str, nn.Module],
    sites: Sites,
    query_norm: QueryNorm,
    example_inputs: Mapping[str, Any] | None,
) -> Places:
    """The places of `owners`; nothing is attached.

    Raises:
        ArgumentError: the model holds adapters at another site.
    """
    children = {name: getattr(owner, CHILD, None) for name, owner in owners.items()}
    here: dict[str, LayerMetric] = {n: child for n, child in children.items() if isinstance(child, LayerMetric)}
    for name, child in here.items():
        if isinstance(child, ScoreMetric) != (sites == "score"):
            other = "projection" if sites == "score" else "score"
            raise ArgumentError(
                "sites",
                "be the same for all adapters of a model",
                f"{sites!r}, while '{name}' is patched at its {other}",
                f"Use sites={other!r}, or remove that patch first.",
            )
    fresh = {name: owner for name, owner in owners.items() if name not in here}
    if sites == "score":
        scores, out_of_reach = find_scores(model, fresh, example_inputs)
        return Places(here | scores, out_of_reach=out_of_reach)
    found = discover(model, fresh, after_norm=query_norm == "after", example_inputs=example_inputs)
    queries = {name: QueryMetric(candidate) for name, candidate in found.proven.items()}
    return Places(here | queries, found.refused, found.out_of_reach, found.left_alone)
