"""Build the bundled emoji data set: ``python examples/data/build_emoji.py`` rewrites ``examples/data/emoji/*.parquet``.

Fetches pinned npm packages (drawings as SVG, names and keywords), joins the vendors by code point, rasterises
on white, drops drawings that repeat, keeps emoji that at least three vendors draw, and splits them by family.
The same packages and the versions in the data card give the same bytes. Needs ``npm`` and
``pip install datasets pillow pyarrow resvg-py tqdm``; nothing else in this repository needs resvg-py or a
network.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import logging
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import resvg_py
from datasets import Features, Image, List, Value
from emoji_families import family_keys
from emoji_join import IconSet, join, name_table, read_icons
from emoji_packages import EMOJIBASE, EMOJILIB, VENDORS, fetch
from emoji_text import Emoji, captions, read_emoji
from PIL import Image as Pixels
from tqdm import tqdm

log = logging.getLogger(__name__)

SIZE = 64
MIN_VENDORS = 3
SEED = 1
"""The first seed whose shares of classes lie within one percent of ``SHARES``."""
SHARES = {"train": 0.7, "validation": 0.1, "test": 0.2}

FEATURES = Features(
    {
        "image": Image(),
        "emoji": Value("string"),
        "codepoints": Value("string"),
        "name": Value("string"),
        "captions": List(Value("string")),
        "keywords": List(Value("string")),
        "label": Value("int64"),
        "vendor": Value("string"),
        "camera": Value("int64"),
        "group": Value("string"),
        "subgroup": Value("string"),
        "family": Value("string"),
        "split": Value("string"),
        "author": Value("string"),
        "licence": Value("string"),
        "source": Value("string"),
    }
)


@dataclass(kw_only=True)
class Drawing:
    """One vendor's picture of one emoji; ``png`` is None when it could not be drawn or is blank."""

    vendor: str
    codepoints: str
    icon: str
    svg: str
    png: bytes | None = None
    pixels: str = ""


def svg_text(icon: Mapping[str, Any], side: float) -> str:
    """A square SVG document of one Iconify icon, the drawing in its middle."""
    width, height = float(icon.get("width", side)), float(icon.get("height", side))
    square = max(width, height)
    left = float(icon.get("left", 0)) - (square - width) / 2
    top = float(icon.get("top", 0)) - (square - height) / 2
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'width="{SIZE}" height="{SIZE}" viewBox="{left:g} {top:g} {square:g} {square:g}">{icon["body"]}</svg>'
    )


def rasterise(svg: str) -> tuple[bytes, str] | None:
    """Draw on white: optimised PNG bytes and a digest of the pixels; None when drawing fails or is blank."""
    try:
        drawn = resvg_py.svg_to_bytes(
            svg_string=svg, width=SIZE, height=SIZE, background="white", skip_system_fonts=True
        )
    except ValueError:
        return None
    image = Pixels.open(io.BytesIO(bytes(drawn))).convert("RGB")
    if all(low > 250 for low, _ in image.getextrema()):
        return None
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return file.getvalue(), hashlib.sha256(image.tobytes()).hexdigest()


def draw_all(drawings: list[Drawing], workers: int) -> None:
    """Fill in the PNG and the pixel digest of every drawing."""
    with ProcessPoolExecutor(workers) as pool:
        drawn = pool.map(rasterise, (drawing.svg for drawing in drawings), chunksize=16)
        for drawing, result in zip(tqdm(drawings, desc="drawing"), drawn, strict=True):
            if result is None:
                log.warning("%s: %s (%s) is blank or fails", drawing.vendor, drawing.icon, drawing.codepoints)
            else:
                drawing.png, drawing.pixels = result


def without_repeats(drawings: Iterable[Drawing]) -> list[Drawing]:
    """Keep the first drawing of every picture, in the order of vendors, then CLDR; drop what was not drawn."""
    first: dict[str, Drawing] = {}
    for drawing in drawings:
        if drawing.png is not None:
            first.setdefault(drawing.pixels, drawing)
    return list(first.values())


def split_of(family: str) -> str:
    """The split of a family: the seeded SHA-256 of its name as a number in [0, 1), cut at ``SHARES``."""
    point = int.from_bytes(hashlib.sha256(f"{SEED}:{family}".encode()).digest()[:8], "big") / 2**64
    edge = 0.0
    for split, share in SHARES.items():
        edge += share
        if point < edge:
            return split
    return split


def rows(
    drawings: Iterable[Drawing], emoji: Mapping[str, Emoji], sets: Mapping[str, IconSet]
) -> dict[str, list[dict[str, Any]]]:
    """Vendor → rows in order of split, then label, so that a split is one block of each file."""
    families = family_keys({code: (one.name, one.subgroup) for code, one in emoji.items()})
    texts = captions(emoji)
    labels = {code: label for label, code in enumerate(emoji)}
    found: dict[str, list[dict[str, Any]]] = {vendor: [] for vendor in sets}
    for drawing in drawings:
        one, icons, code = emoji[drawing.codepoints], sets[drawing.vendor], drawing.codepoints
        found[drawing.vendor].append(
            {
                "image": {"bytes": drawing.png, "path": f"{drawing.vendor}/{code}.png"},
                "emoji": one.character,
                "codepoints": code,
                "name": one.name,
                "captions": texts[code],
                "keywords": list(one.keywords),
                "label": labels[code],
                "vendor": drawing.vendor,
                "camera": VENDORS[drawing.vendor].camera,
                "group": one.group,
                "subgroup": one.subgroup,
                "family": families[code],
                "split": split_of(families[code]),
                "author": icons.author,
                "licence": icons.licence,
                "source": f"{icons.package}/{drawing.icon}",
            }
        )
    place = {split: i for i, split in enumerate(SHARES)}
    return {name: sorted(part, key=lambda row: (place[row["split"]], row["label"])) for name, part in found.items()}


def write(vendor: str, part: list[dict[str, Any]], folder: Path) -> None:
    """Write one vendor's rows as parquet that ``datasets`` decodes without a cast."""
    table = pa.Table.from_pylist(part, schema=FEATURES.arrow_schema)
    path = folder / f"{vendor}.parquet"
    pq.write_table(table, path, compression="zstd", compression_level=9, row_group_size=512)
    counts = dict(Counter(row["split"] for row in part))
    log.info("%s: %d rows %s, %.2f MB", path.name, len(part), counts, path.stat().st_size / 1e6)


def build(cache: Path, folder: Path, workers: int) -> None:
    """Fetch, join, draw, split and write everything."""
    emoji = read_emoji(fetch(EMOJIBASE, cache), fetch(EMOJILIB, cache))
    sets = {name: read_icons(vendor, fetch(vendor, cache)) for name, vendor in VENDORS.items()}
    table = name_table(emoji, sets.values())
    drawings: list[Drawing] = []
    for name, icons in sets.items():
        svg = partial(svg_text, side=icons.height)
        joined = join(icons, table, emoji)
        in_order = ((code, joined[code]) for code in emoji if code in joined)
        drawings += [Drawing(vendor=name, codepoints=c, icon=i, svg=svg(icons.icons[i])) for c, i in in_order]
    draw_all(drawings, workers)
    unique = without_repeats(drawings)
    vendors = Counter(drawing.codepoints for drawing in unique)
    kept = {code: one for code, one in emoji.items() if vendors[code] >= MIN_VENDORS}
    log.info("%d joined, %d without repeats, %d classes", len(drawings), len(unique), len(kept))
    folder.mkdir(parents=True, exist_ok=True)
    for vendor, part in rows((d for d in unique if d.codepoints in kept), kept, sets).items():
        write(vendor, part, folder)


def main() -> None:
    """Read the command line and build."""
    parser = argparse.ArgumentParser(description="Rebuild the bundled emoji data set.")
    default_cache = Path(tempfile.gettempdir()) / "gssf-emoji"
    parser.add_argument("--cache", type=Path, default=default_cache, help="where packages are kept")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "emoji", help="where parquet goes")
    parser.add_argument("--workers", type=int, default=2, help="processes that draw")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    args.cache.mkdir(parents=True, exist_ok=True)
    build(args.cache, args.out, args.workers)


if __name__ == "__main__":
    main()
