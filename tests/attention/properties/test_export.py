"""torch.export and ONNX of the patched and of the merged model; low precision; gradient checkpointing."""

import warnings
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from attention.patching import hidden, perturb
from attention.small_models import IDS, small_bert, small_llama, small_qwen
from torch import Tensor, nn

from gssf_plug.attention import AttentionPatch, patch_attention

EVERYWHERE = pytest.mark.parametrize("sites", ["projection", "score"])


def patched(make: object, sites: str) -> tuple[nn.Module, AttentionPatch]:
    model = make()
    patch = patch_attention(model, block_size=4, sites=sites)
    perturb(patch, 0.5)
    return model, patch


class Logits(nn.Module):
    """One input, one output: what an exporter wants."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.model(input_ids=input_ids, use_cache=False)[0]


@pytest.mark.parametrize(
    ("make", "sites"), [(small_bert, "projection"), (small_llama, "projection"), (small_llama, "score")]
)
def test_exported(make: object, sites: str) -> None:
    """Also for batches and lengths that were not traced."""
    model, patch = patched(make, sites)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dynamic = {"input_ids": {0: torch.export.Dim("batch", min=2), 1: torch.export.Dim("length", min=3, max=30)}}
        program = torch.export.export(Logits(model), (IDS,), dynamic_shapes=dynamic)
    ids = torch.randint(64, (3, 12))
    expected = hidden(model, ids, use_cache=False)
    torch.testing.assert_close(program.module()(ids), expected, atol=1e-5, rtol=1e-5)
    with patch.disabled():
        assert not torch.allclose(hidden(model, ids, use_cache=False), expected, atol=1e-2)


@pytest.mark.parametrize(
    ("make", "sites", "state"),
    [(small_llama, "projection", "patched"), (small_llama, "score", "patched"), (small_bert, "projection", "merged")],
)
def test_onnx(tmp_path: Path, make: object, sites: str, state: str) -> None:
    """onnxruntime gives what the model gives; merging is one way, exporting as it is the other."""
    model, patch = patched(make, sites)
    expected = hidden(model, IDS, use_cache=False)
    if state == "merged":
        patch.merge()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(Logits(model), (IDS,), tmp_path / "model.onnx", dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {session.get_inputs()[0].name: IDS.numpy()})
    np.testing.assert_allclose(got, expected.numpy(), atol=2e-5, rtol=1e-4)


@pytest.mark.compile
def test_compiled_whole_for_every_length() -> None:
    """At both sites, each in a layer of its own."""
    model = small_llama()
    for layer, sites in enumerate(("projection", "score")):
        patch_attention(model, block_size=4, sites=sites, layers=[layer])
    patch = AttentionPatch(model)
    perturb(patch, 0.5)
    compiled = torch.compile(Logits(model), fullgraph=True, dynamic=True, backend="aot_eager")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for length in (7, 12, 5):
            ids = torch.randint(64, (2, length))
            torch.testing.assert_close(compiled(ids), hidden(model, ids), atol=1e-5, rtol=1e-5)
        before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
        compiled(torch.randint(64, (2, 9)))
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == before
        compiled(IDS).square().mean().backward()
    got = [parameter.grad.clone() for parameter in patch.parameters()]
    model.zero_grad()
    Logits(model)(IDS).square().mean().backward()
    for one, parameter in zip(got, patch.parameters(), strict=True):
        torch.testing.assert_close(one, parameter.grad, atol=1e-6, rtol=1e-4)


@EVERYWHERE
@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("make", [small_bert, small_llama, small_qwen])
def test_gradient_checkpointing_gives_the_same_gradients(make: object, reentrant: bool, sites: str) -> None:
    model, patch = patched(make, sites)
    patch.freeze_base()
    model.train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    gradients = []
    for checkpointed in (False, True):
        if checkpointed:
            model.activation_checkpointing_enable({"use_reentrant": reentrant})
        model.zero_grad()
        model(IDS, use_cache=False)[0].square().mean().backward()
        gradients.append([parameter.grad.clone() for parameter in patch.parameters()])
        assert all(parameter.grad is None for name, parameter in model.named_parameters() if ".gssf." not in name)
    assert all(gradient.any() for gradient in gradients[0])
    for plain, again in zip(*gradients, strict=True):
        torch.testing.assert_close(again, plain, atol=1e-7, rtol=1e-5)


@EVERYWHERE
def test_autocast(sites: str) -> None:
    """Half-precision products, float32 metric: near float32, and a step as small as 1e-3 survives."""
    model, patch = patched(small_llama, sites)
    exact = hidden(model, IDS)
    with torch.autocast("cpu", torch.bfloat16):
        near = hidden(model, IDS)
        with patch.disabled():
            other = hidden(model, IDS)
    assert (near.float() - exact).abs().mean() < 0.1 * (other.float() - exact).abs().mean()
    with torch.autocast("cpu", torch.bfloat16):
        model(IDS)[0].float().square().mean().backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.any() for p in patch.parameters())


@EVERYWHERE
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_base_with_a_float32_metric(dtype: torch.dtype, sites: str) -> None:
    model = small_llama().to(dtype)
    before = hidden(model, IDS)
    patch = patch_attention(model, block_size=4, sites=sites)
    assert torch.equal(hidden(model, IDS), before)
    assert {parameter.dtype for parameter in patch.parameters()} == {torch.float32}
    patch.freeze_base()
    model(IDS, use_cache=False)[0].float().square().mean().backward()
    with torch.no_grad():
        for parameter in patch.parameters():
            assert parameter.grad.dtype == torch.float32
            parameter.sub_(1e-3 * parameter.grad.sign())
    assert not torch.equal(hidden(model, IDS), before)  # 1 - 1e-3 would be 1 in bfloat16
