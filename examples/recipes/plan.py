"""What a recipe would do, before it does it: counts, parameters, steps, and an estimate of the memory of a step.

The memory of activations is measured, not guessed: what the forward pass of a few rows keeps for the backward pass, and
as much more for every further row. The matrix of scores is counted for the whole batch; what is computed twice to save
memory (SCAN's blocks, about 50 MiB) is not.
"""

import re
from collections.abc import Iterable

import torch
from accelerate.utils import send_to_device
from torch import nn

from gssf_plug.losses import WeightedSum
from gssf_plug.losses.logit_scale import LearnedScale
from gssf_plug.retrieval import NeckLoss, RetrievalTrainer
from recipes.data import RecipeData
from recipes.options import Recipe

SCORE_COPIES = 6  # scores, masks and what a loss keeps of them, in float32


def render_plan(recipe: Recipe, data: RecipeData, trainer: RetrievalTrainer) -> str:
    """The plan as text, one line for each thing."""
    config, model = recipe.training, trainer.model
    lines = [("recipe", recipe.name), ("data", f"{recipe.data.dataset} in '{recipe.data.data_dir}'")]
    if recipe.run.train:
        lines.append((f"  {recipe.data.train_split}", data.count))
    for split, held in ((recipe.data.validation_split, data.validation), (recipe.data.test_split, data.test)):
        if held is not None:
            lines.append((f"  {split}", held.count))
    total, trained = _count(model.parameters()), _count(p for p in trainer.objective.parameters() if p.requires_grad)
    lines.append(("model", f"{type(model).__name__}, {total:,} parameters; with the loss {trained:,} are trained"))
    for name, part in model.named_children():
        lines.append((f"  {name}", f"{_count(part.parameters()):,}"))
    loss = trainer.accelerator.unwrap_model(trainer.objective).loss
    lines.append(("loss", loss_in_words(loss)))
    processes = trainer.accelerator.num_processes
    per_epoch = trainer.steps // config.epochs
    batch = f"batches of {_rows(trainer):,} rows" + (f" on {processes} processes" if processes > 1 else "")
    lines.append(("steps", f"{trainer.steps:,} = {config.epochs} epochs × {per_epoch:,}; {batch}"))
    rates = {group["name"]: f"{group['name']} {group['peak']:g}" for group in trainer.optimizer.param_groups}
    lines.append(("rates", f"{', '.join(rates.values())}; {config.schedule}"))
    lines.append(("memory", _memory(trainer, trained, total)))
    width = max(len(name) for name, _ in lines)
    return "\n".join(f"{name:{width}}  {text}" for name, text in lines)


def loss_in_words(loss: nn.Module) -> str:
    """A loss and its settings as one reads them aloud: "batch hard triplet (margin 0.3)"."""
    if isinstance(loss, NeckLoss):
        before = "" if loss.before is None else f"before the neck {loss_in_words(loss.before)}; "
        return f"{before}after the neck {loss_in_words(loss.after)}"
    if isinstance(loss, WeightedSum):
        weighted = zip(loss.weights, loss.losses, strict=True)
        return " + ".join(("" if weight == 1 else f"{weight:g} × ") + loss_in_words(part) for weight, part in weighted)
    inner = getattr(loss, "loss", None)  # of pytorch-metric-learning, in the wrapper that the trainer takes
    if isinstance(inner, nn.Module):
        return loss_in_words(inner)
    settings = [
        f"{name.replace('_', ' ')} {value:g}"
        for name, value in vars(loss).items()
        if isinstance(value, int | float) and not isinstance(value, bool) and not name.startswith("_")
    ]
    scale = getattr(loss, "scale", None)
    if isinstance(scale, LearnedScale):
        learned = any(parameter.requires_grad for parameter in scale.parameters())
        settings.append("learned scale" if learned else "fixed scale")
    distance = getattr(loss, "distance", None)
    if distance is not None:
        settings.append(f"by {_spoken(distance)}")
    return _spoken(loss) + (f" ({', '.join(settings)})" if settings else "")


def _spoken(part: object) -> str:
    """A class's name as words: BatchHardTriplet becomes "batch hard triplet", InfoNCE stays."""
    words = re.split("(?<=[a-z])(?=[A-Z][a-z])", type(part).__name__)
    return " ".join(word.lower() if word.istitle() else word for word in words)


def kept_bytes(trainer: RetrievalTrainer, rows: list[int]) -> int:
    """Bytes that the forward pass of some rows keeps for the backward pass, parameters left out."""
    objective = trainer.accelerator.unwrap_model(trainer.objective)
    own = {parameter.untyped_storage().data_ptr() for parameter in objective.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    batch = trainer.collate([trainer.train_data[row] for row in rows])
    objective.train()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = objective(send_to_device(batch, trainer.accelerator.device))
        total = sum(kept.values())
    del loss
    return total


def activation_bytes(trainer: RetrievalTrainer) -> float:
    """Bytes that a process keeps for the backward pass of its part of a batch, from four and eight rows."""
    batch = next(iter(trainer.feed.batches))
    few, more = batch[:4], batch[:8]
    kept = kept_bytes(trainer, few)
    per_row = (kept_bytes(trainer, more) - kept) / (len(more) - len(few)) if len(more) > len(few) else kept / len(few)
    return max(0.0, kept + per_row * (len(batch) / trainer.accelerator.num_processes - len(few)))


def _memory(trainer: RetrievalTrainer, trained: int, total: int) -> str:
    sizes = {
        "weights, gradients and optimizer": 4 * total + 12 * trained,
        "activations": activation_bytes(trainer),
        "scores": 4 * SCORE_COPIES * _rows(trainer) ** 2,
    }
    text = " + ".join(f"{name} {size / 2**20:,.0f} MiB" for name, size in sizes.items())
    return f"about {sum(sizes.values()) / 2**30:.1f} GiB per process in float32: {text}"


def _rows(trainer: RetrievalTrainer) -> int:
    """Rows of a batch, of all processes together."""
    return len(next(iter(trainer.feed.batches)))


def _count(parameters: Iterable[nn.Parameter]) -> int:
    return sum(parameter.numel() for parameter in parameters)
