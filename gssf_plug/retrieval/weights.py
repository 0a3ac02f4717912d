"""The best weights of a run: one safetensors file, replaced by a rename, shared tensors kept once."""

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_model, save_model
from torch import nn

from gssf_plug.errors import CheckpointError
from gssf_plug.files import write_atomically

__all__ = ["read_weights", "write_weights"]


def write_weights(model: nn.Module, path: Path) -> None:
    """Write the weights of `model`; on failure the earlier file stays.

    Raises:
        CheckpointError: the disk refuses.
    """
    try:
        write_atomically(path, lambda temporary: save_model(model, str(temporary)))
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            path,
            f"could not be written ({error})",
            "Free some disk space and call train(resume=True); the earlier best weights are untouched.",
        ) from error


def read_weights(model: nn.Module, path: Path, device: str) -> None:
    """Load the weights of `model`, every key and no other.

    Raises:
        CheckpointError: the file is missing, damaged or of another model.
    """
    try:
        load_model(model, path, device=device)
    except (OSError, SafetensorError, RuntimeError) as error:
        raise CheckpointError(
            path, f"cannot be loaded ({error})", "Train with eval_data first, and with the same model."
        ) from error
