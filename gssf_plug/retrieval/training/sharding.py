"""Where the weights of a model in training lie: whole in every process, or sharded over the processes by FSDP2.

Accelerate shards model, metric and loss as one module (`fully_shard`). A parameter is then whole only inside a call of
that module: features are encoded by the module, metric and poolings are gathered for the time of an evaluation, and
files are written from a plain model that the first process fills with gathered weights. So a file of weights does not
show how its run was sharded.
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
from torch.distributed.fsdp import FSDPModule

from gssf_plug.retrieval.models.embedding import Embedding
from gssf_plug.retrieval.models.two_tower import RetrievalModel

__all__ = ["ShardedWeights", "WholeWeights", "copy_on"]


class WholeWeights:
    """Every process holds the model: one process, or DDP.

    Args:
        model: model in training.
        accelerator: accelerator that knows which process this is.
    """

    def __init__(self, model: RetrievalModel, accelerator: Accelerator) -> None:
        self.model = model
        self.accelerator = accelerator

    def encode(self, batch: Mapping[str, Any]) -> Embedding:
        """The embedding of this process's rows."""
        embedding: Embedding = self.model(batch)
        return embedding

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """While entered, metric and poolings can be used outside a step. Every process enters."""
        yield

    def plain_model(self) -> RetrievalModel | None:
        """The model to be saved, with its present weights, on the main process; None on others. All call it."""
        return self.model if self.accelerator.is_main_process else None

    def replace(self, fill: Callable[[nn.Module], None]) -> None:
        """Take the weights that `fill` puts into a plain model. Every process calls it."""
        fill(self.model)


class ShardedWeights(WholeWeights):
    """Each process holds a part of every parameter.

    Args:
        model: model in training.
        accelerator: accelerator that knows which process this is.
        objective: the sharded module, with `model` in it.
        outline: the model before it was sharded, without its weights; see `copy_on`.
    """

    def __init__(
        self, model: RetrievalModel, accelerator: Accelerator, *, objective: nn.Module, outline: RetrievalModel
    ) -> None:
        super().__init__(model, accelerator)
        self.objective = objective
        self.outline = outline

    def encode(self, batch: Mapping[str, Any]) -> Embedding:
        """The embedding of this process's rows; all processes encode as many batches."""
        embedding: Embedding = self.objective(batch, _unchanged)
        return embedding

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """Gathered on every process: the metric, and whatever is not in a block that is sharded by itself."""
        inside = [module for metric in self.model.metrics() for module in metric.modules()]
        units = [module for module in (self.objective, *inside) if isinstance(module, FSDPModule)]
        for unit in units:
            unit.unshard()
        try:
            yield
        finally:
            for unit in units:
                unit.reshard()

    def plain_model(self) -> RetrievalModel | None:
        """Another model, on the CPU."""
        gathered = get_model_state_dict(self.model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
        if not self.accelerator.is_main_process:
            return None
        plain = copy_on(self.outline, "cpu")
        plain.load_state_dict(gathered)
        return plain

    def replace(self, fill: Callable[[nn.Module], None]) -> None:
        """Every process fills a plain model on the CPU and keeps its part."""
        plain = copy_on(self.outline, "cpu")
        fill(plain)
        set_model_state_dict(self.model, plain.state_dict(), options=StateDictOptions(full_state_dict=True))


def copy_on(model: RetrievalModel, device: str) -> RetrievalModel:
    """A copy whose parameters hold no values yet, tied where they were tied; buffers are copied.

    Args:
        model: any model, before it is sharded.
        device: device of the new parameters; on "meta" they take no memory.
    """
    empty = {
        id(parameter): nn.Parameter(torch.empty_like(parameter, device=device), requires_grad=parameter.requires_grad)
        for parameter in model.parameters()
    }
    # a memo that knows the parameters already: deepcopy takes the empty ones and keeps ties
    return copy.deepcopy(model, {**empty, id(model.processors): model.processors})


def _unchanged(embedding: Embedding) -> Embedding:
    return embedding
