"""Where a search begins: items from every part, and scores that hardly any query fails to reach k times."""

import torch
from metric.scored import NARROW, sum_exactly

from gssf_plug.metric import sample as module
from gssf_plug.metric.exact.canonical import canonical_queries
from gssf_plug.metric.exact.fast_scores import fast_queries
from gssf_plug.metric.exact.first_look import FirstLook
from gssf_plug.metric.sample import Sample


def shown(size):
    """A first look at a gallery of noise, and that gallery."""
    queries = canonical_queries(None, torch.randn(100, NARROW))
    close = fast_queries(queries, torch.float32)
    return FirstLook(queries, close, (torch.int8,)), torch.randn(size, NARROW)


def test_a_small_gallery_is_not_sampled():
    assert Sample.of([slice(0, 4096 * 16 - 1)], 10) is None
    assert Sample.of([], 10) is None
    assert Sample.of([slice(0, 4096 * 16)], 10) is not None


def test_it_takes_rows_from_every_part_that_holds_some_in_a_row(monkeypatch):
    monkeypatch.setattr(module, "SAMPLED", 64)
    monkeypatch.setattr(module, "TIMES", 4)
    parts = [slice(100, 300), slice(300, 303), slice(303, 900)]
    sample = Sample.of(parts, 5)
    runs = sample.items.view(-1, module.IN_A_ROW)
    assert torch.equal(runs, runs[:, :1] + torch.arange(module.IN_A_ROW))
    assert all(any(part.start <= run[0] and run[-1] < part.stop for part in parts) for run in runs.tolist())
    assert {int(run) >= 303 for run in runs[:, 0]} == {True, False}
    assert sample.rank == 8  # 0.45 are expected; four times the root of that, and four


def test_nearly_every_query_reaches_it_with_k_items_and_not_with_many_more(monkeypatch):
    monkeypatch.setattr(module, "SAMPLED", 1000)
    sum_exactly(monkeypatch)
    first, gallery = shown(20_000)
    least = Sample.of([slice(0, 20_000)], 100).least(first, gallery, True, lambda items: None)
    unit = torch.nn.functional.normalize(gallery.double())
    rows = first.usual.rows.double()
    reached = ((rows / rows.norm(dim=1, keepdim=True)) @ unit.T >= least[:, None] * (1 - 1e-6)).sum(1)
    assert (reached >= 100).double().mean() > 0.99
    assert reached.double().median() < 600


def test_hidden_pairs_do_not_count_and_what_is_not_finite_says_nothing(monkeypatch):
    monkeypatch.setattr(module, "SAMPLED", 1000)
    sum_exactly(monkeypatch)
    first, gallery = shown(20_000)
    sample = Sample.of([slice(0, 20_000)], 100)
    least = sample.least(first, gallery, True, lambda items: torch.ones(100, len(items), dtype=torch.bool))
    assert bool((least == -torch.inf).all())
    gallery[sample.items[5]] = torch.nan
    assert sample.least(first, gallery, True, lambda items: None) is None
