"""Rows in a short dtype: `rest` bounds how far each is from the row that it stands for, whatever the features are."""

import pytest
import torch

from gssf_plug.metric.exact.fast_rows import fast_rows, given_rows

DIM, ROWS = 24, 300
KINDS = {
    "random": lambda: torch.randn(ROWS, DIM),
    "half": lambda: torch.randn(ROWS, DIM).half(),
    "double": lambda: torch.randn(ROWS, DIM).double(),
    "signs": lambda: torch.randn(ROWS, DIM).sign(),
    "heavy tails": lambda: torch.randn(ROWS, DIM) / torch.rand(ROWS, DIM).clamp_min(1e-6),
    "one huge channel": lambda: torch.randn(ROWS, DIM) * torch.tensor([1e6] + [1.0] * (DIM - 1)),
    "some zero rows": lambda: torch.randn(ROWS, DIM) * (torch.rand(ROWS, 1) < 0.7),
    "subnormal": lambda: torch.randint(-3, 4, (ROWS, DIM)) * 2.0**-149,
    "huge": lambda: 1e38 * torch.rand(ROWS, DIM),
    "lengths from 1e-12 to 1e12": lambda: torch.randn(ROWS, DIM) * 10.0 ** torch.randint(-12, 13, (ROWS, 1)),
}
DTYPES = [torch.bfloat16, torch.float16, torch.float32]


def stood_for(features, normalize, exponent):
    rows = features.double() * 2.0 ** -max(-1000, min(1000, exponent))
    if not normalize:
        return rows
    rows = features.double() / features.double().abs().amax(1, keepdim=True).clamp_min(5e-324)
    norms = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    return rows / norms.masked_fill(norms == 0, 1.0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_no_row_is_farther_or_longer_than_said(kind, normalize, dtype):
    features = KINDS[kind]()
    for rows in (given_rows(features, normalize), fast_rows(features, normalize, torch.float32)):
        if dtype == torch.float16 and not normalize:
            continue  # raw rows may leave its range
        short = rows.to(dtype)
        assert short.rows.dtype == dtype
        values = short.rows.double() * (1.0 if short.factors is None else short.factors.double()[:, None])
        away = torch.linalg.vector_norm(values - stood_for(features, normalize, short.exponent), dim=1)
        assert bool((away <= short.rest).all())
        assert bool((torch.linalg.vector_norm(values, dim=1) <= short.norm + short.rest).all())
