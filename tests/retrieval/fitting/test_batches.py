"""Batches: every pair once an epoch, the same for every candidate, and all that is known inside."""

import pytest
import torch
from retrieval.fitting.noisy_channels import noisy_channels

from gssf_plug.retrieval.fitting import batches
from gssf_plug.retrieval.fitting.batches import Batches
from gssf_plug.retrieval.fitting.splits import Part, read_part

NAMES = ("queries", "documents", "pairs", "ignored")


def part_of(queries: int = 300, documents: int = 90) -> Part:
    asked, items, pairs = noisy_channels(queries, documents)
    more = torch.stack([pairs[:, 0], (pairs[:, 1] + 7) % documents], dim=1)  # two relevant documents each
    return read_part(NAMES, (asked, items, torch.cat([pairs, more]), None), None, None)


def test_every_pair_comes_once_an_epoch() -> None:
    part = part_of()
    made = Batches(part, 64, 0)
    assert made.pairs == 600
    seen = torch.zeros(300, 90, dtype=torch.bool)
    for batch in made.first(10):  # 9 of 64 and one of 24
        assert len(batch.queries) <= 64
        seen[batch.queries[batch.pairs.rows], batch.documents[batch.pairs.columns]] = True
    assert int(seen.sum()) == 600


def test_a_batch_knows_every_pair_of_its_items() -> None:
    part = part_of()
    known = torch.zeros(300, 90, dtype=torch.bool)
    known[part.pairs.rows, part.pairs.items] = True
    for batch in Batches(part, 64, 0).first(5):
        expected = known[batch.queries][:, batch.documents]
        assert torch.equal(batch.pairs.masks(expected.shape)[0], expected)
        assert batch.pairs.masks(expected.shape)[1] is None


@pytest.mark.parametrize("kept", [0, 2_000, 10_000_000])
def test_the_same_batches_each_time_however_many_are_kept(kept: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "KEPT_NUMBERS", kept)
    made = Batches(part_of(), 64, 3)
    short, long, again = ([*made.first(steps)] for steps in (4, 25, 25))
    for one, other in [*zip(short, long[:4], strict=True), *zip(long, again, strict=True)]:
        assert torch.equal(one.queries, other.queries)
        assert torch.equal(one.documents, other.documents)
        assert torch.equal(one.pairs.rows, other.pairs.rows)
    assert (long[24] is again[24]) == (kept > 1_000_000)
    assert not torch.equal(long[0].queries, long[10].queries), "another order in the next epoch"
    other_seed = next(Batches(part_of(), 64, 4).first(1))
    assert not torch.equal(other_seed.queries, long[0].queries)


def test_every_batch_is_the_whole_where_pairs_are_few() -> None:
    queries, documents, pairs = noisy_channels(60)
    made = [*Batches(read_part(NAMES, (queries, documents, pairs, None), None, None), 256, 0).first(3)]
    assert made[0] is made[1] is made[2]
    assert (len(made[0].queries), len(made[0].documents), len(made[0].pairs.rows)) == (60, 60, 60)


def test_one_list_leaves_out_the_item_itself() -> None:
    items = torch.randn(40, 8)
    same = torch.arange(40)[:, None] // 4 == torch.arange(40) // 4
    part = read_part(NAMES, (items, items, same, None), None, None)
    for batch in Batches(part, 20, 0).first(6):
        own = batch.queries[:, None] == batch.documents
        known, out = batch.pairs.masks(own.shape)
        assert out is not None
        assert torch.equal(out, own)
        expected = (batch.queries[:, None] // 4 == batch.documents // 4) & ~own
        assert torch.equal(known, expected)
