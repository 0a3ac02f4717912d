"""`topk` to the last tie, in every chunking and dtype, on every path: against canonical scores and exact loops."""

import threading
from fractions import Fraction

import numpy as np
import pytest
import torch
from metric.scored import KINDS, NARROW, sum_exactly

from gssf_plug import GSSFMetric
from gssf_plug.errors import ArgumentError
from gssf_plug.metric import gallery as prepared_gallery
from gssf_plug.metric import prepare_gallery, sample, search, topk
from gssf_plug.metric.exact import candidates, falling, first_look
from gssf_plug.metric.exact.canonical import canonical_queries, canonical_scores
from gssf_plug.metric.exact.threads import slices

QUERIES, ITEMS = 7, 200
CHUNKINGS = [(1024, 8192), (4, 64), (3, 37)]


@pytest.fixture(params=["int8", "bfloat16", "float32", "float64"])
def path(request, monkeypatch):
    """Which product comes first; float32 stands for machines that multiply nothing shorter."""
    short = {name: (getattr(torch, name),) for name in ("int8", "bfloat16")}
    monkeypatch.setattr(first_look, "short_dtypes", lambda device: short.get(request.param, ()))
    monkeypatch.setattr(search, "MANY", 10**9 if request.param == "float64" else 0)
    if request.param in short:  # on features as few as these, in groups, with thresholds that rise with each part
        monkeypatch.setattr(first_look, "MANY_QUERIES", 0)
        monkeypatch.setattr(first_look, "FEW_SCORES", 0)
        monkeypatch.setattr(candidates, "FEW_PAIRS", 0)
    if request.param == "int8":
        monkeypatch.setattr(first_look, "MOST_OPEN", 1.0)  # whatever it leaves open
        sum_exactly(monkeypatch)
    return request.param


def perturbed(**options):
    metric = GSSFMetric(NARROW, block_size=4, **options)
    with torch.no_grad():
        for parameter in metric.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    return metric


def reference(metric, queries, gallery, k, hidden=None):
    """Each row by falling canonical score, then rising index."""
    rows, columns = torch.arange(len(queries)).repeat_interleave(len(gallery)), torch.arange(len(gallery))
    columns = columns.repeat(len(queries))
    scores = canonical_scores(canonical_queries(metric, queries), rows, gallery, columns).view(len(queries), -1)
    if hidden is not None:
        scores = scores.masked_fill(hidden, float("-inf"))
    values, order = scores.sort(dim=1, descending=True, stable=True)
    order = order.masked_fill(values == float("-inf"), -1)
    return values[:, :k], order[:, :k]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", [None, {}, {"normalize": False}])
def test_every_chunking_gives_the_canonical_order(path, kind, options):
    metric = None if options is None else perturbed(**options)
    if kind == "huge" and options is not None:
        return  # their product leaves float32, or is that of "random"
    queries, gallery = KINDS[kind](QUERIES), KINDS[kind](ITEMS)
    hidden = torch.rand(QUERIES, ITEMS) < 0.1
    for k in (1, 9, ITEMS):
        mask = hidden if k == 9 else None
        scores, indices = reference(metric, queries, gallery, k, mask)
        for query_chunk, gallery_chunk in CHUNKINGS if metric is None or k == 9 else CHUNKINGS[1:2]:
            found = topk(
                metric, queries, gallery, k, exclude=mask, query_chunk=query_chunk, gallery_chunk=gallery_chunk
            )
            assert torch.equal(found.indices, indices)
            assert torch.equal(found.scores, scores.float())


@pytest.fixture(params=["int8", "float16"])
def form(request, monkeypatch):
    """What galleries are prepared in, whatever this machine has."""
    monkeypatch.setattr(prepared_gallery, "multiplies_int8", lambda: request.param == "int8")
    monkeypatch.setattr(prepared_gallery, "ROWS_AT_ONCE", 64)
    sum_exactly(monkeypatch)
    return getattr(torch, request.param)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("queries_count", [1, 40])
@pytest.mark.parametrize(
    ("path", "form"),
    [("int8", "int8"), ("float32", "int8"), ("bfloat16", "float16"), ("float64", "float16")],
    indirect=True,
)
def test_a_prepared_gallery_finds_the_same(path, form, kind, queries_count):
    if kind == "huge":
        return  # whose raw products leave float32
    queries, gallery = KINDS[kind](queries_count), KINDS[kind](ITEMS)
    hidden = torch.rand(queries_count, ITEMS) < 0.3
    for normalize in (True, False):
        metric, prepared = perturbed(normalize=normalize), prepare_gallery(gallery, normalize=normalize)
        assert prepared.rounded.rows.dtype == form
        for k, chunks, mask in ((1, (1024, 100), None), (20, (3, 70), None), (20, (7, 8192), hidden)):
            asked = {"query_chunk": chunks[0], "gallery_chunk": chunks[1], "exclude": mask}
            right, found = topk(metric, queries, gallery, k, exclude=mask), topk(metric, queries, prepared, k, **asked)
            assert torch.equal(found.indices, right.indices)
            assert torch.equal(found.scores, right.scores)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_prepared_gallery_of_any_dtype_finds_the_same(path, form, dtype):
    queries, gallery = torch.randn(QUERIES, NARROW), torch.randn(ITEMS, NARROW).to(dtype)
    gallery[17:20] = gallery[3]
    prepared = prepare_gallery(gallery)
    for k in (1, 20):
        right, found = topk(None, queries, gallery, k), topk(None, queries, prepared, k, gallery_chunk=64)
        assert torch.equal(found.indices, right.indices)
        assert torch.equal(found.scores, right.scores)


def test_few_queries_look_at_as_much_of_a_gallery_of_whole_numbers_as_a_chunk_may_hold(form, monkeypatch):
    """As few parts as an eighth of the scores of a chunk allow, and one for each process at least."""
    prepared, sizes = prepare_gallery(torch.randn(6400, NARROW)), {}
    for queries, processes in ((1, 1), (1, 3), (8, 1), (1000, 1)):
        search_for = search._Search(None, torch.randn(queries, NARROW), prepared, prepared.features, 3, None, [])
        sizes[queries, processes] = search_for.items_at_once(128, 100, processes)
    if form == torch.int8:
        assert sizes == {(1, 1): 1600, (1, 3): 1600, (8, 1): 256, (1000, 1): 128}
    else:
        assert sizes == {(1, 1): 400, (1, 3): 400, (8, 1): 100, (1000, 1): 100}
    monkeypatch.setattr(search, "CONVERTED_AT_ONCE", 500 * NARROW)
    half = search._Search(None, torch.randn(1, NARROW), prepared, prepared.features.half(), 3, None, [])
    assert form != torch.int8 or half.items_at_once(128, 100, 1) == 512
    small = search._Search(None, torch.randn(1, NARROW), prepared, prepared.features[:256], 3, None, [])
    assert form != torch.int8 or small.items_at_once(1024, 8, 4) == 64


@pytest.mark.parametrize("kind", ["random", "half", "duplicates", "quantised", "near duplicates"])
def test_no_dtype_of_the_same_numbers_shows(path, kind):
    metric, queries, gallery = perturbed(), KINDS[kind](QUERIES), KINDS[kind](ITEMS)
    right = topk(metric, queries, gallery, 30)
    for sides in ((queries.double(), gallery), (queries, gallery.double()), (queries.double(), gallery.double())):
        found = topk(metric, *sides, 30, gallery_chunk=100)
        assert torch.equal(found.indices, right.indices)
        assert torch.equal(found.scores.float(), right.scores)
    scores, indices = reference(metric, queries, gallery, 30)
    assert torch.equal(found.scores, scores)


def test_threads_and_a_lower_precision_of_products_do_not_show(path):
    metric, queries, gallery = perturbed(), KINDS["near duplicates"](QUERIES), KINDS["near duplicates"](ITEMS)
    right, threads = topk(metric, queries, gallery, 30), torch.get_num_threads()
    try:
        torch.set_num_threads(1 + threads % 2)
        torch.set_float32_matmul_precision("medium")
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = topk(metric, queries, gallery, 30)
    finally:
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision("highest")
    assert torch.equal(found.indices, right.indices)
    assert torch.equal(found.scores, right.scores)


def test_signs_against_whole_numbers(path):
    """Cosines of ±1 vectors are whole numbers over D: the loop needs no rounding at all."""
    queries, gallery = torch.randn(20, 32).sign(), torch.randn(500, 32).sign()
    dots = queries.long() @ gallery.long().T
    right = torch.tensor([sorted(range(500), key=lambda j, row=row: (-row[j], j))[:50] for row in dots.tolist()])
    for gallery_chunk in (8, 64, 500):
        found = topk(None, queries, gallery, 50, gallery_chunk=gallery_chunk)
        assert torch.equal(found.indices, right)
        assert torch.equal(found.scores, dots.gather(1, right) / 32)


def test_against_exact_fractions(path):
    """Rows of different length tie where dot · |dot| / ‖y‖² is the same fraction."""
    queries, gallery = torch.randint(-2, 3, (10, 4)).float(), torch.randint(-3, 4, (300, 4)).float()
    found = topk(None, queries, gallery, 300, gallery_chunk=64)
    for query, order in zip(queries.long().tolist(), found.indices.tolist(), strict=True):
        keys = []
        for item in gallery.long().tolist():
            dot, square = sum(a * b for a, b in zip(query, item, strict=True)), sum(b * b for b in item)
            keys.append(Fraction(dot * abs(dot), square) if square else Fraction(0))
        assert order == sorted(range(300), key=lambda j, keys=keys: (-keys[j], j))


def test_a_duplicate_stands_behind_its_original(path):
    queries = torch.randn(60, NARROW)
    gallery = torch.randn(8193, NARROW)
    gallery[-1] = gallery[17]
    found = topk(None, queries, gallery, 8193 if path == "float64" else 100)
    first, second = (found.indices == 17).nonzero(), (found.indices == 8192).nonzero()
    assert len(first) == len(second) > 0
    assert torch.equal(second, first + torch.tensor([0, 1]))


def test_features_that_hardly_differ_go_to_float64(monkeypatch):
    called = []
    exact = search._in_float64
    monkeypatch.setattr(search, "_in_float64", lambda *given: called.append(1) or exact(*given))
    gallery = torch.ones(3000, NARROW) + 1e-6 * torch.randn(3000, NARROW)
    queries = torch.randn(20, NARROW)
    found = topk(None, queries, gallery, 2, gallery_chunk=1000)
    assert called
    assert torch.equal(found.indices, reference(None, queries, gallery, 2)[1])


def test_a_memory_mapped_prepared_gallery(tmp_path):
    gallery = np.random.default_rng(0).standard_normal((ITEMS, NARROW)).astype(np.float32)
    np.save(tmp_path / "gallery.npy", gallery)
    mapped = np.load(tmp_path / "gallery.npy", mmap_mode="r")
    rounded = torch.from_file(str(tmp_path / "r.bin"), shared=True, size=gallery.size, dtype=torch.float16).view(
        -1, NARROW
    )
    prepared = prepare_gallery(mapped, rounded=rounded)
    assert (tmp_path / "r.bin").stat().st_size == 2 * gallery.size
    queries = np.random.default_rng(1).standard_normal((3, NARROW)).astype(np.float32)
    found, right = topk(None, queries, prepared, 7), topk(None, torch.from_numpy(queries), torch.from_numpy(gallery), 7)
    assert isinstance(found.scores, np.ndarray)
    assert found.indices.tolist() == right.indices.tolist()
    assert (found.scores == right.scores.numpy()).all()


@pytest.mark.parametrize(
    "kind", ["random", "duplicates", "signs", "subnormal", "all equal", "some zero rows", "rising"]
)
@pytest.mark.parametrize("excluded", [False, True])
@pytest.mark.parametrize(("items", "chunk"), [(300, 64), (259, 64), (257, 4)])  # the last part of few items, or all
def test_a_sample_that_says_where_to_begin_changes_nothing(path, kind, excluded, items, chunk, monkeypatch):
    """Also where it says too much: then the queries are searched for once more."""
    monkeypatch.setattr(sample, "SAMPLED", 64)
    monkeypatch.setattr(sample, "TIMES", 4)
    queries, gallery = KINDS[kind](QUERIES), KINDS[kind](items)
    hidden = torch.rand(QUERIES, items) < 0.5
    given = {"gallery_chunk": chunk, "exclude": (lambda rows, items: hidden[rows][:, items]) if excluded else None}
    scores, indices = reference(None, queries, gallery, 5, hidden if excluded else None)
    found = topk(None, queries, gallery, 5, **given)
    assert torch.equal(found.indices, indices)
    assert torch.equal(found.scores, scores.float())


def test_a_sample_of_all_the_best_is_found_out(path, monkeypatch):
    monkeypatch.setattr(sample, "SAMPLED", 64)
    monkeypatch.setattr(sample, "TIMES", 4)
    queries, gallery, sampled, missed = KINDS["random"](QUERIES), KINDS["random"](320), [], []
    least, count_missed = sample.Sample.least, candidates.Candidates.missed

    def near(self, *given):
        sampled.append(self.items)
        return least(self, *given)

    def seen(self):
        missed.append(count_missed(self))
        return missed[-1]

    monkeypatch.setattr(sample.Sample, "least", near)
    monkeypatch.setattr(candidates.Candidates, "missed", seen)
    topk(None, queries, gallery, 60, gallery_chunk=64)
    if path != "int8":
        assert not sampled
        return
    assert not len(missed[0])
    items = sampled[0]
    gallery[items] = queries[0] + 0.01 * torch.randn(len(items), NARROW)  # the first query's 80 best
    found = topk(None, queries, gallery, 60 + len(items), gallery_chunk=64)
    scores, indices = reference(None, queries, gallery, 60 + len(items))
    assert 0 in missed[1].tolist()
    assert torch.equal(found.indices, indices)
    assert torch.equal(found.scores, scores.float())


@pytest.fixture(params=[2, 5])
def looking(request, monkeypatch):
    """So many threads look at parts of their own, in whole numbers, on features as few as these; each look by whom."""
    looked, add, usual = [], candidates.Candidates.add, torch.get_num_threads()
    monkeypatch.setattr(sample, "SAMPLED", 64)
    monkeypatch.setattr(sample, "TIMES", 4)
    monkeypatch.setattr(first_look, "short_dtypes", lambda device: (torch.int8,))
    monkeypatch.setattr(first_look, "MANY_QUERIES", 0)
    monkeypatch.setattr(first_look, "MOST_OPEN", 1.0)
    monkeypatch.setattr(search, "MANY", 0)
    sum_exactly(monkeypatch)

    def noted(self, part, start, *given):
        looked.append((start, threading.get_ident()))
        add(self, part, start, *given)

    monkeypatch.setattr(candidates.Candidates, "add", noted)
    torch.set_num_threads(request.param)
    yield looked
    torch.set_num_threads(usual)


@pytest.mark.parametrize("kind", ["random", "duplicates", "signs", "all equal", "some zero rows", "rising"])
@pytest.mark.parametrize("excluded", [False, True])
@pytest.mark.parametrize("prepared", [False, True])
@pytest.mark.parametrize("few", [0, 10**6])  # pairs that wait until thresholds rise
def test_threads_that_look_at_parts_of_their_own_change_nothing(looking, kind, excluded, prepared, few, monkeypatch):
    monkeypatch.setattr(candidates, "FEW_PAIRS", few)
    monkeypatch.setattr(prepared_gallery, "multiplies_int8", lambda: True)
    metric, queries, gallery = perturbed(), KINDS[kind](40), KINDS[kind](1000)
    hidden = torch.rand(40, 1000) < 0.3 if excluded else None
    scores, indices = reference(metric, queries, gallery, 5, hidden)
    searched = prepare_gallery(gallery) if prepared else gallery
    found = topk(metric, queries, searched, 5, gallery_chunk=128, exclude=hidden)
    assert {thread for _, thread in looking} - {threading.get_ident()}
    assert torch.equal(found.indices, indices)
    assert torch.equal(found.scores, scores.float())


def test_threads_that_find_too_much_open_leave_it_to_float64(looking, monkeypatch):
    monkeypatch.setattr(candidates, "MOST_UNDECIDED", 0)
    queries, gallery = KINDS["random"](40), KINDS["random"](1000)
    scores, indices = reference(None, queries, gallery, 5)
    found = topk(None, queries, gallery, 5, gallery_chunk=64)
    of_threads = [thread for _, thread in looking if thread != threading.get_ident()]
    assert 0 < len(of_threads) < 16
    assert torch.equal(found.indices, indices)
    assert torch.equal(found.scores, scores.float())


def test_a_function_of_the_users_is_asked_in_the_users_thread(looking):
    asking, queries, gallery = set(), KINDS["random"](40), KINDS["random"](1000)

    def exclude(rows, items):
        asking.add(threading.get_ident())
        return rows[:, None] == items

    found = topk(None, queries, gallery, 5, gallery_chunk=64, exclude=exclude)
    hidden = torch.arange(40)[:, None] == torch.arange(1000)
    assert torch.equal(found.indices, reference(None, queries, gallery, 5, hidden)[1])
    assert asking == {threading.get_ident()}


def test_the_first_row_that_is_not_finite_is_named_whatever_threads_do(looking):
    gallery = KINDS["random"](1000)
    gallery[[423, 777, 950], 3] = float("nan")  # of which a sample sees none
    with pytest.raises(ArgumentError, match="NaN or infinity in row 423, channel 3"):
        topk(None, KINDS["random"](40), gallery, 5, gallery_chunk=128)
    assert looking


@pytest.mark.parametrize(("threads", "most"), [(1, 128), (2, 128), (4, 128), (7, 128)])
def test_threads_hold_no_more_scores_than_four_chunks(threads, most):
    asked = search._Search(None, torch.randn(3, 4), torch.randn(1000, 4), torch.randn(1000, 4), 5, None, [])
    asked.parts = slices(1000, 128)[1:]  # those of a process
    parts = asked.parts_for(threads)
    assert [item for part in parts for item in range(part.start, part.stop)] == list(range(128, 1000))
    sizes = [part.stop - part.start for part in parts]
    assert max(sizes) <= most
    assert max(sizes) * threads <= 4 * 128 or max(sizes) == 64  # a group, which is not divided
    assert threads == 1 or len(set(sizes[:-1])) == 1


@pytest.mark.parametrize("kind", ["random", "duplicates", "signs", "hardly different", "some zero rows"])
def test_all_items_are_wanted_by_several_threads(kind, monkeypatch, two_threads):
    """Scores wait where their indices will stand; nobody reads one where the other is."""
    monkeypatch.setattr(falling, "CACHED", 2 * ITEMS)
    monkeypatch.setattr(falling, "SORTED_AT_ONCE", ITEMS)
    queries, gallery = KINDS[kind](40), KINDS[kind](ITEMS)
    hidden = torch.rand(40, ITEMS) < 0.1
    for metric, mask in ((None, None), (perturbed(), hidden)):
        scores, indices = reference(metric, queries, gallery, ITEMS, mask)
        found = topk(metric, queries, gallery, ITEMS, exclude=mask, query_chunk=26)
        assert torch.equal(found.indices, indices)
        assert torch.equal(found.scores, scores.float())


@pytest.mark.parametrize("queries", [3, 100])
@pytest.mark.parametrize("channels", [1, 2, 3])
def test_rows_of_a_few_channels_on_this_machine(channels, queries):
    """Its own instructions, which other tests here replace."""
    features, gallery = torch.randn(queries, channels), torch.randn(20_000, channels)
    scores, indices = reference(None, features, gallery, 3)
    for searched in (gallery, prepare_gallery(gallery)):
        found = topk(None, features, searched, 3)
        assert torch.equal(found.indices, indices)
        assert torch.equal(found.scores, scores.float())
