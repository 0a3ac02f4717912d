"""Structures suit the width, and a constraint reaches each."""

import pytest
import torch

from gssf_plug.retrieval.fitting.candidates import make_candidates


@pytest.mark.parametrize(
    ("dim", "names"),
    [
        (8, ["diagonal", "dense"]),
        (100, ["diagonal", "blocks of 20", "blocks of 50", "dense"]),
        (131, ["diagonal", "blocks of 16 and 3", "blocks of 64 and 3", "dense"]),
        (384, ["diagonal", "blocks of 16", "blocks of 64", "blocks of 128", "dense"]),
    ],
)
def test_blocks_suit_the_width(dim: int, names: list[str]) -> None:
    made = make_candidates("auto", "softmax", None, dim)
    assert [candidate.name for candidate in made] == names
    x, y = torch.randn(4, dim), torch.randn(5, dim)
    cosine = torch.nn.functional.normalize(x, dim=1) @ torch.nn.functional.normalize(y, dim=1).T
    for candidate in made:
        torch.testing.assert_close(candidate.metric(normalize=True)(x, y), cosine)


def test_a_constraint_reaches_every_structure() -> None:
    for candidate in make_candidates("auto", None, "symmetric", 131):
        assert candidate.metric(normalize=True).constraint == "symmetric"
    own = make_candidates([{"terms": ("dense",), "constraint": None}], None, "symmetric", 16)
    assert own[0].metric(normalize=True).constraint is None
