"""A row for each caption of each image: what the image–text literature calls an epoch."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from gssf_plug.errors import ArgumentError
from gssf_plug.retrieval.data.images import Rows
from gssf_plug.retrieval.data.layout import column

__all__ = ["CaptionPairs"]


class CaptionPairs:
    """Rows (image, one caption) of a set with several captions per image, in the order of the set.

    An epoch over it sees each image as often as it has captions: 145,000 rows of Flickr30K. Two pairs of one image keep
    its label, so neither caption is a negative of the other.

    Args:
        rows: a `datasets.Dataset` with the columns `captions` and `label`.

    Raises:
        ArgumentError: no column of captions.

    Example:
        >>> from datasets import Dataset
        >>> rows = Dataset.from_dict({"captions": [["a", "b"], ["c"]], "label": [7, 8]})
        >>> [CaptionPairs(rows)[number] for number in range(3)][1]
        {'captions': ['b'], 'label': 7}
    """

    def __init__(self, rows: Any) -> None:
        if "captions" not in rows.column_names:
            raise ArgumentError("rows", "have a column 'captions'", rows.column_names, "Name it with columns_of.")
        counts = [1 if isinstance(texts, str) else len(texts) for texts in column(rows, "captions")]
        self.rows: Rows = rows
        self._image = np.repeat(np.arange(len(counts)), counts)
        self._caption = np.concatenate([np.arange(count) for count in counts])

    def __len__(self) -> int:
        return len(self._image)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        row = self.rows[int(self._image[index])]
        captions = [row["captions"]] if isinstance(row["captions"], str) else row["captions"]
        return {**row, "captions": [captions[self._caption[index]]]}
