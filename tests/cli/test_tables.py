"""Pairs out of CSV, JSONL and parquet: all forms say the same, and a fault is named with its place."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from gssf_plug.cli.tables import read_columns, read_indices, read_texts
from gssf_plug.errors import DataError

PAIRS = [(0, 2), (0, 1), (3, 0)]
TABLES = {
    "pairs.csv": "query,document\n0,2\n0,1\n3,0\n",
    "marked.csv": "\ufeffquery,document\n0,2\n\n0,1\n3,0\n",  # a byte-order mark, an empty line
    "bare.csv": "0,2\n0,1\n3,0",
    "floats.csv": "query,document\n0.0,2.0\n0.0,1.0\n3.0,0.0\n",  # had gaps
    "more.csv": "document,note,query\n2,x,0\n1,y,0\n0,z,3\n",
    "pairs.tsv": "query\tdocument\n0\t2\n0\t1\n3\t0\n",
    "pairs.jsonl": "\n".join(json.dumps({"query": query, "document": document}) for query, document in PAIRS),
}


@pytest.mark.parametrize("name", TABLES)
def test_every_table_reads_alike(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(TABLES[name], encoding="utf-8")
    assert read_indices(tmp_path / name, None, (4, 3)) == PAIRS


def test_parquet_by_name_and_by_place(tmp_path: Path) -> None:
    columns = {"a": [0, 0, 3], "b": [2, 1, 0]}
    parquet.write_table(pa.table(columns), tmp_path / "pairs.parquet")
    assert read_indices(tmp_path / "pairs.parquet", None, (4, 3)) == PAIRS
    assert read_indices(tmp_path / "pairs.parquet", ["b", "a"], (4, 4)) == [(y, x) for x, y in PAIRS]
    with pytest.raises(DataError, match=r"has the columns \['a', 'b'\], not \['a', 'c'\]. Name two of them"):
        read_indices(tmp_path / "pairs.parquet", ["a", "c"], (4, 3))


def test_named_columns(tmp_path: Path) -> None:
    (tmp_path / "named.tsv").write_text("x\ty\tz\n2\tnote\t0\n1\tnote\t0\n0\tnote\t3\n")
    assert read_indices(tmp_path / "named.tsv", ["z", "x"], (4, 3)) == PAIRS
    with pytest.raises(DataError, match=r"has no column 'w'; its first line is \['x', 'y', 'z'\]"):
        read_indices(tmp_path / "named.tsv", ["z", "w"], (4, 3))


def test_texts_and_any_columns_with_their_places(tmp_path: Path) -> None:
    (tmp_path / "texts.csv").write_text('query,document\n"a, b",c\nd,"e\nf"\n')
    assert read_texts(tmp_path / "texts.csv", None) == [("a, b", "c"), ("d", "e\nf")]
    rows = list(read_columns(tmp_path / "texts.csv", ["document"], given=True))
    assert rows == [("line 2", ["c"]), ("line 4", ["e\nf"])]
    (tmp_path / "blank.jsonl").write_text('{"query": "a", "document": " "}\n')
    with pytest.raises(DataError, match="holds ' ' in line 1, column 'document', where a text must stand"):
        read_texts(tmp_path / "blank.jsonl", None)


FAULTS = {
    "number.csv": (
        "query,document\n0,1\n1,93x\n",
        "'93x' in line 3, column 'document', where a row number from 0 to 2",
    ),
    "outside.csv": ("query,document\n0,1\n500,1\n", "'500' in line 3, column 'query'"),
    "short.csv": ("query,document\n0,1\n1\n", r"has 1 column\(s\) in line 3 where 'document' is number 2"),
    "narrow.csv": ("0\n1\n", r"has 1 column\(s\) where 2 are needed"),
    "empty.csv": ("query,document\n", "holds no pair"),
    "quote.csv": ('query,document\n0,"1\n', "cannot be read after line"),
    "broken.jsonl": ('{"query": 0, "document": 1}\n{"query": 1,\n', "is no JSON in line 2, column"),
    "list.jsonl": ("[0, 1]\n", r"lacks \['query', 'document'\] in line 1"),
    "lacks.jsonl": ('{"query": 0, "document": 1}\n{"query": 1}\n', r"lacks \['document'\] in line 2"),
    "half.jsonl": ('{"query": 0.5, "document": 1}\n', "0.5 in line 1, column 'query'"),
    "true.jsonl": ('{"query": true, "document": 1}\n', "True in line 1, column 'query'"),
    "false.parquet": ("query,document\n0,1\n", "is no parquet file"),
    "pairs.txt": ("0 1\n", "is none of .csv, .tsv, .jsonl, .parquet"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_named_with_its_place(name: str, tmp_path: Path) -> None:
    text, expected = FAULTS[name]
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=expected):
        read_indices(tmp_path / name, None, (4, 3))


def test_what_is_not_there_or_no_utf8_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="missing.csv' is no file. Check the spelling"):
        read_indices(tmp_path / "missing.csv", None, (4, 3))
    (tmp_path / "latin.csv").write_bytes("query,document\n0,é\n".encode("latin-1"))
    with pytest.raises(DataError, match="Save it as UTF-8 CSV"):
        read_indices(tmp_path / "latin.csv", None, (4, 3))
