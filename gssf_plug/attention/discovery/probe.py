"""Proof that a layout is true, on the real module: with the query at zero, the keys must not matter.

If `query` and `key` of a candidate meet in a dot product, then setting the query to zero removes the key from the
score, whatever else the score holds (rotary embeddings, position biases, masks, softcaps, sinks). So, with S every
other group of heads:

    query zero in S,  key changed in S                      the layer's output must stay the same
    query not zero,   key changed in S                      the layer's output must change    (the layer is alive)
    query zero in S,  key changed outside S                 the layer's output must change    (heads are where we think)

Where the key is the value, too, changing it must change the output; there "the same" means: affine in the key, since
weights that do not depend on the key only average it.

No attention weights are needed, and the model runs once: each attention layer is then called alone, just as the run
called it, under every change. That is fair only where the call alone gives what the run gave, which is seen first;
layers that draw random numbers or keep a state of their own are tried inside runs of the whole model, where each
layer's output is noted and then replaced by the natural one, so that what a layer receives is the same in every run.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import islice

import torch
from torch import Tensor, nn

from gssf_plug.attention.discovery.candidates import Candidate
from gssf_plug.attention.discovery.layouts import resolve
from gssf_plug.attention.discovery.query_access import WeightSite, shadow, unshadow
from gssf_plug.attention.discovery.recording import LayerCall, Run, substitute

__all__ = ["SILENT", "Trial", "try_all"]

MOST_CANDIDATES = 48  # per module; beyond that nothing likely is left
SILENT = "the output does not depend on this key (nor would it with a single key, or behind a gate of zero)"


@dataclass
class Trial:
    """One attention module under trial.

    Args:
        owner: the module that holds query and key.
        scope: the module that computes the attention and whose output shows it: the owner, or a parent of it.
        calls: how a run of the model called the scope.
        pending: the candidates that are still to be tried.
        proven: the candidate that was proven; None while there is none.
        tried: the candidates that failed, and how.
    """

    owner: nn.Module
    scope: nn.Module
    calls: list[LayerCall]
    pending: Iterator[Candidate]
    proven: Candidate | None = None
    tried: list[str] = field(default_factory=list)

    def note(self, candidate: Candidate, failure: str | None) -> None:
        """Keep what became of a candidate."""
        if failure is None:
            self.proven = candidate
        else:
            self.tried.append(f"{candidate}: {failure}")


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


def try_all(trials: Mapping[str, Trial], run: Run) -> None:
    """Try the candidates of each trial until one is proven.

    Args:
        trials: the trials by the path of their owner from the module that runs.
        run: the run that was recorded, for the layers whose calls cannot be repeated alone.
    """
    together = {}
    for name, trial in trials.items():
        trial.pending = islice(trial.pending, MOST_CANDIDATES)
        if _repeats(trial):
            _try_alone(trial)
        else:
            together[name] = trial
    if together:
        _try_together(together, run)


def _repeats(trial: Trial) -> bool:
    """Does each call, made once more and alone, give what it gave in the run, up to rounding.

    Not where NaN came out: the layers behind it got NaN, too, and say nothing unless it is replaced on the way.
    """
    for call in trial.calls:
        try:
            again = call.again(trial.scope)
        except Exception:  # it needs what only the whole model sets up
            return False
        if again is None or again.shape != call.output.shape or not bool(call.output.isfinite().all()):
            return False
        slack = 64 * torch.finfo(again.dtype).eps * float(_finite(call.output).abs().max())
        if _difference([again], [call.output]) > slack:
            return False
    return True


class _Alone(dict[str, list[Tensor]]):
    """What the calls of one trial give under each setting; run when it is asked for."""

    def __init__(self, trial: Trial, candidate: Candidate) -> None:
        super().__init__()
        self.trial, self.candidate = trial, candidate

    def __missing__(self, title: str) -> list[Tensor]:
        with ExitStack() as changes:
            _enter(changes, self.trial.owner, self.candidate, (_SETTINGS | _MIDWAY)[title])
            found = [call.again(self.trial.scope) for call in self.trial.calls]
        self[title] = [output for output in found if output is not None]
        return self[title]


def _try_alone(trial: Trial) -> None:
    for candidate in trial.pending:
        try:
            failure = _failure(_Alone(trial, candidate), candidate)
        except Exception as error:  # widths that do not fit inside the layer
            failure = f"{type(error).__name__}: {error}"[:120]
        trial.note(candidate, failure)
        if failure is None:
            return


def _try_together(trials: Mapping[str, Trial], run: Run) -> None:
    """One candidate of every trial at a time, in runs of the whole model."""
    # NaN would hide what follows
    natural = {name: [_finite(call.output) for call in trial.calls] for name, trial in trials.items()}
    current = {name: candidate for name, trial in trials.items() if (candidate := next(trial.pending, None))}
    while current:
        midway = any(candidate.layout.key_is_value for candidate in current.values())
        noted: dict[str, dict[str, list[Tensor]]] = {}
        for title, setting in (_SETTINGS | (_MIDWAY if midway else {})).items():
            with ExitStack() as changes:
                for name, candidate in current.items():
                    _enter(changes, trials[name].owner, candidate, setting)
                noted[title] = substitute(run, {name: trials[name].scope for name in current}, natural)
        for name, candidate in current.items():
            own = {title: outputs.get(name, []) for title, outputs in noted.items()}
            # as many calls in every run, and at least one, or outputs of different calls would be compared
            uneven = any(len(outputs) != len(own["silent"]) or not outputs for outputs in own.values())
            failure = "the layer did not run in the same way each time" if uneven else _failure(own, candidate)
            trials[name].note(candidate, failure)
        left = [name for name in current if trials[name].proven is None]
        # the failed ones with their next guess, together again: a run of the model serves all layers
        current = {name: candidate for name in left if (candidate := next(trials[name].pending, None))}


def _enter(changes: ExitStack, owner: nn.Module, candidate: Candidate, setting: _Setting) -> None:
    groups = candidate.heads.key_heads
    inside = torch.arange(groups) % 2 == 0  # S: every other group of heads
    queries_per_group = candidate.heads.query_heads // groups

    def query(rows: Tensor) -> Tensor:
        fresh = _noise(rows, (7,)).unflatten(-1, (candidate.heads.query_heads, -1))
        # a key group serves several query heads: all of them are silenced with it
        off = inside.repeat_interleave(queries_per_group)[:, None].to(rows.device) & setting.zero_query
        return fresh.masked_fill(off, 0.0).flatten(-2)

    def key(rows: Tensor) -> Tensor:
        # the keys of S and of the rest have draws of their own, so that a setting moves one of them alone
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
        changes.enter_context(candidate.key.replaced(key))
    changes.enter_context(candidate.query.replaced(query))


def _noise(rows: Tensor, seeds: tuple[int, ...]) -> Tensor:
    # the mean of two draws for two seeds: midway between the keys that each gives alone
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


def _failure(noted: Mapping[str, list[Tensor]], candidate: Candidate) -> str | None:
    """None where the candidate is proven, else how it failed; asks for no more outputs than it needs."""
    shared = candidate.layout.key_is_value
    alive = _bend(noted, "alive") if shared else _difference(noted["alive"], noted["alive, keys moved"])
    largest = max(float(_finite(output.float()).abs().max()) for output in noted["alive"])
    floor = 16 * torch.finfo(torch.float32).eps * largest  # in half precision, too: there equal work rounds equally
    if alive <= floor:
        if isinstance(candidate.query, WeightSite) and candidate.query.path:
            return f"'{candidate.query.path}' was not called, as where the example lacks what this layer attends to"
        zero = not any(output.any() for output in noted["alive"])
        return "its output is zero whatever goes in, as where a kernel is missing" if zero else SILENT
    silent = _bend(noted, "silent") if shared else _difference(noted["silent"], noted["silent, keys moved"])
    # measured against what the same keys change with a query there: no absolute number fits all models
    if silent > 1e-3 * alive:
        return "with the query at zero the output still depends on the key"
    if candidate.heads.key_heads > 1:
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
