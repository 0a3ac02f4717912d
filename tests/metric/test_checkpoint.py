"""A metric from files that anybody may have written: each lie is refused by name, and costs no memory."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tools.forged import edit, retensor, rewrite
from torch import Tensor

from gssf_plug import GSSFMetric
from gssf_plug.errors import CheckpointError
from gssf_plug.metric.checkpoint import DIM_LIMIT, read_metric


@pytest.fixture
def found(tmp_path: Path) -> Path:
    """The folder of a metric with everything."""
    GSSFMetric(8, block_size=4, grouping=torch.randperm(8)).save_pretrained(tmp_path)
    return tmp_path


def test_a_block_that_does_not_divide_a_huge_width_is_found_at_once(found: Path) -> None:
    edit(found, lambda config: config.update(dim=2**24 - 1, block_size=11))
    with pytest.raises(CheckpointError, match="`block_size` must divide dim=16777215"):
        GSSFMetric.from_pretrained(found)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("dim", "8", "whose 'dim' is no int but a str"),
        ("dim", True, "whose 'dim' is no int but a bool"),
        ("dim", 8.0, "whose 'dim' is no int but a float"),
        ("dim", -8, "whose 'dim' is not between 1 and"),
        ("terms", "diagonal", "whose 'terms' is no list but a str"),
        ("terms", [["diagonal"]], "whose 'terms' are no texts"),
        ("terms", ["__class__"], "must hold only"),
        ("terms", [], "has neither terms nor an adjacency"),
        ("block_size", None, "whose 'block_size' is no int"),
        ("normalize", "no", "whose 'normalize' is no bool but a str"),
        ("constraint", ["psd"], "whose 'constraint' is no str or NoneType but a list"),
        ("constraint", "os.system", "must be None or one of"),
    ],
)
def test_wrong_types(found: Path, key: str, value: object, message: str) -> None:
    edit(found, lambda config: config.update({key: value}))
    with pytest.raises(CheckpointError, match=message):
        GSSFMetric.from_pretrained(found)


def test_terms_beside_an_adjacency(tmp_path: Path) -> None:
    GSSFMetric(8, adjacency=torch.ones(8, 8).bool()).save_pretrained(tmp_path)
    edit(tmp_path, lambda config: config.update(terms=["dense"]))
    with pytest.raises(CheckpointError, match="has both terms and an adjacency"):
        GSSFMetric.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("structures.diagonal.weight", torch.ones(8, dtype=torch.long), "in torch.int64 where torch.float32 is needed"),
        ("structures.diagonal.weight", torch.ones(8, dtype=torch.complex64), "in torch.complex64 where"),
        ("structures.diagonal.weight", torch.ones(8).to(torch.float8_e4m3fn), "in torch.float8_e4m3fn where"),
        ("grouping", torch.arange(8).float(), "`grouping` must hold whole numbers"),
        ("grouping", torch.zeros(8, dtype=torch.long), "`grouping` must be a permutation"),
        ("grouping", torch.tensor(3), "`grouping` must be a permutation"),
        ("structures.block_diagonal.kept", torch.tensor(0), "holds an impossible pruning"),
        ("structures.block_diagonal.kept", torch.tensor([1, 0]), "holds an impossible pruning"),
        ("structures.block_diagonal.kept", torch.tensor([0, 9]), "holds an impossible pruning"),
        ("structures.block_diagonal.kept", torch.tensor([True]), "holds an impossible pruning"),
        ("__class__", torch.ones(1), "has an unknown tensor '__class__'"),
        ("structures.adjacency.adjacency", torch.ones(8, 8).bool(), "has both terms and an adjacency"),
    ],
)
@pytest.mark.bad_input
def test_tensors_that_do_not_belong(found: Path, name: str, tensor: Tensor, message: str) -> None:
    retensor(found, **{name: tensor})
    with pytest.raises(CheckpointError, match=message):
        GSSFMetric.from_pretrained(found)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floats_are_kept(found: Path, dtype: torch.dtype) -> None:
    tensors = load_file(found / "model.safetensors")
    retensor(found, **{name: value.to(dtype) for name, value in tensors.items() if value.is_floating_point()})
    assert {parameter.dtype for parameter in GSSFMetric.from_pretrained(found).parameters()} == {dtype}


def test_a_grouping_that_is_not_there_is_not_taken_for_none(found: Path) -> None:
    """Also where the digests were made to agree."""
    tensors = load_file(found / "model.safetensors")
    del tensors["grouping"]
    rewrite(found, (found / "config.json").read_text(), tensors=tensors)
    with pytest.raises(CheckpointError, match="lacks the tensor 'grouping', and its configuration says otherwise"):
        GSSFMetric.from_pretrained(found)


CONFIG = {"dim": 8, "terms": ["diagonal"], "block_size": 4, "normalize": True, "constraint": None, "grouped": False}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({**CONFIG, "extra": 1}, "the key 'extra' unknown"),
        ({key: value for key, value in CONFIG.items() if key != "terms"}, "the key 'terms' missing"),
        ({**CONFIG, "dim": DIM_LIMIT + 1}, f"whose 'dim' is not between 1 and {DIM_LIMIT:,}"),
        ({**CONFIG, "block_size": 0}, "whose 'block_size' is not between 1 and"),
        ({**CONFIG, "terms": ["block_diagonal"], "block_size": 3}, "does not hold together .*must divide dim=8"),
        ({**CONFIG, "grouped": True}, "lacks the tensor 'grouping'"),
        ({**CONFIG, "dim": 9}, "structures.diagonal.weight"),
    ],
)
def test_a_configuration_is_checked_before_a_metric_is_built(
    config: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=message):
        read_metric(GSSFMetric, config, {"structures.diagonal.weight": torch.ones(8)}, tmp_path)


def test_the_metric_takes_the_tensors_of_the_file(tmp_path: Path) -> None:
    tensors = {"structures.diagonal.weight": torch.randn(8)}
    metric = read_metric(GSSFMetric, CONFIG, tensors, tmp_path)
    assert torch.equal(metric.structures["diagonal"].weight, tensors["structures.diagonal.weight"])
    assert {parameter.device.type for parameter in metric.parameters()} == {"cpu"}
    older = {key: value for key, value in CONFIG.items() if key != "grouped"}  # folders of before this key
    assert torch.equal(read_metric(GSSFMetric, older, tensors, tmp_path).matrix(), metric.matrix())


def test_which_blocks_were_pruned_decides_the_shape_of_the_others(tmp_path: Path) -> None:
    metric = GSSFMetric(8, terms=("block_diagonal",), block_size=2)
    with torch.no_grad():
        metric.structures["block_diagonal"].weight[[0, 2]] += torch.randn(2, 2, 2)
    metric.prune(1e-3)
    config = {**CONFIG, "terms": ["block_diagonal"], "block_size": 2}
    loaded = read_metric(GSSFMetric, config, metric.state_dict(), tmp_path)
    assert len(loaded.structures["block_diagonal"].weight) == 2
    assert torch.equal(loaded.matrix(), metric.matrix())
