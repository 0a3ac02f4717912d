"""Which emoji are variants of one another: the rule that keeps near-copies out of two splits.

Two emoji share a family when their CLDR names say so. A name is first reduced to what it draws: words for a
person, a colour, a size, a direction or a count are dropped, so that "man running", "woman running: facing
right" and "person running" all become "running". Inside one scope (a CLDR subgroup; all faces are one scope)
emoji with equal reduced names are one family, and so are two of which the shorter begins or ends the longer
("dog", "dog face", "guide dog"). ``PATTERNS`` names the families that words alone do not show (clock faces,
moons, merman and mermaid). A family may be too wide, which costs nothing; it must not be too narrow.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

PATTERNS: tuple[tuple[str, str], ...] = (
    (r"^(person|man|woman)$|^(person|man|woman): ", "person"),
    (r"^(child|boy|girl|baby)$", "child"),
    (r"^(older person|old man|old woman)$", "older person"),
    (r"^(prince|princess|person with crown)$", "royalty"),
    (r"claus$", "claus"),
    (r"^mer(person|man|maid)$", "merperson"),
    (r"^pregnant ", "pregnant person"),
    (r"feeding", "feeding baby"),
    (r"dancing$|^ballet dancer$", "dancer"),
    (r"with veil$|in tuxedo$", "wedding dress"),
    (r"(frowning|pouting)$", "person frowning"),
    (r"wheelchair", "wheelchair"),
    (r"turban$|skullcap$|headscarf$", "head cover"),
    (r"(people|men|women|man) holding hands$", "holding hands"),
    (r"^kiss(:|$)", "kiss"),
    (r"^couple with heart", "couple with heart"),
    (r"^family", "family"),
    (r"^busts? in silhouette$", "silhouette"),
    (r"biking$", "biking"),
    (r"^(grinning|beaming)\b.*\bface\b", "grinning face"),
    (r"hand over mouth$", "hand over mouth"),
    (r"^head shaking|^shaking face$", "head shaking"),
    (r"^mechanical ", "mechanical limb"),
    (r"-no-evil monkey$", "no-evil monkey"),
    (r"^(thought|speech) balloon$|(speech|anger) bubble$", "speech bubble"),
    (r"^sparkles?$", "sparkle"),
    (r"potable water$", "potable water"),
    (r"\bcat\b", "cat"),
    (r"\bchick(en)?$|^rooster$", "chick"),
    (r"\bwhale$", "whale"),
    (r"\bmoon( face)?$", "moon"),
    (r"^sun( |$)|^(fog|cloud)( |$)", "sun and cloud"),
    (r"umbrella", "umbrella"),
    (r"o’clock$|-thirty$", "clock face"),
    (r"^hourglass", "hourglass"),
    (r"^globe ", "globe"),
    (r"^sunrise|^sunset$|^cityscape|^night with stars$|^bridge at night$", "skyline"),
    (r"^airplane|airplane$", "airplane"),
    (r"traffic light$", "traffic light"),
    (r"mountain", "mountain"),
    (r"beer mugs?$", "beer mug"),
    (r"banknote$", "banknote"),
    (r"mailbox", "mailbox"),
    (r"^(speaker|muted speaker)", "speaker"),
    (r"^bell( with slash)?$", "bell"),
    (r"\bmedal$", "medal"),
    (r"musical (note|score)", "musical note"),
    (r"^(un)?locked", "lock"),
    (r"^chart |^bar chart$", "chart"),
    (r"calendar$", "calendar"),
    (r"(note)?books?\b|^ledger", "book"),
    (r"^(incoming )?envelope|^e-mail$|^love letter$", "envelope"),
    (r"box tray$", "tray"),
    (r"^(pen|pencil|fountain pen|black nib|memo)$", "pen"),
    (r"^(computer|floppy|optical) disk$|^dvd$", "disk"),
    (r"^(sun|)glasses$", "glasses"),
    (r"(question|exclamation) mark|exclamation question", "punctuation mark"),
    (r"check mark|box with check", "check mark"),
    (r"^cross mark", "cross mark"),
    (r"curly loop$", "curly loop"),
    (r"^keycap", "keycap"),
    (r"^input ", "input"),
    (r"^japanese “", "japanese button"),
    (r"arrow\b(?!.*\b(heart|bow)\b)(?<!with arrow)(?<!and arrow)|^(counter)?clockwise", "arrow"),
    (r"^(play|reverse|fast|next|last|upwards|downwards|pause|stop|record|eject).* button$", "media button"),
    (r"^repeat ", "repeat button"),
    (r"^(dim|bright) button$", "brightness button"),
    (r"^(women|men)’s room$|^restroom$", "restroom"),
    (r"(circle|square|square button|radio button)$", "plain shape"),
    (r"\bdiamond\b(?! suit)", "diamond"),
    (r"triangle pointed", "triangle"),
    (r"^(fe)?male sign$|^transgender symbol$", "gender sign"),
    (r"\bflags?$", "flag"),
    (r"\bfist$", "fist"),
    (r"pointing", "pointing hand"),
    (r"^thumbs ", "thumb"),
    (r"^eyes?$", "eye"),
    (r"\bsilverware$|^fork and knife", "fork and knife"),
    (r"^(spider|spider web)$", "spider"),
    (r"(deciduous|evergreen|christmas|tanabata) tree$", "tree"),
)
"""(pattern searched in the lower-case name, family), tried in this order before the words are compared."""

_NEUTRAL = """
person people man men woman women boy girl adult child older old
red orange yellow green blue purple brown black white grey pink light dark
small medium large big low high fast slightly double two
left right up down upwards downwards leftwards rightwards oncoming facing front back
open opened closed raised lowered first second third 1st 2nd 3rd last
one two three four five six seven eight nine ten eleven twelve the a of in and with
"""
NEUTRAL = frozenset(_NEUTRAL.split())
"""Words that tell variants of one drawing apart, not drawings."""


def family_keys(names: Mapping[str, tuple[str, str]]) -> dict[str, str]:
    """Give every emoji its family.

    Args:
        names: code points → (CLDR name, CLDR subgroup), in CLDR order.

    Returns:
        Code points → family, the same keys. The family is named after its first member or its pattern.
    """
    parent = {code: code for code in names}
    words = {code: reduced_words(name) for code, (name, _) in names.items()}
    scopes: dict[str, list[str]] = {}
    families: dict[str, str] = {}
    for code, (name, subgroup) in names.items():
        fixed = _pattern_family(name)
        if fixed is not None:
            families[code] = fixed
        elif words[code]:
            scopes.setdefault("face" if subgroup.startswith("face-") else subgroup, []).append(code)
    for members in scopes.values():
        _join_similar(members, words, parent)
    return {code: families.get(code) or names[_root(code, parent)][0].lower() for code in names}


def reduced_words(name: str) -> tuple[str, ...]:
    """Drop the neutral words of a name and the plural s of the rest: what the emoji draws.

    A name made of neutral words alone keeps them.
    """
    every = re.findall(r"[^\W_]+", re.sub(r"[’']", "", name.lower()))
    kept = [word for word in every if word not in NEUTRAL] or every
    return tuple(re.sub(r"(?<=[^su])s$", "", word) for word in kept)


def _pattern_family(name: str) -> str | None:
    return next((family for pattern, family in PATTERNS if re.search(pattern, name.lower())), None)


def _join_similar(members: list[str], words: Mapping[str, tuple[str, ...]], parent: dict[str, str]) -> None:
    """Join members of one scope of which the shorter reduced name begins or ends the longer."""
    for i, later in enumerate(members):
        for earlier in members[:i]:
            short, long = sorted((words[earlier], words[later]), key=len)
            if long[: len(short)] == short or long[-len(short) :] == short:
                low, high = sorted((_root(earlier, parent), _root(later, parent)), key=list(parent).index)
                parent[high] = low


def _root(code: str, parent: Mapping[str, str]) -> str:
    while parent[code] != code:
        code = parent[code]
    return code
