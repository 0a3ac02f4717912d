"""What a description of parts may say: every lie is refused by name before anything is built."""

import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from gssf_plug import GSSFMetric
from gssf_plug.errors import CheckpointError
from gssf_plug.features import GPO, SizeAugmentation, last_pool
from gssf_plug.files import read_folder
from gssf_plug.retrieval import (
    ImageToText,
    LocalAlignment,
    LogSumExp,
    ResidualMLP,
    TextToImage,
    Tower,
    WordGRU,
    average,
)
from gssf_plug.retrieval.models.part_schema import PARTS_LIMIT, check_parts, transformers_class


def rich() -> LocalAlignment:
    """A model whose description has something of everything."""
    image = Tower(
        None,
        token_projection=nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.LayerNorm(8), nn.GELU(), nn.Dropout(0.1)),
        pooling=SizeAugmentation(GPO(code=4, hidden=4), share=0.1),
        projection=ResidualMLP(8, 8),
    )
    text = Tower(WordGRU(12, 8, embedding=5, dropout=0.2), pooling=last_pool, output="last_hidden_state")
    alignments = [TextToImage(7.0, LogSumExp(3.0)), ImageToText(2.0, average)]
    shared = GSSFMetric(8, block_size=4)
    return LocalAlignment(image, text, metric=shared, attention_metric=shared, alignments=alignments)


ODD: list[Any] = [
    None,
    True,
    -1,
    0,
    1.5,
    10**9,
    10**400,
    float("nan"),
    "x",
    "x" * 10**5,
    [],
    {},
    ["x"],
    [[]],
    {"class": "x"},
]


def changes(value: Any, put: Callable[[Any], None]) -> Iterator[Callable[[], None]]:
    """Every single change of a JSON value: each part of it replaced by each odd value, taken out, or doubled."""
    for odd in [*ODD, {"function": "mean_pool"}, {"same_as": "metric"}, {"transformers": "BertModel"}]:
        yield lambda odd=odd: put(odd)  # type: ignore[misc]
    if isinstance(value, dict):
        for key in list(value):
            yield from changes(value[key], lambda odd, key=key: value.update({key: odd}))  # type: ignore[misc]
            yield lambda key=key: value.pop(key)  # type: ignore[misc]
            yield lambda key=key: value.update({f"{key}x": value.pop(key)})  # type: ignore[misc]
    if isinstance(value, list):
        for place in range(len(value)):
            yield from changes(value[place], lambda odd, place=place: value.__setitem__(place, odd))  # type: ignore[misc]
            yield lambda place=place: value.append(value[place])  # type: ignore[misc]
            yield value.clear


def use(model: LocalAlignment) -> None:
    """What a description cannot say wrongly must show here, not in somebody's training."""
    ids = torch.randint(2, 12, (2, 3))
    images, texts = {"features": torch.randn(2, 4, 6)}, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    model.score(model.encode_image(images), model.encode_text(texts))
    model.image_tower(images)
    model.text_tower(texts)


@pytest.mark.usefixtures("no_hang", "little_memory")
def test_every_change_of_a_description_is_refused_or_can_be_used(tmp_path: Path) -> None:
    """Some 2,000 of them: every value, every key, every list; all errors are ours, at loading."""
    rich().save_pretrained(tmp_path)
    config, tensors = read_folder(tmp_path, LocalAlignment.file_format)
    text = json.dumps(config)
    count = sum(1 for _ in changes(config, lambda odd: None))
    refused = 0
    for number in range(0, count, 3):  # each third: the odd values and the places are coprime to it
        config = json.loads(text)
        next(itertools.islice(changes(config, lambda odd: None), number, None))()
        try:
            model = LocalAlignment.from_files(config, dict(tensors), tmp_path)
        except CheckpointError:
            refused += 1
            continue
        use(model.eval())
    assert count > 1500
    assert refused > 0.8 * count / 3


def sequence(length: int, child: Any) -> dict[str, Any]:
    children = [[str(number), child] for number in range(length)]
    return {"class": "Sequential", "children": children}


@pytest.mark.parametrize("length", [PARTS_LIMIT + 1, 20_000])
def test_very_many_parts_are_refused(length: int) -> None:
    many = sequence(length, {"class": "Identity", "arguments": {}})
    with pytest.raises(CheckpointError, match=f"'here' describes more than {PARTS_LIMIT:,} parts"):
        check_parts("Own", {"encoder": many}, "here")


LINEAR = {"class": "Linear", "arguments": {"in_features": 4, "out_features": 8, "bias": True}}


def tower(**arguments: Any) -> dict[str, Any]:
    plain = {"encoder": None, "token_projection": None, "pooling": {"function": "mean_pool"}, "projection": None}
    return {"class": "Tower", "arguments": {**plain, "output": None, **arguments}}


def linear(**arguments: Any) -> dict[str, Any]:
    return tower(projection={"class": "Linear", "arguments": {**LINEAR["arguments"], **arguments}})


@pytest.mark.parametrize(
    ("place", "part", "text"),
    [
        ("text_tower", {"class": "Evil", "arguments": {}}, "for 'text_tower', the unknown class 'Evil'"),
        ("text_tower", {"transformers": "pipeline"}, "the model 'pipeline', which this transformers"),
        ("text_tower", {"transformers": "BertModel", "adapters": 3}, "the adapters 3, which are none"),
        (
            "text_tower",
            {"transformers": "BertModel", "add_pooling_layer": True},
            "the unknown transformers 'Be",
        ),
        ("text_tower", {"function": "eval"}, "the unknown function 'eval'"),
        ("text_tower", {"import": "os"}, r"a part of no known kind, \['import'\]"),
        ("text_tower", {"function": ["mean_pool"]}, "a part of no known kind"),
        ("text_tower", {"function": "mean_pool", "class": "GPO"}, "a part of no known kind"),
        ("text_tower", {**tower(), "more": 1}, "the unknown key 'more'"),
        ("text_tower", {"same_as": "nothing"}, "the unknown same_as 'nothing'"),
        ("text_tower", LINEAR, "the class 'Linear' where a tower belongs"),
        ("text_tower", None, "None where a tower belongs"),
        ("metric", {"metric": "gssf-plug/other"}, "the unknown metric 'gssf-plug/other'"),
        ("metric", LINEAR, "the class 'Linear' where a metric or null belongs"),
        ("text_tower", {"class": "Tower", "arguments": {"../../x": 1}}, r"refuses \('../../x' is unknown\)"),
        ("text_tower", {"class": "Tower", "arguments": {}}, r"arguments that Tower refuses \('encoder' is missing\)"),
        ("text_tower", {"class": "Tower"}, "None where a table of arguments belongs"),
        ("text_tower", tower(pooling=3), "for 'text_tower.pooling', 3 where a pooling belongs"),
        ("text_tower", tower(output="x" * 201), "where a name or null belongs"),
        ("text_tower", linear(in_features=2**24 + 1), "16777217 where a whole number from 1 to 16,777,216 belongs"),
        ("text_tower", linear(in_features=True), "True where a whole number"),
        ("text_tower", linear(bias=1), "for 'text_tower.projection.bias', 1 where true or false belongs"),
        (
            "text_tower",
            tower(projection=sequence(2, None)),
            "for 'text_tower.projection.0', None where a module",
        ),
        ("text_tower", tower(projection={"class": "Sequential", "children": [["a.b", LINEAR]]}), "a child named 'a.b'"),
        ("text_tower", tower(projection={"class": "Sequential", "children": [["a", LINEAR]] * 2}), "a child named 'a'"),
        (
            "text_tower",
            tower(projection={"class": "Sequential", "children": [LINEAR]}),
            "where a list of named",
        ),
    ],
)
def test_what_cannot_stand_at_a_place_is_named(place: str, part: Any, text: str) -> None:
    parts = {"image_tower": tower(), "text_tower": tower(), "metric": None, place: part}
    with pytest.raises(CheckpointError, match=text):
        check_parts("TwoTower", parts, "here")


def test_what_can_stand_there_passes() -> None:
    parts = {
        "image_tower": tower(projection=sequence(2, LINEAR)),
        "text_tower": tower(projection={"same_as": "image_tower.projection"}, encoder={"given": "mine.Own"}),
        "metric": {"metric": "gssf-plug/metric"},
    }
    check_parts("TwoTower", parts, "here")
    own = {"anything": {"class": "LogSumExp", "arguments": {"sharpness": 2.0}}, "number": 3, "list": [LINEAR, None]}
    check_parts("Somebody's", own, "here")


def test_a_copy_may_stand_where_what_it_copies_may() -> None:
    parts = {"image_tower": tower(projection=LINEAR), "text_tower": {"same_as": "image_tower.projection"}}
    with pytest.raises(CheckpointError, match="for 'text_tower', the class 'Linear' where a tower belongs"):
        check_parts("TwoTower", parts, "here")


def test_classes_of_transformers_are_looked_up_by_plain_names() -> None:
    from transformers import BertModel, PreTrainedModel

    assert transformers_class("BertModel", PreTrainedModel) is BertModel
    for wrong in ("BertConfig", "_private", "models.bert", "nothing", "", 3, None):
        assert transformers_class(wrong, PreTrainedModel) is None
