"""Patched ÷ bare and merged ÷ bare of the most used architectures, two layers of 1,024 channels, with every kernel.

Prefill, a training step and decoding with eager, sdpa and flash attention; then, in the time that is left, a prefill by
`torch.compile` and a token's decoding as a CUDA graph. What did not fit in the time is said to be not run.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from tools.tiny import tiny_model
from torch import Tensor, nn
from transformers import PreTrainedModel

from device.parts.attention_types import MOST_USED
from device.parts.decoding import captured
from device.record import Record
from device.variants import Bench, cache_argument, missing_kernels, variants
from gssf_plug.attention.discovery.example_inputs import make_arguments

BATCH, TOKENS, SAMPLES = 16, 512, 64_000
NEEDED = 12  # seconds of one type, generously
KERNELS = ("eager", "sdpa", "flash_attention_2")
PLAIN_SHARE = 0.6  # of the time goes to the kernels, the rest to what is compiled and captured


def run(record: Record, device: torch.device, quick: bool) -> None:
    bench = Bench(record, device, quick, rounds=1 if quick else 8)
    types = MOST_USED[:2] if quick else MOST_USED
    spared = (1 - PLAIN_SHARE) * record.seconds_left()
    for kind, work in ((", every kernel", _kernels), (", compiled and captured", _compiled)):
        for model_type in types:
            if record.seconds_left() < NEEDED + (spared if work is _kernels else 0):
                record.not_run(model_type + kind, "the time of this part was over")
                continue
            with record.step(model_type + kind):
                torch.manual_seed(0)
                work(bench, model_type, quick)


def _kernels(bench: Bench, model_type: str, quick: bool) -> None:
    missing = missing_kernels(bench.device)
    for kernel in KERNELS[1:2] if quick else KERNELS:
        title = f"{model_type}, {kernel}"
        if kernel in missing:
            bench.record.not_run(title, missing[kernel])
            continue
        model = tiny_model(model_type, grown=not quick)
        try:
            models = variants(model, kernel, bench.device)
        except (ValueError, ImportError) as error:  # transformers has no such kernel for this type
            bench.record.not_run(title, f"{type(error).__name__}: {error}"[:200])
            continue
        given = inputs(models["bare"], quick)
        bench.prefill(title, models, given)
        bench.training(title, models, given)
        if (prompt := _with_cache(models["bare"], given)) is None:
            bench.record.not_run(f"{title}, decoding", "it keeps no cache: an encoder")
        else:
            bench.decoding(f"{title}, decoding", models, lambda m, prompt=prompt: _one_token(m, prompt), claimed=False)


def _compiled(bench: Bench, model_type: str, quick: bool) -> None:
    if quick:
        bench.record.not_run(f"{model_type}, compiled and captured", "left out by --quick")
        return
    models = variants(tiny_model(model_type, grown=True), "sdpa", bench.device)
    given = inputs(models["bare"], quick)
    torch.compiler.reset()
    compiled = {name: torch.compile(model) for name, model in models.items()}
    if _works(bench.record, f"{model_type}, compiled", lambda: compiled["bare"](**given)):
        bench.prefill(f"{model_type}, compiled", compiled, given)
    graph = f"{model_type}, decoding of one token as a CUDA graph"
    if bench.device.type != "cuda":
        bench.record.not_run(graph, "needs a GPU")
    elif _with_cache(models["bare"], given) is None or "decoder_input_ids" in given:
        bench.record.not_run(graph, "no decoder by itself")
    elif _works(bench.record, graph, lambda: captured(models["bare"], bench.device)):
        bench.decoding(graph, models, lambda m: captured(m, bench.device), claimed=True)


def _works(record: Record, title: str, bare: Callable[[], object]) -> bool:
    """Whether the bare model can do it; what it cannot is no matter of ours."""
    try:
        bare()
    except Exception as error:  # noqa: BLE001 — every kind of failure of a compiler
        record.not_run(title, f"the bare model cannot: {type(error).__name__}: {error}"[:200])
        return False
    return True


def inputs(model: PreTrainedModel, quick: bool) -> dict[str, Any]:
    """Arguments that `model` runs on, as large as a GPU needs to be busy, or as small as they come.

    Raises:
        LookupError: it ran on none.
    """
    for given in make_arguments(model):
        for sizes in ((1, 0, 0),) if quick else ((BATCH, TOKENS, SAMPLES), (BATCH, 0, 0), (1, 0, 0)):
            larger = {name: _larger(value, *sizes) for name, value in given.items()}
            try:
                with torch.no_grad():
                    model(**larger)
            except Exception:  # noqa: BLE001, S112 — arguments are tried until some fit
                continue
            return larger
    raise LookupError("no arguments that it runs on")


def _larger(value: Any, batch: int, tokens: int, samples: int) -> Any:
    """A batch of copies, sequences repeated to `tokens` and sounds to `samples`."""
    if not isinstance(value, Tensor):
        return value
    sound = value.is_floating_point() and value.ndim == 2
    sequence = not value.is_floating_point() and value.ndim > 1
    wanted = samples if sound else tokens if sequence else 0
    times = max(1, wanted // value.shape[1]) if value.ndim > 1 else 1
    return value.repeat(batch, times, *[1] * (value.ndim - 2)) if value.ndim > 1 else value


def _with_cache(model: nn.Module, given: Mapping[str, Any]) -> dict[str, Any] | None:
    """The prompt with its cache asked for; None where the model has none."""
    if "use_cache" not in given:
        return None
    asked = {**given, "use_cache": True}
    with torch.no_grad():
        found = model(**asked)
    return asked if getattr(found, cache_argument(model), None) is not None else None


def _one_token(model: nn.Module, prompt: Mapping[str, Any]) -> Callable[[], object]:
    """One more token at each call; the cache grows, by as much for every variant."""
    with torch.no_grad():
        begun = model(**prompt)
    name, cache = "decoder_input_ids" if "decoder_input_ids" in prompt else "input_ids", cache_argument(model)
    given = {name: prompt[name][:, :1], cache: getattr(begun, cache), "use_cache": True}
    if name == "decoder_input_ids":
        given["encoder_outputs"] = (begun.encoder_last_hidden_state,)
    return torch.no_grad()(lambda: model(**given))
