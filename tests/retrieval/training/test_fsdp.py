"""RetrievalTrainer under Accelerate's FSDP2 in two CPU processes: the run, files and features of one process."""

import pytest
import torch
from accelerate.state import AcceleratorState
from retrieval import toy
from workers import retrieval_fsdp
from workers.launching import launch

from gssf_plug.errors import CheckpointError
from gssf_plug.retrieval import TwoTower

RUNS = ("whole_states", "sharded_states", "mixed_precision", "one_tower")


pytestmark = pytest.mark.usefixtures("fresh_accelerator")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sharded")
    launch("workers.retrieval_fsdp", folder, 2, *RUNS, timeout=600)
    return folder


@pytest.fixture(scope="module")
def got(folder):
    found = torch.load(folder / "got2.pt", weights_only=False)
    assert found["processes"] == 2
    return found


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The same run in this process, not sharded."""
    AcceleratorState._reset_state(reset_partial_state=True)
    trainer = retrieval_fsdp.trainer(tmp_path_factory.mktemp("alone"))
    before = trainer.evaluate()
    start = retrieval_fsdp.embedded(trainer)
    progress = trainer.train()
    features = retrieval_fsdp.embedded(trainer)
    found = {"start": start, "before": before, "after": trainer.evaluate(), "features": features}
    return {**found, "step": progress.step, "weights": trainer.model.state_dict()}


def assert_same(sides, right, tolerance):
    for one, other in zip(sides, right, strict=True):
        torch.testing.assert_close(one, other, atol=tolerance, rtol=tolerance)


def test_a_sharded_run_is_the_run_of_one_process(got, alone):
    whole = got["whole_states"]
    assert whole["before"] == pytest.approx(alone["before"])
    assert whole["after"] == pytest.approx(alone["after"])
    assert whole["step"] == alone["step"] == 9
    assert (alone["features"][0] - alone["start"][0]).abs().max() > 0.01
    assert_same(whole["features"], alone["features"], 1e-5)
    assert_same(got["sharded_states"]["features"], alone["features"], 1e-5)


def test_it_resumes_to_the_bit_and_keeps_the_best(got):
    whole = got["whole_states"]
    assert_same(whole["resumed"], whole["features"], 0.0)
    now, then = whole["best"]
    assert now == then


def test_another_number_of_processes_goes_on(folder, got, alone):
    launch("workers.retrieval_fsdp", folder, 1, "resumed_by_another")
    one = torch.load(folder / "got1.pt", weights_only=False)
    assert one["processes"] == 1
    assert one["resumed_by_another"]["step"] == alone["step"]
    assert_same(one["resumed_by_another"]["features"], alone["features"], 1e-5)


def test_a_published_folder_is_a_plain_model(folder, got):
    last = TwoTower.from_pretrained(folder / "whole_states" / "last")
    batch = toy.collate(retrieval_fsdp.rows(20, seed=2))
    with torch.no_grad():
        embedding = last(batch)
    assert_same(embedding, got["whole_states"]["features"], 1e-5)
    TwoTower.from_pretrained(folder / "whole_states" / "best")
    assert last.state_dict().keys() == retrieval_fsdp.model().state_dict().keys()


def test_mixed_precision_leaves_the_metric_in_float32(got):
    assert got["mixed_precision"]["dtypes"] == {torch.bfloat16, (torch.float32,) * 3}


def test_one_tower_in_chunks_never_meets_itself(got):
    torch.testing.assert_close(got["one_tower"]["chunks"], got["one_tower"]["direct"], atol=1e-5, rtol=1e-5)


def test_an_unsharded_run_refuses_its_checkpoints(folder, got):
    trainer = retrieval_fsdp.trainer(folder / "whole_states" / "run")
    with pytest.raises(
        CheckpointError, match=r"lie otherwise \(FSDP2, FULL_STATE_DICT\) than those of this run \(whole\)"
    ):
        trainer.train(resume=True)
