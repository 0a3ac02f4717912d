"""The options of a metric: what each check takes, gives, and refuses by name."""

import pytest
import torch

from gssf_plug import GSSFMetric
from gssf_plug.errors import ArgumentError
from gssf_plug.metric import options

pytestmark = pytest.mark.bad_input


def refuses(match, check, *given, **named):
    with pytest.raises(ArgumentError, match=match):
        check(*given, **named)


def test_terms_come_in_the_order_in_which_they_are_built():
    assert options.canonical_terms(("dense", "diagonal")) == ("diagonal", "dense")
    assert options.canonical_terms({"block_diagonal", "diagonal"}) == ("diagonal", "block_diagonal")
    assert options.canonical_terms("dense") == ("dense",)
    for wrong in ((), ("dense", "dense"), None, 3):
        refuses("`terms` must be a tuple of different term names", options.canonical_terms, wrong)
    refuses("`terms` must hold only .*, but got 'diagonl'. .*diagonal", options.canonical_terms, ("diagonl",))


def test_a_chunk_is_at_most_all():
    assert [options.checked_chunk("chunk", size, 10) for size in (1, 10, 11)] == [1, 10, 10]
    assert options.checked_chunk("chunk", 5, 0) == 1
    refuses("`chunk` must be at least 1, but got 0", options.checked_chunk, "chunk", 0, 10)


def test_a_metric_is_known_by_what_it_does():
    options.check_metric(None)
    options.check_metric(GSSFMetric(4, block_size=2))
    refuses("`metric` must be a GSSFMetric or None, but got str. None means cosine", options.check_metric, "cosine")


def test_block_sizes_divide_the_width():
    assert options.checked_block_size(4, 12) == 4
    refuses(
        r"`block_size` must divide dim=12, but got 5. Use one of \[1, 2, 3, 4, 6, 12\]",
        options.checked_block_size, 5, 12,
    )  # fmt: skip
    refuses("`block_size` must be a whole number of at least 1", options.checked_block_size, 0, 12)


def test_constraints():
    for right in (None, "symmetric", "psd"):
        options.check_constraint(right)
    refuses("`constraint` must be None or one of .*, but got 'pds'. .*psd", options.check_constraint, "pds")
    refuses("`constraint` must be None or one of", options.check_constraint, True)


def test_adjacencies():
    full, triangle = torch.ones(3, 3).bool(), torch.ones(3, 3).tril().bool()
    options.check_adjacency(triangle, 3, None)
    options.check_adjacency(full, 3, "symmetric")
    check = options.check_adjacency
    refuses("`adjacency` must be a boolean tensor of 3×3, but got an array of bool", check, full.numpy(), 3, None)
    refuses("boolean matrix of 3×3, but got torch.float32", check, full.float(), 3, None)
    refuses(r"boolean matrix of 4×4, but got torch.bool of shape \(3, 3\)", check, full, 4, None)
    hole = full.clone()
    hole[1, 1] = False
    refuses(r"must contain the diagonal, .* but got False at \(1, 1\)", check, hole, 3, None)
    refuses("must be symmetric for constraint='symmetric'", check, triangle, 3, "symmetric")
    refuses("not be used with constraint='psd'", check, full, 3, "psd")


def test_groupings_are_copied_permutations():
    given = torch.tensor([2, 0, 1], dtype=torch.int32)
    found = options.checked_grouping(given, 3)
    given[0] = 1
    assert found.tolist() == [2, 0, 1]
    assert found.dtype == torch.long
    for wrong in (torch.tensor([0, 0, 1]), torch.arange(4), torch.tensor([1, 2, 3]), torch.zeros(3, 1).long()):
        refuses(r"`grouping` must be a permutation of 0 … 2, but got shape", options.checked_grouping, wrong, 3)
    refuses("`grouping` must hold whole numbers", options.checked_grouping, torch.arange(3.0), 3)
