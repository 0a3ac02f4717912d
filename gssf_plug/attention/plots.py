"""What the metric did to a model's attention, as matplotlib figures. Save them with `figure.savefig(path)`.

matplotlib is imported when a function is called (`pip install matplotlib`), and its global state (pyplot) is left
alone. The figures bring their own white ground, so they can be read on light and dark pages. Attention is read with the
eager backend, which is set for the time of the call where the model has another.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from gssf_plug.attention.handle import AttentionPatch
from gssf_plug.attention.merging.plan import PatchedLayer
from gssf_plug.errors import ArgumentError, near_matches
from gssf_plug.figures import make_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["attention_maps", "plot_attention", "plot_heads"]


def plot_heads(patch: AttentionPatch, inputs: Mapping[str, Any] | None = None, *, title: str = "") -> "Figure":
    """What each head of each layer learned, one row per layer and one column per head.

    First panel: the spread of the diagonal, its standard deviation, 0 where nothing was learned. Second: the norm of
    what lies off the diagonal, ‖A - diag A‖_F. Third, only with `inputs`: how the entropy of the attention changed, in
    nats, patched less original; below zero the head looks at fewer places. Metrics shared by a layer's heads show the
    same value in each.

    Args:
        patch: the handle of a patched model.
        inputs: keyword arguments of the model's forward. Take real inputs, with their `attention_mask` where they are
            padded.
        title: text above the whole figure; none by default.

    Raises:
        ArgumentError: the patch is merged, or its layers give no attention weights on `inputs`.
        ModuleNotFoundError: matplotlib is not installed.
    """
    blocks = {name: _matrices(patch, name) for name in patch.layers}
    panels = {
        "spread of the diagonal": [each.diagonal(dim1=1, dim2=2).std(1) for each in blocks.values()],
        "norm off the diagonal": [_off_diagonal(each).flatten(1).norm(dim=1) for each in blocks.values()],
    }
    if inputs is not None:
        mask = inputs.get("attention_mask")
        maps = attention_maps(patch, inputs)
        panels["change of entropy (nats)"] = [_entropy(new, mask) - _entropy(old, mask) for old, new in maps.values()]
    named = len(blocks) <= 16  # more layers are numbered, every fifth of them
    height = 1.2 + (0.22 if named else 0.14) * len(blocks)
    figure = make_figure(3 * len(panels), max(2.6, height))
    for axis, (name, rows) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        image = _heat(axis, _stacked(rows), signed="change" in name)
        axis.set(title=name, xlabel="head", ylabel="layer")
        ticks = range(0, len(blocks), 1 if named else 5)
        axis.set_yticks(ticks, list(blocks) if named else ticks, fontsize=5 if named else 8)
        axis.locator_params(axis="x", integer=True)
        figure.colorbar(image, ax=axis)
    figure.suptitle(title, fontsize=10)
    return figure


def plot_attention(
    patch: AttentionPatch,
    inputs: Mapping[str, Any],
    *,
    layer: str,
    head: int,
    tokens: Sequence[str] | None = None,
    title: str = "",
) -> "Figure":
    """One head's attention on the first of `inputs`: original, patched, and patched less original.

    Args:
        patch: the handle of a patched model.
        inputs: keyword arguments of the model's forward.
        layer: path of a patched layer, as in `patch.layers`.
        head: number of the head in that layer, from 0.
        tokens: one text for each position, which labels the axes; None (default) labels them by numbers.
        title: text above the whole figure; none by default.

    Raises:
        ArgumentError: there is no such layer or head, the number of tokens is another one, or the patch is merged.
        ModuleNotFoundError: matplotlib is not installed.
    """
    if layer not in patch.layers:
        raise ArgumentError("layer", "be a patched layer", repr(layer), near_matches(layer, patch.layers))
    heads = patch.layers[layer].metric_layer.heads.query_heads
    if not 0 <= head < heads:
        raise ArgumentError("head", f"be one of the {heads} heads", head, f"Use 0 … {heads - 1}.")
    old, new = (maps[0, head] for maps in attention_maps(patch, inputs)[layer])
    if tokens is not None and len(tokens) != old.shape[-1]:
        raise ArgumentError("tokens", f"be {old.shape[-1]} texts", len(tokens), "Give one for each key position.")
    figure = make_figure(11.0, 4.0)
    strongest = float(torch.maximum(old.max(), new.max()))
    parts = {"original": old, "patched": new, "patched less original": new - old}
    for axis, (name, values) in zip(figure.subplots(1, 3), parts.items(), strict=True):
        signed = name.endswith("less original")
        image = _heat(axis, values, signed=signed, highest=None if signed else strongest)
        axis.set(title=name, xlabel="key", ylabel="query")
        if tokens is not None:
            axis.set_xticks(range(len(tokens)), tokens, rotation=90, fontsize=6)
            axis.set_yticks(range(old.shape[0]), tokens[-old.shape[0] :], fontsize=6)
        figure.colorbar(image, ax=axis)
    figure.suptitle(title or f"{layer}, head {head}", fontsize=10)
    return figure


@torch.no_grad()
def attention_maps(
    patch: AttentionPatch, inputs: Mapping[str, Any]
) -> dict[str, tuple[Float[Tensor, "batch heads queries keys"], Float[Tensor, "batch heads queries keys"]]]:
    """Attention probabilities of each patched layer, original and patched; float32, on the CPU.

    The patched ones are those of the whole patched model: what reaches a layer was changed by the layers before it.

    Args:
        patch: the handle of a patched model.
        inputs: keyword arguments of the model's forward.

    Raises:
        ArgumentError: the patch is merged (unmerge it first), or a layer gives no attention weights.
    """
    if patch.merged:
        raise ArgumentError("patch", "be unmerged to compare attention", "a merged one", "Call patch.unmerge() first.")
    training = {module: module.training for module in patch.model.modules()}
    patch.model.eval()
    try:
        with _eager(patch.model):
            new = _probabilities(patch, inputs)
            with patch.disabled():
                old = _probabilities(patch, inputs)
    finally:
        for module, flag in training.items():
            module.training = flag
    return {name: (old[name], new[name]) for name in patch.layers}


@contextmanager
def _eager(model: nn.Module) -> Iterator[None]:
    """The backend that gives probabilities, inside the context."""
    configuration: Any = getattr(model, "config", None)
    before = getattr(configuration, "_attn_implementation", None)
    change: Any = getattr(model, "set_attn_implementation", None)
    if before in (None, "eager") or change is None:
        yield
        return
    change("eager")
    try:
        yield
    finally:
        change(before)


def _probabilities(patch: AttentionPatch, inputs: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensor (B, H, T, S) that each layer gives beside its output."""
    found: dict[str, Tensor] = {}

    def note(name: str, layer: PatchedLayer) -> Any:
        def hook(module: nn.Module, arguments: object, output: object) -> None:
            parts = output if isinstance(output, (tuple, list)) else ()
            for part in parts:
                if (
                    isinstance(part, Tensor)
                    and part.ndim == 4
                    and part.shape[1] == layer.metric_layer.heads.query_heads
                ):
                    found.setdefault(name, part.detach().float().cpu())

        return hook

    hooks = [layer.owner.register_forward_hook(note(name, layer)) for name, layer in patch.layers.items()]
    try:
        patch.model(**inputs, output_attentions=True)
    finally:
        for hook in hooks:
            hook.remove()
    for name in patch.layers:
        if name not in found:
            rule, got = "come from layers that give their attention", f"none from '{name}'"
            raise ArgumentError(
                "inputs", rule, got, "Use a model that supports output_attentions, and inputs it reads."
            )
    return found


@torch.no_grad()
def _matrices(patch: AttentionPatch, name: str) -> Tensor:
    """A of each head of one layer (H, d, d); the identity where the adapter does not cover it."""
    query = patch.layers[name].metric_layer
    metric, count, size = query.metric(), query.heads.query_heads, query.heads.head_dim
    if metric is None:
        return torch.eye(size).expand(count, size, size)
    whole = metric.matrix().detach().float().cpu()
    if metric.dim == size:
        return whole.expand(count, size, size)
    # (count, size, count, size): the diagonal over both counts leaves each head's own block
    return whole.unflatten(0, (count, size)).unflatten(2, (count, size)).diagonal(dim1=0, dim2=2).movedim(-1, 0)


def _off_diagonal(matrices: Tensor) -> Tensor:
    return matrices - torch.diag_embed(matrices.diagonal(dim1=1, dim2=2))


def _entropy(maps: Tensor, mask: Any) -> Tensor:
    """Mean over batch and queries of -Σ p log p, per head; rows of padding count nothing."""
    rows = -torch.special.xlogy(maps, maps).sum(-1)
    real = torch.ones(rows.shape[0], rows.shape[2])
    if isinstance(mask, Tensor) and mask.shape == real.shape:
        real = mask.float().cpu()
    return (rows * real[:, None]).sum((0, 2)) / real.sum()


def _stacked(rows: Sequence[Tensor]) -> Tensor:
    """Layers may have different numbers of heads: what is missing stays empty."""
    table = torch.full((len(rows), max(len(row) for row in rows)), float("nan"))
    for place, row in enumerate(rows):
        table[place, : len(row)] = row
    return table


def _heat(axis: Any, values: Tensor, *, signed: bool, highest: float | None = None) -> Any:
    if signed:
        limit = float(values.nan_to_num().abs().max()) or 1.0
        return axis.imshow(values.numpy(), cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto")
    top = highest if highest is not None else float(values.nan_to_num().max()) or 1.0
    return axis.imshow(values.numpy(), cmap="viridis", vmin=0.0, vmax=top, aspect="auto")
