"""Whitening by pairs and the closed form: the inverse of the pairs' covariance, in any axes."""

import pytest
import torch
from retrieval.fitting.noisy_channels import noisy_channels

from gssf_plug.retrieval.fitting import closed_form
from gssf_plug.retrieval.fitting.closed_form import PairCovariance
from gssf_plug.retrieval.fitting.splits import read_part
from gssf_plug.retrieval.fitting.validation import make_look


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


def test_an_item_is_no_pair_of_itself_and_a_part_of_many_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    items = torch.randn(40, 8)
    same = torch.arange(40)[:, None] // 4 == torch.arange(40) // 4  # each with itself, too
    part = read_part(("q", "d", "p", "i"), (items, items, same), None, None)
    x = torch.nn.functional.normalize(items.double(), dim=1)
    rows, columns = (same & ~torch.eye(40).bool()).nonzero(as_tuple=True)
    gaps = x[rows] - x[columns]
    values = torch.linalg.eigvalsh(gaps.T @ gaps / len(gaps))
    torch.testing.assert_close(PairCovariance(part, 0).values, values, atol=1e-6, rtol=1e-5)
    monkeypatch.setattr(closed_form, "MOST", 30)
    drawn, again, other = (PairCovariance(part, seed).values for seed in (0, 0, 1))
    assert torch.equal(drawn, again)
    assert not torch.equal(drawn, other)


def test_both_sides_are_whitened_and_normalised_again() -> None:
    queries, documents, pairs = noisy_channels(200)
    part = read_part(("q", "d", "p", "i"), (queries, documents, pairs), None, None)
    whitening = PairCovariance(part, 0).whitening(0.1)
    x = torch.nn.functional.normalize(queries, dim=1)
    expected = torch.nn.functional.normalize((x - whitening.mean) @ whitening.root, dim=1)
    torch.testing.assert_close(whitening.fold(x), expected)
    torch.testing.assert_close(whitening.gallery(x), expected)
