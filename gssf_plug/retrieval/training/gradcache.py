r"""Large contrastive batches in the memory of small ones: encode in chunks twice, with the loss of all rows between.

    1. encode every chunk without a graph, noting the generators' states        f_1 … f_c
    2. L(f_1 … f_c) of all rows of all processes; backward to the features      g_i = ∂L/∂f_i, and metric and loss
    3. encode every chunk again, dropout as in 1; backward of Σ ⟨f_i, g_i⟩      the encoders

The gradient is that of the whole batch at once, up to rounding: Σ_i ⟨f_i, g_i⟩ has g_i as constants, so its gradient is
the chain rule of L. Activations live for one chunk at a time; features and their gradients are kept for all rows. The
price is the encoders' forward done twice; features that nothing trained has made (computed before, or by frozen
encoders) are encoded once.

A model must treat rows one by one. Batch normalisation in an encoder does not: it sees chunks, and its running
statistics count each chunk twice; `check_chunks` warns of it. (The neck of a `NeckLoss` is part of the loss.) Under DDP
only the last chunk synchronises, with the gradients of all chunks; parameters used in step 2 alone have equal gradients
on all processes. Under FSDP2 every chunk adds its part of the reduced gradient.

Source: Gao et al., "Scaling deep contrastive learning batch size under memory limited setup", RepL4NLP 2021.
"""

import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, pairwise
from typing import Any, cast

import torch
from accelerate import Accelerator, DistributedType
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import get_device_states, set_device_states

from gssf_plug.distributed import gather_detached
from gssf_plug.errors import ArgumentError
from gssf_plug.retrieval.models.embedding import Embedding, Fragments, Side, join_embeddings
from gssf_plug.retrieval.training.objective import Objective

__all__ = ["cached_backward", "check_chunks", "split_batch"]

logger = logging.getLogger(__name__)


def cached_backward(
    objective: nn.Module,
    accelerator: Accelerator,
    batch: Mapping[str, Any],
    chunk_size: int,
    *,
    weight: float = 1.0,
    synchronise: bool = True,
) -> float:
    """Add the gradient of the loss of `batch` to the parameters.

    Args:
        objective: the `Objective` as `accelerator.prepare` gave it.
        accelerator: accelerator that knows precision, loss scale and processes.
        batch: this process's rows, on its device.
        chunk_size: number of rows that are encoded at once.
        weight: factor on the loss.
        synchronise: True averages gradients over processes; False is for all but the last batch of an accumulated step.

    Returns:
        The loss of all rows of all processes, without `weight`. Where it is not finite, no gradient was added.

    Raises:
        ArgumentError: the batch cannot be cut into rows, or DDP stops at parameters without a gradient.
    """
    bare = _without_ddp(objective)
    chunks = split_batch(batch, chunk_size)
    encoded = [_forward_no_grad(bare, chunk, watch=number == 0) for number, chunk in enumerate(chunks)]
    kept = join_embeddings([one.kept for one in encoded])
    loss = bare(
        None, lambda _: bare.compute_loss(kept)
    )  # not as an argument: FSDP2 would take its sides for two tensors
    value = loss.item()
    if not math.isfinite(value):
        return value
    accelerator.backward(weight * loss)
    del loss
    if not encoded[0].trained:
        return value
    for number, (chunk, one) in enumerate(zip(chunks, encoded, strict=True), start=1):
        last = synchronise and number == len(chunks)
        with one.generators.replayed():
            (objective if last else bare)(chunk, partial(_surrogate, one.kept)).backward()
    return value


@dataclass(frozen=True)
class _Encoded:
    """A chunk after its first encoding. No tuple: FSDP2 would look for tensors in it.

    Args:
        kept: embedding of the chunk, made of leaves.
        generators: states of the random generators before the chunk was encoded.
        trained: whether its features depend on anything that is trained, where that was watched.
    """

    kept: Embedding
    generators: "_Generators"
    trained: bool


def _forward_no_grad(objective: Objective, chunk: Mapping[str, Any], *, watch: bool) -> _Encoded:
    """Encode without a graph, or to `watch` with one that is dropped at once."""
    generators = _Generators(chunk)
    with torch.set_grad_enabled(watch):
        encoded: _Encoded = objective(chunk, partial(_cached, generators))
    return encoded


def _cached(generators: "_Generators", own: Embedding) -> _Encoded:
    queries = _leaf(own.queries)
    kept = own._replace(queries=queries, gallery=queries if own.one_sided else _leaf(own.gallery))
    return _Encoded(kept, generators, trained=any(features.requires_grad for features in _get_tensors(own)))


def _leaf(side: Side) -> Side:
    if isinstance(side, Fragments):
        return Fragments(_leaf_tensor(side.features), side.mask)
    return _leaf_tensor(side)


def _leaf_tensor(features: Tensor) -> Tensor:
    return features.detach().to(torch.promote_types(features.dtype, torch.float32)).requires_grad_()


def _surrogate(kept: Embedding, own: Embedding) -> Tensor:
    """Σ ⟨f, g⟩ of a chunk: its gradient in the encoders is that of the loss."""
    pairs = zip(_get_tensors(own), _get_tensors(kept), strict=True)
    # d/dθ Σ⟨f(θ), g⟩ with g fixed is the chain rule of the whole loss through this chunk
    products = [(features.to(leaf.dtype) * leaf.grad).sum() for features, leaf in pairs if leaf.grad is not None]
    return torch.stack(products).sum()


def _get_tensors(embedding: Embedding) -> list[Tensor]:
    sides = [embedding.queries] if embedding.one_sided else [embedding.queries, embedding.gallery]
    return [side.features if isinstance(side, Fragments) else side for side in sides]


class _Generators:
    """States of the generators that dropout draws from, on the CPU and on the devices of a batch."""

    def __init__(self, batch: Mapping[str, Any]) -> None:
        self.cpu = torch.get_rng_state()
        self.devices, self.states = get_device_states(*_tensors(batch))

    @contextmanager
    def replayed(self) -> Iterator[None]:
        """With the generators as they were noted; afterwards they are what they were before."""
        with torch.random.fork_rng(devices=self.devices):
            torch.set_rng_state(self.cpu)
            set_device_states(self.devices, self.states)
            yield


def split_batch(batch: Mapping[str, Any], chunk_size: int) -> list[dict[str, Any]]:
    """A batch in chunks of up to `chunk_size` rows, as many on every process.

    Args:
        batch: tensors, lists, or mappings of them; each side may have its own number of rows.
        chunk_size: number of rows of the longest side in a chunk. More where another process has fewer rows than
            chunks.

    Raises:
        ArgumentError: an entry has no rows.
    """
    rows = {key: _rows(key, entry) for key, entry in batch.items()}
    device = next(_tensors(batch)).device
    own = torch.tensor([[math.ceil(max(rows.values()) / chunk_size), min(rows.values())]], device=device)
    wanted, possible = gather_detached(own).unbind(1)
    # as many chunks as the process with most needs, but none without a row on the one with fewest
    count = max(1, min(int(wanted.max()), int(possible.min())))
    parts = {key: _split(entry, rows[key], count) for key, entry in batch.items()}
    # entries of chunks, turned into chunks of entries
    return [{key: part[number] for key, part in parts.items()} for number in range(count)]


def _rows(key: str, entry: Any) -> int:
    lengths = {_rows(f"{key}['{name}']", part) for name, part in entry.items()} if isinstance(entry, Mapping) else set()
    if isinstance(entry, list) or (isinstance(entry, Tensor) and entry.ndim > 0):
        lengths = {len(entry)}
    if len(lengths) != 1:
        got = f"rows of different number, {sorted(lengths)}" if lengths else type(entry).__name__
        remedy = "Give one row per item in the collate function, or train without chunk_size."
        raise ArgumentError(key, "hold one row per item to be encoded in chunks", got, remedy)
    return lengths.pop()


def _split(entry: Any, rows: int, count: int) -> list[Any]:
    if isinstance(entry, Mapping):
        split = {name: _split(part, rows, count) for name, part in entry.items()}
        return [{name: parts[number] for name, parts in split.items()} for number in range(count)]
    # where `Tensor.tensor_split` cuts; lists are cut at the same rows, or texts would leave their ids
    bounds = accumulate((rows // count + (number < rows % count) for number in range(count)), initial=0)
    return [entry[start:stop] for start, stop in pairwise(bounds)]


def _tensors(entry: Any) -> Iterator[Tensor]:
    if isinstance(entry, Tensor):
        yield entry
    elif isinstance(entry, Mapping):
        for part in entry.values():
            yield from _tensors(part)


def _without_ddp(objective: nn.Module) -> Objective:
    """The objective itself: calls of it leave DDP's synchronisation out."""
    if not isinstance(objective, DistributedDataParallel):
        return cast(Objective, objective)
    if not objective.find_unused_parameters:
        raise ArgumentError(
            "accelerator",
            "let DDP find unused parameters where batches are encoded in chunks",
            "one that does not",
            "Add DistributedDataParallelKwargs(find_unused_parameters=True), or leave the accelerator to the trainer.",
        )
    return cast(Objective, objective.module)


def check_chunks(model: nn.Module, accelerator: Accelerator, chunk_size: int | None) -> None:
    """Whether a run can encode in chunks; a warning where its gradient is then not that of whole batches.

    Raises:
        ArgumentError: the run is under DeepSpeed, whose engine steps by itself.
    """
    if chunk_size is None:
        return
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        remedy = "Use DDP or FSDP2, or a smaller batch."
        raise ArgumentError("chunk_size", "be None under DeepSpeed, which owns the backward pass", chunk_size, remedy)
    batch_normalised = (name for name, module in model.named_modules() if isinstance(module, _BatchNorm))
    if any(name.partition(".")[0] != "neck" for name in batch_normalised):
        logger.warning(
            "chunk_size=%d: batch normalisation sees chunks, so gradients are not those of the whole batch", chunk_size
        )
