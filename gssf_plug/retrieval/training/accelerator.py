"""The accelerator that a recipe asks for, what it refuses, and model and optimizer as it prepares them."""

import logging
import os
from typing import NamedTuple

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, DistributedType
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from gssf_plug.distributed import hold_group
from gssf_plug.errors import ArgumentError
from gssf_plug.retrieval.models.two_tower import RetrievalModel
from gssf_plug.retrieval.training.config import RetrievalConfig
from gssf_plug.retrieval.training.objective import Objective
from gssf_plug.retrieval.training.optimizer import build_optimizer
from gssf_plug.retrieval.training.sharding import ShardedWeights, WholeWeights, copy_on

__all__ = ["Prepared", "check_accelerator", "make_accelerator", "prepare"]

logger = logging.getLogger(__name__)


def make_accelerator(config: RetrievalConfig) -> Accelerator:
    """Accelerator of a recipe. Parameters without a gradient, such as a pooler that is not read, do not stop DDP."""
    return Accelerator(
        cpu=not torch.accelerator.is_available(),  # without it, processes on CPUs alone would silently not meet
        mixed_precision=config.mixed_precision,
        log_with=list(config.trackers) or None,
        project_dir=config.output_dir,
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )


def check_accelerator(accelerator: Accelerator, config: RetrievalConfig) -> None:
    """Whether an accelerator that was passed in agrees with the recipe and with how it was launched.

    Raises:
        ArgumentError: the accelerator has another precision than the recipe; it sees one process where several were
            launched, which would train as many models as there are processes; it runs FSDP of version 1 or DeepSpeed's
            ZeRO 3, whose parameters cannot be gathered for an evaluation; or an FSDP2 option cannot hold the buffers of
            model and loss.
    """
    if isinstance(accelerator, type) or not hasattr(accelerator, "mixed_precision"):
        remedy = "None makes one from the recipe."
        raise ArgumentError("accelerator", "be None or an Accelerator", type(accelerator).__name__, remedy)
    if accelerator.mixed_precision != config.mixed_precision:
        raise ArgumentError(
            "mixed_precision",
            f"agree with the accelerator's, {accelerator.mixed_precision!r}",
            repr(config.mixed_precision),
            "Change one of the two.",
        )
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if launched > 1 and accelerator.num_processes == 1:
        raise ArgumentError(
            "accelerator",
            f"see the {launched} processes that were launched",
            "one of a single process",
            "On CPUs build it with Accelerator(cpu=True), or leave it to the trainer.",
        )
    _check_sharding(accelerator)


def _check_sharding(accelerator: Accelerator) -> None:
    kind = accelerator.distributed_type
    if kind == DistributedType.DEEPSPEED and accelerator.state.deepspeed_plugin.zero_stage == 3:
        remedy = "Use stage 2 as in examples/accelerate/deepspeed.yaml, or FSDP2."
        raise ArgumentError("zero_stage", "be at most 2, or no evaluation could read the weights", 3, remedy)
    if kind == DistributedType.FSDP:
        remedy = "See examples/accelerate/fsdp2.yaml."
        if not accelerator.is_fsdp2:
            raise ArgumentError("fsdp_version", "be 2, which shards every parameter by itself", 1, remedy)
        if accelerator.state.fsdp_plugin.cpu_ram_efficient_loading:
            rule = "be False: Accelerate then takes buffers, such as a hinge's step count, for sharded parameters"
            raise ArgumentError("fsdp_cpu_ram_efficient_loading", rule, True, remedy)
    elif os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true":
        logger.warning(
            "Accelerate shards on several GPUs only: here FSDP is ignored, every process holds the whole model"
        )


class Prepared(NamedTuple):
    """`objective` and `optimizer` as Accelerate gave them, and where the model's weights lie."""

    objective: nn.Module
    optimizer: Optimizer
    weights: WholeWeights


def prepare(model: RetrievalModel, loss: nn.Module, config: RetrievalConfig, accelerator: Accelerator) -> Prepared:
    """Model and loss on their device, wrapped or sharded, with the optimizer of their parameters.

    Under FSDP2 mixed precision is autocast's, as it is under DDP: FSDP's own would cast the parameters of metric and
    loss, which are computed in float32.
    """
    hold_group()  # for a script that ends with the trainer in hand
    if not accelerator.is_fsdp2:
        objective = Objective(model, loss)
        wrapped, optimizer = accelerator.prepare(objective, build_optimizer(objective, config))
        return Prepared(wrapped, optimizer, WholeWeights(model, accelerator))
    if any(isinstance(module, _BatchNorm) for module in model.modules()):
        logger.warning("FSDP2 does not share statistics of batch normalisation: those of the first process are saved")
    accelerator.state.fsdp_plugin.mixed_precision_policy = None
    objective = Objective(model, loss, precision=accelerator.autocast)
    outline = copy_on(model, "meta")
    sharded, optimizer = accelerator.prepare(objective, build_optimizer(objective, config))
    return Prepared(sharded, optimizer, ShardedWeights(model, accelerator, objective=sharded, outline=outline))
