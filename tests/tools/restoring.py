"""Does a checkpoint of each model type come back whole? By names for all types, or to the bit.

    python tests/tools/restoring.py            # every type of the installed transformers to the bit: some minutes

A type is asked for its bits only where transformers saves it under other names than it has in memory: where no name
changes, Trainer's own loading is `load_state_dict` of equal names.
"""

import sys
import tempfile
import warnings
from collections import Counter
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import logging

sys.path.insert(0, str(Path(__file__).parents[1]))

from tools.tiny import model_types, tiny_model

from gssf_plug.distillation.checkpoint import restore_student
from gssf_plug.errors import CheckpointError

OWN_FAULT = {"jev", "qwen2_5_omni"}
"""Types whose `from_pretrained` does not read what their `save_pretrained` writes (transformers 5.24): refused."""


def spoil(model: nn.Module) -> None:
    """Another value in every tensor, as a model built anew has."""
    with torch.no_grad():
        seen: set[int] = set()
        for value in model.state_dict().values():
            if value.is_floating_point() and value.data_ptr() not in seen:
                seen.add(value.data_ptr())
                value.mul_(1.5).add_(0.01)


def read_raw(model: nn.Module, folder: Path) -> None:
    """What transformers' Trainer does."""
    from safetensors.torch import load_file

    raw = {}
    for file in folder.glob("*.safetensors"):
        raw |= load_file(file)
    model.load_state_dict(raw, strict=False)


def count_restored(model: PreTrainedModel, folder: Path) -> tuple[int, int, int]:
    """How many tensors are the saved ones after Trainer's loading, after ours, and how many there are."""
    model.save_pretrained(folder)
    wanted = {name: value.clone() for name, value in model.state_dict().items()}
    spoil(model)
    read_raw(model, folder)
    raw = count_equal(model, wanted)
    restore_student(model, folder)
    return raw, count_equal(model, wanted), len(wanted)


def count_equal(model: nn.Module, wanted: dict[str, torch.Tensor]) -> int:
    """Tensors to the bit; NaN is NaN."""
    equal = lambda a, b: torch.equal(a.nan_to_num(), b.nan_to_num())  # noqa: E731
    return sum(equal(value, wanted[name]) for name, value in model.state_dict().items())


def main() -> None:
    """Print how many types Trainer's loading and ours restore."""
    warnings.simplefilter("ignore")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    found: Counter[str] = Counter()
    for kind in model_types():
        try:
            model = tiny_model(kind)
        except Exception:
            found["not built by a tiny configuration"] += 1
            continue
        with tempfile.TemporaryDirectory() as folder:
            try:
                raw, ours, every = count_restored(model, Path(folder))
            except CheckpointError as error:
                found["refused"] += 1
                print(kind, error)
                continue
        found["whole by Trainer's own loading"] += raw == every
        found["whole by ours"] += ours == every
        if ours != every:
            print(kind, f"{ours} of {every}")
    for name, count in found.items():
        print(f"{count:5d} {name}")


if __name__ == "__main__":
    main()
