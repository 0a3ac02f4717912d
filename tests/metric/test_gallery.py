"""A gallery that is read once: what it keeps, in parts and whole, and what it refuses."""

import copy

import pytest
import torch
from metric.exact.test_fast_rows import stood_for

from gssf_plug.errors import ArgumentError
from gssf_plug.metric import gallery as module
from gssf_plug.metric import prepare_gallery, topk
from gssf_plug.metric.exact import first_look
from gssf_plug.metric.exact.reaching import GROUP
from gssf_plug.metric.gallery import check_finite, read_part


@pytest.fixture(params=[True, False], autouse=True)
def int8(request, monkeypatch):
    """Whether the CPU multiplies int8, whatever this machine has."""
    monkeypatch.setattr(module, "multiplies_int8", lambda: request.param)
    return request.param


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("length", [1.0, 1e20])
def test_it_keeps_the_features_and_a_rounded_copy(normalize, length, int8, monkeypatch):
    monkeypatch.setattr(module, "ROWS_AT_ONCE", 64)
    features = torch.randn(200, 8) * length
    prepared = prepare_gallery(features, normalize=normalize)
    assert prepared.features is features
    assert len(prepared) == 200
    assert prepared.normalized is normalize
    right = stood_for(features, normalize, prepared.rounded.exponent)
    kept, rests = prepared.rounded.rows.double(), prepared.rounded.rest if not int8 else None
    if int8:
        steps, rests = (one.repeat_interleave(GROUP)[:200] for one in (prepared.rounded.steps, prepared.rounded.rests))
        kept = kept * steps[:, None]
    off = torch.linalg.vector_norm(kept - right, dim=1)
    assert bool((off <= rests).all())
    longest = float(prepared.rounded.norms.max()) if int8 else prepared.rounded.norm
    assert float(off.max()) < (0.05 if int8 else 2**-8) * longest
    dtype = "torch.int8" if int8 else "torch.float16"
    assert repr(prepared) == f"PreparedGallery(200 × 8, torch.float32, rounded to {dtype})"


def test_a_copy_in_floats_goes_where_it_is_told_to():
    features, place = torch.randn(20, 8), torch.empty(20, 8, dtype=torch.float16)
    prepared = prepare_gallery(features, rounded=place)
    assert prepared.rounded.rows is place
    assert torch.equal(place, torch.nn.functional.normalize(features).half())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_what_items_share_is_taken_out_of_whole_numbers(dtype, int8):
    features = torch.randn(300, 32) + 2
    prepared = prepare_gallery(features.to(dtype))
    common = prepared.rounded.common if int8 else None
    assert (common is not None) == int8
    assert prepared.rounded.rows.shape == (300, 48 if int8 else 32)
    assert not int8 or prepare_gallery(features, normalize=False).rounded.common is None
    assert not int8 or prepare_gallery(torch.randn(300, 32)).rounded.common is None


@pytest.mark.parametrize("queries", [1, 5, 100])
@pytest.mark.parametrize("exact", [False, True])
def test_parts_of_a_prepared_and_of_a_plain_gallery_stand_for_the_same_rows(queries, exact):
    features, parts = torch.randn(20, 8), [slice(0, 9), slice(9, 20)]
    unit = torch.nn.functional.normalize(features.double())
    for gallery in (features, prepare_gallery(features)):
        for part in parts:
            found = read_part(gallery, part, True, queries, torch.device("cpu"), exact)
            items = found.rows
            assert items.rows.dtype == found.dtype
            rows = items.rows.double() if items.factors is None else items.rows.double() * items.factors[:, None]
            assert (rows - unit[part]).norm(dim=1).max() <= items.rest + 1e-6
            assert (items.rows.dtype == torch.float64) == exact


def test_features_out_of_a_model_keep_none_of_its_graph():
    weight = torch.randn(8, 8, requires_grad=True)
    prepared = prepare_gallery(torch.randn(20, 8) @ weight)
    assert not prepared.features.requires_grad
    assert torch.equal(copy.deepcopy(prepared).features, prepared.features)
    place = torch.empty(20, 8, dtype=torch.float16, requires_grad=True)
    assert not prepare_gallery(torch.randn(20, 8), rounded=place).rounded.rows.requires_grad


def test_a_gallery_from_a_machine_that_multiplies_int8_is_read_in_floats_elsewhere(monkeypatch):
    features = torch.randn(1000, 64) + 3.0  # of which five are few enough for a look in a short dtype
    monkeypatch.setattr(module, "multiplies_int8", lambda: True)
    prepared = prepare_gallery(features)
    assert prepared.rounded.rows.dtype == torch.int8
    for room in (module, first_look):
        monkeypatch.setattr(room, "multiplies_int8", lambda: False)
    monkeypatch.setattr(torch, "_int_mm", None)  # elsewhere its sums are wrong
    for queries in (features[:3], features[:100]):
        found, right = topk(None, queries, prepared, 5), topk(None, queries, features, 5)
        assert torch.equal(found.indices, right.indices)


@pytest.mark.bad_input
def test_a_place_without_memory_of_its_own_is_refused():
    features = torch.randn(20, 8).half()
    kept = features.clone()
    with torch.inference_mode():
        frozen = torch.empty_like(features)
    shared = "memory of the features"
    for place, got in (
        (features, shared),
        (frozen, "an inference tensor"),
        (frozen[:1].expand(20, 8), "an expanded view"),
    ):
        with pytest.raises(ArgumentError, match=f"`rounded` must have memory of its own, to be written, but got {got}"):
            prepare_gallery(features, rounded=place)
    assert torch.equal(features, kept)
    with torch.inference_mode():
        assert len(prepare_gallery(features, rounded=frozen)) == 20


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_entries_that_are_not_finite_are_named_by_row_and_channel(bad):
    features = torch.randn(20, 8)
    features[13, 5] = bad
    message = "must be finite, but got NaN or infinity in row 13, channel 5"
    with pytest.raises(ArgumentError, match=f"`features` {message}"):
        prepare_gallery(features)
    with pytest.raises(ArgumentError, match=f"`features` {message}"):
        prepare_gallery(features, normalize=False)
    with pytest.raises(ArgumentError, match=f"`gallery` {message}"):
        read_part(features, slice(10, 20), True, 100, torch.device("cpu"), False)
    with pytest.raises(ArgumentError, match=r"`x` must be finite, but got NaN or infinity in row 107, channel 5"):
        check_finite("x", features[6:], 100)


def test_a_sum_that_overflows_is_looked_at_again():
    check_finite("x", torch.full((4, 8), 3e38), 0)


@pytest.mark.bad_input
def test_what_is_no_gallery_is_refused():
    features = torch.randn(4, 8)
    for wrong in (torch.randn(8), torch.randn(2, 4, 8), torch.randn(0, 8), torch.randn(4, 0)):
        with pytest.raises(ArgumentError, match=r"`features` must be a matrix of features M×D with at least one row"):
            prepare_gallery(wrong)
    with pytest.raises(ArgumentError, match="`normalize` must be True or False"):
        prepare_gallery(features, normalize="no")
    with pytest.raises(ArgumentError, match=r"`rounded` must be None or a tensor of torch.float16"):
        prepare_gallery(features, rounded=features.half().numpy())
    for wrong in (torch.empty(4, 8), torch.empty(3, 8, dtype=torch.float16)):
        with pytest.raises(ArgumentError, match=r"`rounded` must be torch.float16 of shape \(4, 8\)"):
            prepare_gallery(features, rounded=wrong)
