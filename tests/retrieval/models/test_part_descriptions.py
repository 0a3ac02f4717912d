"""A model's parts as JSON, and back: the same objects stay the same, options are kept, strangers are given again."""

from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from torch import nn

from gssf_plug import GSSFMetric
from gssf_plug.errors import ArgumentError, CheckpointError
from gssf_plug.features import GPO, BNNeck, SizeAugmentation, last_pool, mean_pool
from gssf_plug.retrieval import ImageToText, LogSumExp, ResidualMLP, TextToImage, Tower, TwoTower, WordGRU, average
from gssf_plug.retrieval.models.part_descriptions import Builder, Describer
from gssf_plug.retrieval.models.part_schema import check_parts


def test_layers_of_torch_come_back_with_their_options(tmp_path):
    layers = [
        nn.Linear(6, 8, bias=False),
        nn.BatchNorm1d(8, momentum=None, affine=False),
        nn.BatchNorm1d(8, track_running_stats=False),
        nn.LayerNorm(8, bias=False),
        nn.LayerNorm([8], eps=1e-3, elementwise_affine=False),
        nn.GELU(approximate="tanh"),
        nn.Dropout(0.3),
        nn.Flatten(1),
        nn.Tanh(),
        nn.Identity(),
    ]
    named = nn.Sequential(OrderedDict((f"layer{n}", part) for n, part in enumerate(layers)))
    model = TwoTower(named, None).eval()
    model.save_pretrained(tmp_path)
    loaded = TwoTower.from_pretrained(tmp_path)
    assert repr(loaded) == repr(model)
    assert loaded.image_tower.encoder.layer1.momentum is None
    x = torch.randn(5, 6)
    torch.testing.assert_close(loaded.encode_image(x), model.encode_image(x))


PARTS = {
    "nothing": None,
    "numbers": [1, 0.5, True, "text"],
    "a function": mean_pool,
    "a tower": Tower(nn.Linear(4, 6), token_projection=ResidualMLP(4, 6), pooling=GPO(code=4, hidden=4)),
    "poolings": SizeAugmentation(last_pool, share=0.1),
    "words": WordGRU(12, 8, embedding=5, layers=2, bidirectional=False, dropout=0.2),
    "alignments": [TextToImage(7.0, LogSumExp(3.0)), ImageToText(2.0, average)],
    "a neck": BNNeck(6),
}


@pytest.mark.parametrize("name", PARTS)
def test_a_part_is_described_checked_and_built_again(name, tmp_path):
    described = Describer().part(PARTS[name], "place")
    check_parts("Somebody's", {"place": described}, tmp_path)
    built = Builder(tmp_path, {}).part(described, "place")
    assert repr(built) == repr(PARTS[name])
    if isinstance(built, nn.Module):
        assert {each.device.type for each in built.parameters()} <= {"meta"}  # the weights follow, and cost nothing
    assert Describer().part(built, "place") == described


def test_the_same_object_is_described_once_and_stays_one(tmp_path):
    shared = nn.Linear(4, 6)
    towers = {place: Tower(shared) for place in ("image_tower", "text_tower")}
    describer = Describer()
    described = {place: describer.part(tower, place) for place, tower in towers.items()}
    assert described["text_tower"]["arguments"]["encoder"] == {"same_as": "image_tower.encoder"}
    assert describer.copies == ["text_tower.encoder"]
    builder = Builder(tmp_path, {})
    one, other = (builder.part(part, place) for place, part in described.items())
    assert one.encoder is other.encoder


def test_what_has_a_folder_of_its_own_keeps_its_tensors_there():
    model = TwoTower(nn.Linear(4, 8), nn.Linear(4, 8), GSSFMetric(8, block_size=4))
    describer = Describer()
    assert describer.part(model.metric, "metric") == {"metric": "gssf-plug/metric"}
    assert describer.folders == {"metric": model.metric}
    kept = describer.kept_here(model.state_dict())
    assert kept.keys() == {name for name in model.state_dict() if not name.startswith("metric.")}
    assert kept


class Own(nn.Module):
    """A class that files cannot build."""


def test_a_class_of_somebodys_own_is_given_again(tmp_path):
    described = Describer().part(Own(), "image_tower.encoder")
    assert described == {"given": f"{Own.__module__}.Own"}
    own = Own()
    builder = Builder(tmp_path, {"image_tower.encoder": own})
    assert builder.part(described, "image_tower.encoder") is own
    assert builder.asked == {"image_tower.encoder"}
    with pytest.raises(CheckpointError, match=r"holds the weights of a part 'x' of a class that .*Own\)\. Build it"):
        Builder(tmp_path, {}).part(described, "x")


def test_arguments_that_a_class_refuses_are_named_by_place(tmp_path):
    wrong = {"class": "GPO", "arguments": {"code": -2, "hidden": 4}}
    with pytest.raises(CheckpointError, match="for 'text_tower.pooling', arguments that GPO refuses"):
        Builder(tmp_path, {}).part(wrong, "text_tower.pooling")


@pytest.mark.bad_input
def test_a_function_of_somebodys_own_cannot_be_described():
    with pytest.raises(ArgumentError, match=r"`image_tower.pooling` must be a module, a function .*, but got function"):
        Describer().part(lambda tokens, mask: tokens, "image_tower.pooling")
    with pytest.raises(ArgumentError, match="`x` must be a module.*, but got PosixPath"):
        Describer().part(Path("x"), "x")
