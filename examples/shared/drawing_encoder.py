"""A small CNN that puts drawings into the space of a frozen text encoder: what `search_demo.py` answers images with.

0.8 M parameters, 32×32 pixels in, D channels out (MiniLM: 384). `train_search_demo.py` makes its weights.
"""

import os

import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from gssf_plug.retrieval.data.images import image_tensor

__all__ = ["DrawingEncoder"]

SIZE = 32


class DrawingEncoder(nn.Module):
    """Four strided convolutions and one linear layer.

    Args:
        dim: width D of the text encoder's embeddings.

    Shape:
        pixels (N, 3, 32, 32), floats in 0 … 1 -> (N, D), not normalised.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs in ((3, 32), (32, 64), (64, 128), (128, 256)):
            layers += [
                nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(outputs),
                nn.ReLU(),
            ]
        self.layers = nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.3), nn.Linear(256 * (SIZE // 16) ** 2, dim))

    def forward(self, pixels: Tensor) -> Tensor:
        """Features of drawings."""
        features: Tensor = self.layers(pixels)
        return features

    def save(self, path: str | os.PathLike[str]) -> None:
        """Weights as float16 safetensors, 1.6 MB; counters of BatchNorm are left out."""
        state = {name: value for name, value in self.state_dict().items() if value.is_floating_point()}
        save_file({name: value.half().contiguous() for name, value in state.items()}, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "DrawingEncoder":
        """What `save` wrote, in float32 and evaluation mode."""
        state = {name: value.float() for name, value in load_file(path).items()}
        encoder = cls(len(state["layers.14.bias"]))
        counters = {name: value for name, value in encoder.state_dict().items() if not value.is_floating_point()}
        encoder.load_state_dict({**state, **counters})
        return encoder.eval()

    @torch.no_grad()
    def embed(self, image: Image.Image) -> Tensor:
        """Features (1, D) of one image of any size; what is transparent is seen on white."""
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        white.alpha_composite(image)
        return self(image_tensor(white, SIZE)[None].float() / 255)
