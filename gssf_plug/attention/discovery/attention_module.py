"""One attention module of a model: what is known of it from its children alone, and the verdict once it was tried.

Made once for each module and handed on: where it is, which layouts fit it, where its query is made. The probe adds what
it found, so that nobody has to ask again.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Literal

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from gssf_plug.arguments import listed
from gssf_plug.attention.discovery.candidates import Candidate
from gssf_plug.attention.discovery.layouts import Layout, known, query_norms, resolve
from gssf_plug.attention.discovery.query_access import CHILD, OutputSite, WeightSite
from gssf_plug.errors import ArgumentError, near_matches
from gssf_plug.wrappers import INSERTED

__all__ = ["AttentionModule", "Verdict", "attention_modules", "select", "settle"]

Verdict = Literal["untried", "proven", "refused", "out of reach", "left alone"]
"""refused: it ran, and no layout was proven. out of reach: no example ran it. left alone: it needs no metric."""

ATTENTION = re.compile(r"att(entio)?n", re.IGNORECASE)


@dataclass(eq=False)
class AttentionModule:
    """A module with a query and a key, or one that asks transformers for its attention function.

    Args:
        path: path of the module from the model.
        module: the module itself.
        layouts: the layouts whose query and key exist in it, likeliest first; empty where only its score can be
            reached.
        verdict: what the probe found: "proven", "refused", "left alone", "out of reach", or "untried" before it.
        reason: why the module is not proven; "" where it is.
        candidate: the layout that was proven, with its numbers; None where there is none.
        scope: the module whose output proved it: `module` itself, or the parent that computes the attention.
        tried: the candidates that failed on the first example that reached the module, and how; None before that.
        replaced: the model put another module in its place while it ran an example.
    """

    path: str
    module: nn.Module
    layouts: tuple[Layout, ...]
    verdict: Verdict = "untried"
    reason: str = ""
    candidate: Candidate | None = None
    scope: nn.Module | None = None
    tried: list[str] | None = None
    replaced: bool = False

    @cached_property
    def query(self) -> nn.Module | nn.Parameter:
        """The likeliest place of the query: a projection, or a bare weight."""
        found = resolve(self.module, self.layouts[0].query)
        assert found is not None
        return found

    @cached_property
    def widths(self) -> tuple[int, int]:
        """Channels of what the likeliest projections of query and key take; 1 where it cannot be told."""
        layout = self.layouts[0]
        return _input_width(self.query), _input_width(resolve(self.module, layout.key or layout.query))

    @cached_property
    def sources(self) -> tuple[nn.Module, ...]:
        """Modules that may make the query or the key, norms among them: the probe needs their output shapes."""
        norms = tuple(query_norms(self.module))
        paths = dict.fromkeys(path for x in self.layouts for path in (x.query, x.key, *norms) if path)
        found = [resolve(self.module, path) for path in paths]
        return tuple(module for module in found if isinstance(module, nn.Module))

    @property
    def query_path(self) -> str:
        """Where the query is changed, from the module; "" where it is a weight of the module itself."""
        return "" if self.candidate is None else self.candidate.query.path

    def shares_its_query_with(self, other: "AttentionModule") -> bool:
        """Would a change of this module's proven query, at the output of another module, act in `other`, too."""
        site = None if self.candidate is None else self.candidate.query
        return isinstance(site, OutputSite) and site.module in other.sources

    def decide(self, verdict: Verdict, reason: str = "") -> None:
        """Say what was found."""
        self.verdict, self.reason = verdict, reason


def attention_modules(model: nn.Module, also: Callable[[nn.Module], bool] | None = None) -> dict[str, AttentionModule]:
    """The attention modules of `model` by path; nothing is run, and nothing is proven.

    Args:
        model: the model to look through; what hangs below a patched layer as `gssf` is passed over.
        also: a function that says of a module that fits no layout whether it counts nevertheless; default none does.
    """
    by_name: dict[str, list[int]] = {}
    layouts = known()
    for place, layout in enumerate(layouts):
        by_name.setdefault(layout.query.partition(".")[0], []).append(place)
    keys = tuple(dict.fromkeys(layout.key for layout in layouts if layout.key))
    found, declared = {}, dict[type, frozenset[str]]()
    for path, module in model.named_modules():
        if f".{CHILD}." not in f".{path}." and INSERTED.isdisjoint(module._modules):  # a wrapper is none itself
            places = sorted(place for name in _held(module, by_name, declared) for place in by_name[name])
            fitting = _fitting(module, [layouts[place] for place in places], keys) if places else ()
            if fitting or (also is not None and also(module)):
                found[path] = AttentionModule(path, module, fitting)
    return found


def _held(module: nn.Module, names: Mapping[str, object], declared: dict[type, frozenset[str]]) -> Iterable[str]:
    """Those of `names` that may be attributes of `module`: by sets, since asking for each of them costs a call.

    What classes declare is kept in `declared`.
    """
    if type(module).__getattr__ is not nn.Module.__getattr__:  # a wrapper that hands on what it does not have
        return [name for name in names if hasattr(module, name)]
    kind = type(module)
    if kind not in declared:
        declared[kind] = frozenset(dir(kind)) & names.keys()
    return declared[kind] | (names.keys() & {*module._modules, *module._parameters, *vars(module)})


def _fitting(module: nn.Module, layouts: Sequence[Layout], keys: Sequence[str]) -> tuple[Layout, ...]:
    """Layouts whose query and key exist in `module`; none for an indexer, which picks keys and mixes no values."""
    kind, found = type(module).__name__, []
    if "Indexer" in kind:
        return ()
    for layout in layouts:
        query = resolve(module, layout.query)
        if query is None or (layout.only_attention and not ATTENTION.search(kind)):
            continue
        if layout.key is None:  # the keys are another layer's: only where the module has none of its own
            fits = isinstance(query, nn.Module) and not any(resolve(module, key) is not None for key in keys)
        else:
            fits = resolve(module, layout.key) is not None
        if fits:
            found.append(layout)
    return tuple(found)


def _input_width(found: nn.Module | nn.Parameter | None) -> int:
    for holder in found.modules() if isinstance(found, nn.Module) else ():
        if isinstance(holder, nn.Linear):
            return holder.in_features
        if isinstance(holder, (nn.Conv1d, nn.Conv2d)):
            return holder.in_channels
        if isinstance(holder, Conv1D):
            return int(holder.weight.shape[0])
        if isinstance(weight := getattr(holder, "weight", None), Tensor) and weight.ndim == 2:
            return weight.shape[-1]
    return int(found.shape[-1]) if isinstance(found, Tensor) else 1


def select(modules: Mapping[str, AttentionModule], layers: Sequence[str | int] | None) -> dict[str, AttentionModule]:
    """The modules that `layers` names: a path, a part of one, a glob, or a layer's number; all where it is None.

    Raises:
        ArgumentError: an entry of `layers` matches nothing; near matches are named.
    """
    if layers is None:
        return dict(modules)
    entries = listed(layers) or ()
    strange = [entry for entry in entries if isinstance(entry, bool) or not isinstance(entry, (str, int))]
    if strange or not entries:
        got = repr(strange[0] if strange else layers)
        raise ArgumentError("layers", "be a sequence of paths or numbers", got, "Pass a tuple, or None for all.")
    chosen: set[str] = set()
    for entry in entries:
        found = {path for path in modules if _matches(path, entry)}
        if not found:
            raise ArgumentError("layers", "name attention modules", repr(entry), near_matches(str(entry), modules))
        chosen |= found
    return {path: module for path, module in modules.items() if path in chosen}


def _matches(path: str, entry: str | int) -> bool:
    if isinstance(entry, int):
        # the first number of a path is the layer's: encoder.layer.3.attention.1 is of layer 3
        return (re.findall(r"(?:^|\.)(\d+)(?:\.|$)", path) or [None])[0] == str(entry)
    return f".{entry}." in f".{path}." or fnmatchcase(path, entry)


def settle(modules: Mapping[str, AttentionModule], failures: Sequence[str]) -> None:
    """Give each module its verdict, from what was tried.

    Args:
        modules: all modules that were tried together, by path.
        failures: how runs of the model failed; the first stands in the reason of every module that no run reached.
    """
    for module in modules.values():
        _settle(module, failures)
    _leave_shared(modules)
    _leave_outer(modules)


def _settle(module: AttentionModule, failures: Sequence[str]) -> None:
    """The verdict, from what was tried."""
    candidate = module.candidate
    if candidate is None and module.tried is None:
        because = f" (inputs tried: {failures[0]})" if failures else ""
        module.decide("out of reach", f"no example reached it{because}; pass example_inputs= that run it")
    elif candidate is None:
        tried = "; ".join(dict.fromkeys(module.tried or ())) or "no layout fits its widths and numbers of heads"
        module.decide("refused", f"no layout was proven (tried: {tried})")
    elif isinstance(candidate.query, WeightSite) and module.scope is not module.module:
        module.decide("refused", "its weights act outside its own forward, where a hook on it comes too late")
    else:
        module.decide("proven")


def _leave_shared(modules: Mapping[str, AttentionModule]) -> None:
    """Leave a module whose projection another attention module uses, too: one hook acts for both."""
    holders: dict[tuple[int, str], str] = {}
    for path, module in modules.items():
        if module.verdict == "proven" and module.candidate is not None:
            site = module.candidate.query
            key = (id(site.module), ",".join(site.views) if isinstance(site, WeightSite) else "")
            if key in holders:
                module.decide("left alone", f"its projection belongs to '{holders[key]}', which is patched")
            holders.setdefault(key, path)


def _leave_outer(modules: Mapping[str, AttentionModule]) -> None:
    """Leave a module that hands its query on to an attention module inside it, which is the one to patch."""
    proven = [path for path, module in modules.items() if module.verdict == "proven"]
    for path, module in modules.items():
        inner = next((other for other in proven if other.startswith(f"{path}.")), None)
        if module.verdict == "refused" and module.candidate is None and inner is not None:
            module.decide("left alone", f"its attention is that of '{inner}' inside it, which is patched")
