"""Every model type of the installed transformers that a tiny configuration builds: does the patch hold?

    python tests/tools/sweep.py            all of them, resumable; then docs/attention_coverage.md
    python tests/tools/sweep.py bert gpt2  some, printed

One process per model, with limits of time and memory, so that no model can stop the others.
"""

import argparse
import contextlib
import copy
import inspect
import json
import multiprocessing
import random
import resource
import time
import traceback
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from attention.object_graph import object_graph
from tools.tiny import model_types, tiny_model
from torch import Tensor, nn
from transformers import PreTrainedModel

from gssf_plug.attention import patch_attention
from gssf_plug.attention.discovery.attention_module import attention_modules
from gssf_plug.attention.discovery.example_inputs import make_arguments, make_layer_arguments, runnable_parts
from gssf_plug.errors import GSSFError

SECONDS, GIGABYTES = 120, 40
CACHE = Path("outputs/attention_sweep.jsonl")


def tensors(output: object) -> list[Tensor]:
    """All floating tensors of an output, in order."""
    return [tensor for tensor in all_tensors(output) if tensor.is_floating_point()]


def all_tensors(output: object) -> list[Tensor]:
    """All tensors of an output, in order: what is returned, and what is recorded."""
    if isinstance(output, Tensor):
        return [output]
    parts = output.values() if isinstance(output, dict) else output if isinstance(output, (tuple, list)) else ()
    return [tensor for part in parts for tensor in all_tensors(part)]


@dataclass(frozen=True)
class Call:
    """One run of the model, of a part of it, or of one layer alone: the path of what runs, and its arguments."""

    path: str
    arguments: dict[str, Any]

    def __call__(self, model: nn.Module, options: Mapping[str, Any] | None = None) -> object:
        """Run it on `model`, with those of the further `options` that its forward knows."""
        part = model.get_submodule(self.path)
        names = inspect.signature(part.forward).parameters
        spread = isinstance(part, PreTrainedModel) and any(p.kind is p.VAR_KEYWORD for p in names.values())
        asked = {name: value for name, value in (options or {}).items() if spread or name in names}
        return part(**self.arguments, **asked)


def find_calls(model: nn.Module) -> list[Call]:
    """Calls that between them run the attention modules of `model`, which has run afterwards: try them on another."""
    for arguments in make_arguments(model):  # BigBird replaces its attention for good at the first short input
        with contextlib.suppress(Exception), torch.no_grad():
            model(**arguments)
            break
    found, reached = [], set()
    owners = attention_modules(model)
    wanted = {owner.module for owner in owners.values()}
    for path, part in runnable_parts(model):
        if wanted & set(part.modules()) - reached:
            for arguments in make_arguments(part):
                if (ran := _reached(part, arguments, wanted)) - reached:
                    reached |= ran
                    found.append(Call(path, arguments))
    for path, owner in owners.items():
        fitting = (
            a for a in make_layer_arguments(owner) if owner.module not in reached and _reached(owner.module, a, wanted)
        )
        found += [Call(path, arguments) for arguments in islice(fitting, 1)]
    return found


def _reached(part: nn.Module, arguments: dict[str, Any], wanted: set[nn.Module]) -> set[nn.Module]:
    """Those of `wanted` that a run of `part` reaches; none where it raises."""
    ran: set[nn.Module] = set()
    hooks = [module.register_forward_hook(lambda module, given, output: ran.add(module)) for module in wanted]
    try:
        with torch.no_grad():
            part(**arguments)
    except Exception:
        ran.clear()
    finally:
        for hook in hooks:
            hook.remove()
    return ran


def seed() -> None:
    """Every random state that a model may draw from."""
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002
    random.seed(0)


def outputs(model: nn.Module, calls: list[Call]) -> list[Tensor]:
    seed()
    return [tensor for call in calls for tensor in tensors(call(model))]


RECORDED = ("output_hidden_states", "output_attentions")


def recording(model: nn.Module, value: bool = True, names: tuple[str, ...] = RECORDED) -> nn.Module:
    """Switch recording on, or off, in the configuration of the model and of each of its parts."""
    configs = {id(module.config): module.config for module in model.modules() if isinstance(module, PreTrainedModel)}
    for config in configs.values():
        for name in names:
            with contextlib.suppress(Exception):  # a configuration that has no such setting
                setattr(config, name, value)
    return model


def everything(model: nn.Module, calls: list[Call], options: Mapping[str, Any] | None = None) -> list[Tensor | str]:
    """All tensors that the calls give; where transformers itself raises while it records, the kind of the error."""
    seed()
    found: list[Tensor | str] = []
    with torch.no_grad():
        for call in calls:
            try:
                found += all_tensors(call(model, options))
            except Exception as error:
                found.append(f"raised {type(error).__name__}")
    return found


def unlike(one: list[Tensor | str], other: list[Tensor | str]) -> str:
    """How two lists of outputs differ in number, shape or bits; empty where they do not."""
    if len(one) != len(other):
        return f"{len(one)} outputs, not {len(other)}"
    for place, (a, b) in enumerate(zip(one, other, strict=True)):
        kinds = [x if isinstance(x, str) else f"{tuple(x.shape)} {x.dtype}" for x in (a, b)]
        if kinds[0] != kinds[1]:
            return f"output {place}: {kinds[0]}, not {kinds[1]}"
        if not isinstance(a, str) and not torch.equal(
            *(x.nan_to_num() if x.is_floating_point() else x for x in (a, b))
        ):
            return f"output {place} of {len(one)}: other bits"
    return ""


def beside_a_twin(pristine: nn.Module, calls: list[Call], terms: tuple[str, ...]) -> dict[str, str]:
    """Never-run models, patched, against a twin that was never patched, while outputs are recorded; what differs."""
    wrong: dict[str, str] = {}
    asked = dict.fromkeys(RECORDED, True)
    for way, options in (("configuration", {}), ("call", asked)):
        fresh = recording(copy.deepcopy(pristine)) if way == "configuration" else copy.deepcopy(pristine)
        expected = everything(copy.deepcopy(fresh), calls, options)
        for sites in ("projection", "score"):
            patched = copy.deepcopy(fresh)
            try:
                patch = patch_attention(patched, terms=terms, block_size=2, sites=sites)
            except GSSFError:
                if sites == "score":
                    continue
                raise
            difference = unlike(everything(patched, calls, options), expected)
            patch.remove()
            difference = difference or unlike(everything(patched, calls, options), expected)
            if difference and not unlike(everything(copy.deepcopy(fresh), calls, options), expected):
                wrong[f"{sites}, {way}"] = difference
    return wrong


def left_behind(pristine: nn.Module, terms: tuple[str, ...]) -> dict[str, str]:
    """What patching and removing, or a refusal, changed in a model that never ran: the first object, by its path."""
    wrong: dict[str, str] = {}
    for sites in ("projection", "score"):
        model = recording(copy.deepcopy(pristine))
        before = object_graph(model)
        with contextlib.suppress(GSSFError):
            patch_attention(model, terms=terms, block_size=2, sites=sites).remove()
        after = object_graph(model)
        if after != before:
            changed = (path for path in {**before, **after} if before.get(path) != after.get(path))
            wrong[f"{sites}, left behind"] = next(changed, "the order of what is there")
    return wrong


def difference(one: list[Tensor], other: list[Tensor]) -> float:
    """Largest difference; infinite where a shape changed (predicted durations do)."""
    if any(a.shape != b.shape for a, b in zip(one, other, strict=True)):
        return float("inf")
    pairs = [(a.float().nan_to_num(), b.float().nan_to_num()) for a, b in zip(one, other, strict=True) if a.numel()]
    return max((float((a - b).abs().max()) for a, b in pairs), default=0.0)


def contract(model_type: str, terms: tuple[str, ...] = ("diagonal", "block_diagonal")) -> dict[str, Any]:
    """Build, patch before it ever ran, perturb, differentiate, merge, unmerge, remove; what held and what did not.

    All outputs of a patched model, recorded ones too, are compared with those of a twin that was never patched.
    """
    torch.manual_seed(0)
    record: dict[str, Any] = {"type": model_type}
    try:
        pristine = tiny_model(model_type)
    except Exception as error:
        return record | {"status": "not built", "reason": f"{type(error).__name__}: {error}"[:300]}
    model = copy.deepcopy(pristine)
    record["class"] = type(model).__name__
    record["parameters"] = sum(p.numel() for p in model.parameters())
    modules = [n for n, m in model.named_modules() if "ttention" in type(m).__name__]
    record["attention_classes"] = sorted({type(m).__name__ for m in model.modules() if "ttention" in type(m).__name__})
    record["found"] = len(attention_modules(model))
    if not record["found"]:
        return record | {"status": "no layout" if modules else "no attention"}
    keys = set(model.state_dict())
    differences = left_behind(pristine, terms)
    record["objects"] = not differences
    start = time.perf_counter()
    try:
        patch = patch_attention(model, terms=terms, block_size=2)
    except GSSFError as error:
        refused = {"status": "refused", "reason": str(error)[:1500], "seconds": time.perf_counter() - start}
        return record | refused
    record["seconds"] = round(time.perf_counter() - start, 2)
    record["patched"], record["left_alone"] = len(patch.layers), patch.left_alone
    record["layouts"] = sorted(
        {
            f"after {layer.metric_layer.norm}" if layer.metric_layer.norm else layer.metric_layer.layout
            for layer in patch.layers.values()
        }
    )
    calls = find_calls(copy.deepcopy(pristine))
    if not calls:
        return record | {"status": "patched, not run"}
    record |= checks(model, patch, keys, calls)
    differences |= beside_a_twin(pristine, calls, terms)
    if differences:
        record |= {"status": "failed", "wrong": [*record["wrong"], *(f"{k}: {v}" for k, v in differences.items())]}
    return record


def checks(model: nn.Module, patch: Any, keys: set[str], calls: list[Call]) -> dict[str, Any]:
    made: dict[str, Any] = {}
    with torch.no_grad():
        with patch.disabled():
            base = outputs(model, calls)
        made["neutral"] = difference(base, outputs(model, calls))
        for parameter in patch.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.5)
        changed = outputs(model, calls)
        made["alive"] = difference(base, changed)
        again = difference(changed, outputs(model, calls))
    loss = sum(t.float().nan_to_num().square().mean() for t in outputs(model, calls) if t.requires_grad)
    loss.backward()
    dead = [n for n, p in patch.named_parameters() if p.grad is None]
    made["parameters_without_gradient"] = dead
    try:
        patch.merge()
        with torch.no_grad():
            made["merge"] = difference(changed, outputs(model, calls))
        made["plain"] = set(model.state_dict()) == keys
        patch.unmerge()
        with torch.no_grad():
            made["unmerge"] = difference(changed, outputs(model, calls))
    except GSSFError as error:
        made["merge_refused"] = str(error)[:400]
    patch.remove()
    with torch.no_grad():
        made["removed"] = difference(base, outputs(model, calls))
    scale = max([float(t.float().nan_to_num().abs().max()) for t in base if t.numel()] + [1e-6])
    tolerance = max(2e-5 * scale, min(0.02 * made["alive"], 1e-3 * scale), 2 * again)
    wrong = [
        name for name, bad in {
            "neutral": made["neutral"] > 2 * again,
            "alive": not made["alive"] > 0,
            "gradients": bool(dead),
            "merge": made.get("merge", 0.0) > tolerance,
            "plain": not made.get("plain", True),
            "unmerge": made.get("unmerge", 0.0) > 2 * again,
            "removed": made["removed"] > 2 * again or set(model.state_dict()) != keys,
        }.items() if bad
    ]  # fmt: skip
    return made | {"status": "failed" if wrong else "held", "wrong": wrong}


def _child(model_type: str, queue: Any) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (GIGABYTES * 2**30,) * 2)
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    try:
        queue.put(contract(model_type))
    except BaseException as error:
        queue.put(
            {
                "type": model_type,
                "status": "crashed",
                "reason": f"{type(error).__name__}: {error}"[:300],
                "trace": traceback.format_exc()[-900:],
            }
        )


def isolated(model_type: str) -> dict[str, Any]:
    """`contract` in a forked process with limits."""
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    process = context.Process(target=_child, args=(model_type, queue))
    process.start()
    deadline = time.monotonic() + 5 * SECONDS  # of the clock; SECONDS are the processor's
    while process.is_alive() and queue.empty() and time.monotonic() < deadline:
        time.sleep(0.02)
    record = (
        queue.get()
        if not queue.empty()
        else {"type": model_type, "status": "crashed", "reason": f"no answer within {SECONDS} s of processor time"}
    )
    process.kill()
    process.join()
    return record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("types", nargs="*")
    parser.add_argument("--cache", type=Path, default=CACHE)
    parser.add_argument("--redo", action="store_true", help="run again what did not hold")
    arguments = parser.parse_args()
    if arguments.types:
        for model_type in arguments.types:
            print(json.dumps(isolated(model_type), indent=1))
        return
    arguments.cache.parent.mkdir(parents=True, exist_ok=True)
    lines = arguments.cache.read_text().splitlines() if arguments.cache.exists() else []
    done = {record["type"]: record for record in map(json.loads, lines)}
    for model_type in model_types():
        if model_type in done and not (arguments.redo and done[model_type]["status"] not in ("held", "no attention")):
            continue
        record = isolated(model_type)
        done[model_type] = record
        with arguments.cache.open("a") as file:
            file.write(json.dumps(record) + "\n")
        print(f"{model_type:<32} {record['status']:<16} {record.get('reason', '')[:100]}", flush=True)


if __name__ == "__main__":
    main()
