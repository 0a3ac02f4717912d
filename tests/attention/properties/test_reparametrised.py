"""Query projections whose weight is computed from other parameters: the metric acts on what they put out."""

import warnings
from collections.abc import Callable

import pytest
import torch
from attention.patching import hidden, perturb
from attention.small_models import small_bert
from torch import Tensor, nn
from torch.nn.utils import parametrizations, remove_weight_norm
from torch.nn.utils.parametrize import remove_parametrizations
from transformers import BertModel

from gssf_plug.attention import patch_attention
from gssf_plug.errors import ArgumentError

Change = Callable[[nn.Linear], object]


def old_weight_norm(layer: nn.Linear) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # it says that there is a new one
        nn.utils.weight_norm(layer)


KINDS: dict[str, tuple[Change, Change]] = {
    "weight_norm": (parametrizations.weight_norm, lambda layer: remove_parametrizations(layer, "weight")),
    "spectral_norm": (parametrizations.spectral_norm, lambda layer: remove_parametrizations(layer, "weight")),
    "orthogonal": (parametrizations.orthogonal, lambda layer: remove_parametrizations(layer, "weight")),
    "old weight_norm": (old_weight_norm, remove_weight_norm),
}


def queries(model: BertModel) -> list[nn.Linear]:
    return [layer.attention.self.query for layer in model.encoder.layer]


@pytest.mark.parametrize("kind", KINDS)
def test_the_metric_acts_behind_it_and_merges_once_it_is_plain(bert: BertModel, ids: Tensor, kind: str) -> None:
    apply, undo = KINDS[kind]
    for query in queries(bert):
        apply(query)
    before, state = hidden(bert, ids), {key: value.clone() for key, value in bert.state_dict().items()}
    patch = patch_attention(bert.train(), block_size=4)  # spectral_norm iterates in training mode
    bert.eval()
    assert all(torch.equal(value, state[key]) for key, value in bert.state_dict().items() if key in state)
    assert torch.equal(hidden(bert, ids), before)
    perturb(patch)
    patched = hidden(bert, ids)
    assert not torch.allclose(patched, before, atol=1e-3)
    bert(ids)[0].square().mean().backward()
    assert all(p.grad is not None and p.grad.any() for p in [*patch.parameters(), *queries(bert)[0].parameters()])

    with pytest.raises(ArgumentError, match=r"'encoder.layer.0.attention.self' \(2 of 2 layers\), where its weight is "
                       "computed from other parameters .weight_norm"):  # fmt: skip
        patch.merge()
    assert patch.summary().count("computed from other parameters") == 2
    assert torch.equal(hidden(bert, ids), patched)
    assert all(torch.equal(value, state[key]) for key, value in bert.state_dict().items() if key in state)

    undo(queries(bert)[1])
    report = patch.merge(partial=True)
    assert list(report.refused) == ["encoder.layer.0.attention.self"]
    torch.testing.assert_close(hidden(bert, ids), patched, atol=1e-5, rtol=1e-5)
    patch.unmerge()
    patch.remove()
    torch.testing.assert_close(hidden(bert, ids), before, atol=1e-6, rtol=1e-5)
    assert not any(".gssf." in key for key in bert.state_dict())


def test_removed_without_a_trace(bert: BertModel, ids: Tensor) -> None:
    parametrizations.weight_norm(queries(bert)[0])
    before, state = hidden(bert, ids), {key: value.clone() for key, value in bert.state_dict().items()}
    patch = patch_attention(bert, block_size=4)
    perturb(patch)
    patch.remove()
    assert torch.equal(hidden(bert, ids), before)
    assert bert.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[key]) for key, value in bert.state_dict().items())


@pytest.mark.bad_input
def test_a_computed_weight_that_no_module_puts_out_is_refused() -> None:
    """nn.MultiheadAttention hands its weight on, and a computed one cannot be replaced for the time of a call."""
    model = nn.TransformerEncoderLayer(16, 4, 24, batch_first=True)
    parametrizations.weight_norm(model.self_attn, "in_proj_weight")
    keys = list(model.state_dict())
    with pytest.raises(ArgumentError, match="of its own, but got a parametrisation that computes them at 'self_attn'"):
        patch_attention(model, block_size=2, example_inputs={"src": torch.randn(2, 5, 16)})
    assert list(model.state_dict()) == keys


@pytest.mark.bad_input
def test_a_traced_model_is_refused(ids: Tensor) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(small_bert(), ids, strict=False)
    with pytest.raises(ArgumentError, match="be patched before it is traced or scripted, but got a TopLevelTraced"):
        patch_attention(traced, block_size=4)
