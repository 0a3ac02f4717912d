"""Re-identification and fine-grained sets: counts, splits, protocols, and what is said where a part is wrong."""

import sys

import pytest
from retrieval.data import miniature

from gssf_plug.errors import ArgumentError, DataError
from gssf_plug.retrieval.data import cars196, column, cub200, cuhk03, in_shop, market1501, msmt17, online_products


def described(rows):
    """How many rows, labels and cameras, with one row read."""
    row = rows[len(rows) // 2]
    assert row["image"].size == miniature.SIZE
    names = [name for name in ("label", "camera") if name in row]
    assert set(row) == {"image", *names}
    return (len(rows), *(sorted(set(column(rows, name))) for name in names))


def test_market1501(tmp_path):
    root = miniature.market1501(tmp_path)
    assert described(market1501(root, "train")) == (24, [0, 1, 2, 3, 4, 5], [0, 1, 2])
    assert described(market1501(root, "query")) == (6, [1, 3, 4], [0, 1])
    assert described(market1501(root, "gallery")) == (13, [0, 1, 3, 4], [0, 1])  # junk out, the distractor in
    assert len(market1501(tmp_path, "query")) == 6  # the folder that holds it will do
    names = [path.rsplit("/", 1)[-1] for path in column(market1501(root, "query"), "image")]
    labels, cameras = (column(market1501(root, "query"), name) for name in ("label", "camera"))
    assert names == [f"{i:04d}_c{c + 1}s1_001051_01.jpg" for i, c in zip(labels, cameras, strict=True)]


def test_market1501_of_another_pattern_or_incomplete(tmp_path):
    root = miniature.market1501(tmp_path)
    miniature.draw(root / "query" / "person_7.jpg", 0)
    with pytest.raises(DataError, match=r"query' holds 'person_7\.jpg', which is not named like the files of the set"):
        market1501(root, "query")
    (root / "query").rename(root / "querry")
    with pytest.raises(
        DataError, match=r"lacks the images of 'query', expected in it as 'query' or.*mean '.*querry'\?"
    ):
        market1501(root, "query")
    (root / "query").mkdir()
    with pytest.raises(DataError, match=r"query' holds no image"):
        market1501(root, "query")
    with pytest.raises(ArgumentError, match=r"`split` must be one of .* but got 'galery'\. Did you mean 'gallery'\?"):
        market1501(root, "galery")


@pytest.mark.parametrize(("boxes", "train"), [("detected", 15), ("labeled", 20)])
def test_cuhk03(boxes, train, tmp_path):
    root = miniature.cuhk03(tmp_path)
    assert described(cuhk03(root, "train", boxes=boxes)) == (train, [0, 1, 2, 3, 4], [0, 1])
    assert described(cuhk03(root, "query", boxes=boxes)) == (4, [1, 2], [0, 1])
    assert described(cuhk03(tmp_path, "gallery", boxes=boxes)) == (8, [1, 2], [0, 1])


def test_cuhk03_of_unknown_boxes(tmp_path):
    with pytest.raises(ArgumentError, match=r"`boxes` must be one of .* but got 'labelled'\. Did you mean 'labeled'\?"):
        cuhk03(miniature.cuhk03(tmp_path), "train", boxes="labelled")


@pytest.mark.parametrize("release", [1, 2])
def test_msmt17(release, tmp_path):
    root = miniature.msmt17(tmp_path, release=release)
    assert described(msmt17(root, "train")) == (20, [0, 1, 2, 3, 4], [0, 7])
    assert described(msmt17(root, "val")) == (5, [0, 1, 2, 3, 4], [14])
    assert described(msmt17(tmp_path, "trainval")) == (25, [0, 1, 2, 3, 4], [0, 7, 14])
    assert described(msmt17(root, "query")) == (3, [0, 1, 2], [1])
    assert described(msmt17(root, "gallery")) == (6, [0, 1, 2], [2, 3])


def test_msmt17_damaged(tmp_path):
    root = miniature.msmt17(tmp_path)
    next((root / "test").rglob("*_02_*.jpg")).unlink()
    with pytest.raises(DataError, match=r"lacks 1 of the 3 files that 'list_query\.txt' names, first '0"):
        msmt17(root, "query")
    (root / "list_val.txt").write_text("0000/0000_000.jpg\n")
    with pytest.raises(DataError, match=r"list_val\.txt' has the line 1 '0000/0000_000\.jpg', expected"):
        msmt17(root, "trainval")
    (root / "list_train.txt").unlink()
    with pytest.raises(
        DataError, match=r"lacks the list of 'train', expected in it as 'list_train\.txt' or 'MSMT17_V1"
    ):
        msmt17(root, "train")


def test_cub200_splits_by_class(tmp_path):
    root = miniature.cub200(tmp_path)
    assert described(cub200(root, "train")) == (16, [0, 1, 2, 3])
    assert described(cub200(tmp_path, "test")) == (16, [4, 5, 6, 7])


def test_cub200_damaged(tmp_path):
    root = miniature.cub200(tmp_path)
    labels = root / "image_class_labels.txt"
    lines = labels.read_text().splitlines()
    labels.write_text("\n".join(lines[:-1]))
    with pytest.raises(DataError, match=r"names the classes of 31 images, but 'images\.txt' has 32"):
        cub200(root, "train")
    labels.write_text("\n".join([*lines[:-1], "thirty-two 8"]))
    with pytest.raises(DataError, match=r"has the line 'thirty-two 8', expected a number and a value"):
        cub200(root, "train")
    labels.unlink()
    with pytest.raises(DataError, match=r"lacks an annotation file, expected in it as 'image_class_labels\.txt'"):
        cub200(root, "train")


def test_cars196_in_both_forms(tmp_path):
    root = miniature.cars196(tmp_path)
    assert described(cars196(root, "train")) == (16, [0, 1, 2, 3])
    assert described(cars196(root, "test")) == (16, [4, 5, 6, 7])
    root = miniature.cars196_devkit(tmp_path)
    assert described(cars196(root, "train")) == (8, [0, 1])
    assert described(cars196(root, "test")) == (8, [2, 3])
    folders = {path.split("/")[-2] for path in column(cars196(root, "test"), "image")}
    assert folders == {"cars_train", "cars_test"}  # classes are split, not the images of classification


def test_cars196_damaged(tmp_path, monkeypatch):
    root = miniature.cars196(tmp_path)
    (root / "car_ims" / "000001.jpg").unlink()
    with pytest.raises(
        DataError, match=r"lacks 1 of the 16 files that the annotation names, first 'car_ims/000001\.jpg'"
    ):
        cars196(root, "train")
    (root / "cars_annos.mat").write_bytes(b"no MATLAB file")
    with pytest.raises(DataError, match=r"cars_annos\.mat' is no annotation of Cars-196"):
        cars196(root, "train")
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "scipy.io", None)
        with pytest.raises(ImportError, match="Install it with: pip install scipy"):
            cars196(root, "train")
    (root / "cars_annos.mat").unlink()
    with pytest.raises(
        DataError, match=r"lacks 'cars_annos\.mat', and, expected in it as 'devkit/cars_train_annos\.mat'"
    ):
        cars196(root, "train")


def test_online_products(tmp_path):
    root = miniature.online_products(tmp_path)
    assert described(online_products(root, "train")) == (16, [0, 1, 2, 3])
    assert described(online_products(tmp_path, "test")) == (16, [5, 6, 7, 8])


def test_online_products_damaged(tmp_path):
    root = miniature.online_products(tmp_path)
    path = root / "Ebay_test.txt"
    text = path.read_text()
    path.write_text(text.replace("\n17 5 2 ", "\n17 "))
    with pytest.raises(DataError, match=r"has the line 2 '17 chair_final/.*expected 'image_id class_id"):
        online_products(root, "test")
    path.write_text(text.split("\n", 1)[1])
    with pytest.raises(DataError, match=r"begins with '17 5 2 chair_final"):
        online_products(root, "test")


def test_in_shop(tmp_path):
    root = miniature.in_shop(tmp_path)
    assert described(in_shop(root, "train")) == (16, [0, 1, 2, 3])
    assert described(in_shop(root, "query")) == (4, [6, 7, 8, 9])
    assert described(in_shop(root, "gallery")) == (8, [6, 7, 8, 9])
    (root / "Img" / "img").rename(root / "img")  # the other place of the images
    assert len(in_shop(root, "gallery")) == 8


def test_in_shop_damaged(tmp_path):
    root = miniature.in_shop(tmp_path)
    path = root / "Eval" / "list_eval_partition.txt"
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[:-1]))
    with pytest.raises(DataError, match=r"has 27 images, but its first line says 28"):
        in_shop(root, "train")
    path.write_text("\n".join([*lines[:-1], "img/lost.jpg"]))
    with pytest.raises(DataError, match=r"has the line 30 'img/lost\.jpg', expected 'image id_00000002 train'"):
        in_shop(root, "train")
    path.write_text("\n".join(lines[1:]))
    with pytest.raises(DataError, match=r"does not begin with a count and 'image_name item_id evaluation_status'"):
        in_shop(root, "train")
