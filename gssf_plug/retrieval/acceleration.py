"""The accelerator that a recipe asks for."""

from accelerate import Accelerator, DistributedDataParallelKwargs

from gssf_plug.errors import ArgumentError
from gssf_plug.retrieval.config import RetrievalConfig

__all__ = ["check_precision", "make_accelerator"]


def make_accelerator(config: RetrievalConfig) -> Accelerator:
    """The accelerator of a recipe. Parameters without a gradient, such as a pooler that is not read, do not stop DDP."""
    return Accelerator(
        mixed_precision=config.mixed_precision,
        log_with=list(config.trackers) or None,
        project_dir=config.output_dir,
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )


def check_precision(accelerator: Accelerator, config: RetrievalConfig) -> None:
    """Raise `ArgumentError` where an accelerator that was passed in contradicts the recipe."""
    if accelerator.mixed_precision != config.mixed_precision:
        raise ArgumentError(
            "mixed_precision",
            f"agree with the accelerator's, {accelerator.mixed_precision!r}",
            repr(config.mixed_precision),
            "Change one of the two.",
        )
