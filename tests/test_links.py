"""Every link and picture of README and docs: the file is there, the heading is there; so are files that pages name.

Nothing is fetched. Headings are named as GitHub and MyST name them; MyST knows those of the first three levels.
"""

import re
from collections import Counter
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).resolve().parent.parent
TESTS = ROOT / "tests"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCED = re.compile(r"^( *)(```+|~~~+).*?^\1\2 *$", flags=re.MULTILINE | re.DOTALL)
INLINE_CODE = re.compile(r"(`+)(?:(?!\1).)+?\1")
TARGET = re.compile(r"\]\(\s*<?([^\s)>]+)>?(?:\s+\"[^\"]*\")?\s*\)|\b(?:src|srcset|href)=\"([^\"]+)\"")
HEADING = re.compile(r"^(#{1,3}) (.+?) *$", flags=re.MULTILINE)
OUTSIDE = re.compile(r"https?://[a-z0-9-]+(\.[a-z0-9-]+)+(/[^\s\"<>]*)?(#\S+)?")


def links(text: str) -> list[str]:
    """Targets of links and pictures; what stands in code is none, though a link may show code."""
    shown = INLINE_CODE.sub("code", FENCED.sub("", text))
    return [inline or attribute for inline, attribute in TARGET.findall(shown)]


def anchors(text: str) -> set[str]:
    """The names of headings: small letters, hyphens for blanks, without other signs; the second of a name has -1."""
    seen: Counter[str] = Counter()
    found = set()
    for _, heading in HEADING.findall(FENCED.sub("", text)):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")
        name = re.sub(r"[^\w\- ]", "", plain.strip().lower()).replace(" ", "-")
        found.add(f"{name}-{seen[name]}" if seen[name] else name)
        seen[name] += 1
    return found


def dead(page: Path, text: str) -> list[str]:
    """The links of a page that lead nowhere."""
    return [target for target in links(text) if not leads_somewhere(page, text, target)]


def leads_somewhere(page: Path, text: str, target: str) -> bool:
    if urlsplit(target).scheme:
        return OUTSIDE.fullmatch(target) is not None
    path, _, anchor = target.partition("#")
    there = (page.parent / unquote(path)).resolve() if path else page
    if ROOT not in there.parents or not there.exists():
        return False
    return not anchor or anchor in anchors(text if there == page else there.read_text(encoding="utf-8"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    assert dead(page, page.read_text(encoding="utf-8")) == []


def test_dead_links_are_found() -> None:
    text = (
        "# A `b`, c\n\n[x](#a-b-c) [`y`](metric.md) [z](https://arxiv.org/abs/2410.15266)\n\n"
        '[a](#a-b) [b](nowhere.md) ![c](images/none.png) [d](metric.md#none "title") [e](https:/arxiv.org) '
        '[f](https://nohost) <img src="images/none.svg">\n\n```\n[code](none.md)\n```\n\n`[code](none.md)`\n'
    )
    assert dead(ROOT / "docs" / "index.md", text) == [
        "#a-b",
        "nowhere.md",
        "images/none.png",
        "metric.md#none",
        "https:/arxiv.org",
        "https://nohost",
        "images/none.svg",
    ]


def test_a_heading_that_comes_twice_has_two_names() -> None:
    assert anchors("# One\n## Two words\n## Two words\n#### Deep\n```\n# not one\n```\n") == {
        "one",
        "two-words",
        "two-words-1",
    }


NAMED = re.compile(r"(?<![\w./-])(?:gssf_plug|examples|tests|docs)/[\w./-]+\.[a-z]+\b")
OF_OTHERS = {"tests/distributed_testing_utils.py"}  # of transformers' own checkout


def missing(text: str) -> list[str]:
    """Files of the repository that a page names in words or code and that are not there; below tests/, too."""
    named = dict.fromkeys(NAMED.findall(text))
    return [path for path in named if path not in OF_OTHERS and not any((r / path).exists() for r in (ROOT, TESTS))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_that_a_page_names_are_there(page: Path) -> None:
    assert missing(page.read_text(encoding="utf-8")) == []


def test_a_file_that_moved_is_found() -> None:
    assert missing("see `tests/test_links.py` and `tests/attention/test_gone.py`") == ["tests/attention/test_gone.py"]
