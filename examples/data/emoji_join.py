"""Who draws which emoji: the vendors' icons joined by code point, or by name where a package has no code points."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emoji_packages import Vendor, read_json
from emoji_text import Emoji, plain, slug

FORMER_NAMES = {"dizzy-face": "1f635", "blond-haired-person": "1f471"}
"""Icon names of Unicode 9 and before that no package's table of names explains."""


@dataclass(frozen=True, kw_only=True)
class IconSet:
    """A vendor's drawings and how to find them."""

    icons: Mapping[str, Mapping[str, Any]]
    aliases: Mapping[str, str]
    by_codepoints: Mapping[str, str]
    height: float
    author: str
    licence: str
    package: str


def read_icons(vendor: Vendor, folder: Path) -> IconSet:
    """Read one Iconify package; aliases that flip or turn a drawing are left out."""
    body, info = read_json(folder / "icons.json"), read_json(folder / "info.json")
    turned = {"hFlip", "vFlip", "rotate"}
    aliases = {name: alias["parent"] for name, alias in body.get("aliases", {}).items() if not turned & set(alias)}
    chars = read_json(folder / "chars.json")
    return IconSet(
        icons=body["icons"],
        aliases=aliases,
        by_codepoints={plain(code): name for code, name in chars.items()},
        height=float(body["height"]),
        author=f"{info['author']['name']} ({info['author']['url']})",
        licence=info["license"]["spdx"],
        package=f"{vendor.name}@{vendor.version}",
    )


def name_table(emoji: Mapping[str, Emoji], sets: Iterable[IconSet]) -> dict[str, str]:
    """Icon name → code points: CLDR names first, then the vendors' own, then their aliases.

    A name that stands for two emoji in one of these layers is left out of it.
    """
    layers: list[dict[str, set[str]]] = [{}, {}, {}]
    for code, one in emoji.items():
        layers[0].setdefault(slug(one.name), set()).add(code)
    for icons in sets:
        names = {name: code for code, name in icons.by_codepoints.items() if code in emoji}
        for name, code in names.items():
            layers[1].setdefault(name, set()).add(code)
        for alias, parent in icons.aliases.items():
            if parent in names:
                layers[2].setdefault(alias, set()).add(names[parent])
    table = dict(FORMER_NAMES)
    for layer in layers:
        for name, codes in layer.items():
            if len(codes) == 1:
                table.setdefault(name, next(iter(codes)))
    return table


def join(icons: IconSet, table: Mapping[str, str], emoji: Mapping[str, Emoji]) -> dict[str, str]:
    """Code points → icon of one vendor: its own table, then icon names, then names of aliases.

    Icon names go before aliases because a name has changed hands: noto-v1's "cricket" is an alias of its icon
    "cricket-game", drawn before the insect became an emoji.
    """
    found = {code: name for code, name in icons.by_codepoints.items() if code in emoji and name in icons.icons}
    taken = set(found.values())
    for names in ({name: name for name in icons.icons}, icons.aliases):
        for name, icon in names.items():
            code = table.get(name)
            if code in emoji and code not in found and icon in icons.icons and icon not in taken:
                found[code] = icon
                taken.add(icon)
    return found
