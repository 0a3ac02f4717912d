"""The figures hold what the model computes: spreads, norms, entropies, maps."""

import sys
from pathlib import Path

import pytest
import torch
from attention.patching import hidden, perturb
from attention.small_models import IDS, small_bert, small_llama, small_qwen
from matplotlib.figure import Figure
from torch import Tensor

from gssf_plug.attention import AttentionPatch, patch_attention
from gssf_plug.attention.plots import attention_maps, plot_attention, plot_heads
from gssf_plug.errors import ArgumentError

MASK = torch.tensor([[1, 1, 1, 1, 1, 0, 0], [1] * 7])


def patched(make: object = small_bert, **options: object) -> AttentionPatch:
    patch = patch_attention(make(), **{"block_size": 4, **options})
    perturb(patch, 0.5)
    return patch


def drawn(figure: Figure, panel: int) -> Tensor:
    return torch.from_numpy(figure.axes[panel].images[0].get_array().data)


@pytest.mark.parametrize("per_head", [True, False])
def test_spread_and_norm_of_each_head(per_head: bool, tmp_path: Path) -> None:
    patch = patched(per_head=per_head)
    figure = plot_heads(patch, title="learned")
    for row, layer in enumerate(patch.layers.values()):
        matrix = layer.metric_layer.metric().matrix().detach()
        for head in range(4):
            own = matrix[8 * head : 8 * head + 8, 8 * head : 8 * head + 8] if per_head else matrix
            torch.testing.assert_close(drawn(figure, 0)[row, head], own.diagonal().std())
            torch.testing.assert_close(drawn(figure, 1)[row, head], (own - own.diagonal().diag()).norm())
    assert figure.get_facecolor() == (1.0, 1.0, 1.0, 1.0)  # its own ground: readable on dark pages
    figure.savefig(tmp_path / "heads.png")
    assert (tmp_path / "heads.png").stat().st_size > 1000


def test_a_neutral_patch_shows_nothing() -> None:
    figure = plot_heads(patch_attention(small_bert(), block_size=4), {"input_ids": IDS})
    assert all(drawn(figure, panel).count_nonzero() == 0 for panel in range(3))


@pytest.mark.parametrize("sites", ["projection", "score"])
@pytest.mark.parametrize("make", [small_bert, small_llama])
def test_change_of_entropy_without_padding(make: object, sites: str) -> None:
    """Against the models' own attentions, row by row, padded queries left out."""
    patch = patched(make, sites=sites)
    inputs = {"input_ids": IDS, "attention_mask": MASK}
    figure = plot_heads(patch, inputs)
    assert patch.model.config._attn_implementation == "sdpa"
    patch.model.set_attn_implementation("eager")
    with torch.no_grad():
        new = patch.model(**inputs, output_attentions=True).attentions
        with patch.disabled():
            old = patch.model(**inputs, output_attentions=True).attentions
    for layer in range(2):
        for head in range(4):
            change = [
                sum(-(p[b, head, t] * p[b, head, t].clamp_min(1e-30).log()).sum() for b, t in MASK.nonzero().tolist())
                for p in (new[layer], old[layer])
            ]
            wanted = (change[0] - change[1]) / MASK.sum()
            torch.testing.assert_close(drawn(figure, 2)[layer, head], wanted, atol=1e-5, rtol=1e-4)
    assert drawn(figure, 2).abs().max() > 0.01


def test_maps_of_one_head(tmp_path: Path) -> None:
    patch = patched(small_qwen, layers=[1])
    before, flags = hidden(patch.model, IDS), patch.model.training
    layer = "layers.1.self_attn"
    old, new = attention_maps(patch, {"input_ids": IDS})[layer]
    torch.testing.assert_close(old.sum(-1), torch.ones(2, 4, 7))
    figure = plot_attention(patch, {"input_ids": IDS}, layer=layer, head=2, tokens=list("gssf on"))
    torch.testing.assert_close(drawn(figure, 0), old[0, 2])
    torch.testing.assert_close(drawn(figure, 1), new[0, 2])
    torch.testing.assert_close(drawn(figure, 2), new[0, 2] - old[0, 2])
    assert not torch.allclose(old, new, atol=1e-2)
    assert [text.get_text() for text in figure.axes[0].get_xticklabels()] == list("gssf on")
    figure.savefig(tmp_path / "maps.png")
    assert torch.equal(hidden(patch.model, IDS), before)
    assert patch.model.training == flags
    assert patch.model.config._attn_implementation == "sdpa"


def test_mistakes_are_named() -> None:
    patch = patched()
    inputs, layer = {"input_ids": IDS}, "encoder.layer.0.attention.self"
    with pytest.raises(ArgumentError, match="`layer` must be a patched layer.*Did you mean 'encoder.layer.0.attention"):
        plot_attention(patch, inputs, layer="encoder.layer.0.attention", head=0)
    with pytest.raises(ArgumentError, match="`head` must be one of the 4 heads, but got 4. Use 0 … 3."):
        plot_attention(patch, inputs, layer=layer, head=4)
    with pytest.raises(ArgumentError, match="`tokens` must be 7 texts, but got 2"):
        plot_attention(patch, inputs, layer=layer, head=0, tokens=["a", "b"])
    patch.merge()
    with pytest.raises(ArgumentError, match="be unmerged to compare attention"):
        attention_maps(patch, inputs)


def test_without_matplotlib_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ModuleNotFoundError, match="pip install matplotlib"):
        plot_heads(patched())
