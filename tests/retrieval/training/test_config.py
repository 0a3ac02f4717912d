"""RetrievalConfig checks types, ranges and choices at once."""

from dataclasses import FrozenInstanceError, fields

import pytest

from gssf_plug.errors import ArgumentError
from gssf_plug.retrieval import RetrievalConfig

pytestmark = pytest.mark.bad_input


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("learning_rate", "5e-4", "`learning_rate` must be of type float, but got '5e-4' of type str. In YAML write"),
        ("learning_rate", float("nan"), "`learning_rate` must be at least 0 and finite, but got nan"),
        ("learning_rate", -1.0, "`learning_rate` must be at least 0"),
        ("epochs", 0, "`epochs` must be at least 1 and finite, but got 0"),
        ("epochs", 1.5, "`epochs` must be of type int, but got 1.5 of type float"),
        ("batch_size", True, "`batch_size` must be of type int, but got True of type bool"),
        ("warmup", 1.5, "`warmup` must be between 0 and 1 and finite"),
        ("schedule", "cosin", r"`schedule` must be one of .* but got 'cosin'. Did you mean 'cosine'\?"),
        ("mixed_precision", "fp8", "`mixed_precision` must be one of"),
        ("on_nan", "ignore", "`on_nan` must be one of"),
        ("eval_every", 0, "`eval_every` must be at least 1"),
        ("max_gradient_norm", 0, "`max_gradient_norm` must be above 0, or None"),
        ("decay_at", (0.5, 1.5), "`decay_at` must be between 0 and 1 and finite, but got 1.5"),
        (
            "decay_at",
            (0.5, "1"),
            r"`decay_at` must be of type tuple\[float, \.\.\.\], but got \(0.5, '1'\) of type tuple",
        ),
        ("decay_at", [0.5], "`decay_at` must be of type"),
        ("decay_factor", 0.0, "`decay_factor` must be above 0"),
        ("trackers", "tensorboard", "`trackers` must be of type"),
        ("output_dir", 3, "`output_dir` must be of type"),
        ("progress", 1, "`progress` must be of type bool"),
    ],
)
def test_a_wrong_value_is_named(field, value, message):
    with pytest.raises(ArgumentError, match=message):
        RetrievalConfig(**{"output_dir": "run", field: value})


def test_right_values_pass():
    config = RetrievalConfig(
        output_dir="run", learning_rate=1, eval_every=None, max_gradient_norm=None, trackers=("tensorboard",)
    )
    assert config.to_json()["trackers"] == ["tensorboard"]
    assert "progress" not in config.changes_results()
    assert config.changes_results()["learning_rate"] == 1
    with pytest.raises(FrozenInstanceError):
        config.epochs = 3


def test_every_field_is_described():
    for field in fields(RetrievalConfig):
        assert f"        {field.name}: " in RetrievalConfig.__doc__, field.name
