"""PIL images to normalised tensors, as the published recipes make them; Pillow and torch alone.

    PedestrianTransform    bag of tricks: flip, pad and crop, random erasing
    CropTransform          a random part resized, flip; in evaluation the middle

Randomness comes from Python's global generator, which RetrievalTrainer seeds for every batch.
"""

import math
import random

import torch
from jaxtyping import Float
from PIL import Image, ImageOps
from torch import Tensor

from gssf_plug.errors import ArgumentError
from gssf_plug.retrieval.data.images import image_tensor

__all__ = ["CLIP", "HALF", "IMAGENET", "CropTransform", "PedestrianTransform", "Statistics"]

Statistics = tuple[tuple[float, float, float], tuple[float, float, float]]

IMAGENET: Statistics = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CLIP: Statistics = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
HALF: Statistics = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


class PedestrianTransform:
    """Whole images resized; in training flipped, shifted, and partly erased.

    Args:
        train: True augments; False resizes alone.
        size: height and width of the result; default 256×128.
        pad: number of pixels that are added at each side before a crop of `size`; default 10.
        flip: probability of a horizontal flip; default 0.5.
        erase: probability that a rectangle of 2 % to 40 % becomes the mean colour; default 0.5.
        statistics: mean and standard deviation of each channel; default ImageNet's.

    References:
        Luo et al., "Bag of tricks", arXiv 1903.07071; Zhong et al., "Random erasing", arXiv 1708.04896.
    """

    def __init__(
        self,
        *,
        train: bool,
        size: tuple[int, int] = (256, 128),
        pad: int = 10,
        flip: float = 0.5,
        erase: float = 0.5,
        statistics: Statistics = IMAGENET,
    ) -> None:
        _check_probabilities(flip=flip, erase=erase)
        self.train = train
        self.size = size
        self.pad = pad
        self.flip = flip
        self.erase = erase
        self.statistics = statistics

    def __call__(self, image: Image.Image) -> Float[Tensor, "3 height width"]:
        """The tensor of an image."""
        height, width = self.size
        image = image.resize((width, height), Image.Resampling.BICUBIC)
        if not self.train:
            return _normalised(image, self.statistics)
        if random.random() < self.flip:
            image = ImageOps.mirror(image)
        left, top = random.randint(0, 2 * self.pad), random.randint(0, 2 * self.pad)
        image = ImageOps.expand(image, self.pad).crop((left, top, left + width, top + height))
        tensor = _normalised(image, self.statistics)
        return _erase(tensor) if random.random() < self.erase else tensor


class CropTransform:
    """In training a random part of the image, resized and flipped; in evaluation the middle.

    Args:
        train: True augments; False resizes and takes the middle.
        size: height and width of the result; default 224.
        resize: length of the shorter side before the middle is taken; default 256.
        area: smallest and largest share of the image that a crop covers in training; default 0.08 to 1.
        aspect: smallest and largest ratio of width to height of a crop; default 3/4 to 4/3.
        flip: probability of a horizontal flip; default 0.5.
        statistics: mean and standard deviation of each channel; default ImageNet's.

    Raises:
        ArgumentError: `resize` is below `size`, or a range is none.
    """

    def __init__(
        self,
        *,
        train: bool,
        size: int = 224,
        resize: int = 256,
        area: tuple[float, float] = (0.08, 1.0),
        aspect: tuple[float, float] = (3 / 4, 4 / 3),
        flip: float = 0.5,
        statistics: Statistics = IMAGENET,
    ) -> None:
        if resize < size:
            raise ArgumentError("resize", f"be at least size={size}", resize, "Usual are 256 and 224.")
        if not 0 < area[0] <= area[1] <= 1:
            raise ArgumentError("area", "be two shares, 0 < smallest ≤ largest ≤ 1", area, "Usual are 0.08 and 1.0.")
        _check_probabilities(flip=flip)
        self.train = train
        self.size = size
        self.resize = resize
        self.area = area
        self.aspect = aspect
        self.flip = flip
        self.statistics = statistics

    def __call__(self, image: Image.Image) -> Float[Tensor, "3 height width"]:
        """The tensor of an image."""
        box = self._random_box(image) if self.train else self._middle(image)
        image = image.resize((self.size, self.size), Image.Resampling.BICUBIC, box=box)
        if self.train and random.random() < self.flip:
            image = ImageOps.mirror(image)
        return _normalised(image, self.statistics)

    def _middle(self, image: Image.Image) -> tuple[float, float, float, float]:
        """The square in the middle of `image`, as large as `size` is where the shorter side is `resize`."""
        side = min(image.size) * self.size / self.resize
        left, top = (image.width - side) / 2, (image.height - side) / 2
        return left, top, left + side, top + side

    def _random_box(self, image: Image.Image) -> tuple[float, float, float, float]:
        for _ in range(10):
            area = random.uniform(*self.area) * image.width * image.height
            aspect = math.exp(random.uniform(math.log(self.aspect[0]), math.log(self.aspect[1])))
            width, height = math.sqrt(area * aspect), math.sqrt(area / aspect)
            if width <= image.width and height <= image.height:
                left, top = random.uniform(0, image.width - width), random.uniform(0, image.height - height)
                return left, top, left + width, top + height
        side = min(image.size)  # a very long image: its middle
        left, top = (image.width - side) / 2, (image.height - side) / 2
        return left, top, left + side, top + side


def _normalised(image: Image.Image, statistics: Statistics) -> Tensor:
    mean, deviation = (torch.tensor(values).reshape(3, 1, 1) for values in statistics)
    return (image_tensor(image).float() / 255 - mean) / deviation


def _erase(tensor: Tensor) -> Tensor:
    """A rectangle of 2 % to 40 % of the area, width by height 0.3 to 3.3, set to 0, the mean colour."""
    _, height, width = tensor.shape
    for _ in range(100):
        area, aspect = random.uniform(0.02, 0.4) * height * width, random.uniform(0.3, 1 / 0.3)
        rows, columns = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if rows < height and columns < width:
            top, left = random.randint(0, height - rows), random.randint(0, width - columns)
            tensor[:, top : top + rows, left : left + columns] = 0.0
            break
    return tensor


def _check_probabilities(**probabilities: float) -> None:
    for name, value in probabilities.items():
        if not 0 <= value <= 1:
            raise ArgumentError(name, "be a probability, 0 … 1", value, "The usual one is 0.5.")
