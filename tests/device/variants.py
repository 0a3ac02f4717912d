"""One model in its variants, bare, patched and merged, over the same weights; and how their times are compared."""

import copy
import importlib.util
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from device.record import Record, compared, peak_mebibytes, timed
from gssf_plug.attention import patch_attention
from gssf_plug.errors import GSSFError

__all__ = ["Bench", "cache_argument", "first_real", "missing_kernels", "variants"]

PATCHED, MERGED, DECODING = 1.03, 1.00, 1.05
NOISE = 0.01  # what two identical models differ by; merged = bare is shown up to it
Models = Mapping[str, nn.Module]
Work = Callable[[], object]


def missing_kernels(device: torch.device) -> dict[str, str]:
    """Attention kernels that cannot be had here, with the reason."""
    if device.type != "cuda":
        return {"flash_attention_2": "needs a GPU"}
    return {} if importlib.util.find_spec("flash_attn") else {"flash_attention_2": "flash_attn is not installed"}


def variants(bare: PreTrainedModel, kernel: str, device: torch.device) -> dict[str, nn.Module]:
    """Bare, bare once more (the noise), patched away from neutral, and merged, where the type allows merging.

    All share the bare model's weights; each trains its one-dimensional parameters, so that a step goes back through the
    whole of it, and the patched one its metrics as well.
    """
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    bare = bare.to(device, dtype).eval()
    bare.set_attn_implementation(kernel)
    for parameter in bare.parameters():
        parameter.requires_grad_(parameter.ndim == 1)
    models: dict[str, nn.Module] = {name: _twin(bare) for name in ("bare", "bare again", "patched")}
    merged = copy.deepcopy(bare)  # merging writes into its weights
    patches = [patch_attention(model, block_size=8) for model in (models["patched"], merged)]
    with torch.no_grad():
        for parameter in (parameter for patch in patches for parameter in patch.parameters()):
            parameter.add_(torch.randn_like(parameter), alpha=0.01)
    try:
        patches[1].merge()
        models["merged"] = merged
    except GSSFError:  # a query norm stands between: `attention_types` has the reason
        pass
    return models


def _twin(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model, {id(p): nn.Parameter(p.data, p.requires_grad) for p in model.parameters()})


def cache_argument(model: nn.Module) -> str:
    """What `model.forward` calls the keys and values of the tokens before; it was renamed in transformers 5.24."""
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"


def first_real(output: object) -> Tensor:
    """The first floating tensor of an output."""
    values = output.values() if isinstance(output, dict) else output
    return next(v for v in values if isinstance(v, Tensor) and v.is_floating_point())  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Bench:
    """Times variants beside one another and writes the ratios down; on a GPU, in full, beside their claims."""

    record: Record
    device: torch.device
    quick: bool
    rounds: int

    def prefill(self, title: str, models: Models, given: Mapping[str, Any]) -> None:
        def make(model: nn.Module) -> Work:
            return torch.inference_mode()(lambda: model(**given))

        self._compare(f"{title}, prefill", {name: make(model) for name, model in models.items()}, PATCHED)

    def training(self, title: str, models: Models, given: Mapping[str, Any]) -> None:
        def make(model: nn.Module) -> Work:
            def step() -> None:
                model.zero_grad(set_to_none=True)
                first_real(model(**given)).float().square().mean().backward()

            return step

        self._compare(f"{title}, training step", {name: make(model) for name, model in models.items()}, PATCHED)

    def decoding(self, title: str, models: Models, make: Callable[[nn.Module], Work], claimed: bool) -> None:
        """One token by what `make` makes of each; only as a captured graph is there a claim on it."""
        runs = {name: make(model) for name, model in models.items()}
        self._compare(title, runs, DECODING if claimed else None)

    def _compare(self, title: str, runs: Mapping[str, Work], limit: float | None) -> None:
        seconds = timed(runs, self.device, self.rounds)
        noise, shown = compared(seconds, "bare again", "bare")
        self.record.measured(f"{title}: bare again ÷ bare", shown)
        limits = {"patched": limit, "merged": None if limit is None else MERGED + NOISE}
        for name, most in limits.items():
            if name not in runs:
                continue
            value, shown = compared(seconds, name, "bare")
            if most is None or self.quick or self.device.type != "cuda":
                self.record.measured(f"{title}: {name} ÷ bare", shown)
            else:
                self.record.at_most(f"{title}: {name} ÷ bare", value, most + max(0.0, noise - 1), shown)
        self.record.measured(f"{title}: peak memory, patched", peak_mebibytes(runs["patched"], self.device))
