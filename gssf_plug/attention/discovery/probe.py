"""Proof that a layout is true, on the real module: with the query at zero, the keys must not matter.

If `query` and `key` of a candidate meet in a dot product, then setting the query to zero removes the key from the
score, whatever else the score holds (rotary embeddings, position biases, masks, softcaps, sinks). So, with S every
other group of heads:

    query zero in S,  key changed in S                      the layer's output must stay the same
    query not zero,   key changed in S                      the layer's output must change    (the layer is alive)
    query zero in S,  key changed outside S                 the layer's output must change    (heads are where we think)

Where the key is the value, too, changing it must change the output; there "the same" means: affine in the key, since
weights that do not depend on the key only average it.

No attention weights are needed. All layers are proven at once: while the whole model runs on one example, every
candidate is changed, and each attention layer's output is noted and then replaced by the natural one, so that what a
layer receives is the same in every run. Random state, training flags, buffers and hooks are as before afterwards.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import islice

import torch
from torch import Tensor, nn

from gssf_plug.attention.discovery.candidates import Candidate, candidates, watched
from gssf_plug.attention.discovery.layouts import resolve
from gssf_plug.attention.discovery.query_access import WeightSite, shadow, unshadow
from gssf_plug.attention.discovery.recording import Run, outputs_of

__all__ = ["SILENT", "Proof", "prove"]

MOST_CANDIDATES = 48  # per module; beyond that nothing likely is left
SILENT = "the output does not depend on this key (nor would it with a single key, or behind a gate of zero)"


@dataclass
class Proof:
    """What the probe found for one attention module.

    Args:
        candidate: the proven one, or None.
        scope: the module whose output proved it: the attention module, or the parent that computes the attention.
        reached: how many examples ran through it.
        tried: candidates that failed, and how.
    """

    candidate: Candidate | None = None
    scope: nn.Module | None = None
    reached: int = 0
    tried: list[str] = field(default_factory=list)


@dataclass
class _Case:
    """One module under trial: where its output is read, and the candidates still to try."""

    owner: nn.Module
    scope: nn.Module
    pending: Iterator[Candidate]
    current: Candidate | None = None


@dataclass(frozen=True)
class _Setting:
    """One run of the probe: is the query zero in S; seeds whose mean gives the keys inside and outside S."""

    zero_query: bool
    key_inside: tuple[int, ...] = (1,)
    key_outside: tuple[int, ...] = (1,)


_SETTINGS = {
    "silent": _Setting(True),
    "silent, keys moved": _Setting(True, key_inside=(2,)),
    "alive": _Setting(False),
    "alive, keys moved": _Setting(False, key_inside=(2,)),
    "silent, other keys moved": _Setting(True, key_outside=(3,)),
}
_MIDWAY = {
    "silent, keys midway": _Setting(True, key_inside=(1, 2)),
    "alive, keys midway": _Setting(False, key_inside=(1, 2)),
}


def prove(model: nn.Module, owners: Mapping[str, nn.Module], run: Run, *, after_norm: bool) -> dict[str, Proof]:
    """Find the true layout of each of `owners`.

    Args:
        model: whose parts they are.
        owners: attention modules by path.
        run: runs the model, or the part that holds the owners, once on an example of at least two tokens.
        after_norm: where a query norm follows the projection, look for the query after it.
    """
    proofs = {name: Proof() for name in owners}
    outer = {name for name in owners if any(other != name and other.startswith(f"{name}.") for other in owners)}
    outer |= {""} & owners.keys() if len(owners) > 1 else set()
    for among in (owners.keys() - outer, outer):  # a change in an outer module would show in the inner one's output
        for depth in range(3):  # the attention may be computed by the parent of the projections, or by its parent
            left = {name: owners[name] for name in owners if name in among and proofs[name].candidate is None}
            above = {name: _ancestor(model, name, depth) for name in left}
            scopes = {name: scope for name, scope in above.items() if scope is not None}
            if scopes:
                _prove_in(scopes, left, run, proofs, after_norm)
    return proofs


def _ancestor(model: nn.Module, name: str, depth: int) -> nn.Module | None:
    parts = name.split(".")
    return (
        model.get_submodule(".".join(parts[: len(parts) - depth]))
        if name and len(parts) > depth
        else (model if depth == 0 else None)
    )


def _prove_in(
    scopes: Mapping[str, nn.Module],
    owners: Mapping[str, nn.Module],
    run: Run,
    proofs: dict[str, Proof],
    after_norm: bool,
) -> None:
    shapes: dict[nn.Module, torch.Size] = {}
    seen = outputs_of(run, scopes, {}, shapes, [module for owner in owners.values() for module in watched(owner)])
    natural = {
        name: [_finite(output) for output in calls] for name, calls in seen.items()
    }  # NaN would hide what follows
    cases = {}
    for name, scope in scopes.items():
        if natural.get(name):
            proofs[name].reached = 1
            tries = candidates(owners[name], shapes, after_norm=after_norm)
            cases[name] = _Case(owners[name], scope, islice(tries, MOST_CANDIDATES))
    while cases:
        for name, case in list(cases.items()):
            case.current = next(case.pending, None)
            if case.current is None:
                del cases[name]
        if cases:
            midway = any(case.current is not None and case.current.layout.key_is_value for case in cases.values())
            settings = _SETTINGS | (_MIDWAY if midway else {})
            noted = {title: _under(setting, cases, natural, run) for title, setting in settings.items()}
            for name, case in list(cases.items()):
                assert case.current is not None
                verdict = _verdict({title: outputs.get(name, []) for title, outputs in noted.items()}, case.current)
                if verdict is None:
                    proofs[name].candidate, proofs[name].scope = case.current, case.scope
                    del cases[name]
                else:
                    proofs[name].tried.append(f"{case.current}: {verdict}")


def _under(
    setting: _Setting, cases: Mapping[str, _Case], natural: dict[str, list[Tensor]], run: Run
) -> dict[str, list[Tensor]]:
    with ExitStack() as changes:
        for case in cases.values():
            assert case.current is not None
            _enter(changes, case.owner, case.current, setting)
        return outputs_of(run, {name: case.scope for name, case in cases.items()}, natural, {}, [])


def _enter(changes: ExitStack, owner: nn.Module, candidate: Candidate, setting: _Setting) -> None:
    groups = candidate.heads.key
    inside = torch.arange(groups) % 2 == 0
    queries_per_group = candidate.heads.query // groups

    def query(rows: Tensor) -> Tensor:
        fresh = _noise(rows, (7,)).unflatten(-1, (candidate.heads.query, -1))
        off = inside.repeat_interleave(queries_per_group)[:, None].to(rows.device) & setting.zero_query
        return fresh.masked_fill(off, 0.0).flatten(-2)

    def key(rows: Tensor) -> Tensor:
        new = _noise(rows, setting.key_inside).unflatten(-1, (groups, -1))
        rest = _noise(rows, setting.key_outside).unflatten(-1, (groups, -1))
        return torch.where(inside[:, None].to(rows.device), new, rest).flatten(-2)

    for path in candidate.layout.besides:
        if resolve(owner, path) is not None and path not in (candidate.layout.query, candidate.layout.key):
            _silence(changes, owner, path)
    for name, parameter in owner.named_parameters(recurse=False):
        if parameter.numel() == 1 and not parameter.any():  # a gate, shut before training
            _put(changes, owner, name, torch.ones_like(parameter))
    if candidate.key is not None:
        changes.enter_context(candidate.key.changed(key))
    changes.enter_context(candidate.query.changed(query))


def _noise(rows: Tensor, seeds: tuple[int, ...]) -> Tensor:
    drawn = [torch.randn(rows.shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return (sum(drawn[1:], drawn[0]) / len(drawn)).to(rows)


def _silence(changes: ExitStack, owner: nn.Module, path: str) -> None:
    found = resolve(owner, path)
    if isinstance(found, nn.Module):
        changes.callback(found.register_forward_hook(lambda module, arguments, output: output * 0).remove)
    elif isinstance(found, Tensor) and "." not in path:
        _put(changes, owner, path, torch.zeros_like(found))


def _put(changes: ExitStack, owner: nn.Module, name: str, value: Tensor) -> None:
    shadow(owner, name, value)
    changes.callback(unshadow, owner, name)


def _verdict(noted: Mapping[str, list[Tensor]], candidate: Candidate) -> str | None:
    """None where the candidate is proven, else how it failed."""
    if any(len(outputs) != len(noted["silent"]) or not outputs for outputs in noted.values()):
        return "the layer did not run in the same way each time"
    shared = candidate.layout.key_is_value
    alive = _bend(noted, "alive") if shared else _difference(noted["alive"], noted["alive, keys moved"])
    silent = _bend(noted, "silent") if shared else _difference(noted["silent"], noted["silent, keys moved"])
    largest = max(float(_finite(output.float()).abs().max()) for output in noted["alive"])
    floor = 16 * torch.finfo(torch.float32).eps * largest  # in half precision, too: there equal work rounds equally
    if alive <= floor:
        if isinstance(candidate.query, WeightSite) and candidate.query.path:
            return f"'{candidate.query.path}' was not called, as where the example lacks what this layer attends to"
        zero = not any(output.any() for output in noted["alive"])
        return "its output is zero whatever goes in, as where a kernel is missing" if zero else SILENT
    if silent > 1e-3 * alive:
        return "with the query at zero the output still depends on the key"
    if candidate.heads.key > 1:
        others = _difference(noted["silent"], noted["silent, other keys moved"])
        if others <= floor:
            return "the heads do not lie where this layout says"
    return None


def _bend(noted: Mapping[str, list[Tensor]], title: str) -> float:
    """How far the output is from affine in the key: at the middle of two keys against the mean at both."""
    ends = zip(noted[title], noted[f"{title}, keys moved"], strict=True)
    return _difference(noted[f"{title}, keys midway"], [(one.float() + other.float()) / 2 for one, other in ends])


def _difference(one: list[Tensor], other: list[Tensor]) -> float:
    if any(a.shape != b.shape for a, b in zip(one, other, strict=True)):
        return float("inf")
    return max(float((_finite(a.float()) - _finite(b.float())).abs().max()) for a, b in zip(one, other, strict=True))


def _finite(output: Tensor) -> Tensor:
    return output.nan_to_num(0.0, 0.0, 0.0)
