"""The bundled emoji data set: drawings by six vendors with names and keywords, read without a network.

README.md beside this file describes the columns, the splits and the licences. The parquet files are only read;
what ``datasets`` derives from them goes into its own cache (``HF_DATASETS_CACHE``).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow.compute as pc
from datasets import Dataset, load_dataset

FOLDER = Path(__file__).resolve().parent / "emoji"
SPLITS = ("train", "validation", "test")
VENDORS = ("twemoji", "noto", "noto-v1", "fluent", "fluent-flat", "emojitwo")


def load_emoji(split: str | None = None, vendors: str | Sequence[str] | None = None) -> Dataset:
    """Load the emoji of one split, drawn by some vendors.

    Rows come vendor by vendor in the order asked for, and by ``label`` inside a vendor and split. The split is
    chosen on the ``split`` column alone: no image is decoded before a row is read.

    Args:
        split: "train", "validation" or "test"; None for all three.
        vendors: One or more of "twemoji", "noto", "noto-v1", "fluent", "fluent-flat", "emojitwo"; None for all six.

    Returns:
        One row per image; ``image`` decodes to a 64×64 RGB ``PIL.Image``.

    Raises:
        ValueError: Unknown split or vendor, a vendor twice, or no vendor.

    Example:
        >>> train = load_emoji("train")
        >>> query, gallery = load_emoji("test", "twemoji"), load_emoji("test", "noto")
    """
    if split is not None and split not in SPLITS:
        raise ValueError(
            f"split must be one of {', '.join(SPLITS)}, or None for all, got {split!r}. "
            "Pass one of these; see examples/data/README.md."
        )
    files = [str(FOLDER / f"{vendor}.parquet") for vendor in _checked(vendors)]
    every = load_dataset("parquet", data_files=files, split="train")
    if split is None:
        return every
    rows = pc.indices_nonzero(pc.equal(every.data.column("split"), split))
    return every.select(rows.to_pylist())


def _checked(vendors: str | Sequence[str] | None) -> tuple[str, ...]:
    """The vendors asked for, as a tuple without repeats."""
    if vendors is None:
        return VENDORS
    asked = (vendors,) if isinstance(vendors, str) else tuple(vendors)
    if not asked or len(set(asked)) < len(asked) or not set(asked) <= set(VENDORS):
        raise ValueError(
            f"vendors must be one or more of {', '.join(VENDORS)}, each once, or None for all, got {vendors!r}. "
            "Pass names from this list; see examples/data/README.md."
        )
    return asked
