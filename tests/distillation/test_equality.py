"""1 process × 64 rows = 2 × 32 = 4 × 16, also in uneven parts, for every loss that looks across the batch.

Losses per example are means over a process's own rows, and DDP weighs processes alike: they are held to it in equal
parts, which is what samplers of Accelerate and transformers give.
"""

import pytest
import torch
from workers import distillation_equality
from workers.launching import launch

from gssf_plug.distillation import losses
from gssf_plug.errors import ArgumentError


def launched(folder, processes, *arguments):
    launch("workers.distillation_equality", folder, processes, *map(str, arguments), timeout=400)
    ranks = [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in range(processes)]
    assert [rank["processes"] for rank in ranks] == [processes] * processes
    return ranks


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("launched")


@pytest.fixture(scope="module")
def one(folder):
    (rank,) = launched(folder / "one", 1)
    return rank


@pytest.fixture(scope="module")
def two(folder, one):
    return launched(folder / "two", 2, folder / "one" / "run" / "checkpoint-2")


@pytest.fixture
def alone(one):
    return one["found"]


def test_no_loss_that_looks_across_the_batch_is_left_out():
    kinds = {kind for name in losses.__all__ if (kind := getattr(losses, name)).relational}
    assert {type(make()) for make in distillation_equality.RELATIONAL.values()} == kinds


def test_every_case_has_a_loss_and_a_gradient(alone):
    assert len(alone) == len(distillation_equality.RELATIONAL) * 3 + len(distillation_equality.PER_EXAMPLE) * 2
    for case, found in alone.items():
        assert found["loss"] != 0
        assert len(found["gradients"]) >= 4, case
        for name, gradient in found["gradients"].items():  # distances and centred features know nothing of a last bias
            assert gradient.abs().max() > 1e-5 or name.endswith("bias"), (case, name)


@pytest.mark.parametrize("processes", [2, 4])
def test_many_processes_are_one(alone, folder, processes, request):
    ranks = request.getfixturevalue("two") if processes == 2 else launched(folder / "four", 4)
    ranks = [rank["found"] for rank in ranks]
    for found in ranks:
        assert found.keys() == alone.keys()
        for case, got in found.items():
            right = alone[case]
            assert got["loss"] == pytest.approx(right["loss"], abs=1e-5, rel=1e-5), case
            assert got["gradients"].keys() == right["gradients"].keys(), case
            for name, gradient in got["gradients"].items():
                torch.testing.assert_close(
                    gradient, right["gradients"][name], atol=1e-5, rtol=1e-5, msg=f"{case} {name}"
                )
    parts = [found["SP", 61]["rows"] for found in ranks]
    assert sum(parts) == 61
    assert len(set(parts)) == 2


def assert_weights(got, right):
    assert got.keys() == right.keys()
    for name, value in got.items():
        torch.testing.assert_close(value, right[name], atol=1e-5, rtol=1e-5, msg=name)


def test_a_trainer_goes_on_with_another_number_of_processes(folder, one, two, tmp_path, caplog):
    whole = one["runs"]["whole"]
    start = distillation_equality.trainer(tmp_path / "start", 1).distiller.state_dict()
    assert max((whole[name] - value).abs().max() for name, value in start.items()) > 0.01
    for rank in two:
        assert_weights(rank["runs"]["whole"], whole)
        assert_weights(rank["runs"]["resumed"], whole)
    with caplog.at_level("WARNING"):
        resumed = distillation_equality.run(tmp_path / "run", 1, folder / "two" / "run" / "checkpoint-2")
    assert "was written by 2 processes and is resumed by 1: same batches, other dropout" in caplog.text
    assert_weights(resumed, whole)


def test_other_batches_are_refused(folder, two, tmp_path):
    checkpoint = str(folder / "two" / "run" / "checkpoint-2")
    rule = "must make batches of 8 rows over all processes, .* but got 4 on each of 1. Set it to 8"
    with pytest.raises(ArgumentError, match=f"`per_device_train_batch_size` {rule}"):
        distillation_equality.trainer(tmp_path, 2).train(resume_from_checkpoint=checkpoint)
    other = distillation_equality.trainer(tmp_path, 1, gradient_accumulation_steps=2)
    with pytest.raises(ArgumentError, match="`gradient_accumulation_steps` must be 1, as in the run in"):
        other.train(resume_from_checkpoint=checkpoint)
