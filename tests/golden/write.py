"""Write the golden files of the format versions that this library writes now: those that are not there yet.

    python tests/golden/write.py            # new cases, new format versions; what is there is never touched

Files of a released format are kept for ever: a change that cannot read them is wrong, not they. Before the first
release of a version (docs/changelog.md says "unreleased") a folder may be deleted and written again.
"""

import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).resolve().parent))  # `cases` beside this script

from cases import CASES, CURRENT, folder_of


def write(name: str, folder: Path) -> None:
    """One case into a folder that does not exist, and its inputs and outputs beside it."""
    if folder.exists() or folder.with_suffix(".safetensors").exists():
        raise FileExistsError(f"{folder} is kept for ever; give a new case another name")
    torch.manual_seed(0)
    case = CASES[name]
    inputs = case.save(folder)
    with torch.no_grad():
        outputs = case.read(folder, inputs)
    tensors = {f"in.{key}": value.contiguous().clone() for key, value in inputs.items()}
    tensors |= {f"out.{key}": value.contiguous().clone() for key, value in outputs.items()}
    save_file(tensors, folder.with_suffix(".safetensors"))


def main() -> None:
    """Refuse a dirty library, whose files nobody could make again; then write what is missing."""
    root = Path(__file__).resolve().parents[2]
    dirty = subprocess.run(["git", "diff", "--quiet", "HEAD", "--", "gssf_plug"], cwd=root, check=False).returncode
    if dirty and "--dirty" not in sys.argv:
        sys.exit("gssf_plug has changes that are not committed: commit them first (--dirty writes all the same)")
    for name, case in CASES.items():
        folder = folder_of(name, CURRENT[case.kind])
        if folder.exists():
            print(f"kept     {folder.relative_to(root)}")
            continue
        write(name, folder)
        print(f"written  {folder.relative_to(root)}")


if __name__ == "__main__":
    main()
