"""Digests: the same content counts as the same in any form, and every change of it shows."""

import numpy as np
import pytest
import torch
from distillation.models import bert
from PIL import Image
from torch import nn

from gssf_plug.distillation import Tap
from gssf_plug.distillation.cache.digests import (
    digest_architecture,
    digest_inputs,
    digest_row,
    digest_weights,
    tap_key,
)
from gssf_plug.errors import ArgumentError
from gssf_plug.features import GPO, mean_pool


def test_fingerprints_see_every_change():
    image = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3))
    example = {"text": "a", "ids": [1, 2], "array": np.ones(3), "image": image, "nested": {"b": 1}}
    columns = sorted(example)
    seen = {digest_row(example, columns)}
    other = Image.fromarray(np.arange(1, 49, dtype=np.uint8).reshape(4, 4, 3))
    changes = [
        ("text", "b"),
        ("ids", [12]),
        ("ids", [2, 1]),
        ("array", np.ones(4)),
        ("image", other),
        ("nested", {"b": 2}),
    ]
    for name, value in changes:
        seen.add(digest_row({**example, name: value}, columns))
    assert len(seen) == len(changes) + 1
    assert digest_row({**example, "other": 1}, columns) in seen
    model = bert()
    before = digest_weights(model)
    assert digest_weights(torch.nn.DataParallel(model)) == before
    with torch.no_grad():
        model.encoder.layer[0].output.dense.bias[0] += 1e-6
    assert digest_weights(model) != before


def test_the_same_numbers_are_the_same_example_in_any_form():
    forms = [[1, 2, 3], (1, 2, 3), np.array([1, 2, 3], dtype=np.int32), torch.tensor([1, 2, 3], dtype=torch.uint8)]
    assert len({digest_row({"x": form}, ["x"]) for form in forms}) == 1
    floats = [[0.5, 1.5], np.array([0.5, 1.5], dtype=np.float16), torch.tensor([0.5, 1.5]).bfloat16()]
    assert len({digest_inputs({"x": form}) for form in floats}) == 1
    assert digest_inputs({"a": 1, "b": 2}) == digest_inputs({"b": 2, "a": 1})
    assert 0 <= digest_row({"x": "text"}, ["x"]) < 2**63


def test_what_differs_in_shape_place_or_kind_differs():
    different = [[1, 2], [[1, 2]], [1.0, 2.0], ["1", "2"], "12", [12], [], [[]], None, {"a": 1}, {"a": 2}, [1, [2]]]
    assert len({digest_inputs(value) for value in different}) == len(different)
    assert digest_row({"a": "x", "b": "y"}, ["a", "b"]) != digest_row({"a": "y", "b": "x"}, ["a", "b"])


def test_a_column_that_is_not_there_is_named():
    with pytest.raises(ArgumentError, match=r"must be columns of the data set, but got 'y'. A row has \['x'\]"):
        digest_row({"x": 1}, ["y"])


def test_weights_to_the_bit_by_name_dtype_and_shape():
    layer = nn.Linear(4, 4)
    digests = {digest_weights(layer), digest_weights(layer.bfloat16()), digest_weights(nn.Sequential(layer))}
    assert len(digests) == 3
    first, second = nn.Linear(4, 4, bias=False), nn.Linear(2, 8, bias=False)
    second.weight.data = first.weight.data.reshape(8, 2)
    assert digest_weights(first) != digest_weights(second)


def test_what_the_weights_do_not_say():
    model = bert()
    before = digest_architecture(model)
    model.config._name_or_path = "elsewhere"
    assert digest_architecture(nn.DataParallel(model)) == before
    model.config.hidden_act = "relu"
    assert digest_architecture(model) != before
    assert digest_architecture(nn.Sequential(nn.ReLU())) != digest_architecture(nn.Sequential(nn.GELU()))


def test_a_tap_as_json():
    key = tap_key(Tap("encoder.layer.1", pooling=mean_pool))
    assert key == {
        "path": "encoder.layer.1", "output": None, "pooling": "gssf_plug.features.mean_pool", "token": None,
        "masked": key["masked"],
    }  # fmt: skip
    torch.manual_seed(1)
    one, other = (tap_key(Tap("", pooling=GPO()))["pooling"] for _ in range(2))
    assert one.startswith("GPO(")
    assert one != other  # other weights
    with pytest.raises(ArgumentError, match="`pooling` must have a name of its own where features are cached"):
        tap_key(Tap("", pooling=lambda tokens, mask: tokens[:, 0]))
