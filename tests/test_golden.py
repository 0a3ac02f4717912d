"""Files of every format version ever written still load, and give what they gave; see tests/golden/write.py."""

import re
from pathlib import Path

import pytest
import torch
from golden.cases import CASES, CURRENT, folder_of
from golden.write import write
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parent
KEPT = sorted(path for path in (ROOT / "golden").glob("*/v*/*") if path.is_dir())


def expected(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    tensors = load_file(folder.with_suffix(".safetensors"))
    parts = ({key[len(side) :]: t for key, t in tensors.items() if key.startswith(side)} for side in ("in.", "out."))
    inputs, outputs = parts
    return inputs, outputs


@pytest.mark.parametrize("folder", KEPT, ids=lambda path: "-".join(path.parts[-3:]))
def test_golden_files_give_what_they_gave(folder: Path) -> None:
    inputs, outputs = expected(folder)
    with torch.no_grad():
        now = CASES[folder.name].read(folder, inputs)
    assert now.keys() == outputs.keys()
    for name, value in outputs.items():
        torch.testing.assert_close(
            now[name], value, rtol=1e-4, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("name", CASES)
def test_every_case_is_kept_in_the_present_version(name: str) -> None:
    assert folder_of(name, CURRENT[CASES[name].kind]) in KEPT, "run python tests/golden/write.py and commit the files"


def test_every_kind_that_the_library_writes_has_cases() -> None:
    sources = "\n".join(path.read_text() for path in (ROOT.parent / "gssf_plug").rglob("*.py"))
    kinds = set(re.findall(r'Format\(\s*"gssf-plug/(\w+)"', sources))
    assert kinds | {"cache"} == set(CURRENT) == {case.kind for case in CASES.values()}


def test_the_check_can_fail(tmp_path: Path) -> None:
    folder = next(path for path in KEPT if path.name == "both")
    inputs, outputs = expected(folder)
    with torch.no_grad():
        other = CASES["both"].read(folder_of("symmetric", CURRENT["metric"]), inputs)
    assert not torch.allclose(other["scores"], outputs["scores"], atol=1e-3)


def test_nothing_is_written_over(tmp_path: Path) -> None:
    write("both", tmp_path / "both")
    before = (tmp_path / "both" / "model.safetensors").read_bytes()
    with pytest.raises(FileExistsError, match="is kept for ever"):
        write("both", tmp_path / "both")
    assert (tmp_path / "both" / "model.safetensors").read_bytes() == before
