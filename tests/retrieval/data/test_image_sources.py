"""Images before anything decodes them: told apart without decoding, each decoded in one size."""

import os
from pathlib import Path

import datasets
import pytest
from PIL import Image

from gssf_plug.errors import ArgumentError
from gssf_plug.retrieval.data.image_sources import ImageSources, check_size


def picture(width=4, height=6, colour=(1, 2, 3)):
    return Image.new("RGB", (width, height), colour)


@pytest.fixture
def files(tmp_path):
    paths = [str(tmp_path / f"{number}.png") for number in range(3)]
    for number, path in enumerate(paths):
        picture(4 + number, 6, (number, 0, 0)).save(path)
    return paths


def sources(values, size=None, column="image"):
    return ImageSources([{"image": value} for value in values], column, size)


@pytest.mark.parametrize(
    ("size", "got"),
    [
        (None, (4, 6)),
        (2, (2, 3)),  # the shorter side
        (9, (4, 6)),  # never enlarged
        ((3, 5), (5, 3)),  # height, width, as asked
        ((6, 4), (4, 6)),
    ],
)
def test_each_is_decoded_in_one_size(size, got):
    decoded = sources([picture()], size)[0]
    assert (decoded.width, decoded.height) == got
    assert len(decoded.pixels) == 3 * decoded.width * decoded.height
    assert not decoded.problem


def test_every_kind_of_row_gives_the_same_pixels(files):
    encoded = [Path(path).read_bytes() for path in files]
    features = datasets.Features({"image": datasets.Image()})
    table = datasets.Dataset.from_dict({"image": [{"bytes": b, "path": None} for b in encoded]}, features=features)
    kinds = [sources(files), sources(encoded), sources(map(Image.open, files)), ImageSources(table, "image", None)]
    for number, path in enumerate(files):
        right = Image.open(path).convert("RGB").tobytes()
        assert [kind[number].pixels for kind in kinds] == [right] * len(kinds)


def test_one_that_cannot_be_read_says_why(tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no image")
    decoded = sources([str(tmp_path / "broken.png")])[0]
    assert (decoded.height, decoded.width, decoded.pixels) == (0, 0, b"")
    assert "broken.png" in decoded.problem


def test_the_digest_tells_content_order_number_and_size(files):
    before = sources(files).digest()
    assert sources(files).digest() == before
    others = [sources(files[::-1]), sources(files[:2]), sources(files, 3), sources([files[0], files[0], files[2]])]
    assert before not in {other.digest() for other in others}
    os.utime(files[1], ns=(0, 1))
    touched = sources(files).digest()
    assert touched != before
    os.remove(files[1])
    assert sources(files).digest() not in (touched, before)


def test_the_digest_of_bytes_and_images_is_that_of_their_content():
    assert sources([picture()]).digest() == sources([picture()]).digest() != sources([picture(5, 6)]).digest()
    assert sources([picture()]).digest() != sources([picture(colour=(0, 0, 0))]).digest()
    assert sources([b"one"]).digest() != sources([b"two"]).digest()


@pytest.mark.bad_input
def test_what_is_no_image_is_named():
    with pytest.raises(ArgumentError, match=r"`column` must be a column of the rows, \['image'\], but got 'photo'"):
        sources([picture()], column="photo").digest()
    with pytest.raises(ArgumentError, match="`image` must hold paths, encoded bytes or PIL images, but got int"):
        sources([3]).digest()


@pytest.mark.bad_input
def test_sizes():
    for right in (None, 1, 224, (256, 128)):
        check_size(right)
    for wrong in (0, -1, 2.5, True, (3,), (3, 0), (3, 3, 3), "big", [3, 3]):
        with pytest.raises(ArgumentError, match=r"`size` must be a number of pixels, or \(height, width\)"):
            check_size(wrong)
