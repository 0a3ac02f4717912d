"""torch's own attention layer: its fast path, compiled, exported, quantised around it."""

import copy
import warnings

import pytest
import torch
from attention.patching import perturb
from torch import Tensor, nn

from gssf_plug.attention import AttentionPatch, patch_attention

X = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0))


class Attending(nn.Module):
    """nn.MultiheadAttention on its own; with widths that differ it keeps three weights."""

    def __init__(self, kdim: int | None = None) -> None:
        super().__init__()
        self.attend = nn.MultiheadAttention(16, 4, batch_first=True, kdim=kdim, vdim=kdim)
        self.kdim = kdim

    def forward(self, x: Tensor) -> Tensor:
        keys = x if self.kdim is None else x[..., : self.kdim]
        return self.attend(x, keys, keys, need_weights=False)[0]


def encoder() -> nn.Module:
    """torch's encoder, whose layers have a fused path for inference."""
    layer = nn.TransformerEncoderLayer(16, 4, dim_feedforward=24, batch_first=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of nested tensors
        return nn.TransformerEncoder(layer, 2)


def patched(model: nn.Module) -> tuple[nn.Module, AttentionPatch]:
    model.eval()
    name = next(iter(dict(model.named_children()).values()))
    argument = "src" if isinstance(name, nn.ModuleList) else "x"
    patch = patch_attention(model, block_size=2, example_inputs={argument: X})
    torch.manual_seed(1)
    perturb(patch, 0.5)
    return model, patch


@pytest.mark.parametrize("make", [Attending, lambda: Attending(8), encoder], ids=["own", "widths differ", "encoder"])
def test_merged_disabled_and_with_gradients_agree(make: object) -> None:
    """The fused path for inference must not go round the metric, nor the path with gradients differ from it."""
    model, patch = patched(make())
    with torch.no_grad():
        got = model(X)
        with patch.disabled():
            plain = model(X)
    assert not torch.allclose(got, plain, atol=1e-2)
    torch.testing.assert_close(model(X), got, atol=1e-6, rtol=1e-5)
    patch.merge()
    with torch.no_grad():
        torch.testing.assert_close(model(X), got, atol=1e-5, rtol=1e-5)
        patch.unmerge()
        patch.remove()
        assert torch.equal(model(X), plain)


@pytest.mark.compile
@pytest.mark.parametrize("make", [Attending, lambda: Attending(8), encoder], ids=["own", "widths differ", "encoder"])
def test_compiled(make: object) -> None:
    model, patch = patched(make())
    expected = model(X)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.testing.assert_close(torch.compile(model, backend="aot_eager")(X), expected, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(model(X), expected)  # nothing is left in the shadow of a weight
    assert not torch.allclose(patch.model(X * 0.5), expected)


@pytest.mark.parametrize("make", [Attending, encoder], ids=["own", "encoder"])
def test_dynamic_quantisation_after_the_patch(make: object) -> None:
    """torch quantises the linear layers beside the attention; its query weight stays real, and the metric acts."""
    model, patch = patched(make())
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        small = torch.ao.quantization.quantize_dynamic(copy.deepcopy(model), {nn.Linear}, dtype=torch.qint8)
        got, exact = small(X), model(X)
        with patch.disabled():
            plain = model(X)
        twin = AttentionPatch(small)
        with twin.disabled():
            off = small(X)
    assert (got - exact).abs().mean() < 0.2 * (exact - plain).abs().mean()
    assert (off - plain).abs().mean() < 0.2 * (exact - plain).abs().mean()
