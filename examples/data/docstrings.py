"""Real English without a download: first sentences of docstrings in the installed Python, torch and numpy.

Sources are parsed, never imported. Each entry is a function or class: its name as words and what its docstring says it
does. Files, not entries, are divided into train, validation and test (80 / 10 / 10, by a digest of the path), so that
near copies of one file lie in one split. Counts depend a little on the installed versions; the examples print them.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import re
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Entry", "load_docstrings"]

PACKAGES = ("torch", "numpy")
SKIPPED = {"test", "tests", "testing", "idlelib", "lib2to3", "site-packages", "_vendor", "__pycache__"}


@dataclass(frozen=True)
class Entry:
    """A name as words ("get terminal size") and the first sentence of its docstring."""

    name: str
    sentence: str


def load_docstrings(split: str, packages: Sequence[str] = PACKAGES) -> list[Entry]:
    """Entries of "train", "validation" or "test" in the standard library and `packages`, every sentence once."""
    found: dict[str, Entry] = {}
    for file in _files(packages):
        if _split(file[1]) == split:
            for entry in _entries(file[0]):
                found.setdefault(entry.sentence, entry)
    return list(found.values())


def _files(packages: Sequence[str]) -> list[tuple[Path, str]]:
    roots = [Path(sysconfig.get_path("stdlib"))]
    for name in packages:
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.origin is not None:
            roots.append(Path(spec.origin).parent)
    return [
        (path, f"{root.name}/{path.relative_to(root).as_posix()}")
        for root in roots
        for path in sorted(root.rglob("*.py"))
        if not SKIPPED & set(path.relative_to(root).parts)
    ]


def _split(name: str) -> str:
    share = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4]) / 2**32
    return "train" if share < 0.8 else "validation" if share < 0.9 else "test"


def _entries(path: Path) -> Iterator[Entry]:
    try:
        tree = ast.parse(path.read_text(encoding="utf-8", errors="ignore"))
    except (SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            sentence = _first_sentence(ast.get_docstring(node) or "")
            if 4 <= len(sentence.split()) <= 24 and sentence.isascii():
                yield Entry(_words(node.name), sentence)


def _first_sentence(docstring: str) -> str:
    paragraph = " ".join(docstring.strip().split("\n\n")[0].split())
    return re.split(r"(?<=[.!?])\s", paragraph, maxsplit=1)[0] if re.match(r"[A-Z][a-z]*\b", paragraph) else ""


def _words(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|_", " ", name).lower().strip()
