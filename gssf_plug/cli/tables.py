"""Tables of two columns, a query and a document in each row: CSV, JSONL or parquet, with the place of every fault.

A CSV file may have a header; without one the first column is the query and the second the document.
"""

import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from gssf_plug.errors import DataError

__all__ = ["NAMES", "read_columns", "read_indices", "read_texts"]

NAMES = ("query", "document")  # of the columns, where the caller says nothing
Row = tuple[str, Sequence[Any]]  # where it stands, its values


def read_indices(path: Path, columns: Sequence[str] | None, sizes: Sequence[int]) -> list[tuple[int, int]]:
    """Pairs of row numbers, counted from 0.

    Args:
        path: the table.
        columns: names of the query's and the document's column; None takes "query" and "document", or the first two.
        sizes: how many queries and documents there are.

    Raises:
        DataError: no such file or column, or a value that is no row; says which row and column.
    """
    names = [*(columns or NAMES)]
    pairs = []
    for place, values in read_columns(path, names, given=columns is not None):
        query, document = (_row(path, place, *each) for each in zip(names, values, sizes, strict=True))
        pairs.append((query, document))
    return _some(path, pairs)


def read_texts(path: Path, columns: Sequence[str] | None) -> list[tuple[str, str]]:
    """Pairs of texts; see `read_indices`."""
    names = [*(columns or NAMES)]
    pairs = []
    for place, values in read_columns(path, names, given=columns is not None):
        query, document = (_text(path, place, name, value) for name, value in zip(names, values, strict=True))
        pairs.append((query, document))
    return _some(path, pairs)


def read_columns(path: Path, names: Sequence[str], *, given: bool) -> Iterator[Row]:
    """The values of these columns, row by row, with where each row stands.

    Args:
        path: ending in .csv, .tsv, .jsonl or .parquet.
        names: names of the columns to read.
        given: whether the caller named them; if not, the first columns do as well.
    """
    readers = {".csv": _csv, ".tsv": _csv, ".jsonl": _jsonl, ".parquet": _parquet}
    if path.suffix not in readers:
        raise DataError(path, f"is none of {', '.join(readers)}", "Save the pairs in one of these.")
    if not path.is_file():
        raise DataError(path, "is no file", "Check the spelling.")
    return readers[path.suffix](path, names, given)


def _csv(path: Path, names: Sequence[str], given: bool) -> Iterator[Row]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.reader(file, delimiter="\t" if path.suffix == ".tsv" else ",", strict=True)
        places: list[int] | None = None
        try:
            for cells in reader:
                if not cells:
                    continue
                if places is None:
                    places, header = _header(path, cells, names, given)
                    if header:
                        continue
                if len(cells) <= max(places):
                    problem = f"has {len(cells)} column(s) in line {reader.line_num} where '{names[-1]}' is number "
                    raise DataError(path, f"{problem}{max(places) + 1}", "Complete the line, or remove it.")
                yield f"line {reader.line_num}", [cells[place] for place in places]
        except (csv.Error, UnicodeDecodeError) as error:
            problem = f"cannot be read after line {reader.line_num} ({error})"
            raise DataError(
                path, problem, "Save it as UTF-8 CSV, fields with commas or line breaks in quotes."
            ) from error


def _header(path: Path, cells: Sequence[str], names: Sequence[str], given: bool) -> tuple[list[int], bool]:
    """Where the columns stand, and whether the first line says so."""
    words = [cell.strip() for cell in cells]
    if all(name in words for name in names):
        return [words.index(name) for name in names], True
    if given:
        missing = next(name for name in names if name not in words)
        raise DataError(path, f"has no column '{missing}'; its first line is {words}", "Name one of these.")
    if len(words) < len(names):
        raise DataError(path, f"has {len(words)} column(s) where {len(names)} are needed", "Give query and document.")
    return [*range(len(names))], False


def _jsonl(path: Path, names: Sequence[str], given: bool) -> Iterator[Row]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                problem = f"is no JSON in line {number}, column {error.colno} ({error.msg})"
                raise DataError(path, problem, "Write one object per line.") from error
            if not isinstance(row, dict) or not all(name in row for name in names):
                missing = [name for name in names if not isinstance(row, dict) or name not in row]
                raise DataError(path, f"lacks {missing} in line {number}", "Give an object with these keys.")
            yield f"line {number}", [row[name] for name in names]


def _parquet(path: Path, names: Sequence[str], given: bool) -> Iterator[Row]:
    import pyarrow.parquet as parquet
    from pyarrow import ArrowInvalid

    try:
        file = parquet.ParquetFile(path)
    except (ArrowInvalid, OSError) as error:
        raise DataError(path, f"is no parquet file ({error})", "Write it again.") from error
    found = file.schema_arrow.names
    # the caller's columns, or those of the usual names, or simply the first
    chosen = [*names] if given or all(name in found for name in names) else found[: len(names)]
    if len(chosen) < len(names) or not all(name in found for name in chosen):
        raise DataError(path, f"has the columns {found}, not {[*names]}", "Name two of them.")
    number = 0
    for batch in file.iter_batches(columns=chosen):
        for values in zip(*(batch.column(name).to_pylist() for name in chosen), strict=True):
            yield f"row {number}", [*values]
            number += 1


def _row(path: Path, place: str, name: str, value: Any, size: int) -> int:
    try:
        number = float("nan") if isinstance(value, bool) else float(str(value).strip())
    except ValueError:
        number = float("nan")
    if not number.is_integer() or not 0 <= number < size:  # 3.0 is 3: a table that once had gaps holds floats
        problem = f"holds {value!r} in {place}, column '{name}', where a row number from 0 to {size - 1} must stand"
        raise DataError(path, problem, "Texts need --encoder; numbers count the rows of the .npy file from 0.")
    return int(number)


def _text(path: Path, place: str, name: str, value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        problem = f"holds {value!r} in {place}, column '{name}', where a text must stand"
        raise DataError(path, problem, "Complete the row, or remove it.")
    return value


def _some(path: Path, pairs: list[Any]) -> list[Any]:
    if not pairs:
        raise DataError(path, "holds no pair", "Give one pair per row.")
    return pairs
