"""Blocks near neutral go back to neutral, and cost nothing from then on."""

import pytest
import torch

from gssf_plug import GSSFMetric
from gssf_plug.errors import ArgumentError, CheckpointError
from gssf_plug.files import write_folder

CASES = {
    "both": {"block_size": 4},
    "blocks alone": {"terms": ("block_diagonal",), "block_size": 4},
    "symmetric": {"block_size": 4, "constraint": "symmetric"},
    "psd": {"block_size": 4, "constraint": "psd"},
    "grouped": {"block_size": 4, "grouping": torch.randperm(24, generator=torch.Generator().manual_seed(1))},
    "with dense": {"terms": ("diagonal", "block_diagonal", "dense"), "block_size": 4},
}
NEAR = (1, 2, 5)  # of six blocks


def half_trained(**options):
    """Some blocks barely moved, the others far, the diagonal far."""
    metric = GSSFMetric(24, **options)
    with torch.no_grad():
        for name, parameter in metric.named_parameters():
            parameter.add_(torch.randn_like(parameter) * (1e-3 if "dense" in name else 0.3))
        blocks = metric.structures["block_diagonal"]
        for block in NEAR:
            blocks.weight[block] = blocks.start()[block] + 1e-3 * torch.randn(4, 4)
    return metric


def by_hand(metric):
    """The same metric with the near blocks set to their start, unpruned."""
    other = GSSFMetric(24, terms=metric.terms, block_size=4, constraint=metric.constraint, grouping=metric.grouping)
    other.load_state_dict(metric.state_dict())
    with torch.no_grad():
        blocks = other.structures["block_diagonal"]
        blocks.weight[list(NEAR)] = blocks.start()[list(NEAR)]
        if "dense" in other.structures:
            other.structures["dense"].weight.zero_()
    return other


@pytest.mark.parametrize("options", CASES.values(), ids=CASES)
class TestPrune:
    def test_equals_setting_the_blocks_to_neutral(self, options):
        metric = half_trained(**options)
        right = by_hand(metric)
        report = metric.prune(0.1)
        assert report.dropped["block_diagonal"] == list(NEAR)
        assert report.blocks["block_diagonal"] == 6
        x, y = torch.randn(2, 5, 24), torch.randn(2, 7, 24)
        torch.testing.assert_close(metric(x, y), right(x, y))
        torch.testing.assert_close(metric.matrix(), right.matrix())
        torch.testing.assert_close(metric.penalty(), right.penalty())
        torch.testing.assert_close(metric.log_determinant(), right.log_determinant())

    def test_parameters_are_gone_and_the_rest_trains(self, options):
        metric = half_trained(**options)
        report = metric.prune(0.1)
        assert report.after == sum(parameter.numel() for parameter in metric.parameters())
        assert report.before - report.after == len(NEAR) * 16 + ("dense" in metric.structures) * 24 * 24
        loss = metric(torch.randn(5, 24), torch.randn(7, 24)).square().sum() + metric.penalty()
        loss.backward()
        for name, parameter in metric.named_parameters():
            assert parameter.numel() == 0 or bool((parameter.grad != 0).any()), name

    def test_saved_and_loaded_strictly(self, options, tmp_path):
        metric = half_trained(**options)
        metric.prune(0.1)
        metric.save_pretrained(tmp_path)
        again = GSSFMetric.from_pretrained(tmp_path)
        x, y = torch.randn(5, 24), torch.randn(7, 24)
        assert torch.equal(again(x, y), metric(x, y))
        assert again.prune(0.0).dropped == metric.prune(0.0).dropped

    def test_a_state_dict_brings_its_pruning(self, options):
        metric = half_trained(**options)
        metric.prune(0.1)
        fresh = half_trained(**options)
        fresh.load_state_dict(metric.state_dict())
        x, y = torch.randn(5, 24), torch.randn(7, 24)
        assert torch.equal(fresh(x, y), metric(x, y))

    def test_pruning_twice_adds_up(self, options):
        metric = half_trained(**options)
        metric.prune(0.1)
        with torch.no_grad():
            blocks = metric.structures["block_diagonal"]
            blocks.weight[1] = blocks.start()[1]  # block 3, the second that was kept
        assert metric.prune(0.1).dropped["block_diagonal"] == [1, 2, 3, 5]
        everything = metric.prune(1e6)
        assert everything.dropped["block_diagonal"] == list(range(6))
        x = torch.randn(5, 24)
        off_diagonal = metric.matrix() - torch.diag(metric.matrix().diagonal())
        assert bool((off_diagonal == 0).all())
        torch.testing.assert_close(metric.fold(x), torch.nn.functional.normalize(x) @ metric.matrix())


def test_an_untrained_metric_prunes_to_cosine_and_stays_exact():
    metric = GSSFMetric(24, block_size=4)
    assert metric.prune(0.0).dropped == {"block_diagonal": [0, 1, 2, 3, 4, 5]}
    x, y = torch.randn(5, 24), torch.randn(7, 24)
    assert torch.equal(metric(x, y), GSSFMetric(24, block_size=4)(x, y))


def test_dropped_blocks_are_not_multiplied():
    """The coupling product sees the kept blocks alone."""
    shapes = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func is torch.ops.aten.bmm.default:
                shapes.append(tuple(args[0].shape))
            return func(*args, **(kwargs or {}))

    metric = half_trained(block_size=4)
    metric.prune(0.1)
    with Watch():
        metric.fold(torch.randn(10, 24))
    assert shapes == [(3, 10, 4)]


def test_frozen_blocks_stay_frozen():
    metric = half_trained(block_size=4).requires_grad_(False)
    metric.prune(0.1)
    assert not any(parameter.requires_grad for parameter in metric.parameters())


@pytest.mark.compile
def test_compiles_after_pruning():
    metric = half_trained(block_size=4)
    metric.prune(0.1)
    x, y = torch.randn(5, 24), torch.randn(7, 24)
    torch.testing.assert_close(torch.compile(metric, fullgraph=True, backend="aot_eager")(x, y), metric(x, y))


@pytest.mark.bad_input
class TestBadInput:
    def test_threshold(self):
        for threshold in (-0.1, float("nan")):
            with pytest.raises(ArgumentError, match="`threshold` must be at least 0"):
                GSSFMetric(8, block_size=4).prune(threshold)

    def test_no_blocks(self):
        with pytest.raises(
            ArgumentError, match=r"`terms` must hold 'block_diagonal' or 'dense' where blocks are pruned"
        ):
            GSSFMetric(8, terms=("diagonal",)).prune(0.1)

    @pytest.mark.parametrize("kept", [[3, 1], [0, 6], [-1, 2], [0.0, 1.0]])
    def test_impossible_pruning_in_a_file(self, kept, tmp_path):
        metric = half_trained(block_size=4)
        metric.prune(0.1)
        tensors = metric.state_dict()
        tensors["structures.block_diagonal.kept"] = torch.tensor(kept)
        write_folder(tmp_path, GSSFMetric.file_format, metric.file_config(), tensors)
        with pytest.raises(CheckpointError, match="holds an impossible pruning .*increasing block numbers below 6"):
            GSSFMetric.from_pretrained(tmp_path)

    def test_weights_that_do_not_fit_the_pruning(self, tmp_path):
        metric = half_trained(block_size=4)
        metric.prune(0.1)
        tensors = metric.state_dict()
        tensors["structures.block_diagonal.kept"] = torch.tensor([0, 3])
        write_folder(tmp_path, GSSFMetric.file_format, metric.file_config(), tensors)
        with pytest.raises(CheckpointError, match=r"in shape \(3, 4, 4\) where \(2, 4, 4\) is needed"):
            GSSFMetric.from_pretrained(tmp_path)


def test_training_with_the_penalty_leaves_only_the_blocks_that_are_needed():
    """Pairs differ by a rotation inside blocks 0 and 3 alone; the penalty draws the other blocks to neutral."""
    rotations = torch.eye(24)
    for block in (0, 3):
        part = slice(4 * block, 4 * block + 4)
        rotations[part, part] = torch.linalg.qr(torch.randn(4, 4))[0]
    x = torch.randn(512, 24)
    y = x @ rotations + 0.5 * torch.randn(512, 24)
    metric = GSSFMetric(24, block_size=4, terms=("block_diagonal",))
    optimizer = torch.optim.Adam(metric.parameters(), lr=0.02)
    for _ in range(150):
        loss = torch.nn.functional.cross_entropy(10 * metric(x[:256], y[:256]), torch.arange(256))
        optimizer.zero_grad()
        (loss + 0.2 * metric.penalty()).backward()
        optimizer.step()

    def accuracy():
        return (metric(x[256:], y[256:]).argmax(1) == torch.arange(256)).double().mean().item()

    before, cosine = accuracy(), (x[256:] @ y[256:].T).argmax(1).eq(torch.arange(256)).double().mean().item()
    assert before > cosine + 0.3
    assert metric.prune(0.1).dropped["block_diagonal"] == [1, 2, 4, 5]
    assert accuracy() >= before - 0.02
