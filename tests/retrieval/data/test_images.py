"""Images from every source; those that cannot be read are named by their file."""

import io

import numpy as np
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


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "tiff"])
def test_images_stand_as_the_camera_was_held(orientation, ending, tmp_path):
    upright = Pillow.new("RGB", (24, 16))
    upright.paste((250, 0, 0), (0, 0, 12, 8))  # red above on the left, blue below on the right
    upright.paste((0, 0, 250), (12, 8, 24, 16))
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # of the operation that shows the picture
    stored = upright if orientation == 1 else upright.transpose(Pillow.Transpose(undo[orientation]))
    exif = Pillow.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"photo.{ending}"
    stored.save(path, exif=exif, **({"quality": 95} if ending != "png" else {}))
    for source in (path, path.read_bytes(), Pillow.open(path)):
        shown = open_image(source)
        assert shown.size == (24, 16)
        assert [shown.getpixel(place)[0] > 200 for place in ((3, 3), (20, 3), (3, 13), (20, 13))] == [True] + [
            False
        ] * 3
        assert shown.getpixel((20, 13))[2] > 200
        assert open_image(shown).tobytes() == shown.tobytes()  # not turned twice


def test_damaged_exif_data_leave_the_picture_as_it_lies(tmp_path):
    Pillow.new("RGB", (6, 4), (9, 9, 9)).save(tmp_path / "photo.jpg", exif=b"Exif\x00\x00no TIFF header at all")
    assert open_image(tmp_path / "photo.jpg").size == (6, 4)


def test_sixteen_bits_are_scaled(tmp_path):
    steps = np.array([[0, 257, 32896, 65535]], dtype=np.uint16)
    for ending in ("png", "tiff", "pgm"):
        Pillow.fromarray(steps).save(tmp_path / f"deep.{ending}")
        assert np.asarray(open_image(tmp_path / f"deep.{ending}"))[0, :, 0].tolist() == [0, 1, 128, 255]
    dark = Pillow.fromarray(np.array([[0, 200]], dtype=np.uint16))
    dark.save(tmp_path / "dark.png")
    assert np.asarray(open_image(tmp_path / "dark.png")).max() == 1  # a dark picture stays dark


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 0.5, 1.0], [0, 128, 255]),
        ([0.0, 128.0, 255.0], [0, 128, 255]),
        ([0.0, 257.0, 65535.0], [0, 1, 255]),
        ([-1.0, 0.0, 1.0], [0, 128, 255]),
        ([0.0, float("nan"), 1.0], [0, 0, 255]),
        ([0.0, 5e9, 1e10], [0, 128, 255]),
        ([0.0, 0.0, 0.0], [0, 0, 0]),
        ([-3.0, -3.0, -3.0], [0, 0, 0]),
    ],
)
def test_floats_are_scaled(values, expected, tmp_path):
    Pillow.fromarray(np.array([values], dtype=np.float32)).save(tmp_path / "float.tiff")
    shown = np.asarray(open_image(tmp_path / "float.tiff"))
    assert shown.shape == (1, 3, 3)
    assert shown[0, :, 1].tolist() == expected


def test_whole_numbers_of_32_bits_are_scaled(tmp_path):
    for values, expected in (
        ([0, 128, 255], [0, 128, 255]),
        ([0, 257, 65535], [0, 1, 255]),
        ([0, 1, 2**31 - 1], [0, 0, 255]),
    ):
        Pillow.fromarray(np.array([values], dtype=np.int32)).save(tmp_path / "whole.tiff")
        assert np.asarray(open_image(tmp_path / "whole.tiff"))[0, :, 0].tolist() == expected
