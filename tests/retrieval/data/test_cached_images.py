"""Decoded once: the same pixels, what is stale or damaged refused, a decoding that was killed goes on."""

import multiprocessing
import os
import pickle
import shutil

import datasets
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from gssf_plug.errors import ArgumentError, CheckpointError
from gssf_plug.retrieval import LabelCollator
from gssf_plug.retrieval.data import CachedImages, cache_images, cached_images, read_columns
from gssf_plug.retrieval.data.images import UnreadableError, image_tensor, open_image
from gssf_plug.retrieval.data.transforms import PedestrianTransform


@pytest.fixture
def files(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(5):
        pixels = torch.randint(0, 256, (3 * 12 * (8 + number),), dtype=torch.uint8)
        Image.frombytes("RGB", (8 + number, 12), bytes(pixels.tolist())).save(folder / f"{number}.png")
    return sorted(folder.iterdir())


def rows_of(files):
    return [{"image": str(path), "label": number} for number, path in enumerate(files)]


def encoded(files):
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    rows = {"image": [{"bytes": path.read_bytes(), "path": None} for path in files], "label": list(range(len(files)))}
    return datasets.Dataset.from_dict(rows, features=features)


@pytest.mark.parametrize("kind", ["paths", "bytes", "images", "a datasets.Dataset", "a data set of ours"])
def test_every_kind_of_rows_gives_the_pixels_of_its_files(files, tmp_path, kind):
    rows = rows_of(files)
    if kind == "bytes":
        rows = [{**row, "image": path.read_bytes()} for row, path in zip(rows, files, strict=True)]
    elif kind == "images":
        rows = [{**row, "image": Image.open(path)} for row, path in zip(rows, files, strict=True)]
    elif kind == "a datasets.Dataset":
        rows = encoded(files)
    elif kind == "a data set of ours":
        rows = read_columns(datasets.Dataset.from_list(rows_of(files)), image="image", label="label")
    cached = cache_images(rows, tmp_path / "cache")
    assert len(cached) == 5
    for number, path in enumerate(files):
        assert cached[number]["label"] == number
        assert torch.equal(image_tensor(cached[number]["image"]), image_tensor(open_image(path)))
    several = cached.__getitems__([4, 1, -1])
    assert [row["label"] for row in several] == [4, 1, 4]
    assert [row["image"].size for row in several] == [(12, 12), (9, 12), (12, 12)]


def test_sizes(files, tmp_path):
    rows = rows_of(files)
    exact = cache_images(rows, tmp_path / "exact", size=(6, 4), transform=image_tensor)
    for row, path in zip(exact, files, strict=False):
        expected = open_image(path).resize((4, 6), Image.Resampling.BICUBIC)
        assert torch.equal(row["image"], image_tensor(expected))
    shorter = cache_images(rows, tmp_path / "shorter", size=10)
    assert [row["image"].size for row in shorter.__getitems__(range(5))] == [
        (8, 12),
        (9, 12),
        (10, 12),
        (10, 11),
        (10, 10),
    ]


def test_what_a_transform_makes_of_cached_pixels_is_what_it_made_of_the_files(files, tmp_path):
    rows, transform = rows_of(files), PedestrianTransform(train=False, size=(16, 8))
    cached = cache_images(rows, tmp_path / "cache", size=(16, 8))
    opened = [{**row, "image": open_image(row["image"])} for row in rows]
    collate = LabelCollator(transform=transform)
    one, other = collate([cached[number] for number in range(5)]), collate(opened)
    assert torch.equal(one["inputs"]["pixel_values"], other["inputs"]["pixel_values"])


def test_a_second_call_decodes_nothing(files, tmp_path, monkeypatch):
    first = cache_images(rows_of(files), tmp_path / "cache")
    expected = [image_tensor(first[number]["image"]) for number in range(5)]
    monkeypatch.setattr("gssf_plug.retrieval.data.image_sources.open_image", None)
    second = cache_images(rows_of(files), tmp_path / "cache")
    assert all(torch.equal(image_tensor(second[number]["image"]), pixels) for number, pixels in enumerate(expected))


def test_workers_and_pickles_give_the_same(files, tmp_path):
    one = cache_images(rows_of(files), tmp_path / "one")
    two = cache_images(rows_of(files), tmp_path / "two", workers=1)
    for name in ("index.bin", "pixels.bin"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    copied = pickle.loads(pickle.dumps(two))
    assert len(pickle.dumps(two)) < 3000
    assert all(image_tensor(copied[n]["image"]).equal(image_tensor(one[n]["image"])) for n in range(5))
    loaded = list(DataLoader(one, batch_size=None, num_workers=1, collate_fn=lambda row: row["label"]))
    assert loaded == list(range(5))


def test_a_decoding_that_was_stopped_goes_on(files, tmp_path, monkeypatch):
    whole = cache_images(rows_of(files), tmp_path / "whole")
    monkeypatch.setattr(cached_images, "BLOCK", 2)
    opened = []

    def dies_at_the_fourth(source):
        opened.append(source)
        if len(opened) == 4:
            raise KeyboardInterrupt
        return open_image(source)

    monkeypatch.setattr("gssf_plug.retrieval.data.image_sources.open_image", dies_at_the_fourth)
    with pytest.raises(KeyboardInterrupt):
        cache_images(rows_of(files), tmp_path / "cache")
    with pytest.raises(CheckpointError, match=r"holds 2 of 5 images. Call cache_images, which goes on"):
        CachedImages(rows_of(files), tmp_path / "cache")
    cached = cache_images(rows_of(files), tmp_path / "cache")
    assert opened[4:] == [str(path) for path in files[2:]]  # the third was read, and not noted
    assert (cached.index == whole.index).all()
    assert (cached.pixels == whole.pixels).all()


def ask(rows, folder, results):
    results.put(bytes(cache_images(rows, folder, size=400).pixels))


def test_of_processes_that_start_together_one_decodes(files, tmp_path):
    fork = multiprocessing.get_context("fork")
    results = fork.Queue()
    asking = [fork.Process(target=ask, args=(rows_of(files), tmp_path / "cache", results)) for _ in range(3)]
    for process in asking:
        process.start()
    found = [results.get(timeout=60) for _ in asking]
    for process in asking:
        process.join(60)
        assert process.exitcode == 0
    assert set(found) == {bytes(cache_images(rows_of(files), tmp_path / "alone", size=400).pixels)}


@pytest.mark.parametrize("change", ["content", "order", "size", "one more", "column"])
def test_a_stale_cache_is_refused(files, tmp_path, change):
    rows = rows_of(files)
    cache_images(rows, tmp_path / "cache", size=8)
    size = 9 if change == "size" else 8
    if change == "content":
        stat = files[3].stat()
        os.utime(files[3], ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    elif change == "order":
        rows[0], rows[1] = rows[1], rows[0]
    elif change == "one more":
        rows.append(rows[0])
    elif change == "column":
        rows = [{**row, "image": rows[0]["image"]} for row in rows]
    with pytest.raises(CheckpointError, match="made from other files, in another order or for another size. Delete it"):
        cache_images(rows, tmp_path / "cache", size=size)


def test_images_that_cannot_be_read(files, tmp_path):
    files[2].write_bytes(b"no image")
    with pytest.raises(UnreadableError, match=r"row 2 of the data cannot be read: image '.*2\.png' cannot be read"):
        cache_images(rows_of(files), tmp_path / "cache")
    cached = cache_images(rows_of(files), tmp_path / "cache", skip_unreadable=True)
    assert cached[3]["image"].size == (11, 12)
    for number in (2, -3):
        with pytest.raises(UnreadableError, match=r"of the cache '.*cache' cannot be read: image '.*2\.png'"):
            cached[number]
    for path in files:
        path.unlink()
    with pytest.raises(UnreadableError, match="each of the images cannot be read"):
        cache_images(rows_of(files), tmp_path / "none", skip_unreadable=True)


@pytest.mark.parametrize(
    ("name", "how"),
    [(name, how) for name in ("cache.json", "index.bin", "pixels.bin") for how in ("cut", "gone", "foreign")][:-1],
)
def test_a_damaged_cache_is_named(files, tmp_path, name, how):
    """Other pixels of the same number are not found out, which the module says."""
    rows = rows_of(files)
    cache_images(rows, tmp_path / "cache")
    path = tmp_path / "cache" / name
    content = path.read_bytes()
    path.unlink()
    if how != "gone":
        path.write_bytes(content[:-7] if how == "cut" else b"\xff" * (len(content) + (name == "cache.json")))
    with pytest.raises(CheckpointError, match="holds no cache|cache again|Delete"):
        CachedImages(rows, tmp_path / "cache")


@pytest.mark.bad_input
def test_bad_input_is_named(files, tmp_path):
    rows = rows_of(files)
    for size in (0, -1, 2.5, True, (3,), (3, 0), (3, 3, 3), "big"):
        with pytest.raises(ArgumentError, match=r"`size` must be a number of pixels, or \(height, width\)"):
            cache_images(rows, tmp_path / "cache", size=size)
    with pytest.raises(ArgumentError, match="`rows` must hold at least one row"):
        cache_images([], tmp_path / "cache")
    with pytest.raises(ArgumentError, match="`image` must hold paths, encoded bytes or PIL images, but got Tensor"):
        cache_images([{"image": torch.zeros(3, 4, 4)}], tmp_path / "cache")
    with pytest.raises(ArgumentError, match="`column` must be a column of the rows, .*'image'.* but got 'photo'"):
        cache_images(rows, tmp_path / "cache", column="photo")
    assert not (tmp_path / "cache").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="could not be written"):
        cache_images(rows, tmp_path / "file" / "cache")
    shutil.rmtree(tmp_path / "photos")
    with pytest.raises(UnreadableError, match="row 0 of the data cannot be read"):
        cache_images(rows, tmp_path / "cache")
