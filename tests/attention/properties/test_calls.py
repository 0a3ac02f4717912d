"""How often a question is asked while a model is patched: counted, since a question asked again shows in no result."""

import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import pytest
from transformers import BertConfig, BertModel

import gssf_plug
from gssf_plug.attention import load_attention, patch_attention

PACKAGE = str(Path(gssf_plug.__file__).parent)


def calls(action: Callable[[], object]) -> Counter[str]:
    """Calls of Python functions in each file of the package, comprehensions and generators among them."""
    counted: Counter[str] = Counter()

    def note(frame: FrameType, event: str, argument: object) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(PACKAGE):
            counted[frame.f_code.co_filename] += 1

    sys.setprofile(note)
    try:
        action()
    finally:
        sys.setprofile(None)
    return counted


@pytest.fixture
def model() -> BertModel:
    sizes = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    return BertModel(BertConfig(intermediate_size=40, **sizes)).eval()


@pytest.mark.bad_input  # the jaxtyping hook would be counted, too
def test_patching_asks_each_question_once(model: BertModel) -> None:
    counted = calls(lambda: patch_attention(model))
    assert sum(counted.values()) <= 6_000
    assert len(counted) <= 18, sorted(counted)


@pytest.mark.bad_input
def test_loading_asks_each_question_once(model: BertModel, tmp_path: Path) -> None:
    patch = patch_attention(model)
    patch.save_pretrained(tmp_path)
    patch.remove()
    counted = calls(lambda: load_attention(model, tmp_path))
    assert 0 < sum(counted.values()) <= 7_000


@pytest.mark.bad_input
def test_merging_at_the_projection_runs_no_example(model: BertModel) -> None:
    patch = patch_attention(model)
    files = {Path(name).name for name in calls(lambda: patch.merge())}
    assert files
    assert not files & {"prober.py", "probe.py", "example_inputs.py", "recording.py", "sites.py"}
