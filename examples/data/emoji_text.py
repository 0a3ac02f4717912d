"""What an emoji says: its CLDR name, keywords and group, and the two captions made of them."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from emoji_packages import read_json

SKIPPED_GROUPS = ("component",)
SKIPPED_SUBGROUPS = ("country-flag", "subdivision-flag")
MAX_KEYWORDS_IN_CAPTION = 8


@dataclass(frozen=True, kw_only=True)
class Emoji:
    """One emoji: what its text says, whoever draws it."""

    codepoints: str
    character: str
    name: str
    keywords: tuple[str, ...]
    group: str
    subgroup: str


def plain(codepoints: str) -> str:
    """Lower-case hexadecimal code points without U+FE0F, joined by ``-``."""
    return "-".join(part for part in codepoints.lower().split("-") if part != "fe0f")


def read_emoji(emojibase: Path, emojilib: Path) -> dict[str, Emoji]:
    """Read names, keywords and groups in CLDR order; base emoji only, so no skin tones."""
    meta = read_json(emojibase / "meta" / "groups.json")
    more = {
        plain("-".join(f"{ord(c):x}" for c in character)): words
        for character, words in read_json(emojilib / "dist" / "emoji-en-US.json").items()
    }
    entries = [entry for entry in read_json(emojibase / "en" / "data.json") if "group" in entry]
    found: dict[str, Emoji] = {}
    for entry in sorted(entries, key=lambda entry: entry["order"]):
        code = plain(entry["hexcode"])
        group, subgroup = meta["groups"][str(entry["group"])], meta["subgroups"][str(entry["subgroup"])]
        if group in SKIPPED_GROUPS or subgroup in SKIPPED_SUBGROUPS:
            continue
        found[code] = Emoji(
            codepoints=code,
            character=entry["emoji"],
            name=entry["label"],
            keywords=keywords(entry["label"], [*entry.get("tags", ()), *more.get(code, ())]),
            group=group,
            subgroup=subgroup,
        )
    return found


def keywords(name: str, words: Iterable[str]) -> tuple[str, ...]:
    """Spell keywords as words, without quotes, repeats, emoticons and the name itself, in their first order."""
    spelled = (" ".join(re.sub("[_“”]", " ", word).split()) for word in words)
    kept = (word for word in spelled if re.search(r"[^\W\d_]{2}|\d", word) and not re.search(r"[:;=][A-Z]", word))
    unique: dict[str, str] = {}
    for word in kept:
        if slug(word).replace("-s-", "s-") != slug(name):
            unique.setdefault(word.lower(), word)
    return tuple(unique.values())


def captions(emoji: Mapping[str, Emoji]) -> dict[str, list[str]]:
    """Two captions per emoji, each unlike any other emoji's: its name, then its keywords.

    The second holds keywords that do not repeat a word of the name; where fewer than two are left, or another
    emoji has the same ones (man, woman and person running), the name goes in front.
    """
    second = {code: _keyword_caption(one) for code, one in emoji.items()}
    seen = Counter(second.values())
    texts: dict[str, list[str]] = {}
    for code, one in emoji.items():
        text = second[code]
        if seen[text] > 1 or ", " not in text:
            text = ", ".join(filter(None, (one.name, text))) if text else f"{one.name} emoji"
        texts[code] = [one.name, text]
    return texts


def _keyword_caption(one: Emoji) -> str:
    taken = set(re.findall(r"\w+", one.name.lower()))
    fresh = [word for word in one.keywords if not taken & set(re.findall(r"\w+", word.lower()))]
    return ", ".join(fresh[:MAX_KEYWORDS_IN_CAPTION])


def slug(name: str) -> str:
    """An emoji's name the way Iconify spells icon names."""
    ascii_name = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", ascii_name.replace("&", "and").replace("'", "")).strip("-")
