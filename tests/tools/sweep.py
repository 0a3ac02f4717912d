"""Every model type of the installed transformers that a tiny configuration builds: does the patch hold?

    python tests/attention/sweep.py            all of them, resumable; then docs/attention_coverage.md
    python tests/attention/sweep.py bert gpt2  some, printed

One process per model, with limits of time and memory, so that no model can stop the others.
"""

import argparse
import contextlib
import json
import multiprocessing
import resource
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

import torch
from tools.tiny import model_types, tiny_model
from torch import Tensor, nn

from gssf_plug.attention import patch_attention
from gssf_plug.attention.discovery.discover import attention_modules
from gssf_plug.attention.discovery.example_inputs import arguments_of, arguments_of_layer, parts_of
from gssf_plug.errors import GSSFError

SECONDS, GIGABYTES = 40, 40
CACHE = Path("outputs/attention_sweep.jsonl")


def tensors(output: object) -> list[Tensor]:
    """All floating tensors of an output, in order."""
    if isinstance(output, Tensor):
        return [output] if output.is_floating_point() else []
    parts = output.values() if isinstance(output, dict) else output if isinstance(output, (tuple, list)) else ()
    return [tensor for part in parts for tensor in tensors(part)]


def runs(model: nn.Module) -> list[Any]:
    """Calls that between them run the attention modules of `model`."""
    for arguments in arguments_of(model):  # BigBird replaces its attention for good at the first short input
        with contextlib.suppress(Exception), torch.no_grad():
            model(**arguments)
            break
    found, reached = [], set()
    owners = list(attention_modules(model).values())
    wanted = set(owners)
    for _, part in parts_of(model):
        if not wanted & set(part.modules()) - reached:
            continue
        for arguments in arguments_of(part):
            ran: set[nn.Module] = set()
            hooks = [m.register_forward_hook(lambda m, a, o, ran=ran: ran.add(m)) for m in wanted]
            try:
                with torch.no_grad():
                    part(**arguments)
            except Exception:
                ran = set()
            finally:
                for hook in hooks:
                    hook.remove()
            if ran - reached:
                reached |= ran
                found.append(lambda part=part, arguments=arguments: part(**arguments))
    for owner in (owner for owner in owners if owner not in reached):
        for arguments in arguments_of_layer(owner):
            with contextlib.suppress(Exception), torch.no_grad():
                owner(**arguments)
                found.append(lambda part=owner, arguments=arguments: part(**arguments))
                break
    return found


def outputs(calls: list[Any]) -> list[Tensor]:
    torch.manual_seed(0)
    return [tensor for call in calls for tensor in tensors(call())]


def difference(one: list[Tensor], other: list[Tensor]) -> float:
    """Largest difference; infinite where a shape changed (predicted durations do)."""
    if any(a.shape != b.shape for a, b in zip(one, other, strict=True)):
        return float("inf")
    pairs = [(a.float().nan_to_num(), b.float().nan_to_num()) for a, b in zip(one, other, strict=True) if a.numel()]
    return max((float((a - b).abs().max()) for a, b in pairs), default=0.0)


def contract(model_type: str, terms: tuple[str, ...] = ("diagonal", "block_diagonal")) -> dict[str, Any]:
    """Build, patch, perturb, differentiate, merge, unmerge, remove; what held and what did not."""
    torch.manual_seed(0)
    record: dict[str, Any] = {"type": model_type}
    try:
        model = tiny_model(model_type)
    except Exception as error:
        return record | {"status": "not built", "reason": f"{type(error).__name__}: {error}"[:300]}
    record["class"] = type(model).__name__
    record["parameters"] = sum(p.numel() for p in model.parameters())
    modules = [n for n, m in model.named_modules() if "ttention" in type(m).__name__]
    record["attention_classes"] = sorted({type(m).__name__ for m in model.modules() if "ttention" in type(m).__name__})
    record["found"] = len(attention_modules(model))
    if not record["found"]:
        return record | {"status": "no layout" if modules else "no attention"}
    keys = set(model.state_dict())
    start = time.perf_counter()
    try:
        patch = patch_attention(model, terms=terms, block_size=2)
    except GSSFError as error:
        return record | {"status": "refused", "reason": str(error)[:1500], "seconds": time.perf_counter() - start}
    record["seconds"] = round(time.perf_counter() - start, 2)
    record["patched"], record["left_alone"] = len(patch.layers), patch.left_alone
    record["layouts"] = sorted(
        {f"after {layer.query.norm}" if layer.query.norm else layer.query.layout for layer in patch.layers.values()}
    )
    return record | checks(model, patch, keys)


def checks(model: nn.Module, patch: Any, keys: set[str]) -> dict[str, Any]:
    made: dict[str, Any] = {}
    calls = runs(model)
    if not calls:
        return {"status": "patched, not run"}
    with torch.no_grad():
        with patch.disabled():
            base = outputs(calls)
        made["neutral"] = difference(base, outputs(calls))
        for parameter in patch.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.5)
        changed = outputs(calls)
        made["alive"] = difference(base, changed)
        again = difference(changed, outputs(calls))
    loss = sum(t.float().nan_to_num().square().mean() for t in outputs(calls) if t.requires_grad)
    loss.backward()
    dead = [n for n, p in patch.named_parameters() if p.grad is None]
    made["parameters_without_gradient"] = dead
    try:
        patch.merge()
        with torch.no_grad():
            made["merge"] = difference(changed, outputs(calls))
        made["plain"] = set(model.state_dict()) == keys
        patch.unmerge()
        with torch.no_grad():
            made["unmerge"] = difference(changed, outputs(calls))
    except GSSFError as error:
        made["merge_refused"] = str(error)[:400]
    patch.remove()
    with torch.no_grad():
        made["removed"] = difference(base, outputs(calls))
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
