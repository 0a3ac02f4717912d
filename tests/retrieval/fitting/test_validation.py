"""One piece, chunks and a plain float64 loop agree; a large corpus is read, never held."""

import ctypes
import gc
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from retrieval.fitting.noisy_channels import noisy_channels

from gssf_plug import GSSFMetric
from gssf_plug.evaluation import document_ranking
from gssf_plug.retrieval import fit_metric
from gssf_plug.retrieval.fitting import sides, validation
from gssf_plug.retrieval.fitting.splits import read_part
from gssf_plug.retrieval.fitting.validation import Ranking, make_look

NAMES = ("queries", "documents", "pairs", "ignored")
MEASURES = ["mAP", "map@100", "mrr@10", "ndcg@10", "accuracy@1", "recall@5", "precision@3"]


def part_of(dim: int = 24, ignored: torch.Tensor | None = None):
    queries, documents, pairs = noisy_channels(60, 90, dim)
    more = torch.stack([pairs[:, 0], (pairs[:, 1] + 7) % 90], dim=1)  # two relevant documents each
    documents[50:60] = documents[:10]  # duplicates tie
    return read_part(NAMES, (queries, documents, torch.cat([pairs, more]), ignored), None, None)


def perturbed(dim: int = 24) -> GSSFMetric:
    metric = GSSFMetric(dim, terms=("dense",), normalize=False)
    with torch.no_grad():
        for weight in metric.parameters():
            weight += 0.3 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(5))
    return metric.eval()


def plain_ap(metric: GSSFMetric, part, query: int) -> float:
    """Average precision by the definition; a tie is lost, a document within 1e-6 of another is tied with it."""
    x = torch.nn.functional.normalize(part.queries.features.double(), dim=1)[query]
    y = torch.nn.functional.normalize(part.documents.features.double(), dim=1)
    scores = (x @ metric.matrix().detach().double()) @ y.T
    relevant = part.pairs.select(torch.tensor([query]))[1].tolist()
    others = [item for item in range(len(y)) if item not in relevant]
    if part.ignored is not None:
        others = [item for item in others if item not in part.ignored.select(torch.tensor([query]))[1].tolist()]
    best = sorted(relevant, key=lambda item: -scores[item])
    found = 0.0
    for place, item in enumerate(best, start=1):
        found += place / (place + sum(bool(scores[other] >= scores[item] - 1e-6) for other in others))
    return 100 * found / len(relevant)


@pytest.mark.parametrize("ignore", [False, True])
@pytest.mark.parametrize("chunked", [False, True])
def test_values_are_those_of_a_plain_loop(chunked: bool, ignore: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if chunked:
        monkeypatch.setattr(validation, "LOOK_NUMBERS", 0)
        monkeypatch.setattr(sides, "CHUNK_NUMBERS", 17 * 24)  # 17 documents: 90 is no multiple
        monkeypatch.setattr(validation, "SCORES_AT_ONCE", 17 * 13)
        monkeypatch.setattr(sides, "KEPT_NUMBERS", 0)
    out = torch.stack([torch.arange(60), (torch.arange(60) + 3) % 90], dim=1) if ignore else None
    part, metric = part_of(ignored=out), perturbed()
    values = Ranking(part, "mAP").values(metric)
    expected = torch.tensor([plain_ap(metric, part, query) for query in range(60)])
    torch.testing.assert_close(values.float(), expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize("measure", MEASURES)
def test_chunks_give_what_one_piece_gives(measure: str, monkeypatch: pytest.MonkeyPatch) -> None:
    part, metric = part_of(), perturbed()
    whole = Ranking(part, measure).values(metric)
    ks = (int(measure.split("@")[1]),) if "@" in measure else (1,)
    rows = torch.stack([part.pairs.rows, part.pairs.items], dim=1)
    told = GSSFMetric(24, terms=("dense",))
    told.load_state_dict(metric.state_dict())
    assert whole.mean().item() == pytest.approx(
        document_ranking(part.queries.features, part.documents.features, rows, told, ks)[measure], abs=1e-3
    )
    monkeypatch.setattr(validation, "LOOK_NUMBERS", 0)
    monkeypatch.setattr(sides, "CHUNK_NUMBERS", 11 * 24)
    torch.testing.assert_close(Ranking(part, measure).values(metric), whole)


def test_a_look_holds_all_that_its_queries_know(monkeypatch: pytest.MonkeyPatch) -> None:
    part = part_of()
    assert make_look(part, "mAP", 0).covers(part)
    monkeypatch.setattr(validation, "LOOK_DOCUMENTS", 20)
    monkeypatch.setattr(validation, "LOOK_QUERIES", 10)
    look = make_look(part, "mAP", 0)
    assert not look.covers(part)
    assert len(look.part.rows) == 10
    known = part.pairs.select(look.part.rows)[1]
    assert bool(torch.isin(known, look.chosen).all())
    values = look.values(perturbed())
    assert values.shape == (10,)
    assert bool((values > Ranking(look.part, "mAP").values(perturbed()) - 1e-3).all()), "fewer documents, no lower rank"


def anonymous() -> int:
    """Bytes of this process's memory that no file backs."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return 1024 * int(line.split()[1])


@pytest.fixture
def blocks_given_back() -> Iterator[None]:
    """The allocator gives every larger block back: what earlier tests left free, or in pieces, does not show."""
    mmap_threshold, trim_threshold = -3, -1  # of malloc.h
    libc = ctypes.CDLL("libc.so.6")
    gc.collect()
    libc.mallopt(mmap_threshold, 2**20)
    libc.malloc_trim(0)
    yield
    libc.mallopt(mmap_threshold, 2**25)  # what glibc grows to by itself
    libc.mallopt(trim_threshold, 2**26)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's accounts of memory")
@pytest.mark.usefixtures("blocks_given_back")
def test_a_large_corpus_is_read_where_it_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """400,000 × 64 in float16, 51 MB: in float32 they would take 102 MB, and normalising makes another copy."""
    documents, dim = 400_000, 64
    for module, name, size in (
        (sides, "KEPT_NUMBERS", 1_000_000),
        (sides, "CHUNK_NUMBERS", 1_000_000),
        (validation, "LOOK_NUMBERS", 1_000_000),
        (validation, "SCORES_AT_ONCE", 1_000_000),
    ):
        monkeypatch.setattr(module, name, size)
    written = np.lib.format.open_memmap(tmp_path / "d.npy", "w+", np.float16, (documents, dim))
    generator = np.random.default_rng(0)
    for start in range(0, documents, 50_000):
        written[start : start + 50_000] = generator.standard_normal((50_000, dim), dtype=np.float32)
    written.flush()
    answers = generator.integers(0, documents, 600)
    queries = written[answers] + generator.standard_normal((600, dim), dtype=np.float32)
    del written
    mapped, pairs = np.load(tmp_path / "d.npy", mmap_mode="r"), np.stack([np.arange(600), answers], axis=1)
    options = {"structures": [{"block_size": 16}], "loss": "softmax", "max_epochs": 2, "progress": False}
    peak, done = [anonymous()], threading.Event()
    before = peak[0]

    def watch() -> None:
        while not done.is_set():
            peak.append(anonymous())
            time.sleep(0.005)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        result = fit_metric(queries, mapped, pairs, **options)
    finally:
        done.set()
        watcher.join()
    assert result.documents == documents
    assert 0 < result.table[0].value < 100
    assert max(peak) - before < 90e6
