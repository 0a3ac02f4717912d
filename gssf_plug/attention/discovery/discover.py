"""Find the attention modules of a model and prove how each keeps its query.

The model runs on the user's `example_inputs`, or on inputs made from its configuration; parts that such a run does not
reach (a vision tower without an image) are run alone. What could not be proven is returned with the reason.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from itertools import islice
from typing import Any

from torch import nn

from gssf_plug.attention.discovery.candidates import Candidate, fitting_layouts
from gssf_plug.attention.discovery.example_inputs import arguments_of, arguments_of_layer, parts_of
from gssf_plug.attention.discovery.probe import Proof, prove
from gssf_plug.attention.discovery.query_access import WeightSite
from gssf_plug.attention.discovery.snapshot import undisturbed
from gssf_plug.attention.query_layer import CHILD
from gssf_plug.errors import ArgumentError, near_matches

__all__ = ["ATTEMPTS", "Discovery", "attention_modules", "discover", "select"]

ATTEMPTS = 40  # inputs tried per part
ENOUGH = 3  # of them that reach a module whose layout they do not prove


@dataclass(frozen=True)
class Discovery:
    """What was found.

    Args:
        proven: layout of each attention module by path.
        refused: modules that look like attention and ran, but were not proven, and why.
        out_of_reach: modules that no example ran, so that nothing is known of them, and why.
        left_alone: modules that need no metric of their own, and why.
    """

    proven: dict[str, Candidate] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    out_of_reach: dict[str, str] = field(default_factory=dict)
    left_alone: dict[str, str] = field(default_factory=dict)


def attention_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Modules in which some layout finds its query and key, by path; unproven yet."""
    return {
        name: module
        for name, module in model.named_modules()
        if f".{CHILD}." not in f".{name}." and fitting_layouts(module)
    }


def select(owners: Mapping[str, nn.Module], layers: Sequence[str | int] | None) -> dict[str, nn.Module]:
    """The owners that `layers` names: a path, a part of one, a glob, or a layer's number.

    Raises:
        ArgumentError: an entry matches nothing; near matches are named.
    """
    if layers is None:
        return dict(owners)
    entries = () if isinstance(layers, str) or not isinstance(layers, Iterable) else tuple(layers)
    strange = [entry for entry in entries if isinstance(entry, bool) or not isinstance(entry, (str, int))]
    if strange or not entries:
        got = repr(strange[0] if strange else layers)
        raise ArgumentError("layers", "be a sequence of paths or numbers", got, "Pass a tuple, or None for all.")
    chosen: dict[str, nn.Module] = {}
    for entry in entries:
        found = {name: owner for name, owner in owners.items() if _matches(name, entry)}
        if not found:
            raise ArgumentError("layers", "name attention modules", repr(entry), near_matches(str(entry), owners))
        chosen |= found
    return {name: owner for name, owner in owners.items() if name in chosen}


def discover(
    model: nn.Module,
    owners: Mapping[str, nn.Module],
    *,
    after_norm: bool,
    example_inputs: Mapping[str, Any] | None = None,
) -> Discovery:
    """Prove the layout of each owner on the model; the model is as before afterwards."""
    proofs = {name: Proof() for name in owners}
    failures: list[str] = []
    with undisturbed(model):
        if example_inputs is not None:
            _prove_on_example(model, owners, proofs, after_norm, example_inputs)
        else:
            for path, part in parts_of(model):
                _prove_part(path, part, arguments_of(part), owners, proofs, after_norm, failures)
            for name, owner in owners.items():
                alone = {name: owner} if proofs[name].candidate is None else {}
                _prove_part(name, owner, arguments_of_layer(owner), alone, proofs, after_norm, [])
    found = Discovery()
    for name, proof in proofs.items():
        candidate = proof.candidate
        if candidate is None and not proof.reached:
            found.out_of_reach[name] = _why_not_reached(failures)
        elif candidate is None:
            found.refused[name] = _why_not_proven(proof)
        elif isinstance(candidate.query, WeightSite) and proof.scope is not owners[name]:
            found.refused[name] = "its weights act outside its own forward, where a hook on it comes too late"
        else:
            found.proven[name] = candidate
    _leave_shared(owners, found)
    _leave_outer(found)
    return found


def _prove_on_example(
    model: nn.Module,
    owners: Mapping[str, nn.Module],
    proofs: dict[str, Proof],
    after_norm: bool,
    example_inputs: Mapping[str, Any],
) -> None:
    try:
        _try("", model, dict(example_inputs), owners, proofs, after_norm)
    except Exception as error:
        raise ArgumentError(
            "example_inputs", "run the model", f"{type(error).__name__}: {error}", "Check model(**example_inputs)."
        ) from error


def _matches(name: str, entry: str | int) -> bool:
    if isinstance(entry, int):
        return (re.findall(r"(?:^|\.)(\d+)(?:\.|$)", name) or [None])[0] == str(entry)
    return f".{entry}." in f".{name}." or fnmatchcase(name, entry)


def _prove_part(
    path: str,
    part: nn.Module,
    inputs: Iterator[dict[str, Any]],
    owners: Mapping[str, nn.Module],
    proofs: dict[str, Proof],
    after_norm: bool,
    failures: list[str],
) -> None:
    """Run `part` on made inputs until all owners in it were proven, or reached often enough, or inputs run out."""
    prefix = f"{path}." if path else ""
    reached: Counter[str] = Counter()
    for arguments in islice(inputs, ATTEMPTS):
        waiting = {
            name: owner
            for name, owner in owners.items()
            if f"{name}.".startswith(prefix) and not proofs[name].candidate and reached[name] < ENOUGH
        }
        if not waiting:
            return
        try:
            reached.update(_try(path, part, arguments, waiting, proofs, after_norm))
        except Exception as error:
            called = f"{type(part).__name__}({', '.join(arguments)})"
            failures.append(f"{called}: {type(error).__name__}: {error}"[:200])


def _try(
    path: str,
    part: nn.Module,
    arguments: dict[str, Any],
    owners: Mapping[str, nn.Module],
    proofs: dict[str, Proof],
    after_norm: bool,
) -> list[str]:
    """Prove what one run of `part` proves; gives the owners that it reached."""
    offset = len(path) + 1 if path else 0
    inside = {name[offset:]: owner for name, owner in owners.items()}
    found = prove(part, inside, lambda: part(**arguments), after_norm=after_norm)
    reached = []
    for name, proof in found.items():
        full = path + "." + name if path and name else path or name
        if proof.reached:
            reached.append(full)
        if proof.candidate is not None or (proof.reached and not proofs[full].reached):
            proofs[full] = proof
    return reached


def _why_not_proven(proof: Proof) -> str:
    tried = "; ".join(dict.fromkeys(proof.tried)) or "no layout fits its widths and numbers of heads"
    return f"no layout was proven (tried: {tried})"


def _why_not_reached(failures: list[str]) -> str:
    because = f" (inputs tried: {failures[0]})" if failures else ""
    return f"no example reached it{because}; pass example_inputs= that run it"


def _leave_shared(owners: Mapping[str, nn.Module], found: Discovery) -> None:
    """Leave a module whose projection another attention module uses, too: one hook acts for both."""
    holders: dict[tuple[int, str], str] = {}
    for name, candidate in list(found.proven.items()):
        site = candidate.query
        key = (id(site.module), ",".join(site.views) if isinstance(site, WeightSite) else "")
        if key in holders:
            found.left_alone[name] = f"its projection belongs to '{holders[key]}', which is patched"
            del found.proven[name]
        holders.setdefault(key, name)


def _leave_outer(found: Discovery) -> None:
    """Leave a module that hands its query on to an attention module inside it, which is the one to patch."""
    for name in list(found.refused):
        inner = next((other for other in found.proven if other.startswith(f"{name}.")), None)
        if inner is not None and "no layout was proven" in found.refused[name]:
            found.left_alone[name] = f"its attention is that of '{inner}' inside it, which is patched"
            del found.refused[name]
