"""Vectors for the command line: a .npy file, memory-mapped, or texts embedded once by a sentence-transformers model.

Embedded texts are kept in a cache, by model, side and texts, as .npy files written to a temporary name and renamed.
"""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from gssf_plug.errors import DataError

__all__ = ["TextEncoder", "default_cache", "read_vectors"]


def read_vectors(path: Path) -> np.ndarray:
    """An N×D matrix of floats out of a .npy file, memory-mapped.

    Raises:
        DataError: no such file, not a .npy file, or another kind of array.
    """
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(
            path, f"is no .npy file of numbers ({error})", "Save it with numpy.save(path, array)."
        ) from error
    if not isinstance(array, np.ndarray) or array.ndim != 2 or array.dtype.kind != "f":
        got = f"{array.dtype} of shape {array.shape}" if isinstance(array, np.ndarray) else "an archive"
        raise DataError(path, f"holds {got}, not a floating-point matrix", "Save one row per item.")
    return array


def default_cache() -> Path:
    """$XDG_CACHE_HOME/gssf-plug/embeddings, or ~/.cache/gssf-plug/embeddings."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gssf-plug" / "embeddings"


class TextEncoder:
    """A sentence-transformers model, loaded when something is not in the cache.

    Args:
        name: a Hub id or a folder.
        cache: folder of what was embedded before.
        progress: show a bar.
    """

    def __init__(self, name: str, cache: Path, *, progress: bool) -> None:
        self.name, self.cache, self.progress = name, cache, progress
        self._model: Any = None

    def embed(self, texts: Sequence[str], side: Literal["query", "document"]) -> np.ndarray:
        """Vectors (len(texts), D) of one side, float32, from the cache where it has them."""
        path = self.cache / f"{self._key(texts, side)}.npy"
        if path.is_file():
            return read_vectors(path)
        model = self._loaded()
        encode = model.encode_query if side == "query" else model.encode_document
        vectors = np.asarray(encode([*texts], show_progress_bar=self.progress), dtype=np.float32)
        self.cache.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            with unfinished.open("wb") as file:
                np.save(file, vectors)
            unfinished.replace(path)
        finally:
            unfinished.unlink(missing_ok=True)
        return vectors

    def _key(self, texts: Sequence[str], side: str) -> str:
        """Digest of the model (its files, where it is a folder), the side and every text."""
        digest = hashlib.sha256()
        folder = Path(self.name)
        files = sorted(path for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else []
        facts = [f"{path}:{path.stat().st_size}:{path.stat().st_mtime_ns}" for path in files]
        for text in (self.name, side, *facts, *texts):
            raw = text.encode("utf-8", "surrogatepass")
            digest.update(len(raw).to_bytes(8, "little") + raw)
        return digest.hexdigest()

    def _loaded(self) -> Any:
        if self._model is None:
            try:
                from sentence_transformers import SentenceTransformer
            except ImportError as error:
                raise ModuleNotFoundError(
                    "--encoder needs sentence-transformers: run `pip install 'sentence-transformers>=6.2'`."
                ) from error
            try:
                self._model = SentenceTransformer(self.name)
            except (OSError, ValueError) as error:  # no such folder or Hub id, no network, files of another kind
                problem = f"cannot be loaded by sentence-transformers ({type(error).__name__}: {error})"
                raise DataError(self.name, problem, "Give the Hub id or the folder of a model.") from error
        return self._model
