"""The thin form of the sweep: one architecture of each kind. `python tests/tools/sweep.py` runs them all."""

import pytest
from tools.sweep import contract

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
