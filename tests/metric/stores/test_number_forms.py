"""Each form is its own inverse's inverse, and is told from the others by the numbers alone."""

import numpy as np
import pytest

from gssf_plug.metric.stores.number_forms import FORMS, fitting_forms

PAIRS = 200


def pairs(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores and lengths of random pairs in eight dimensions."""
    draw = np.random.default_rng(seed)
    f, g = 1.3 * draw.normal(size=(PAIRS, 8)), draw.normal(size=(PAIRS, 8))
    return (f * g).sum(1), np.linalg.norm(f, axis=1), np.linalg.norm(g, axis=1)


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_there_and_back(form):
    s, f, g = pairs()
    np.testing.assert_allclose(form.to_score(form.from_score(s, f, g), f, g), s, atol=1e-9)


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_the_form_is_told_from_the_numbers_also_rounded(form):
    s, f, g = pairs()
    numbers = form.from_score(s, f, g)
    assert next(iter(fitting_forms(numbers, s, f, g))) == form.name
    codes = numbers + 0.01 * form.unit(f, g) * np.random.default_rng(1).normal(size=PAIRS)
    assert list(fitting_forms(codes, s, f, g)) == [form.name]


def test_the_formulas_are_those_of_the_vectors():
    draw = np.random.default_rng(2)
    f, g = draw.normal(size=8), draw.normal(size=8)
    given = f @ g, np.linalg.norm(f), np.linalg.norm(g)
    values = {form.name: form.from_score(*map(np.float64, given)) for form in FORMS}
    assert values["L2"] == pytest.approx(np.linalg.norm(f - g))
    assert values["squared L2"] == pytest.approx(((f - g) ** 2).sum())
    assert values["cos"] == pytest.approx(f @ g / np.linalg.norm(f) / np.linalg.norm(g))
    assert values["1−cos"] == pytest.approx(1 - values["cos"])
    assert values["−f·g"] == pytest.approx(-(f @ g))
    assert values["1−f·g"] == pytest.approx(1 - f @ g)


def test_unit_vectors_leave_two_forms_and_noise_none():
    s = np.linspace(-0.9, 0.9, PAIRS)
    one = np.ones(PAIRS)
    assert set(fitting_forms(s, s, one, one)) == {"f·g", "cos"}
    assert fitting_forms(100 * s + 7, s, one, one) == {}
    assert fitting_forms(s[:0], s[:0], one[:0], one[:0]) == {}
