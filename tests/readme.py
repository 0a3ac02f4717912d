"""The README's commands and blocks, read from the README itself: `python tests/readme.py test` prints the test command.

A command is the `bash` block that follows an HTML comment `<!-- command: NAME -->`.
"""

import re
import sys
from pathlib import Path

README = Path(__file__).resolve().parent.parent / "README.md"


def command(name: str, text: str | None = None) -> str:
    """The one line of the block called `name`."""
    text = README.read_text(encoding="utf-8") if text is None else text
    found = re.findall(rf"<!-- command: {re.escape(name)} -->\s*```bash\n(.*?)\n```", text, flags=re.DOTALL)
    if len(found) != 1 or "\n" in found[0]:
        raise ValueError(f"README.md must have one one-line command called {name!r}, found {found}")
    return found[0]


def commands(text: str | None = None) -> list[str]:
    """All bash lines of the README."""
    text = README.read_text(encoding="utf-8") if text is None else text
    return [line for block in re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL) for line in block.splitlines()]


def python_blocks(text: str | None = None) -> list[str]:
    """All python blocks of the README."""
    text = README.read_text(encoding="utf-8") if text is None else text
    return re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)


if __name__ == "__main__":
    sys.stdout.write(command(sys.argv[1]) + "\n")
