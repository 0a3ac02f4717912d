"""Texts are embedded once: by side, through a bar, and from the cache the next time; a damaged run leaves no file."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from gssf_plug import GSSFMetric
from gssf_plug.cli import embeddings, main
from gssf_plug.cli.embeddings import TextEncoder, default_cache
from gssf_plug.evaluation import document_ranking


class CountingModel:
    """Stands for a SentenceTransformer: vectors from the letters of a text, another constant for each side."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, int]] = []

    def encode_query(self, texts: list[str], show_progress_bar: bool) -> np.ndarray:
        return self._encode("query", texts)

    def encode_document(self, texts: list[str], show_progress_bar: bool) -> np.ndarray:
        return self._encode("document", texts)

    def _encode(self, side: str, texts: list[str]) -> np.ndarray:
        self.calls.append((side, len(texts)))
        counts = np.array([[text.count(letter) for letter in "abcdefgh"] for text in texts], dtype=np.float32)
        return counts + (0.1 if side == "query" else 0.2)


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> CountingModel:
    made = CountingModel()
    monkeypatch.setattr(TextEncoder, "_loaded", lambda self: made)
    return made


def test_each_side_is_embedded_once(model: CountingModel, tmp_path: Path) -> None:
    encoder = TextEncoder("some/model", tmp_path / "cache", progress=False)
    first = encoder.embed(["a", "b"], "query")
    again = TextEncoder("some/model", tmp_path / "cache", progress=False).embed(["a", "b"], "query")
    assert np.array_equal(first, again)
    assert not np.array_equal(first, encoder.embed(["a", "b"], "document"))
    encoder.embed(["b", "a"], "query")
    TextEncoder("other/model", tmp_path / "cache", progress=False).embed(["a", "b"], "query")
    assert model.calls == [("query", 2), ("document", 2), ("query", 2), ("query", 2)]


def test_a_changed_folder_is_another_model(model: CountingModel, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "weights").write_text("1")
    encoder = TextEncoder(str(folder), tmp_path / "cache", progress=False)
    encoder.embed(["a"], "query")
    (folder / "weights").write_text("12")
    encoder.embed(["a"], "query")
    assert len(model.calls) == 2


def test_an_interrupted_write_leaves_nothing(
    model: CountingModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(file: object, array: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(embeddings.np, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        TextEncoder("m", tmp_path / "cache", progress=False).embed(["a"], "query")
    assert list((tmp_path / "cache").iterdir()) == []


def test_texts_become_a_metric(model: CountingModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pairs = [{"query": f"{letter * 2}{other}", "document": letter} for letter in "abcdefgh" for other in "abcdefgh"]
    table, corpus = tmp_path / "pairs.jsonl", tmp_path / "corpus.csv"
    table.write_text("\n".join(json.dumps(pair) for pair in pairs))
    corpus.write_text("document\nabc\ndef\n")
    data = [str(table), "--encoder", "m", "--documents", str(corpus), "--cache", str(tmp_path / "cache")]
    out = ["--out", str(tmp_path / "metric"), "--no-progress", "--structures", "diagonal", "--max-epochs", "5"]
    assert main(["fit", *data, *out]) == 0
    assert "among 10 documents" in capsys.readouterr().out
    assert model.calls == [("query", 64), ("document", 10)]
    assert main(["evaluate", str(tmp_path / "metric"), *data]) == 0
    assert len(model.calls) == 2


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real, tiny sentence-transformers model in a folder; queries have a prompt that documents have not."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder = tmp_path_factory.mktemp("encoder")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "ask", *"abcdefgh"]
    (folder / "vocab.txt").write_text("\n".join(words))
    BertTokenizerFast(vocab_file=str(folder / "vocab.txt")).save_pretrained(folder / "bert")
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertModel(BertConfig(vocab_size=len(words), **shape)).save_pretrained(folder / "bert")
    modules = [Transformer(str(folder / "bert")), Pooling(16)]
    model = SentenceTransformer(modules=modules, prompts={"query": "ask ", "document": ""}, device="cpu")
    model.save_pretrained(str(folder / "model"))
    return folder / "model"


def test_a_real_model_out_of_a_folder(saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """fit and evaluate with --encoder, and the metric on what `encode_query` and `encode_document` give."""
    from sentence_transformers import SentenceTransformer

    pairs = [(f"{first} {second}", first) for first in "abcdefgh" for second in "abcdefgh"]
    table = tmp_path / "pairs.csv"
    table.write_text("query,document\n" + "\n".join(",".join(pair) for pair in pairs) + "\n")
    data = [str(table), "--encoder", str(saved), "--cache", str(tmp_path / "cache")]
    out = ["--out", str(tmp_path / "metric"), "--no-progress", "--structures", "diagonal", "--max-epochs", "30"]
    assert main(["fit", *data, *out]) == 0
    assert "64 validation queries among 8 documents" in capsys.readouterr().out
    assert len(list((tmp_path / "cache").iterdir())) == 2
    assert main(["evaluate", str(tmp_path / "metric"), *data]) == 0
    printed = capsys.readouterr().out
    model = SentenceTransformer(str(saved), device="cpu")
    queries, documents = model.encode_query([query for query, _ in pairs]), model.encode_document([*"abcdefgh"])
    assert not np.allclose(queries[:8], model.encode_document([query for query, _ in pairs[:8]]), atol=1e-3)
    relevant = [["abcdefgh".index(document)] for _, document in pairs]
    expected = document_ranking(queries, documents, relevant, GSSFMetric.from_pretrained(tmp_path / "metric"))
    assert f"{expected['mAP']:.2f}" in printed


def test_an_empty_text_is_named(model: CountingModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = tmp_path / "pairs.csv"
    table.write_text("question,answer\nwhy,because\nhow, \n")
    command = [
        "fit",
        str(table),
        "--encoder",
        "m",
        "--columns",
        "question",
        "answer",
        "--out",
        str(tmp_path / "metric"),
    ]
    assert main(command) == 1
    assert "' ' in line 3, column 'answer'" in capsys.readouterr().err
    assert model.calls == []


def test_a_model_that_cannot_be_loaded_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("sentence_transformers")
    table = tmp_path / "pairs.csv"
    table.write_text("query,document\nwhy,because\nhow,so\n")
    missing, out = str(tmp_path / "no_model"), tmp_path / "metric"
    assert main(["fit", str(table), "--encoder", missing, "--cache", str(tmp_path / "cache"), "--out", str(out)]) == 1
    said = capsys.readouterr().err
    assert f"'{missing}' cannot be loaded by sentence-transformers" in said
    assert not out.exists()
    assert not (tmp_path / "cache").exists()


def test_the_cache_follows_xdg(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert default_cache() == Path("/somewhere/gssf-plug/embeddings")
