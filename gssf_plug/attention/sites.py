"""Which layers of a model take a metric, at the site that was asked for: the query's projection, or the score.

The score can be reached where a layer's forward asks transformers' `AttentionInterface`, an example reaches it, the
query arrives as (batch, heads, tokens, size), and its output is the same, to the bit, when the name of the function is
ours and nothing is changed. Some classes treat certain names in a way of their own; that last test finds them. Numbers
and sizes of heads must not follow the input: they do where a layer attends over channels, or over the states of layers.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from itertools import islice
from typing import Any, Literal

import torch
from torch import Tensor, nn

from gssf_plug.attention.discovery.attention_module import AttentionModule, attention_modules
from gssf_plug.attention.discovery.example_inputs import make_arguments, make_layer_arguments, runnable_parts
from gssf_plug.attention.discovery.layouts import Heads
from gssf_plug.attention.discovery.prober import ATTEMPTS, Prober
from gssf_plug.attention.discovery.recording import LayerCall, Run, record, undisturbed
from gssf_plug.attention.query_layer import CHILD, LayerMetric, QueryMetric
from gssf_plug.attention.score_layer import ScoreConfig, ScoreMetric, calls_interface, eager_attention, show
from gssf_plug.errors import ArgumentError

__all__ = [
    "LayerCall",
    "QueryNorm",
    "Sites",
    "arriving",
    "make_metric_layers",
    "patchable_modules",
    "record_calls",
]

Sites = Literal["projection", "score"]
QueryNorm = Literal["after", "before"]


def patchable_modules(model: nn.Module, sites: Sites) -> dict[str, AttentionModule]:
    """The modules that may take a metric at this site, by path: with a query and a key, or a score within reach."""
    return attention_modules(model, calls_interface if sites == "score" else None)


def make_metric_layers(
    prober: Prober,
    modules: Mapping[str, AttentionModule],
    sites: Sites,
    follow: Mapping[str, AttentionModule] | None = None,
) -> dict[str, LayerMetric]:
    """What holds the metrics of each module that can take one, by path: its child, or a new one; nothing is attached.

    The modules have their verdict afterwards.

    Args:
        prober: the prober of the model.
        modules: the attention modules to patch, by path.
        sites: where the metrics go, "projection" or "score".
        follow: modules of which the prober will be asked whether gradients reach them, as in `Prober.prove`.

    Raises:
        ArgumentError: the model holds adapters at the other site.
    """
    children = {path: getattr(module.module, CHILD, None) for path, module in modules.items()}
    here: dict[str, LayerMetric] = {path: child for path, child in children.items() if isinstance(child, LayerMetric)}
    for path, child in here.items():
        if isinstance(child, ScoreMetric) != (sites == "score"):
            other = "projection" if sites == "score" else "score"
            raise ArgumentError(
                "sites",
                "be the same for all adapters of a model",
                f"{sites!r}, while '{path}' is patched at its {other}",
                f"Use sites={other!r}, or remove that patch first.",
            )
        modules[path].decide("proven")
    fresh = {path: module for path, module in modules.items() if path not in here}
    if sites == "score":
        return here | _make_score_layers(prober, fresh, follow)
    if fresh:
        prober.prove(fresh, follow=follow)
    return here | {
        path: QueryMetric(module.candidate, _place(prober.model, module))
        for path, module in fresh.items()
        if module.verdict == "proven" and module.candidate is not None
    }


def _place(model: nn.Module, module: AttentionModule) -> tuple[nn.Module, str] | None:
    """The parent of an attention module that the model replaces by itself, and its name there; else None."""
    parent, _, name = module.path.rpartition(".")
    return (model.get_submodule(parent), name) if module.replaced and name else None


class _Observing(ScoreConfig):
    """A view that changes nothing and keeps the shapes and values of what arrives."""

    def change(self, layer: nn.Module, query: Tensor) -> Tensor:
        # in `__dict__`: what is set on a ScoreConfig is set on the configuration that it stands for
        self.__dict__.setdefault("queries", []).append(query)
        return query


def _make_score_layers(
    prober: Prober, modules: Mapping[str, AttentionModule], follow: Mapping[str, AttentionModule] | None
) -> dict[str, LayerMetric]:
    heads: dict[str, Heads] = {}
    for module in modules.values():
        module.reason = _without_running(module.module)
    able = {path: module for path, module in modules.items() if not module.reason}
    with undisturbed(prober.model):
        for path, run in _examples(prober.model, able, prober.example_inputs):
            waiting = {n: m for n, m in able.items() if n not in heads and not m.reason and _inside(n, path)}
            if waiting:
                layers = {name: module.module for name, module in waiting.items()}
                for name, arrived in _arrivals(run, layers, prober.example_inputs is not None).items():
                    if isinstance(arrived, Heads):
                        heads[name] = arrived
                    else:
                        waiting[name].reason = arrived
    for module in modules.values():
        module.decide("out of reach", module.reason or "no example reached it; pass example_inputs= that run it")
    made: dict[str, LayerMetric] = {}
    if heads:
        prober.prove({path: modules[path] for path in heads}, follow=follow)  # what lies below: to merge into
    for path, found in heads.items():
        module = modules[path]
        below = module.candidate if module.verdict == "proven" else None
        why_not = module.reason if module.verdict in ("refused", "out of reach") else ""
        made[path] = ScoreMetric(found, None if below is None else QueryMetric(below), why_not)
        module.decide("proven")
    return made


def record_calls(model: nn.Module, layers: Mapping[str, nn.Module]) -> dict[str, LayerCall]:
    """One call of each layer on an example made from the configuration; those that no example reaches are missing."""
    calls: dict[str, LayerCall] = {}
    if not layers:
        return calls
    modules = attention_modules(model, calls_interface)
    with undisturbed(model):
        for path, run in _examples(model, {name: modules[name] for name in layers}, None):
            waiting = {name: layer for name, layer in layers.items() if name not in calls and _inside(name, path)}
            if waiting:
                try:
                    calls |= _noted(run, waiting)
                except Exception:  # inputs that do not fit this model; the next may
                    continue
    return calls


def arriving(owner: nn.Module, call: LayerCall) -> list[Tensor]:
    """The queries that the layer's attention function gets in this call, before any metric."""
    with undisturbed(owner), _observed({"": owner}) as seen:
        call.again(owner)
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
    model: nn.Module, modules: Mapping[str, AttentionModule], example_inputs: Mapping[str, Any] | None
) -> Iterator[tuple[str, Run]]:
    """Runs of the model, of its parts, and of single layers, with the path of what runs; likeliest first."""
    if example_inputs is not None:
        yield "", partial(model, **example_inputs)
        return
    for path, part in runnable_parts(model):
        for arguments in islice(make_arguments(part), ATTEMPTS):
            yield path, partial(part, **arguments)
    for name, module in modules.items():
        if module.layouts:
            for arguments in islice(make_layer_arguments(module), ATTEMPTS):
                yield name, partial(module.module, **arguments)


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
    return {name: _verdict(owners[name], natural[name], again.get(name), seen[name]) for name in natural}


def _verdict(owner: nn.Module, natural: LayerCall, again: LayerCall | None, seen: ScoreConfig) -> Heads | str:
    queries = seen.__dict__.get("queries", [])
    if not queries:
        return "it does not use what transformers' AttentionInterface gives it"
    shapes = {(query.ndim, query.shape[1], query.shape[-1]) for query in queries}
    if len(shapes) > 1 or queries[0].ndim != 4:
        return f"its queries arrive in the shapes {[tuple(query.shape) for query in queries]}, not (B, H, T, d)"
    if again is None or not torch.equal(natural.output.nan_to_num(), again.output.nan_to_num()):
        return "its class does other things where the attention function has a name it does not know"
    _, heads, size = shapes.pop()
    if _follows_input(owner, natural, heads, 1) or _follows_input(owner, natural, size, -1):
        return "the number or the size of the heads in its score follows the length of the input"
    return Heads(heads, heads, size, size)


def _follows_input(owner: nn.Module, call: LayerCall, value: int, place: int) -> bool:
    """Whether dimension `place` of the query, here `value`, shrinks with the dimensions of the input that are as long.

    So it is where a layer attends over channels, or over the states of all layers at one position: tokens stand there.
    """
    cut = _shortened((call.arguments, call.options), value)
    if cut is None or call.arguments is None:
        return False
    arguments, options = cut
    try:
        queries = arriving(owner, LayerCall(arguments, options, call.output))
    except Exception:  # an input that the layer cannot have, as where `value` is told by weights
        return False
    return bool(queries) and queries[0].shape[place] != value


def _shortened(value: Any, length: int) -> Any:
    """The same with its tensors cut by one along what is `length` long, but their last dimension; None without any."""
    found = False

    def cut(part: Any) -> Any:
        nonlocal found
        if isinstance(part, tuple | list):
            return type(part)(map(cut, part)) if type(part) in (tuple, list) else part
        if isinstance(part, dict):
            return {key: cut(one) for key, one in part.items()}
        if isinstance(part, Tensor):
            for axis in (axis for axis, size in enumerate(part.shape[:-1]) if size == length > 1):
                part, found = part.narrow(axis, 0, length - 1), True
        return part

    shorter = cut(value)
    return shorter if found else None


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


def _noted(run: Run, layers: Mapping[str, nn.Module]) -> dict[str, LayerCall]:
    """The first call of each layer in one run."""
    return {name: calls[0] for name, calls in record(run, layers).calls.items()}
