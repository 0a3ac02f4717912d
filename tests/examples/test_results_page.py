"""docs/results.md: the paper's columns stay empty, sums are sums, and every recipe that it names exists."""

import re
from pathlib import Path

import pytest
from recipes.reading import RECIPES

DOCS = Path(__file__).resolve().parents[2] / "docs"


def tables(text):
    """Rows as dicts, by table."""
    for block in re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE):
        header, _, *rows = [
            [cell.strip() for cell in line.strip().strip("|").split("|")] for line in block.splitlines()
        ]
        yield [dict(zip(header, row, strict=True)) for row in rows]


EVERY = list(tables((DOCS / "results.md").read_text()))
PAGE = [table for table in EVERY if any("paper" in name for name in table[0])]  # the others are the study's own


def test_the_columns_of_the_paper_are_empty():
    assert len(PAGE) == 7
    for table in PAGE:
        column = next(name for name in table[0] if "paper" in name)
        assert [row[column] for row in table] == [""] * len(table)


@pytest.mark.parametrize("table", PAGE[:3], ids=["f30k", "coco 1K", "coco 5K"])
def test_rsum_is_the_sum(table):
    summed = 0
    for row in table:
        parts = " ".join(row[name] for name in row if "R@1 / 5 / 10" in name).split()
        if row["rSum"] not in ("–", "") and len(parts) == 6:
            assert sum(map(float, parts)) == pytest.approx(float(row["rSum"]), abs=0.11)
            summed += 1
    assert summed >= 10


def test_every_published_row_has_a_source():
    for row in (row for table in PAGE[:5] for row in table):
        assert row["source"] or "none among our sources" in row["method"]


@pytest.mark.parametrize("page", ["results.md", "recipes.md"])
def test_named_recipes_exist_and_all_are_named(page):
    names = {path.stem for path in RECIPES.glob("*.yaml")}
    text = (DOCS / page).read_text()
    named = set(re.findall(r"`((?:vse|scan|clip|bot|vit|proxy)\w*_\w+)`", text))
    assert named - {"vse", "proxy_anchor"} <= names
    settings = {name for name in names if not name.endswith("_gssf")}
    assert settings - named <= ({"clip_f30k"} if page == "results.md" else set())
