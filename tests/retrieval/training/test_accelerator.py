"""What a trainer asks of Accelerate: configuration files that it reads, and ways of sharding that are refused."""

import logging
from pathlib import Path
from types import SimpleNamespace

import pytest
from accelerate import DistributedType
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser
from accelerate.utils.deepspeed import HfDeepSpeedConfig
from retrieval import toy

from gssf_plug.errors import ArgumentError
from gssf_plug.retrieval.training.accelerator import check_accelerator

FOLDER = Path(__file__).parents[3] / "examples" / "accelerate"
KINDS = {
    "cpu": DistributedType.MULTI_GPU,  # which runs on CPUs where there are no GPUs
    "ddp": DistributedType.MULTI_GPU,
    "fsdp2": DistributedType.FSDP,
    "deepspeed": DistributedType.DEEPSPEED,
}


def test_the_configuration_files_are_accelerates():
    assert {path.stem for path in FOLDER.glob("*.yaml")} == KINDS.keys()
    options = vars(launch_command_parser().parse_args(["train.py"]))
    for name, kind in KINDS.items():
        configuration = load_config_from_file(str(FOLDER / f"{name}.yaml"))
        assert configuration.distributed_type == kind, name
        assert configuration.num_processes == 2
        assert options.keys() >= (configuration.fsdp_config or {}).keys()
    assert load_config_from_file(str(FOLDER / "fsdp2.yaml")).fsdp_config["fsdp_version"] == 2
    deepspeed = load_config_from_file(str(FOLDER / "deepspeed.yaml")).deepspeed_config
    assert HfDeepSpeedConfig(str(FOLDER.parents[1] / deepspeed["deepspeed_config_file"])).is_zero2()


def sharding(kind, **state):
    """An accelerator as far as it is looked at."""
    plugins = SimpleNamespace(**{name: SimpleNamespace(**plugin) for name, plugin in state.items()})
    version = state.get("fsdp_plugin", {}).get("fsdp_version")
    return SimpleNamespace(
        mixed_precision="no", distributed_type=kind, num_processes=2, is_fsdp2=version == 2, state=plugins
    )


@pytest.mark.bad_input
def test_sharding_that_cannot_be_evaluated_is_refused(tmp_path):
    recipe = toy.recipe(tmp_path)
    old = sharding(DistributedType.FSDP, fsdp_plugin={"fsdp_version": 1})
    with pytest.raises(ArgumentError, match=r"`fsdp_version` must be 2, .* but got 1\. See examples/accelerate"):
        check_accelerator(old, recipe)
    sparing = sharding(DistributedType.FSDP, fsdp_plugin={"fsdp_version": 2, "cpu_ram_efficient_loading": True})
    with pytest.raises(ArgumentError, match="`fsdp_cpu_ram_efficient_loading` must be False: .* buffers"):
        check_accelerator(sparing, recipe)
    third = sharding(DistributedType.DEEPSPEED, deepspeed_plugin={"zero_stage": 3})
    with pytest.raises(ArgumentError, match="`zero_stage` must be at most 2, .* but got 3. Use stage 2"):
        check_accelerator(third, recipe)
    check_accelerator(sharding(DistributedType.DEEPSPEED, deepspeed_plugin={"zero_stage": 2}), recipe)
    right = {"fsdp_version": 2, "cpu_ram_efficient_loading": False}
    check_accelerator(sharding(DistributedType.FSDP, fsdp_plugin=right), recipe)


def test_fsdp_that_accelerate_ignores_is_said(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with caplog.at_level(logging.WARNING):
        check_accelerator(sharding(DistributedType.MULTI_CPU), toy.recipe(tmp_path))
    assert "here FSDP is ignored, every process holds the whole model" in caplog.text
