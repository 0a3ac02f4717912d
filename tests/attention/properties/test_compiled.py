"""torch.compile and the patch in any order: what runs is always what the model says."""

from collections.abc import Iterator

import pytest
import torch
from attention.patching import hidden, perturb
from attention.small_models import small_bert
from torch import Tensor, nn

from gssf_plug.attention import patch_attention

pytestmark = pytest.mark.compile


@pytest.fixture(autouse=True)
def as_torch_ships() -> Iterator[None]:
    """As in a process that patched nothing yet: hooks are taken for fixed."""
    torch.compiler.reset()
    torch._dynamo.config.skip_nnmodule_hook_guards = True
    yield
    torch.compiler.reset()


def compiled(model: nn.Module) -> nn.Module:
    return torch.compile(model, backend="eager")


@pytest.mark.parametrize("order", ["compiled and run before", "another one compiled before", "compiled after", "parts"])
def test_the_metric_acts_in_whatever_order(order: str, ids: Tensor) -> None:
    plain, model = small_bert(), small_bert()
    before, run = hidden(plain, ids), model
    if order == "another one compiled before":
        hidden(compiled(plain), ids)
    if order == "compiled and run before":
        run = compiled(model)
        hidden(run, ids)
    if order == "parts":
        for layer in model.encoder.layer:
            layer.compile(backend="eager")
        hidden(model, ids)
    patch = patch_attention(model, block_size=4)
    if "after" in order or "another" in order:
        run = compiled(model)
    assert torch.equal(hidden(run, ids), before)
    perturb(patch)
    patched = hidden(run, ids)
    assert not torch.allclose(patched, before, atol=1e-2)
    assert torch.equal(hidden(compiled(plain), ids), before)
    assert torch.equal(hidden(run, ids), patched)
    with patch.disabled():
        assert torch.equal(hidden(run, ids), before)
    patch.merge()
    torch.testing.assert_close(hidden(run, ids), patched, atol=1e-5, rtol=1e-5)
    patch.unmerge()
    assert torch.equal(hidden(run, ids), patched)
    patch.remove()
    assert torch.equal(hidden(run, ids), before)
