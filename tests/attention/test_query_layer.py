"""The patched query against weights that are changed by hand: for each kind of layout the score really is qᵀAk.

The reference is a float64 copy of the model in which each head's rows of the query's weight are multiplied by that
head's matrix, row by row, where a reader of the modelling code finds them; nothing of the library's layouts is used.
"""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase

import pytest
import torch
from attention.patching import perturb
from tools.sweep import find_calls, outputs
from tools.tiny import tiny_model
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from gssf_plug.attention import AttentionPatch, patch_attention


def first(head: int, heads: int, size: int) -> range:
    """Queries lie first: a projection of its own, thirds [Q|K|V], slices [Q|k|v]."""
    return range(head * size, (head + 1) * size)


def by_head(head: int, heads: int, size: int) -> range:
    """q|k|v head by head."""
    return range(3 * head * size, (3 * head + 1) * size)


def grouped(head: int, heads: int, size: int) -> range:
    """Two query heads, then their key and value, group by group."""
    start = (head // 2) * 4 + head % 2
    return range(start * size, (start + 1) * size)


def four_groups(head: int, heads: int, size: int) -> range:
    """CodeGen: four groups of [Q|V|K], each with its share of the heads."""
    share = heads // 4
    start = (head // share) * 3 * share + head % share
    return range(start * size, (start + 1) * size)


@dataclass(frozen=True)
class Case:
    """Where the query is in one model type: the projection's path, its heads, the rows of each, an apart bias."""

    model_type: str
    path: str
    rows: Callable[[int, int, int], range] = first
    heads: int = 4
    size: int = 16
    bias: str = ""


CASES = [
    Case("llama", "*.self_attn.q_proj"),
    Case("opt", "*.self_attn.q_proj"),
    Case("bert", "*.attention.self.query"),
    Case("distilbert", "*.attention.q_lin"),
    Case("t5", "*Attention.q"),
    Case("gpt2", "*.attn.c_attn"),
    Case("blip", "vision_model.*.self_attn.qkv"),
    Case("modernbert", "*.attn.Wqkv"),
    Case("phi3", "*.qkv_proj"),
    Case("mpt", "*.Wqkv"),
    Case("gpt_neox", "*.query_key_value", by_head),
    Case("bloom", "*.query_key_value", by_head),
    Case("deberta", "*.in_proj", by_head, bias="q_bias"),
    Case("falcon", "*.query_key_value"),
    Case("gpt_bigcode", "*.c_attn"),
    Case("codegen", "*.qkv_proj", four_groups),
    Case("gptj", "*.attn.q_proj"),
    Case("deepseek_v3", "*.q_b_proj", size=24),
    Case("squeezebert", "*.query"),
    Case("vilt", "*.attention.query"),
    Case("lxmert", "*.query"),
    Case("visual_bert", "*.query"),
    Case("mpnet", "*.attn.q"),
    Case("deberta-v2", "*.query_proj"),
    Case("bart", "*attn.q_proj"),
    Case("whisper", "*attn.q_proj"),
    Case("wav2vec2", "*.attention.q_proj"),
    Case("clip", "*.self_attn.q_proj"),
    Case("vit", "*.q_proj"),
    Case("llava", "*.self_attn.q_proj"),
]


def matrices(patch: AttentionPatch) -> dict[str, Tensor]:
    """The dense matrix of each patched layer, by path."""
    return {name: layer.metric_layer.metric().matrix().detach() for name, layer in patch.layers.items()}


def blocks(matrix: Tensor, heads: int, size: int) -> Iterator[Tensor]:
    for head in range(heads):
        rows = slice(head * size, (head + 1) * size)
        yield matrix[rows, rows]


@torch.no_grad()
def change_by_hand(model: nn.Module, case: Case, by_layer: dict[str, Tensor]) -> int:
    """Multiply each head's rows of each query weight by its matrix: qᵀA = (x Wᵀ + b) A."""
    changed = 0
    for name, module in model.named_modules():
        owners = [owner for owner in by_layer if name.startswith(f"{owner}.")]
        if not fnmatchcase(name, case.path) or not owners:
            continue
        owner = max(owners, key=len)
        weight = module.weight.T if isinstance(module, Conv1D) else module.weight
        apart = getattr(model.get_submodule(owner), case.bias) if case.bias else None
        for head, a in enumerate(blocks(by_layer[owner], case.heads, case.size)):
            rows = list(case.rows(head, case.heads, case.size))
            weight[rows] = torch.einsum("ij,i...->j...", a, weight[rows])
            if module.bias is not None:
                module.bias[rows] = module.bias[rows] @ a
            if apart is not None:
                own = list(first(head, case.heads, case.size))
                apart[own] = apart[own] @ a
        changed += 1
    return changed


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.model_type)
def test_the_patch_is_the_query_times_its_matrix(case: Case) -> None:
    torch.manual_seed(0)
    model = tiny_model(case.model_type).double()
    with torch.no_grad():  # biases start at zero, and a bias forgotten would not show
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.3)
    reference = copy.deepcopy(model)
    patch = patch_attention(model, terms=("dense",))
    perturb(patch, 0.2)
    patched = {name for name in patch.layers if any(fnmatchcase(n, case.path) for n in below(model, name))}
    assert patched
    for name in patch.layers.keys() - patched:  # other towers of the same model: neutral again
        for parameter in patch.layers[name].metric_layer.metric().parameters():
            parameter.data.copy_(torch.eye(parameter.shape[-1]).expand_as(parameter))
    by_layer = {name: matrix for name, matrix in matrices(patch).items() if name in patched}
    before = [output.clone() for output in _run(reference)]
    assert change_by_hand(reference, case, by_layer) == len(patched)
    expected, got = _run(reference), _run(model)
    assert max(float((a - b).abs().max()) for a, b in zip(expected, before, strict=True)) > 1e-3
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-8)
    patch.merge()
    for one, other in zip(_run(model), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def below(model: nn.Module, owner: str) -> list[str]:
    return [f"{owner}.{name}" for name, _ in model.get_submodule(owner).named_modules()]


def _run(model: nn.Module) -> list[Tensor]:
    with torch.no_grad():
        return outputs(model, find_calls(model))
