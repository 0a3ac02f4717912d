"""Draw the pictures of the documentation again: python docs/figures.py (seconds; from the root of a clone).

What a long run draws stays with that run: `retrieved.png`, `learned.png` come from `examples/image_text_retrieval.py`,
the pictures in `_static/` from `examples/re_identification.py` and `examples/fine_grained_retrieval.py`.
"""

from pathlib import Path

import torch

from gssf_plug import GSSFMetric
from gssf_plug.retrieval.plots import plot_structures

IMAGES = Path(__file__).resolve().parent / "images"


def structures() -> None:
    """U of each structure at 32 channels."""
    shown = {
        "Diag": GSSFMetric(32, terms=("diagonal",)),
        "B-Diag 8": GSSFMetric(32, terms=("block_diagonal",), block_size=8),
        "B-Diag 8, grouped": GSSFMetric(32, terms=("block_diagonal",), block_size=8, grouping=torch.randperm(32)),
        "dense": GSSFMetric(32, terms=("dense",)),
    }
    plot_structures(shown, title="U: which entries of W are learned").savefig(IMAGES / "structures.png", dpi=120)


if __name__ == "__main__":
    torch.manual_seed(0)
    structures()
