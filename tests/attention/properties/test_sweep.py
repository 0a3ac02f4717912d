"""The thin form of the sweep: one architecture of each kind. `python tests/tools/sweep.py` runs them all."""

from types import SimpleNamespace

import pytest
from tools import sweep
from tools.sweep import contract
from tools.tiny import tiny_model
from torch import nn

REPRESENTATIVES = [
    "albert", "bart", "bert", "blip", "bloom", "clip",
    "codegen", "deberta", "deberta-v2", "deepseek_v3", "distilbert", "falcon",
    "gemma3_text", "gpt2", "gpt_bigcode", "gpt_neox", "gptj", "hubert",
    "llama", "lxmert", "mobilevit", "modernbert", "mpnet", "mpt",
    "olmo2", "opt", "phi3", "qwen3", "qwen3_next", "siglip",
    "squeezebert", "swin", "t5", "vilt", "visual_bert", "vit",
    "wav2vec2-conformer", "whisper", "xlnet",
]  # fmt: skip
AFTER_A_NORM = {"gemma3_text", "olmo2", "qwen3", "qwen3_next"}


@pytest.mark.filterwarnings("default")  # what transformers says while it builds odd models is not our subject
@pytest.mark.parametrize("model_type", REPRESENTATIVES)
def test_the_patch_holds(model_type: str) -> None:
    record = contract(model_type)
    assert record["status"] == "held", record
    assert record["patched"] > 0
    assert not record["left_alone"], record["left_alone"]
    assert ("merge_refused" in record) is (model_type in AFTER_A_NORM)
    if model_type in AFTER_A_NORM:
        assert "after the query norm" in record["merge_refused"]


def test_the_contract_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    """A patch that does not act must not pass."""
    monkeypatch.setattr("gssf_plug.attention.query_layer.QueryMetric.change_output", lambda *arguments: None)
    record = contract("bert")
    assert record["status"] == "failed"
    assert {"alive", "gradients"} <= set(record["wrong"])


def test_what_is_left_behind_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A patch that leaves something in the model must not pass."""

    def patch_attention(model: nn.Module, **options: object) -> SimpleNamespace:
        model.seen = True
        return SimpleNamespace(remove=lambda: None)

    monkeypatch.setattr(sweep, "patch_attention", patch_attention)
    found = sweep.left_behind(tiny_model("bert"), ("diagonal",))
    assert found == dict.fromkeys(("projection, left behind", "score, left behind"), "model.seen")
