"""The run's log as lines of JSON, one record each, with a "step"; a resumed run takes back what it will do again."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gssf_plug.files import write_atomically

__all__ = ["Journal"]


class Journal:
    """A JSONL file that is appended to.

    Args:
        path: the file; its folder must exist when a record is written.
        writes: False for processes that only take part, default True.
    """

    def __init__(self, path: Path, *, writes: bool = True) -> None:
        self.path = path
        self.writes = writes

    def write(self, record: Mapping[str, Any]) -> None:
        """Append one record."""
        if self.writes:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")

    def records(self) -> list[dict[str, Any]]:
        """All whole records; a line that a crash cut is passed over."""
        if not self.path.exists():
            return []
        found = []
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                found.append(json.loads(line))
            except json.JSONDecodeError:
                continue
        return found

    def rewind(self, step: int) -> None:
        """Forget the records after `step`."""
        if self.writes and self.path.exists():
            kept = [json.dumps(record) + "\n" for record in self.records() if record["step"] <= step]
            write_atomically(self.path, lambda path: path.write_text("".join(kept), encoding="utf-8"))
