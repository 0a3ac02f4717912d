"""Folders of images, and sets of the `datasets` library by the names of their columns."""

import io

import numpy as np
import pytest
from datasets import Dataset, DatasetDict, Image
from PIL import Image as Pillow
from retrieval.data import miniature

from gssf_plug.errors import ArgumentError, DataError
from gssf_plug.retrieval.data import column, image_folder, read_columns
from gssf_plug.retrieval.data.images import ImageRows, UnreadableError


def test_image_folder(tmp_path):
    root = miniature.image_folder(tmp_path)
    for rows in (image_folder(root, "train"), image_folder(root / "test")):
        assert column(rows, "label") == [0] * 4 + [1] * 4 + [2] * 4
        assert rows[5]["image"].size == miniature.SIZE
    miniature.draw(root / "train" / "class_0" / "deeper" / "4.JPG", 1)
    (root / "train" / "class_0" / "notes.txt").write_text("no image")
    assert len(image_folder(root, "train")) == 13


def test_image_folder_without_classes_or_images(tmp_path):
    root = miniature.image_folder(tmp_path)
    with pytest.raises(DataError, match=r"lacks the split 'tests', expected.*Did you mean '.*/test'\?"):
        image_folder(root, "tests")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="has no subfolder"):
        image_folder(tmp_path / "empty")
    (root / "train" / "class_9").mkdir()
    with pytest.raises(DataError, match=r"class_9' holds no image"):
        image_folder(root, "train")


def png(colour):
    buffer = io.BytesIO()
    Pillow.new("RGB", (4, 4), colour).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def photos():
    columns = {
        "img": [{"bytes": png(colour), "path": None} for colour in ("red", "green", "blue")],
        "text": ["one", "two", "three"],
        "who": ["zoe", "amy", "zoe"],
        "cam": [4, 2, 4],
        "unread": [0, 0, 0],
    }
    return Dataset.from_dict(columns).cast_column("img", Image())


def check(rows):
    assert set(rows.column_names) == {"image", "captions", "label", "camera"}
    row = rows[1]
    assert row["image"].getpixel((0, 0)) == (0, 128, 0)
    assert (row["captions"], row["label"], row["camera"]) == (["two"], 0, 2)
    assert column(rows, "label") == [1, 0, 1]


NAMES = {"image": "img", "captions": "text", "label": "who", "camera": "cam"}


def test_a_data_set_in_memory(photos):
    check(read_columns(photos, **NAMES))
    assert photos.column_names == ["img", "text", "who", "cam", "unread"]


@pytest.mark.parametrize("kind", ["saved", "saved splits", "parquet", "folder of parquet"])
def test_local_sets(photos, kind, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    place, split = tmp_path / "set", "train"
    if kind == "saved":
        photos.save_to_disk(place)
    elif kind == "saved splits":
        split = "test"
        DatasetDict({"train": photos.select([0]), "test": photos}).save_to_disk(place)
    else:
        place.mkdir()
        photos.to_parquet(place / "train.parquet")
        place = place / "train.parquet" if kind == "parquet" else place
    check(read_columns(place, split, **NAMES))


def test_several_captions_features_and_rows_as_labels(photos):
    rows = Dataset.from_dict({"vec": [[[0.0, 1.0]], [[2.0, 3.0]]], "texts": [["a", "b"], ["c"]]})
    ours = read_columns(rows, features="vec", captions="texts")
    assert ours[1]["captions"] == ["c"]
    assert ours[0]["captions"] == ["a", "b"]
    assert np.array_equal(ours[1]["features"], np.float32([[2, 3]]))
    assert column(ours, "label") == [0, 1]


def test_names_may_be_ours_already():
    rows = Dataset.from_dict({"features": [[[0.0]], [[1.0]]], "label": [7, 8], "captions": ["a", "b"]})
    ours = read_columns(rows, features="features", captions="captions", label="label")
    assert ours[1]["label"] == 8
    assert ours[1]["features"].shape == (1, 1)


def test_names_may_be_exchanged():
    rows = Dataset.from_dict({"captions": [[[0.0]], [[1.0]]], "features": ["a", "b"]})
    assert read_columns(rows, features="captions", captions="features")[1]["captions"] == ["b"]


def test_a_damaged_image_is_named_and_other_rows_are_read(photos, tmp_path):
    path = tmp_path / "broken.png"
    path.write_bytes(png("red")[:20])
    rows = read_columns(Dataset.from_dict({"file": [str(path)], "who": [3]}), image="file", label="who")
    with pytest.raises(UnreadableError, match=r"broken\.png' cannot be read"):
        rows[0]
    assert column(rows, "label") == [3]


def test_image_rows_over_a_set(photos):
    rows = ImageRows(read_columns(photos, image="img"))
    assert rows[0]["image"].shape == (3, 4, 4)


def test_a_row_without_a_label():
    rows = Dataset.from_dict({"file": ["a", "b"], "who": [3, None]})
    with pytest.raises(ArgumentError, match="`label` must be filled in every row, but got none in row 1"):
        read_columns(rows, image="file", label="who")


def test_wrong_names(photos, tmp_path):
    with pytest.raises(
        ArgumentError, match=r"`captions` must be a column of the set, .* but got 'txt'\. Did you mean 'text'\?"
    ):
        read_columns(photos, image="img", captions="txt")
    with pytest.raises(ArgumentError, match=r"`image` must be named, or else features, but got neither"):
        read_columns(photos, captions="text")
    with pytest.raises(DataError, match="photo' does not exist"):
        read_columns(tmp_path / "photo", image="img")
    DatasetDict({"train": photos, "test": photos}).save_to_disk(tmp_path / "photos")
    with pytest.raises(DataError, match=r"photos' has no split 'tets'\. Did you mean 'test'\?"):
        read_columns(tmp_path / "photos", "tets", image="img")


def folder_of_classes(root, names):
    for number, name in enumerate(names):
        miniature.draw(root / name / "one.png", number, number)
        miniature.draw(root / name / "two.png", 100 + number, number)
    return root


def test_split_classes_are_disjoint_seeded_and_numbered_apart(tmp_path):
    root = folder_of_classes(tmp_path / "imgs", [f"class {number}" for number in range(10)])
    train, test = image_folder(root, split_classes=0.3)
    held = {path.split("/")[-2] for path in column(test, "image")}
    trained = {path.split("/")[-2] for path in column(train, "image")}
    assert (len(trained), len(held)) == (7, 3)
    assert not trained & held
    assert trained | held == {f"class {number}" for number in range(10)}
    assert column(train, "label") == [number for number in range(7) for _ in range(2)]
    assert column(test, "label") == [number for number in range(7, 10) for _ in range(2)]
    assert column(image_folder(root, split_classes=0.3)[1], "image") == column(test, "image")
    chosen = [column(image_folder(root, split_classes=0.3, seed=seed)[1], "image") for seed in range(5)]
    assert len({tuple(images) for images in chosen}) > 1
    assert test[0]["image"].size == miniature.SIZE


def test_each_side_of_a_split_has_a_class(tmp_path):
    root = folder_of_classes(tmp_path / "imgs", ["one", "two"])
    for share in (0.01, 0.5, 0.99):
        assert [len(rows) for rows in image_folder(root, split_classes=share)] == [2, 2]


@pytest.mark.bad_input
@pytest.mark.parametrize("share", [0, 1, 1.5, -0.1, True, "0.3", float("nan")])
def test_a_share_that_is_none(share, tmp_path):
    root = folder_of_classes(tmp_path / "imgs", ["one", "two"])
    with pytest.raises(ArgumentError, match="`split_classes` must be a share of the classes, 0 < share < 1, but got"):
        image_folder(root, split_classes=share)


def test_one_class_cannot_be_split(tmp_path):
    root = folder_of_classes(tmp_path / "imgs", ["one"])
    with pytest.raises(ArgumentError, match="at least two classes to split, but got only"):
        image_folder(root, split_classes=0.3)


def test_a_flat_folder_is_told_what_it_lacks(tmp_path):
    for number in range(3):
        miniature.draw(tmp_path / f"{number}.png", number)
    message = "holds 3 images beside one another and no subfolder.*Move the images of each class.*read_columns"
    with pytest.raises(DataError, match=message):
        image_folder(tmp_path)


def test_splits_are_not_taken_for_classes(tmp_path):
    root = miniature.image_folder(tmp_path)
    with pytest.raises(DataError, match=r"holds splits, not classes: 'test', 'train'.*image_folder\(root, 'test'\)"):
        image_folder(root)
    assert len(image_folder(folder_of_classes(tmp_path / "trains", ["train", "test"]))) == 4  # classes of that name


def test_hidden_files_and_folders_are_no_images_and_no_classes(tmp_path, caplog):
    root = folder_of_classes(tmp_path / "imgs", ["one", "two"])
    for hidden in (
        ".git/x.png",
        ".ipynb_checkpoints/y.png",
        "__MACOSX/one/._one.png",
        "one/.thumbs/z.png",
        "one/._one.png",
    ):
        (root / hidden).parent.mkdir(parents=True, exist_ok=True)
        (root / hidden).write_bytes(b"no image")
    (root / "loose.png").write_bytes(b"beside the classes")
    rows = image_folder(root)
    assert column(rows, "label") == [0, 0, 1, 1]
    assert [row["image"].size for row in rows] == [miniature.SIZE] * 4
    assert "1 images that lie beside the class folders are left out" in caplog.text
