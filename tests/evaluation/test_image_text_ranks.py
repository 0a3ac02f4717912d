"""Ranks of images and captions, counted in tiles, beside sorted canonical scores."""

import pytest
import torch

from gssf_plug.evaluation import image_text_ranks as module
from gssf_plug.evaluation.image_text_ranks import ImageTextRanks
from gssf_plug.evaluation.scores import FeatureScores, GivenScores
from gssf_plug.metric import exact_scores
from gssf_plug.metric.exact_scores import CanonicalScores

FEATURES = {
    "shared direction": lambda rows: 3 + torch.randn(rows, 16),
    "apart": lambda rows: torch.randn(rows, 16),
    "copies": lambda rows: torch.randn(6, 16)[torch.randint(6, (rows,))],
    "nearly equal": lambda rows: torch.ones(rows, 16) + 1e-7 * torch.randn(rows, 16),
    "signs": lambda rows: torch.randn(rows, 16).sign(),
}


def check(found, table, owners):
    """Against the table of canonical scores: strictly higher ones count, equal ones are ties."""
    images, texts = len(table), table.shape[1]
    own = table[owners, torch.arange(texts)]
    best = torch.full((images,), float("-inf"), dtype=table.dtype).scatter_reduce_(0, owners, own, "amax")
    other = owners[None] != torch.arange(images)[:, None]
    asked = torch.bincount(owners, minlength=images) > 0
    assert torch.equal(found.images, 1 + ((table > best[:, None]) & other).sum(1)[asked])
    assert torch.equal(found.texts, 1 + ((table > own) & other).sum(0))
    assert torch.equal(found.images_tied, ((table == best[:, None]) & other).any(1)[asked])
    assert torch.equal(found.texts_tied, ((table == own) & other).any(0))


@pytest.mark.parametrize("kind", list(FEATURES))
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("waiting", "table"), [(0, False), (1_048_576, False), (1_048_576, True)])
def test_equals_the_canonical_scores_of_all_pairs(kind, dtype, waiting, table, monkeypatch):
    """Pair by pair, and where a table of them is to be had, by that."""
    monkeypatch.setattr(module, "WAITING_AT_MOST", waiting)
    monkeypatch.setattr(module, "MANY_OPEN", 10**9)
    monkeypatch.setattr(exact_scores, "FEW_DIFFERENT", 8)
    seen, has, add = [], CanonicalScores.has_table, ImageTextRanks._add_table
    monkeypatch.setattr(CanonicalScores, "has_table", lambda self, some: table and has(self, some))
    monkeypatch.setattr(ImageTextRanks, "_add_table", lambda *given: seen.append(given[2]) or add(*given))
    images, texts, owners = FEATURES[kind](40), FEATURES[kind](110), torch.randint(40, (110,))
    everything = torch.cartesian_prod(torch.arange(40), torch.arange(110))
    for columns, at_once, together in ((110, 40, 40), (27, 9, 20), (11, 7, 1)):
        scores = FeatureScores(None, images, texts, dtype, columns_at_once=columns)
        scores.rows_together = together
        right = scores.canonical(everything[:, 0], everything[:, 1]).view(40, 110)
        check(ImageTextRanks(scores, owners, 40, False).count(at_once), right, owners)
    assert bool(seen) == (table and kind in ("copies", "signs"))


def test_given_scores_are_compared_as_they_are(monkeypatch):
    table, owners = torch.randint(9, (20, 50)).double(), torch.randint(20, (50,))
    for _ in range(2):
        check(ImageTextRanks(GivenScores(table), owners, 20, False).count(6), table, owners)
        monkeypatch.setattr(module, "MANY_OPEN", 0)  # by no table
