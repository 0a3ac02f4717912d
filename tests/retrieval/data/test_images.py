"""Images from every source; those that cannot be read are named by their file."""

import io

import pytest
import torch
from datasets import Dataset, Image
from PIL import Image as Pillow

from gssf_plug.retrieval.data.images import ImageRows, UnreadableError, image_tensor, open_image


@pytest.fixture
def png(tmp_path):
    path = tmp_path / "photo.png"
    pixels = torch.arange(48, dtype=torch.uint8).reshape(4, 4, 3)
    Pillow.frombytes("RGB", (4, 4), bytes(pixels.flatten().tolist())).save(path)
    return path


def test_every_source_gives_the_same_pixels(png):
    content = png.read_bytes()
    sources = [
        png,
        str(png),
        content,
        {"path": str(png), "bytes": None},
        {"path": None, "bytes": content},
        Pillow.open(png),
    ]
    expected = torch.arange(48, dtype=torch.uint8).reshape(4, 4, 3).permute(2, 0, 1)
    for source in sources:
        assert torch.equal(image_tensor(open_image(source)), expected)


def test_grey_and_transparent_images_become_rgb_and_are_resized():
    for mode in ("L", "RGBA", "P", "1"):
        tensor = image_tensor(open_image(Pillow.new(mode, (7, 5))), 4)
        assert tensor.shape == (3, 4, 4)
        assert tensor.dtype == torch.uint8


def damage(png, how):
    if how == "truncated":
        png.write_bytes(png.read_bytes()[:45])
    elif how == "foreign":
        png.write_text("no image at all")
    elif how == "empty":
        png.write_bytes(b"")
    elif how == "broken chunk":
        content = bytearray(png.read_bytes())
        content[content.index(b"IDAT") + 8] ^= 0xFF
        png.write_bytes(bytes(content))
    else:
        png.unlink()


@pytest.mark.parametrize("how", ["truncated", "foreign", "empty", "missing", "broken chunk"])
def test_what_cannot_be_read_is_named(png, how):
    damage(png, how)
    with pytest.raises(UnreadableError, match=r"image '.*photo\.png' cannot be read: "):
        open_image(png)
    rows = ImageRows([{"image": str(png), "label": 3}])
    with pytest.raises(UnreadableError, match=r"photo\.png"):
        rows[0]


def test_bytes_without_a_name_tell_their_size():
    with pytest.raises(UnreadableError, match="an image of 4 bytes cannot be read"):
        open_image(b"oops")


def test_a_truncated_image_of_pillow_is_named_too(png):
    buffer = io.BytesIO()
    noise = torch.randint(0, 256, (64 * 64 * 3,), dtype=torch.uint8)
    Pillow.frombytes("RGB", (64, 64), bytes(noise.tolist())).save(buffer, "PNG")
    png.write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])
    with Pillow.open(png) as cut, pytest.raises(UnreadableError, match=r"photo\.png.*truncated"):
        open_image(cut)


def test_rows_of_a_data_set_without_decoding(png):
    rows = Dataset.from_dict({"image": [str(png)], "label": [7]}).cast_column("image", Image(decode=False))
    row = ImageRows(rows, transform=lambda image: image_tensor(image, 2))[0]
    assert row["label"] == 7
    assert row["image"].shape == (3, 2, 2)
