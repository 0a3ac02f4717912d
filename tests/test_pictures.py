"""Every picture of the documentation is shown somewhere, and drawn again by docs/figures.py."""

import importlib.util
import re
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PICTURE = re.compile(r"!\[[^\]]*\]\(([^)]+\.png)\)|\b(?:src|srcset)=\"([^\"]+\.png)\"")
PAGES = [ROOT / "README.md", *(page for page in DOCS.rglob("*.md") if "_build" not in page.parts)]


@pytest.fixture(scope="module")
def figures() -> ModuleType:
    spec = importlib.util.spec_from_file_location("figures", DOCS / "figures.py")
    module = importlib.util.module_from_spec(spec)
    path = list(sys.path)
    spec.loader.exec_module(module)
    sys.path[:] = path
    return module


@pytest.fixture(scope="module")
def drawn(figures: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Places of the pictures that take a minute; distillation of no epoch here."""
    folder, every = tmp_path_factory.mktemp("images"), {}
    for draw in figures.DRAWN:
        every |= draw(epochs=0) if draw is figures.similarities else draw()
    for name, figure in every.items():
        figures.save(figure, folder / f"{name}.png")
        assert (folder / f"{name}.png").stat().st_size > 4000
    return {f"images/{name}.png" for name in every}


def shown(pages: list[Path]) -> set[str]:
    found = set()
    for page in pages:
        for links in re.findall(PICTURE, page.read_text(encoding="utf-8")):
            link = "".join(links)
            picture = (page.parent / link).resolve()
            assert picture.is_file(), f"{page.name} shows {link}, which is not there"
            found.add(picture.relative_to(DOCS).as_posix())
    return found


def test_every_picture_is_shown_and_drawn_by_one_command(figures: ModuleType, drawn: set[str]) -> None:
    by_examples = {place for pictures in figures.BY_EXAMPLES.values() for place in pictures.values()}
    there = {
        path.relative_to(DOCS).as_posix() for folder in ("images", "_static") for path in (DOCS / folder).glob("*.png")
    }
    assert there <= drawn | by_examples
    assert drawn <= there
    assert shown(PAGES) == there


def test_a_page_that_shows_nothing_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("![none](images/none.png)")
    with pytest.raises(AssertionError, match="which is not there"):
        shown([page])


def test_pictures_of_tables_hold_what_the_tables_say(figures: ModuleType) -> None:
    panels, sizes = figures.tables_of_gains()["frozen"], figures.tables_of_sizes()
    assert list(panels) == ["re-id", "fine-grained", "text"]
    assert panels["re-id"]["hinge"]["full"] == (40.85, 0.33)
    assert panels["text"]["softmax"]["cosine, whitened by pairs"] == (46.34, 0.0)
    assert sizes["re-id"][0] == [95, 383, 1533, 6133]
    assert sizes["re-id"][1]["full"][-1] == (39.88, 0.30)


def test_badges_say_what_the_package_says(figures: ModuleType) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for name, said in (("python", project["requires-python"].strip(">=") + "+"), ("licence", project["license"])):
        drawing = (DOCS / "images" / f"{name}.svg").read_text()
        assert f">{said}</text>" in drawing
    for name, drawing in figures.badges().items():
        assert (DOCS / "images" / f"{name}.svg").read_text() == drawing
