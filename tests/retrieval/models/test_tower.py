"""Towers: token projections that see no padding, with and without an encoder."""

import pytest
import torch
from torch import nn

from gssf_plug.errors import ArgumentError
from gssf_plug.features import max_pool, mean_pool
from gssf_plug.retrieval import (
    LogSumExp,
    ResidualMLP,
    TextToImage,
    Tower,
)


def regions(lengths=(4, 2, 3), width=5, dim=6):
    mask = torch.arange(width) < torch.tensor(lengths)[:, None]
    features = torch.randn(len(lengths), width, dim).masked_fill(~mask[..., None], float("nan"))
    return {"features": features, "attention_mask": mask}


def test_a_token_projection_sees_valid_tokens_only():
    inputs, seen = regions(), []
    project = nn.Linear(6, 4)
    project.register_forward_hook(lambda module, given, output: seen.append(given[0].shape))
    tower = Tower(None, token_projection=project)
    expected = torch.stack([project(row[valid]).mean(0) for row, valid in zip(*inputs.values(), strict=True)])
    torch.testing.assert_close(tower(inputs), expected)
    assert seen[-1] == (9, 6)
    fragments = tower.fragments(inputs)
    assert fragments.features.isfinite().all()
    assert torch.equal(fragments.mask, inputs["attention_mask"])
    torch.testing.assert_close(mean_pool(fragments.features, fragments.mask), expected)
    whole = torch.randn(3, 5, 6)
    torch.testing.assert_close(tower(whole), project(whole).mean(1))
    torch.testing.assert_close(tower(whole[:, 0]), project(whole[:, 0]))
    assert tower.fragments(whole).mask.all()
    vectors = Tower(nn.Conv2d(3, 6, 3), token_projection=project, pooling=max_pool)(torch.randn(2, 3, 8, 8))
    assert vectors.shape == (2, 4)


def test_padding_is_in_no_batch_statistics():
    mlp = ResidualMLP(6, 4)
    inputs = regions()
    right = mlp(inputs["features"][inputs["attention_mask"]]).detach()
    wide = {name: nn.functional.pad(part, (0, 0, 0, 7) if part.ndim == 3 else (0, 7)) for name, part in inputs.items()}
    mlp.mlp[1].reset_running_stats()
    tokens = Tower(None, token_projection=mlp).fragments(wide)
    torch.testing.assert_close(tokens.features[tokens.mask], right)


@pytest.mark.bad_input
def test_bad_input_is_named():
    with pytest.raises(ArgumentError, match=r"`inputs` must hold 'features' where a tower has no encoder.*'pixels'"):
        Tower(None)({"pixels": torch.ones(1, 2)})
    with pytest.raises(ArgumentError, match="`features` must have the 6 channels that .* reads, but got 5"):
        Tower(None, token_projection=nn.Linear(6, 4))(torch.ones(2, 3, 5))
    with pytest.raises(ArgumentError, match="`features` must have the 7 channels that .* reads, but got 6"):
        Tower(None, token_projection=ResidualMLP(7, 4))(regions())
    with pytest.raises(ArgumentError, match="`temperature` must be above 0, but got 0"):
        TextToImage(temperature=0)
    with pytest.raises(ArgumentError, match="`sharpness` must be above 0, but got -1"):
        LogSumExp(-1)
