"""Structures suit the width; the closed form is the inverse of the pairs' covariance."""

import pytest
import torch
from retrieval.fitting.noisy_channels import noisy_channels

from gssf_plug.retrieval.fitting.candidates import make_candidates
from gssf_plug.retrieval.fitting.closed_form import PairCovariance
from gssf_plug.retrieval.fitting.splits import read_part
from gssf_plug.retrieval.fitting.validation import make_look


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


@pytest.mark.parametrize("shrinkage", [0.01, 1.0])
def test_the_closed_form_is_an_inverse(shrinkage: float) -> None:
    queries, documents, pairs = noisy_channels(400)
    covariance = PairCovariance(read_part(("q", "d", "p", "i"), (queries, documents, pairs), None, None), 0)
    x, y = (torch.nn.functional.normalize(side.double(), dim=1) for side in (queries, documents))
    gaps = x - y[pairs[:, 1]]
    within = gaps.T @ gaps / len(gaps)
    scale = within.trace() / 24
    expected = torch.linalg.inv(within + shrinkage * scale * torch.eye(24)) * (1 + shrinkage) * scale
    found = covariance.metric(shrinkage, normalize=True).matrix().detach().double()
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    root = covariance.whitening(shrinkage).root.double()
    torch.testing.assert_close(root @ root, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["whitening", "metric"])
def test_in_its_own_axes_the_closed_form_is_diagonal_and_says_the_same(kind: str) -> None:
    queries, documents, pairs = noisy_channels(400)
    part = read_part(("q", "d", "p", "i"), (queries, documents, pairs, None), None, None)
    covariance, look = PairCovariance(part, 0), make_look(part, "mAP", 0)
    options = {"normalize": False} if kind == "metric" else {}
    for shrinkage in (0.01, 0.3, 10.0):
        plain, turned = (getattr(covariance, kind)(shrinkage, turned=each, **options) for each in (False, True))
        axes = covariance.axes
        x, y = part.queries.rows(slice(None)), part.documents.rows(slice(None))
        scores = plain.fold(x) @ plain.gallery(y).T, turned.fold(x @ axes) @ turned.gallery(y @ axes).T
        torch.testing.assert_close(*scores, atol=2e-5, rtol=1e-4)
        values = look.values(plain), look.turned(axes).values(turned)
        torch.testing.assert_close(*values, atol=0.2, rtol=0)
    assert look.values(covariance.whitening(0.3)).mean() > look.values(covariance.whitening(10.0)).mean() + 1
