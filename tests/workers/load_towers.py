"""Loads a TwoTower and a OneTower in a process that has never imported `gssf_plug.attention`, and embeds.

python tests/workers/load_towers.py FOLDER    # FOLDER/two, FOLDER/one; writes FOLDER/embeddings.pt
"""

import sys
from pathlib import Path

import torch

from gssf_plug.retrieval import OneTower, TwoTower


def main(folder: Path) -> None:
    """Both models on the token ids in FOLDER/ids.pt."""
    assert "gssf_plug.attention" not in sys.modules
    ids = torch.load(folder / "ids.pt")
    two, one = TwoTower.from_pretrained(folder / "two"), OneTower.from_pretrained(folder / "one")
    with torch.no_grad():
        torch.save([two.encode_image({"input_ids": ids}), one.encode({"input_ids": ids})], folder / "embeddings.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
