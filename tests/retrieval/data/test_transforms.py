"""Sizes, statistics, what is random and what is not."""

import random

import pytest
import torch
from PIL import Image

from gssf_plug.errors import ArgumentError
from gssf_plug.retrieval.data.images import image_tensor
from gssf_plug.retrieval.data.transforms import CLIP, HALF, CropTransform, PedestrianTransform


@pytest.fixture
def image():
    """Red grows to the right, green downwards, blue is 255."""
    pixels = torch.zeros(60, 40, 3, dtype=torch.uint8)
    pixels[..., 0] = torch.arange(40) * 6
    pixels[..., 1] = (torch.arange(60) * 4)[:, None]
    pixels[..., 2] = 255
    return Image.frombytes("RGB", (40, 60), bytes(pixels.flatten().tolist()))


def test_evaluation_of_pedestrians_is_a_resize_and_nothing_random(image):
    transform = PedestrianTransform(train=False, size=(60, 40), statistics=HALF)
    assert torch.equal(transform(image), transform(image))
    assert torch.allclose(transform(image), image_tensor(image).float() / 127.5 - 1, atol=1e-6)
    assert PedestrianTransform(train=False)(image).shape == (3, 256, 128)


def test_statistics_are_subtracted_and_divided_by(image):
    mean, deviation = CLIP
    tensor = PedestrianTransform(train=False, statistics=CLIP)(image)
    assert torch.allclose(tensor[2], torch.tensor((1 - mean[2]) / deviation[2]))


def test_each_augmentation_of_pedestrians(image):
    plain = PedestrianTransform(train=False, size=(60, 40))(image)
    still = PedestrianTransform(train=True, size=(60, 40), pad=0, flip=0.0, erase=0.0)(image)
    assert torch.equal(still, plain)
    flipped = PedestrianTransform(train=True, size=(60, 40), pad=0, flip=1.0, erase=0.0)(image)
    assert torch.equal(flipped, plain.flip(-1))
    for _ in range(20):
        erased = PedestrianTransform(train=True, size=(60, 40), pad=0, flip=0.0, erase=1.0)(image)
        gone = (erased == 0).all(dim=0)
        assert 0.01 < gone.float().mean() < 0.42
        assert torch.equal(erased[:, ~gone], plain[:, ~gone])
    shifted = [PedestrianTransform(train=True, size=(60, 40), flip=0.0, erase=0.0)(image) for _ in range(8)]
    assert len({float(tensor.sum()) for tensor in shifted}) > 4
    assert all(tensor.shape == (3, 60, 40) for tensor in shifted)


def test_the_same_seed_gives_the_same_images(image):
    for transform in (PedestrianTransform(train=True), CropTransform(train=True)):
        seen = []
        for _ in range(2):
            random.seed(5)
            seen.append(torch.stack([transform(image) for _ in range(4)]))
        assert torch.equal(*seen)
        assert not torch.equal(seen[0][0], seen[0][1])


def test_evaluation_takes_the_middle(image):
    tensor = CropTransform(train=False, size=28, resize=40, statistics=HALF)(
        image
    )  # the shorter side is 40: no scaling
    assert torch.allclose(tensor, image_tensor(image)[:, 16:44, 6:34].float() / 127.5 - 1, atol=1e-6)
    assert CropTransform(train=False)(image).shape == (3, 224, 224)


def test_random_parts_lie_inside_and_have_the_right_area(image):
    transform = CropTransform(train=True, area=(0.3, 0.5))
    for _ in range(200):
        left, top, right, bottom = transform._random_box(image)
        assert 0 <= left < right <= 40 + 1e-6
        assert 0 <= top < bottom <= 60 + 1e-6
        assert 0.29 < (right - left) * (bottom - top) / 2400 < 0.51
        assert 0.74 < (right - left) / (bottom - top) < 1.34
    long = Image.new("RGB", (400, 10))
    assert CropTransform(train=True, area=(0.9, 1.0), size=8)(long).shape == (3, 8, 8)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PedestrianTransform(train=True, erase=1.5), "`erase` must be a probability"),
        (lambda: CropTransform(train=True, flip=-0.1), "`flip` must be a probability"),
        (lambda: CropTransform(train=True, size=300), "`resize` must be at least size=300, but got 256"),
        (lambda: CropTransform(train=True, area=(0.5, 0.2)), "`area` must be two shares"),
    ],
)
def test_wrong_options(make, message):
    with pytest.raises(ArgumentError, match=message):
        make()
