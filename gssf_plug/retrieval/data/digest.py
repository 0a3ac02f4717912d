"""What a data set looks like, in a few words: enough to notice that a run is resumed with other data.

Columns, and a digest of the content of the first rows. Reading is seeded as it is in training, so random augmentation
gives the same content each time. A stream gives its columns where it knows them, and no row: reading would eat it.
"""

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from gssf_plug.errors import GSSFError
from gssf_plug.retrieval.data.batches import read_row, seeded
from gssf_plug.retrieval.data.feeds import is_stream
from gssf_plug.retrieval.data.images import Rows

__all__ = ["describe_rows"]

FIRST = 3


def describe_rows(rows: Rows) -> dict[str, Any]:
    """Columns and content of the first rows, as JSON-able values.

    Args:
        rows: map-style data set or stream.

    Returns:
        {"columns": sorted names, where rows are mappings; "row 0": 16 hexadecimal digits, …}; for a stream the columns
        alone, where it knows them. A row that cannot be read is described as such: training will name it.
    """
    names = getattr(rows, "column_names", None)
    if is_stream(rows):
        return {"columns": sorted(names)} if names else {}
    found: dict[str, Any] = {}
    for number in range(min(FIRST, len(rows))):
        with seeded(number):
            try:
                row = read_row(rows, number)
            except GSSFError:
                found[f"row {number}"] = "cannot be read"
                continue
        if isinstance(row, Mapping):
            found["columns"] = sorted(map(str, row))
        digest = hashlib.sha256()
        _add(row, digest)
        found[f"row {number}"] = digest.hexdigest()[:16]
    return found


def _add(value: Any, digest: Any) -> None:
    """Content, never an address: what is of unknown type counts by its type."""
    digest.update(type(value).__name__.encode())
    if isinstance(value, Tensor):
        digest.update(str(value.dtype).encode())
        value = value.detach().cpu()
        value = value.float().numpy() if value.dtype == torch.bfloat16 else value.numpy()  # numpy lacks that type
    if isinstance(value, Image.Image):
        digest.update(f"{value.mode} {value.size}".encode() + value.tobytes())
    elif isinstance(value, np.ndarray | np.generic):
        digest.update(f"{value.dtype} {value.shape}".encode() + value.tobytes())
    elif isinstance(value, Mapping):
        for key in sorted(value, key=str):
            digest.update(str(key).encode())
            _add(value[key], digest)
    elif isinstance(value, list | tuple):
        for item in value:
            _add(item, digest)
    elif isinstance(value, bool | int | float | str | bytes | None):
        digest.update(value if isinstance(value, bytes) else str(value).encode())
