"""What a docstring says of its arguments is so: each name is the signature's, and a default that it names the code's.

Defaults are read from "(default)" behind a value and from "default VALUE"; words such as "default all" are prose.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted((ROOT / "gssf_plug").rglob("*.py"))
VALUE = r'None|True|False|-?\d+(?:[.,]\d+)*|"[^"]*"'
CLAIM = re.compile(rf"({VALUE}) \(default\)|\b[Dd]efaults? (?:is )?({VALUE})(?![\w×/·]| …|, \d| \d)")


def documented(node: ast.AST) -> dict[str, str]:
    """Entries of the section Args, each in one line."""
    doc = ast.get_docstring(node) or ""  # type: ignore[arg-type]
    section = re.search(r"^Args:\n(.*?)(?:\n\n|\Z)", doc, re.DOTALL | re.MULTILINE)
    if section is None:
        return {}
    entries = re.finditer(r"^    \*{0,2}(\w+): (.*?)(?=^    \S|\Z)", section[1], re.DOTALL | re.MULTILINE)
    return {entry[1]: " ".join(entry[2].split()) for entry in entries}


def signature(node: ast.AST) -> dict[str, str | None]:
    """Arguments with their defaults as code; None where one is required. Of a class those of its constructor."""
    if isinstance(node, ast.ClassDef):
        inits = [m for m in node.body if isinstance(m, ast.FunctionDef) and m.name == "__init__"]
        if not inits:
            fields = (s for s in node.body if isinstance(s, ast.AnnAssign) and isinstance(s.target, ast.Name))
            return {s.target.id: None if s.value is None else ast.unparse(s.value) for s in fields}
        return signature(inits[0])
    assert isinstance(node, ast.FunctionDef)
    given = node.args
    places = [*given.posonlyargs, *given.args]
    ends: list[ast.expr | None] = [*[None] * (len(places) - len(given.defaults)), *given.defaults]
    pairs = [*zip(places, ends, strict=True), *zip(given.kwonlyargs, given.kw_defaults, strict=True)]
    named = {argument.arg: None if value is None else ast.unparse(value) for argument, value in pairs}
    more = [argument.arg for argument in (given.vararg, given.kwarg) if argument is not None]
    return {name: default for name, default in named.items() if name not in ("self", "cls")} | dict.fromkeys(more)


def same(claimed: str, default: str | None) -> bool:
    """Whether a claim of the prose is this code; code that is no literal, such as a constant's name, passes."""
    if default is None:
        return False
    try:
        value = ast.literal_eval(default)
    except ValueError:
        return True
    if isinstance(value, bool | None) or claimed[0] in 'NTF"':
        return str(value) == claimed.strip('"')
    number = float(claimed.replace(",", ""))
    return number in value if isinstance(value, tuple) else number == value


def faults(source: str) -> Iterator[str]:
    tree = ast.parse(source)
    bare = {node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and not signature(node)}
    for node in ast.walk(tree):
        if not isinstance(node, ast.ClassDef | ast.FunctionDef):
            continue
        known = signature(node)
        for name, text in documented(node).items():
            if name not in known and node.name not in bare:  # an inherited constructor stands elsewhere
                yield f"{node.name}: no argument {name}"
            claims = [first or second for first, second in CLAIM.findall(text)]
            yield from (
                f"{node.name}: {name} is {known[name]}, not {claim}"
                for claim in claims
                if name in known and not same(claim, known[name])
            )


def test_arguments_and_their_defaults_are_those_of_the_code() -> None:
    assert len(SOURCES) > 100
    assert not {path.name: wrong for path in SOURCES if (wrong := list(faults(path.read_text(encoding="utf-8"))))}


def test_a_wrong_default_and_a_wrong_name_are_seen() -> None:
    source = '''
def f(a, b=2.0, *, c=None, d=False, e=(1, 5), **more):
    """Text.

    Args:
        a: default 1.
        b: rate; default 3.
        c: True (default) is wrong.
        d: False (default) is right.
        e: places; default 1, 5.
        more: options.
        g: nothing.
    """
'''
    assert list(faults(source)) == [
        "f: a is None, not 1",
        "f: b is 2.0, not 3",
        "f: c is None, not True",
        "f: no argument g",
    ]


ELLIPSIS = re.compile(r"(?:of|that|by which|as it|as they|told|from|to|on|at) ")


def continued(source: str) -> list[str]:
    """Arguments whose text continues their name ("seed: of the draw") instead of saying what they are."""
    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ClassDef | ast.FunctionDef)]
    entries = [(node.name, name, text) for node in nodes for name, text in documented(node).items()]
    return [f"{where}: {name}: {text[:50]}" for where, name, text in entries if ELLIPSIS.match(text)]


def test_the_text_of_an_argument_is_a_clause_of_its_own() -> None:
    assert not {path.name: wrong for path in SOURCES if (wrong := continued(path.read_text(encoding="utf-8")))}


def test_a_text_that_continues_its_name_is_seen() -> None:
    source = 'def f(seed, dim):\n    """Text.\n\n    Args:\n        seed: of the draw.\n        dim: width.\n    """\n'
    assert continued(source) == ["f: seed: of the draw."]
