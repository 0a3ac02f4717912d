"""P×K batches: what they hold, that processes agree, that a run can be resumed, and what is refused."""

import json
from collections import Counter

import pytest
import torch
from torch.utils.data import DataLoader
from workers import retrieval_identity
from workers.launching import launch

from gssf_plug.errors import ArgumentError
from gssf_plug.losses import BatchHardTriplet
from gssf_plug.retrieval import OneTower, RetrievalConfig, RetrievalTrainer
from gssf_plug.retrieval.data.samplers import IdentityBatches

COUNTS = [9, 4, 4, 5, 12, 6, 8, 4]  # images per identity
LABELS = torch.arange(8).repeat_interleave(torch.tensor(COUNTS))[torch.randperm(52, generator=torch.Generator())]


def epochs(batches, count=3):
    for epoch in range(count):
        batches.set_epoch(epoch)
        yield list(batches)


@pytest.mark.parametrize(("identities", "images"), [(2, 2), (4, 4), (8, 3), (3, 2)])
def test_every_batch_has_p_identities_with_k_different_images(identities, images):
    batches = IdentityBatches(LABELS, identities=identities, images=images)
    for plan in epochs(batches):
        assert len(plan) == len(batches) > 0
        for batch in plan:
            labels = LABELS[batch].reshape(identities, images)
            assert bool((labels == labels[:, :1]).all())  # identity after identity
            assert len(set(labels[:, 0].tolist())) == identities
            assert len(set(batch)) == identities * images
        rows = [row for batch in plan for row in batch]
        assert max(Counter(rows).values()) == 1


def test_the_number_of_batches_is_the_most_possible():
    assert len(IdentityBatches(LABELS, identities=8, images=4)) == 1  # identities of four images give one group
    assert len(IdentityBatches(LABELS, identities=2, images=4)) == 6  # 2+1+1+1+3+1+2+1 = 12 groups, all used
    one_large = torch.tensor([0] * 40 + [1, 1, 2, 2])
    assert len(IdentityBatches(one_large, identities=2, images=2)) == 2  # 20 groups of one, and two partners


def test_most_rows_are_seen():
    batches = IdentityBatches(LABELS, identities=2, images=2)
    seen = {row for plan in epochs(batches, 4) for batch in plan for row in batch}
    assert len(seen) == len(LABELS)


def test_order_is_of_seed_and_epoch_alone():
    first, second = (IdentityBatches(LABELS, identities=4, images=3, seed=5) for _ in range(2))
    torch.rand(3)
    plans = list(epochs(first))
    second.set_epoch(2)
    assert list(second) == plans[2] == list(second)
    assert plans[0] != plans[1]
    assert list(IdentityBatches(LABELS, identities=4, images=3, seed=6)) != plans[0]


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_hold_whole_identities_disjoint_and_in_equal_steps(processes):
    batches = IdentityBatches(LABELS, identities=4, images=3, processes=processes)
    parts = [IdentityBatches(LABELS, identities=4, images=3).part(rank, processes) for rank in range(processes)]
    for epoch in range(2):
        batches.set_epoch(epoch)
        for part in parts:
            part.set_epoch(epoch)
        assert {len(part) for part in parts} == {len(batches)}
        for whole, *own in zip(batches, *parts, strict=True):
            assert [row for rows in own for row in rows] == whole
            held = [set(LABELS[rows].tolist()) for rows in own]
            assert sum(map(len, held)) == len(set.union(*held)) == 4


def test_feeds_a_torch_loader():
    part = IdentityBatches(LABELS, identities=4, images=3).part(1, 2)
    loaded = list(DataLoader(LABELS, batch_sampler=part))
    assert [rows.tolist() for rows in loaded] == [LABELS[rows].tolist() for rows in part]


def test_small_identities_are_resampled_by_choice():
    labels = torch.tensor([0, 1, 1, 1, 1, 2, 2])
    batches = IdentityBatches(labels, identities=3, images=4, resample=True)
    (batch,) = batches
    by_identity = {int(labels[batch[start]]): batch[start : start + 4] for start in (0, 4, 8)}
    assert by_identity[0] == [0] * 4
    assert set(by_identity[1]) == {1, 2, 3, 4}
    assert Counter(by_identity[2]) == {5: 2, 6: 2}


def test_a_run_resumed_inside_an_epoch_equals_an_unbroken_one(tmp_path):
    rows = [{"x": torch.randn(6), "label": label} for label in LABELS]

    def collate(rows):
        return {
            "inputs": torch.stack([row["x"] for row in rows]),
            "labels": torch.stack([row["label"] for row in rows]),
        }

    def run(folder, stop_at=None):
        torch.manual_seed(0)
        trainer = RetrievalTrainer(
            model=OneTower(torch.nn.Linear(6, 4)),
            loss=BatchHardTriplet(),
            config=RetrievalConfig(output_dir=tmp_path / folder, epochs=2, checkpoint_every=1, progress=False),
            train_data=rows,
            collate=Broken(collate, stop_at),
            batches=IdentityBatches(LABELS, identities=4, images=2, seed=1),
        )
        try:
            trainer.train(resume=True)
        except InterruptedError:
            return None
        return [parameter.detach() for parameter in trainer.model.parameters()]

    class Broken:
        def __init__(self, collate, stop_at):
            self.collate, self.stop_at, self.calls = collate, stop_at, 0

        def __call__(self, rows):
            self.calls += 1
            if self.calls == self.stop_at:
                raise InterruptedError
            return self.collate(rows)

    unbroken = run("whole")
    assert run("parts", stop_at=4) is None
    resumed = run("parts")
    assert all(torch.equal(a, b) for a, b in zip(unbroken, resumed, strict=True))


def test_a_run_of_two_processes_holds_whole_identities_and_is_that_of_one(tmp_path):
    labels = retrieval_identity.LABELS
    ranks, weights = {}, {}
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        launch("workers.retrieval_identity", folder, processes, "all")
        ranks[processes] = [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(processes)]
        assert [rank["processes"] for rank in ranks[processes]] == [processes] * processes
        assert all(rank["same"] for rank in ranks[processes]), "a run resumed inside an epoch differs"
        weights[processes] = torch.load(folder / "weights.pt")
    (alone,), (first, second) = ranks[1], ranks[2]
    assert len(alone["steps"]) == len(first["steps"]) == len(second["steps"]) > retrieval_identity.EPOCHS * 2
    assert first["steps"] != alone["steps"]
    for whole, one, other in zip(alone["steps"], first["steps"], second["steps"], strict=True):
        assert one + other == whole  # disjoint, and the batch of one process
        held = [set(labels[rows].tolist()) for rows in (one, other)]
        assert len(held[0]) == len(held[1]) == 2
        assert not held[0] & held[1]
    for rank in (alone, first, second):
        cut = retrieval_identity.CUT_AFTER
        assert rank["before"] == rank["steps"][:cut]
        assert rank["after"] == rank["steps"][retrieval_identity.CHECKPOINT_EVERY :]  # inside the second epoch
    for name, weight in weights[1].items():
        torch.testing.assert_close(weights[2][name], weight, atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize(("first", "then"), [(2, 1), (1, 2)])
def test_a_run_goes_on_with_another_number_of_processes(first, then, tmp_path):
    launch("workers.retrieval_identity", tmp_path, 1, "all")
    right, steps = torch.load(tmp_path / "weights.pt"), json.loads((tmp_path / "rank0.json").read_text())["steps"]
    launch("workers.retrieval_identity", tmp_path, first, "cut")
    launch("workers.retrieval_identity", tmp_path, then, "resume")
    reports = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(then)]
    assert [report["processes"] for report in reports] == [then] * then
    read = [sum(parts, []) for parts in zip(*(report["after"] for report in reports), strict=True)]
    assert read == steps[retrieval_identity.CHECKPOINT_EVERY :]
    for name, weight in torch.load(tmp_path / "weights.pt").items():
        torch.testing.assert_close(weight, right[name], atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.bad_input
class TestBadInput:
    def refuses(self, match, labels=LABELS, identities=4, images=2, **options):
        with pytest.raises(ArgumentError, match=match):
            IdentityBatches(labels, identities=identities, images=images, **options)

    def test_an_identity_with_one_image(self):
        self.refuses(
            r"`labels` must give every identity at least images=2 rows, but got identity 7 with one image "
            r"\(2 such identities\). Leave these out, lower `images`, or repeat their images with resample=True.",
            labels=torch.tensor([7, 3, 3, 4, 4, 5, 5, 9]),
        )

    def test_too_few_images(self):
        self.refuses("but got identity 1 with 2 images", labels=[0, 0, 0, 1, 1], identities=2, images=3)

    def test_too_few_identities(self):
        self.refuses("`identities` must be at most the 8 identities of the data, but got 9", identities=9)

    def test_batches_without_positive_or_negative(self):
        self.refuses("`images` must be at least 2, but got 1", images=1)
        self.refuses("`identities` must be at least 2, but got 1", identities=1)

    def test_processes(self):
        self.refuses("`processes` must be at least 1, but got 0", processes=0)
        self.refuses("`identities` must be a multiple of the 3 processes, but got 4", processes=3)
        batches = IdentityBatches(LABELS, identities=4, images=2)
        with pytest.raises(ArgumentError, match="`processes` must divide the 4 identities of a batch, but got 3"):
            batches.part(0, 3)
        with pytest.raises(ArgumentError, match="`process` must lie in 0 … 1, but got 2"):
            batches.part(2, 2)

    def test_labels(self):
        self.refuses(r"`labels` must hold one whole number per row, but got torch.float32", labels=torch.zeros(4))
        self.refuses(
            "`labels` must hold one whole number per row, but got list. Number the identities", labels=["a", "a"]
        )

    def test_seed(self):
        self.refuses("`seed` must be at least 0, but got -1", seed=-1)
