"""A data set's parts on disk: found where they may lie, or named with what was expected where."""

import logging

import numpy as np
import pytest
from PIL import Image

from gssf_plug.errors import ArgumentError, DataError
from gssf_plug.retrieval.data import source_files
from gssf_plug.retrieval.data.source_files import OfficialSplit
from gssf_plug.retrieval.data.source_files import column as column_of

OFFICIAL = {"train": 2, "test": 1}


def test_a_folder_is_found_below_the_home_folder_too(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "CUB_200").mkdir()
    assert source_files.existing_folder("~/CUB_200") == tmp_path / "CUB_200"
    with pytest.raises(DataError, match=r"CUB_20' does not exist. Did you mean '.*CUB_200'"):
        source_files.existing_folder(tmp_path / "CUB_20")
    with pytest.raises(DataError, match="does not exist. Did you mean '.*CUB_200'"):
        source_files.existing_folder(tmp_path / "CUB_20" / "deeper")
    (tmp_path / "archive.zip").write_text("")
    with pytest.raises(DataError, match="is a file, not a folder. Give the folder that the archive was unpacked to"):
        source_files.existing_folder(tmp_path / "archive.zip")


def test_the_first_place_that_is_there_is_taken(tmp_path):
    (tmp_path / "Img" / "img").mkdir(parents=True)
    assert source_files.find_part(tmp_path, "img", "Img/img", what="the images") == tmp_path / "Img" / "img"
    with pytest.raises(DataError, match=r"lacks the list, expected in it as 'a.txt' or 'Anno/a.txt'. Unpack the arch"):
        source_files.find_part(tmp_path, "a.txt", "Anno/a.txt", what="the list")


def test_files_that_a_list_names_are_there_or_counted(tmp_path):
    (tmp_path / "a").mkdir()
    for name in ("a/1.jpg", "a/2.jpg"):
        (tmp_path / name).write_text("")
    found = source_files.require_files(tmp_path, ["a/2.jpg", "a/1.jpg"], listed_in="'list.txt'")
    assert found == [str(tmp_path / "a/2.jpg"), str(tmp_path / "a/1.jpg")]
    message = r"lacks 2 of the 3 files that 'list.txt' names, first 'a/3.jpg'"
    with pytest.raises(DataError, match=message):
        source_files.require_files(tmp_path, ["a/1.jpg", "a/3.jpg", "b/1.jpg"], listed_in="'list.txt'")


def test_images_are_told_by_their_ending_and_what_is_hidden_is_none(tmp_path):
    for name in ("b.JPG", "a.png", "._a.png", "Thumbs.db", "c.txt"):
        (tmp_path / name).write_text("")
    assert source_files.image_files(tmp_path) == ["a.png", "b.JPG"]
    assert [source_files.is_hidden(name) for name in (".git", "__MACOSX", "a")] == [True, True, False]
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty' holds no image. Images end in one of .jpg, .jpeg"):
        source_files.image_files(tmp_path / "empty")


def test_lines_come_without_a_mark_and_without_empty_ones_at_the_end(tmp_path):
    (tmp_path / "list.txt").write_bytes("\ufeffone \r\n\r\ntwo\r\n\r\n".encode())
    assert source_files.read_lines(tmp_path / "list.txt") == ["one", "", "two"]
    (tmp_path / "list.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="is not UTF-8 text"):
        source_files.read_lines(tmp_path / "list.txt")


def test_a_split_that_the_set_lacks_is_named_before_its_folder(tmp_path):
    with pytest.raises(ArgumentError, match=r"`split` must be one of \('train', 'test'\), but got 'tran'. Did"):
        OfficialSplit("Set", tmp_path / "nowhere", "tran", OFFICIAL)
    with pytest.raises(DataError, match="nowhere' does not exist"):
        OfficialSplit("Set", tmp_path / "nowhere", "train", OFFICIAL)


def test_rows_of_a_split_with_labels_as_they_are_or_from_0(tmp_path, caplog):
    opened = OfficialSplit("Set", tmp_path, "train", OFFICIAL)
    with caplog.at_level(logging.WARNING):
        rows = opened.rows(["a.png", "b.png"], [7, 3], camera=[0, 1])
        assert column_of(opened.rows(["a.png", "b.png"], [7, 3], renumber=True), "label") == [1, 0]
    assert (column_of(rows, "image"), column_of(rows, "label")) == (["a.png", "b.png"], [7, 3])
    assert column_of(rows, "camera") == [0, 1]
    assert not caplog.text
    opened.rows(["a.png"] * 1234, [0] * 1234)
    assert "Set, split 'train': 1,234 images; the official set has 2" in caplog.text


def test_rows_are_decoded_when_they_are_read(tmp_path):
    path = tmp_path / "a.png"
    columns = {"image": [str(path)], "captions": ["one caption"], "features": [[[1, 2]]]}
    rows = source_files.table(columns)  # nothing is opened yet
    Image.new("L", (4, 6)).save(path)
    row = rows[0]
    assert (row["image"].mode, row["image"].size) == ("RGB", (4, 6))
    assert row["captions"] == ["one caption"]
    assert row["features"].dtype == np.float32
    assert column_of(rows, "image") == [str(path)]


def test_names_become_numbers_in_their_sorted_order():
    assert source_files.numbered(["b", "a", "b", "c"]) == [1, 0, 1, 2]
    assert source_files.numbered([]) == []
