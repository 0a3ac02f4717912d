"""The features of one side: rows come out normalised in float32, kept or read where they lie."""

import numpy as np
import pytest
import torch

from gssf_plug.errors import ArgumentError
from gssf_plug.retrieval.fitting import sides
from gssf_plug.retrieval.fitting.sides import Side, read_side


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_rows_are_normalised_in_float32(kept: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    if not kept:
        monkeypatch.setattr(sides, "KEPT_NUMBERS", 0)
    features = torch.randn(7, 4).to(dtype)
    features[2] = 0
    side = Side(features, torch.device("cpu"))
    expected = torch.nn.functional.normalize(features.double(), dim=1)
    for index in (slice(1, 5), torch.tensor([6, 2, 2])):
        found = side.rows(index)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.double(), expected[index], atol=1e-6, rtol=1e-6)
    assert side.rows(slice(2, 3)).eq(0).all()
    assert (len(side), side.dim) == (7, 4)


def test_a_large_side_is_read_where_it_lies(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sides, "KEPT_NUMBERS", 0)
    monkeypatch.setattr(sides, "CHUNK_NUMBERS", 12)
    array = np.random.default_rng(0).standard_normal((7, 4)).astype(np.float16)
    np.save(tmp_path / "x.npy", array)
    side = read_side("documents", np.load(tmp_path / "x.npy", mmap_mode="r"), None)
    chunks = list(side.chunks())
    assert chunks == [slice(0, 3), slice(3, 6), slice(6, 7)]
    found = torch.cat([side.rows(chunk) for chunk in chunks])
    assert torch.equal(found, Side(torch.from_numpy(array), torch.device("cpu")).rows(slice(None)))


def test_gradients_of_the_callers_features_are_left_alone() -> None:
    features = torch.randn(3, 4, requires_grad=True)
    assert not read_side("queries", features, None).rows(slice(None)).requires_grad


@pytest.mark.bad_input
def test_what_cannot_be_ranked_is_named() -> None:
    with pytest.raises(ArgumentError, match="`documents` must have the other side's 8 channels"):
        read_side("documents", torch.randn(3, 4), None, 8)
    with pytest.raises(ArgumentError, match="`queries` must be finite, but got NaN or infinity in row 1, channel 2"):
        read_side("queries", [[0.0, 0.0, 0.0], [0.0, 0.0, float("nan")]], None)
