"""The bundled emoji data: what the data card promises, checked on the committed files."""

import hashlib
from collections import Counter, defaultdict
from io import BytesIO
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from data.emoji import FOLDER, SPLITS, VENDORS, load_emoji
from data.emoji_families import family_keys
from PIL import Image

COUNTS = {
    "twemoji": (1132, 165, 313),
    "noto": (1130, 165, 326),
    "noto-v1": (839, 121, 220),
    "fluent": (1123, 162, 309),
    "fluent-flat": (1122, 161, 308),
    "emojitwo": (787, 116, 208),
}
LICENCES = {
    "twemoji": ("CC-BY-4.0", "Twitter"),
    "noto": ("Apache-2.0", "Google"),
    "noto-v1": ("Apache-2.0", "Google"),
    "fluent": ("MIT", "Microsoft"),
    "fluent-flat": ("MIT", "Microsoft"),
    "emojitwo": ("CC-BY-4.0", "Emoji One"),
}
TEXT = ["image", "emoji", "codepoints", "name", "captions", "keywords"]
COLUMNS = [*TEXT, "label", "vendor", "camera", "group", "subgroup", "family", "split", "author", "licence", "source"]


@pytest.fixture(scope="module")
def rows():
    """Every row, images as bytes."""
    return [row for vendor in VENDORS for row in pq.read_table(FOLDER / f"{vendor}.parquet").to_pylist()]


@pytest.fixture(scope="module", autouse=True)
def _own_cache(tmp_path_factory):
    """Keep what ``datasets`` derives out of the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))
        yield


def values(rows, key, column):
    """Map each value of one column to the set of values of another."""
    found = defaultdict(set)
    for row in rows:
        found[row[key]].add(tuple(row[column]) if isinstance(row[column], list) else row[column])
    return found


# ------------------------------------------------------------------ the files


@pytest.mark.parametrize("vendor", VENDORS)
def test_counts_are_those_of_the_card(rows, vendor):
    counts = Counter(row["split"] for row in rows if row["vendor"] == vendor)
    assert tuple(counts[split] for split in SPLITS) == COUNTS[vendor]
    card = (FOLDER.parent / "README.md").read_text(encoding="utf-8")
    camera = next(row["camera"] for row in rows if row["vendor"] == vendor)
    line = [vendor, camera, *COUNTS[vendor], sum(COUNTS[vendor])]
    assert f"| {' | '.join(map(str, line))} |" in card


def test_files_stay_small():
    sizes = [path.stat().st_size for path in FOLDER.iterdir()]
    assert len(sizes) == len(VENDORS)
    assert max(sizes) < 6e6
    assert sum(sizes) < 20e6


def test_labels_are_contiguous_and_mean_one_emoji(rows):
    assert set(values(rows, "label", "label")) == set(range(1623))
    for column in ("emoji", "codepoints", "name", "captions", "keywords", "group", "subgroup", "family", "split"):
        assert all(len(found) == 1 for found in values(rows, "label", column).values()), column
    for column in ("emoji", "codepoints", "name"):
        assert all(len(found) == 1 for found in values(rows, column, "label").values()), column


def test_every_label_has_three_vendors_and_two_cameras(rows):
    assert min(map(len, values(rows, "label", "vendor").values())) == 3
    assert min(map(len, values(rows, "label", "camera").values())) >= 2
    assert len({(row["label"], row["vendor"]) for row in rows}) == len(rows)


def test_fluent_is_one_camera(rows):
    cameras = values(rows, "vendor", "camera")
    assert cameras["fluent"] == cameras["fluent-flat"]
    assert set().union(*cameras.values()) == set(range(5))


def test_no_family_and_no_label_lies_in_two_splits(rows):
    assert all(len(found) == 1 for found in values(rows, "family", "split").values())
    assert all(len(found) == 1 for found in values(rows, "label", "split").values())


def test_splits_follow_the_seeded_rule(rows):
    for family, found in values(rows, "family", "split").items():
        point = int.from_bytes(hashlib.sha256(f"1:{family}".encode()).digest()[:8], "big") / 2**64
        assert found == {"train" if point < 0.7 else "validation" if point < 0.8 else "test"}


def test_split_shares(rows):
    labels = Counter(split for found in values(rows, "label", "split").values() for split in found)
    assert labels["test"] >= 300
    for split, share in zip(SPLITS, (0.7, 0.1, 0.2), strict=True):
        assert labels[split] / labels.total() == pytest.approx(share, abs=0.01)
    groups = values(rows, "split", "group")
    assert groups["train"] - {"flags"} == groups["validation"] == groups["test"]


def test_captions_tell_emoji_apart(rows):
    owners = defaultdict(set)
    for row in rows:
        assert len(row["captions"]) == 2
        assert row["captions"][0] == row["name"]
        for caption in row["captions"]:
            owners[caption.lower()].add(row["label"])
    assert all(len(found) == 1 for found in owners.values())


def test_no_skin_tones_and_no_presentation_selector(rows):
    tones = {f"1f3f{digit}" for digit in "bcdef"}
    assert not any((tones | {"fe0f"}) & set(row["codepoints"].split("-")) for row in rows)


def test_pixels_never_repeat(rows):
    """Images are 64×64 RGB, never blank, and no two have equal pixels, inside a vendor or across."""
    seen = set()
    for row in rows:
        image = Image.open(BytesIO(row["image"]["bytes"]))
        assert (image.format, image.mode, image.size) == ("PNG", "RGB", (64, 64))
        assert min(low for low, _ in image.getextrema()) < 250
        seen.add(hashlib.sha256(image.tobytes()).digest())
    assert len(seen) == len(rows)


def test_every_row_names_author_licence_and_source(rows):
    for row in rows:
        licence, author = LICENCES[row["vendor"]]
        assert row["licence"] == licence
        assert row["author"].startswith(author)
        assert "https://github.com/" in row["author"]
        assert row["source"].startswith("@iconify-json/")


def test_licence_texts_are_there():
    folder = FOLDER.parent / "LICENSES"
    names = {"Apache-2.0", "CC-BY-4.0", "MIT-emojibase", "MIT-emojilib", "MIT-fluentui-emoji"}
    assert {path.stem for path in folder.iterdir()} >= names, "others belong to other data"
    card = (FOLDER.parent / "README.md").read_text(encoding="utf-8")
    assert all(f"`{name}.txt`" in card for name in names)


# ------------------------------------------------------------------ the loader


def test_loader_reads_everything_in_order(rows):
    every = load_emoji()
    assert every.column_names == COLUMNS
    assert every["source"][:] == [row["source"] for row in rows]


@pytest.mark.parametrize("vendor", VENDORS)
def test_images_decode(vendor):
    test = load_emoji("test", vendor)
    assert set(test["split"]) == {"test"}
    assert set(test["vendor"]) == {vendor}
    assert len(test) == COUNTS[vendor][2]
    for place in (0, len(test) // 2, -1):
        image = test[place]["image"]
        assert isinstance(image, Image.Image)
        assert (image.mode, image.size) == ("RGB", (64, 64))


def test_vendors_come_in_the_order_asked():
    chosen = load_emoji("validation", ["noto", "twemoji"])
    assert list(dict.fromkeys(chosen["vendor"])) == ["noto", "twemoji"]
    assert len(chosen) == COUNTS["noto"][1] + COUNTS["twemoji"][1]


def test_loader_writes_nothing_beside_the_data():
    before = {path: path.stat().st_mtime_ns for path in Path(FOLDER).rglob("*")}
    load_emoji("test")
    assert {path: path.stat().st_mtime_ns for path in Path(FOLDER).rglob("*")} == before


def test_unknown_split_raises():
    with pytest.raises(ValueError, match=r"split must be one of train, validation, test, or None .* got 'dev'\. Pass"):
        load_emoji("dev")


@pytest.mark.parametrize("vendors", ["apple", ["noto", "apple"], [], ["noto", "noto"]])
def test_unknown_missing_or_repeated_vendors_raise(vendors):
    with pytest.raises(ValueError, match=r"vendors must be one or more of twemoji, .* each once, .* got .*\. Pass"):
        load_emoji("test", vendors)


# ------------------------------------------------------------------ families


@pytest.mark.parametrize(
    "names",
    [
        ("person running", "man running", "woman running: facing right"),
        ("farmer", "woman farmer"),
        ("merman", "mermaid"),
        ("one o’clock", "seven-thirty"),
        ("dog", "dog face", "guide dog"),
        ("red heart", "green heart"),
        ("family: man, boy", "family: woman, woman, girl"),
        ("left arrow", "up-right arrow"),
        ("keycap: 1", "keycap: #"),
        ("person: red hair", "man: beard", "woman"),
    ],
)
def test_variants_are_one_family(names):
    families = family_keys({name: (name, "any") for name in names})
    assert len(set(families.values())) == 1


def test_different_emoji_are_different_families():
    names = ("apple", "man running", "man swimming", "bus", "keycap: 1", "cat", "dog")
    families = family_keys({name: (name, "any") for name in names})
    assert len(set(families.values())) == len(names)
