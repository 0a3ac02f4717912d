"""Versions, card, and which of the fast paths are there at all."""

import importlib.util
import platform
from importlib.metadata import PackageNotFoundError, version

import torch

from device.record import Record

PACKAGES = (
    "torch",
    "transformers",
    "accelerate",
    "datasets",
    "evaluate",
    "einops",
    "safetensors",
    "faiss-cpu",
    "numpy",
)


def run(record: Record, device: torch.device, quick: bool) -> None:
    record.measured("python", f"{platform.python_version()}, {platform.machine()}")
    for package in PACKAGES:
        try:
            record.measured(package, version(package))
        except PackageNotFoundError:
            record.not_run(package, "not installed")
    if device.type != "cuda":
        record.measured("card", f"{device.type}: what needs a card says so below")
        return
    card = torch.cuda.get_device_properties(device)
    record.measured("card", f"{card.name}, {card.total_memory / 2**30:.0f} GiB, compute {card.major}.{card.minor}")
    record.measured(
        "CUDA, cuDNN, NCCL", f"{torch.version.cuda}, {torch.backends.cudnn.version()}, {torch.cuda.nccl.version()}"
    )
    record.equal("bfloat16 on the card", torch.cuda.is_bf16_supported())
    if importlib.util.find_spec("flash_attn") is None and importlib.util.find_spec("kernels") is None:
        record.not_run(
            "flash attention", "neither flash_attn nor kernels is installed; sdpa may use its own flash kernel"
        )
