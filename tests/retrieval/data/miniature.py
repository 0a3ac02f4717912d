"""Miniature copies of the data sets, true to their layouts: real names of files, real formats, a few small images.

    build(folder)     writes the copy below `folder` and gives the root that its loader is called with

The drawings are colourful noise around a colour of each class, so that a model may learn something.
"""

import json
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat

from gssf_plug.retrieval.data import column

SIZE = (24, 32)
WORDS = [
    "a",
    "man",
    "woman",
    "dog",
    "red",
    "blue",
    "car",
    "rides",
    "runs",
    "holds",
    "the",
    "on",
    "near",
    "big",
    "small",
]


def draw(path: Path, seed: int, colour: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    shade = np.random.default_rng([1, colour]).integers(40, 216, 3)
    noise = np.random.default_rng([2, seed]).integers(-40, 40, (SIZE[1], SIZE[0], 3))
    Image.fromarray((shade + noise).clip(0, 255).astype(np.uint8)).save(path)


def sentence(image: int, number: int) -> str:
    chosen = np.random.default_rng([3, image, number]).choice(WORDS, 5)
    return f"{' '.join(chosen).capitalize()} number {image % 4} ."


def karpathy_entry(image: int, split: str, filename: str, captions: int = 5, **more) -> dict:
    sentences = [
        {
            "raw": sentence(image, n),
            "tokens": sentence(image, n).lower().split(),
            "imgid": image,
            "sentid": 9 * image + n,
        }
        for n in range(captions)
    ]
    return {"imgid": image, "split": split, "filename": filename, "sentences": sentences, **more}


def flickr30k(folder: Path, train: int = 12) -> Path:
    splits = ["train"] * train + ["val"] * 4 + ["test"] * 6
    entries = []
    for image, split in enumerate(splits):
        name = f"{1000092795 + 7 * image}.jpg"
        draw(folder / "flickr30k-images" / name, image, image)
        entries.append(karpathy_entry(image, split, name))
    draw(folder / "flickr30k-images" / "99.jpg", 99)  # the folder holds images that the splits do not use
    (folder / "dataset_flickr30k.json").write_text(json.dumps({"images": entries, "dataset": "flickr30k"}))
    return folder


def coco(folder: Path, train: int = 10, test: int = 10) -> Path:
    splits = ["train"] * train + ["restval"] * 3 + ["val"] * 4 + ["test"] * test
    entries = []
    for image, split in enumerate(splits):
        year = "train2014" if split == "train" else "val2014"
        name = f"COCO_{year}_{391895 + image:012d}.jpg"
        draw(folder / year / name, image, image)
        captions = 7 if image == 0 else 5  # some images of COCO have more than five
        entries.append(karpathy_entry(image, split, name, captions, filepath=year, cocoid=391895 + image))
    (folder / "dataset_coco.json").write_text(json.dumps({"images": entries, "dataset": "coco"}))
    return folder


def regions(folder: Path, images: int, name: str, *, repeated: bool = False, width: int = 24, regions: int = 6) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng([4, images])
    features = rng.random((images, regions, width), dtype=np.float32)
    np.save(folder / f"{name}_ims.npy", features.repeat(5, axis=0) if repeated else features)
    captions = [sentence(image, number) for image in range(images) for number in range(5)]
    (folder / f"{name}_caps.txt").write_text("\n".join(captions) + "\n")
    (folder / f"{name}_ids.txt").write_text("\n".join(map(str, range(5 * images))) + "\n")


def f30k_precomp(folder: Path, **options) -> Path:
    """SCAN's form, one row of features per caption."""
    for name, images in (("train", 12), ("dev", 5), ("test", 6)):
        regions(folder / "f30k_precomp", images, name, repeated=True, **options)
    return folder / "f30k_precomp"


def coco_precomp(folder: Path, **options) -> Path:
    """VSE∞'s form, training features once per image."""
    for name, images, repeated in (("train", 12, False), ("dev", 5, True), ("test", 2, True), ("testall", 10, True)):
        regions(folder / "coco" / "precomp", images, name, repeated=repeated, **options)
    return folder / "coco"


def market1501(folder: Path, identities: int = 6) -> Path:
    root = folder / "Market-1501-v15.09.15"

    def person(part: str, identity: int, camera: int, frame: int) -> None:
        draw(
            root / part / f"{identity:04d}_c{camera}s1_{frame:06d}_{frame % 5:02d}.jpg", 31 * frame + identity, identity
        )

    for identity in range(2, 2 + 5 * identities, 5):  # training identities have gaps
        for frame in range(4):
            person("bounding_box_train", identity, 1 + frame % 3, 451 + frame)
    for identity in (1, 3, 4):
        for camera in (1, 2):
            person("query", identity, camera, 1051)
            for frame in range(2):
                person("bounding_box_test", identity, camera, 2000 + frame)
    person("bounding_box_test", 0, 1, 151)
    draw(root / "bounding_box_test" / "-1_c1s1_000401_03.jpg", 5)
    (root / "bounding_box_test" / "Thumbs.db").write_bytes(b"windows was here")
    return root


def cuhk03(folder: Path, identities: int = 5) -> Path:
    root = folder / "cuhk03-np"
    for boxes, frames in (("detected", 3), ("labeled", 4)):
        for identity in range(3, 3 + identities):
            for frame in range(frames):
                name = f"{identity:04d}_c{1 + frame % 2}_{21 + frame}.png"
                draw(root / boxes / "bounding_box_train" / name, 17 * identity + frame, identity)
        for identity in (1, 2):
            for camera in (1, 2):
                draw(root / boxes / "query" / f"{identity:04d}_c{camera}_1.png", identity + camera, identity)
                for frame in (2, 3):
                    name = f"{identity:04d}_c{camera}_{frame}.png"
                    draw(root / boxes / "bounding_box_test" / name, 7 * identity + frame, identity)
    return root


def msmt17(folder: Path, identities: int = 5, release: int = 1) -> Path:
    root = folder / f"MSMT17_V{release}"
    side = {1: {"train": "train", "test": "test"}, 2: {"train": "mask_train_v2", "test": "mask_test_v2"}}[release]
    lists: dict[str, list[str]] = {"train": [], "val": [], "query": [], "gallery": []}

    def person(name: str, identity: int, camera: int, frame: int) -> None:
        part = side["train" if name in ("train", "val") else "test"]
        file = f"{identity:04d}/{identity:04d}_{frame:03d}_{camera:02d}_0303morning_{frame:04d}_{frame % 3}.jpg"
        draw(root / part / file, 13 * frame + identity, identity + 100 * (part == side["test"]))
        lists[name].append(f"{file} {identity}")

    for identity in range(identities):
        for frame in range(4):
            person("train", identity, 1 + 7 * (frame % 2), frame)
        person("val", identity, 15, 9)
    for identity in range(3):
        person("query", identity, 2, 0)
        for frame in (1, 2):
            person("gallery", identity, 2 + frame, frame)
    for name, lines in lists.items():
        (root / f"list_{name}.txt").write_text("\n".join(lines) + "\n")
    return root


def cub200(folder: Path, classes: int = 8, images: int = 4) -> Path:
    root = folder / "CUB_200_2011"
    birds = ["Black_footed_Albatross", "Laysan_Albatross", "Sooty_Albatross", "Groove_billed_Ani", "Crested_Auklet"]
    names = [f"{number + 1:03d}.{birds[number % len(birds)]}" for number in range(classes)]
    lines, labels, halves = [], [], []
    for number in range(classes * images):
        owner = number // images
        file = f"{names[owner]}/{names[owner][4:]}_{number % images + 1:04d}_{796 + number}.jpg"
        draw(root / "images" / file, number, owner)
        lines.append(f"{number + 1} {file}")
        labels.append(f"{number + 1} {owner + 1}")
        halves.append(f"{number + 1} {number % 2}")
    texts = {"images": lines, "image_class_labels": labels, "train_test_split": halves}
    texts["classes"] = [f"{number} {name}" for number, name in enumerate(names, start=1)]
    for name, text in texts.items():
        (root / f"{name}.txt").write_text("\n".join(text) + "\n")
    return root


def save_annotations(path: Path, name: str, rows: list[tuple[str, int]]) -> None:
    """A struct array as in the devkit: 1×N, with boxes."""
    boxes = [(f"bbox_{side}", "O") for side in ("x1", "y1", "x2", "y2")]
    array = np.empty((1, len(rows)), dtype=[(name, "O"), *boxes, ("class", "O"), ("test", "O")])
    for number, (file, owner) in enumerate(rows):
        array[0, number] = (file, 1, 2, 20, 30, owner, number % 2)
    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, {"annotations": array})


def cars196(folder: Path, classes: int = 8, images: int = 4) -> Path:
    root = folder / "cars196"
    rows = [(f"car_ims/{number + 1:06d}.jpg", number // images + 1) for number in range(classes * images)]
    for number, (file, owner) in enumerate(rows):
        draw(root / file, number, owner)
    save_annotations(root / "cars_annos.mat", "relative_im_path", rows)
    return root


def cars196_devkit(folder: Path, classes: int = 4) -> Path:
    """The other form: training and test images of classification apart, both with all classes."""
    root = folder / "stanford_cars"
    for images, path in (
        ("cars_train", "devkit/cars_train_annos.mat"),
        ("cars_test", "cars_test_annos_withlabels.mat"),
    ):
        rows = [(f"{number + 1:05d}.jpg", number % classes + 1) for number in range(2 * classes)]
        for number, (file, owner) in enumerate(rows):
            draw(root / images / file, number, owner)
        save_annotations(root / path, "fname", rows)
    return root


def online_products(folder: Path, classes: int = 4, images: int = 4) -> Path:
    root = folder / "Stanford_Online_Products"
    number = 0
    for split, first in (("train", 1), ("test", classes + 1)):
        lines = ["image_id class_id super_class_id path"]
        for owner in range(first, first + classes):
            for image in range(images):
                number += 1
                file = f"{('bicycle', 'chair')[owner % 2]}_final/{111085122871 + owner}_{image}.JPG"
                draw(root / file, number, owner)
                lines.append(f"{number} {owner} {owner % 2 + 1} {file}")
        (root / f"Ebay_{split}.txt").write_text("\n".join(lines) + "\n")
    return root


def in_shop(folder: Path, items: int = 4) -> Path:
    root = folder / "In-shop Clothes Retrieval Benchmark"
    lines = []
    for item in range(2, 2 + 2 * items):
        statuses = ["train"] * 4 if item < 2 + items else ["query", "gallery", "gallery"]
        for number, status in enumerate(statuses, start=1):
            name = f"img/{('WOMEN/Dresses', 'MEN/Denim')[item % 2]}/id_{item:08d}/{number:02d}_1_front.jpg"
            draw(root / "Img" / name, 50 * item + number, item)
            lines.append(f"{name}  id_{item:08d}  {status}")
    (root / "Eval").mkdir()
    header = f"{len(lines)}\nimage_name item_id evaluation_status\n"
    (root / "Eval" / "list_eval_partition.txt").write_text(header + "\n".join(lines) + "\n")
    return root


def image_folder(folder: Path, classes: int = 3, images: int = 4) -> Path:
    root = folder / "pictures"
    for split in ("train", "test"):
        for owner in range(classes):
            for number in range(images):
                draw(root / split / f"class_{owner}" / f"{number}.png", 10 * owner + number, owner)
    return root


def described(rows):
    """How many rows, labels and cameras a set of drawings has, with one row read."""
    row = rows[len(rows) // 2]
    assert row["image"].size == SIZE
    names = [name for name in ("label", "camera") if name in row]
    assert set(row) == {"image", *names}
    return (len(rows), *(sorted(set(column(rows, name))) for name in names))
