"""What the report refuses; what it says of stores stands in test_check_store.py."""

import pytest
import torch

from gssf_plug.errors import ArgumentError
from gssf_plug.metric.stores.report import StoreReport

QUERIES, DIM, K = 20, 16, 10


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("argument", "value", "said"),
    [
        ("numbers", 1.0, "be a row or table of real numbers"),
        ("numbers", torch.zeros(2, 2, dtype=torch.complex64), "be a row or table of real numbers"),
        ("folded", torch.zeros(3, DIM), r"have one row for each row of `numbers`, of shape \(20, 10\)"),
        ("folded", torch.empty(QUERIES, DIM, device="meta"), "hold values"),
        ("item_lengths", torch.ones(7), r"have one length for each of `numbers`, of shape \(20, 10\)"),
    ],
)
def test_scores_refuse_what_does_not_belong_to_the_numbers(argument, value, said):
    report = StoreReport(K, 1.0, 1.0, "cos", "larger first", 0.0, {}, "not asked", 0, 1.0)
    given = {"numbers": torch.ones(QUERIES, K), "folded": torch.ones(QUERIES, DIM), argument: value}
    with pytest.raises(ArgumentError, match=f"`{argument}` must {said}"):
        report.scores(**given)
