"""What a model makes of a batch: rows and fragments, chosen, joined over batches, gathered in float32."""

import pytest
import torch

from gssf_plug.errors import ArgumentError
from gssf_plug.retrieval.models.embedding import Embedding, Fragments, gather_embedding, join_embeddings, vectors


def test_fragments_are_joined_by_widening():
    one, two = (Fragments(torch.randn(2, t, 3), torch.rand(2, t) < 0.6) for t in (2, 4))
    whole = join_embeddings([Embedding(part, torch.arange(2), part[:1], torch.arange(1)) for part in (one, two)])
    assert whole.queries.features.shape == (4, 4, 3)
    assert torch.equal(whole.queries.mask[2:], two.mask)
    assert not whole.queries.mask[:2, 2:].any()
    assert whole.gallery_ids.tolist() == [0, 0]
    assert len(whole.gallery) == 2
    gathered = gather_embedding(whole)
    torch.testing.assert_close(gathered.queries.features, whole.queries.features)


def test_some_items_of_fragments():
    fragments = Fragments(torch.randn(4, 3, 2), torch.rand(4, 3) < 0.6)
    assert len(fragments) == 4
    for which in (slice(1, 3), torch.tensor([3, 0])):
        assert torch.equal(fragments[which].features, fragments.features[which])
        assert torch.equal(fragments[which].mask, fragments.mask[which])
    wide = fragments.widened(5)
    assert torch.equal(wide.features[:, :3], fragments.features)
    assert wide.features[:, 3:].eq(0).all()
    assert not wide.mask[:, 3:].any()


def test_one_list_stays_one_list():
    """Or an item would not know itself in the gallery."""
    items = [torch.randn(2, 3) for _ in range(2)]
    parts = [Embedding(each, torch.arange(2), each, torch.arange(2)) for each in items]
    whole = join_embeddings(parts)
    assert whole.one_sided
    assert torch.equal(whole.gallery, torch.cat(items))
    assert gather_embedding(whole).one_sided
    two = Embedding(items[0], torch.arange(2), items[0].clone(), torch.arange(2))
    assert not two.one_sided
    assert not join_embeddings([two, two]).one_sided


def test_gathered_features_are_in_float32_or_better_with_their_gradient():
    x = torch.randn(2, 3).bfloat16().requires_grad_()
    found = gather_embedding(Embedding(x, torch.arange(2), torch.randn(1, 3).double(), torch.arange(1)))
    assert (found.queries.dtype, found.gallery.dtype) == (torch.float32, torch.float64)
    found.queries.sum().backward()
    assert x.grad.eq(1).all()


def test_a_side_that_must_be_vectors():
    x = torch.randn(2, 3)
    assert vectors("queries", x) is x
    fragments = Fragments(torch.randn(2, 4, 3), torch.ones(2, 4).bool())
    with pytest.raises(ArgumentError, match=r"`queries` must hold one vector per item, but got fragments of shape"):
        vectors("queries", fragments)
