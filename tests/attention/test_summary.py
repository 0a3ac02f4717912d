"""The table of a patched model: what acts, what merges, what was lost and what was left alone, each in its row."""

from attention.patching import perturb
from attention.small_models import small_bert

from gssf_plug.attention import patch_attention
from gssf_plug.attention.merging.plan import plan_folds
from gssf_plug.attention.summary import table

FIRST, SECOND = (f"encoder.layer.{number}.attention.self" for number in range(2))


def rows(text: str) -> dict[str, list[str]]:
    """Words of each row, by its first."""
    return {line.split()[0]: line.split()[1:] for line in text.splitlines()}


def test_every_layer_has_its_row() -> None:
    model = small_bert()
    patch = patch_attention(model, block_size=4)
    perturb(patch)
    folds, refused = plan_folds(model, patch.layers)
    assert not refused
    said = rows(table(patch.layers, folds, {}, {}, {"pooler": "it has no key"}))
    assert said["layer"] == ["site", "heads", "parameters", "acting", "mergeable"]
    assert said[FIRST] == ["query", "4×8", "160", "yes", "yes"]
    assert said["pooler"] == ["left", "alone:", "it", "has", "no", "key"]
    assert said["2"] == ["layers,", "320", "parameters", "in", "adapter", "'default'"]


def test_reasons_stand_where_a_layer_does_not_merge_or_act() -> None:
    patch = patch_attention(small_bert(), block_size=4)
    said = rows(table(patch.layers, {}, {FIRST: "its weight is shared"}, {SECOND: "a tool replaced it"}, {}))
    assert said[FIRST][3:] == ["yes", "its", "weight", "is", "shared"]
    assert said[SECOND][3:] == ["lost", "a", "tool", "replaced", "it"]


def test_what_acts_now_is_said_at_every_state() -> None:
    patch = patch_attention(small_bert(), block_size=4)
    patch_attention(patch.model, terms=("diagonal",), layers=[0], adapter_name="second")

    def state() -> list[str]:
        return [rows(patch.summary())[name][3] for name in (FIRST, SECOND)]

    assert state() == ["yes", "no"]  # the second adapter has no metric at the second layer
    assert rows(patch.summary())[SECOND][2:] == ["0", "no", "not", "in", "this", "adapter"]
    patch.set_adapter("default")
    assert state() == ["yes", "yes"]
    with patch.folded():
        assert state() == ["folded", "folded"]
    with patch.disabled():
        assert state() == ["no", "no"]
    patch.merge()
    assert state() == ["merged", "merged"]
