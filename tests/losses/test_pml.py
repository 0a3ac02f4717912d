"""The metric inside pytorch-metric-learning: losses, miners and testers take it, and it trains."""

import sys
from importlib import import_module

import pytest
import torch

pml = import_module("pytorch_metric_learning")

from pytorch_metric_learning import losses, miners, testers  # noqa: E402
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator  # noqa: E402
from pytorch_metric_learning.utils.inference import CustomKNN, MatchFinder  # noqa: E402

from gssf_plug import GSSFMetric  # noqa: E402
from gssf_plug.errors import ArgumentError  # noqa: E402
from gssf_plug.evaluation import instance_recall  # noqa: E402
from gssf_plug.losses import IdentityLoss, WeightedSum  # noqa: E402
from gssf_plug.losses.pml import GSSFDistance, MetricLearningLoss  # noqa: E402
from gssf_plug.retrieval import OneTower, RetrievalConfig, RetrievalTrainer  # noqa: E402

LABELS = torch.arange(6).repeat_interleave(4)


def perturbed():
    metric = GSSFMetric(8, block_size=4, constraint="symmetric")
    with torch.no_grad():
        for parameter in metric.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return metric


def features():
    return torch.randn(6, 8)[LABELS] + 0.8 * torch.randn(24, 8)


LOSSES = {
    "contrastive": lambda d: losses.ContrastiveLoss(pos_margin=1.5, neg_margin=-0.5, distance=d),
    "triplet": lambda d: losses.TripletMarginLoss(margin=1.0, distance=d),
    "multi-similarity": lambda d: losses.MultiSimilarityLoss(distance=d),
    "proxy anchor": lambda d: losses.ProxyAnchorLoss(6, 8, distance=d),
    "proxy NCA": lambda d: losses.ProxyNCALoss(6, 8, distance=d),
    "NTXent": lambda d: losses.NTXentLoss(distance=d),
    "SupCon": lambda d: losses.SupConLoss(distance=d),
    "lifted structure": lambda d: losses.GeneralizedLiftedStructureLoss(distance=d),
    "intra-pair variance": lambda d: losses.IntraPairVarianceLoss(distance=d),
    "lifted structure of pairs": lambda d: losses.LiftedStructureLoss(neg_margin=1.5, pos_margin=-1.5, distance=d),
    "margin": lambda d: losses.MarginLoss(distance=d),
    "N pairs": lambda d: losses.NPairsLoss(distance=d),
    "soft triple": lambda d: losses.SoftTripleLoss(6, 8, distance=d),
    "NCA": lambda d: losses.NCALoss(distance=d),
    "normalised softmax": lambda d: losses.NormalizedSoftmaxLoss(6, 8, distance=d),
    "cross-batch memory": lambda d: losses.CrossBatchMemory(losses.ContrastiveLoss(1.5, -0.5, distance=d), 8),
}
MINERS = {
    "batch hard": lambda d: miners.BatchHardMiner(distance=d),
    "multi-similarity": lambda d: miners.MultiSimilarityMiner(distance=d),
    "triplet margin": lambda d: miners.TripletMarginMiner(margin=0.5, distance=d),
    "pair margin": lambda d: miners.PairMarginMiner(pos_margin=1.5, neg_margin=-0.5, distance=d),
    "batch easy hard": lambda d: miners.BatchEasyHardMiner(distance=d),
    "uniform histogram": lambda d: miners.UniformHistogramMiner(distance=d),
}


def test_scores_are_the_metric_s():
    metric = perturbed()
    distance, x, y = GSSFDistance(metric), torch.randn(5, 8), torch.randn(7, 8)
    torch.testing.assert_close(distance(x, y), metric(x, y))
    torch.testing.assert_close(distance.pairwise_distance(x, y[:5]), metric.aligned(x, y[:5]))
    assert distance.smallest_dist(distance(x, y)) == metric(x, y).max()


@pytest.mark.parametrize("make", LOSSES.values(), ids=LOSSES)
def test_every_loss_trains_the_metric(make):
    metric = perturbed()
    loss = make(GSSFDistance(metric))
    assert {id(p) for p in metric.parameters()} <= {id(p) for p in loss.parameters()}
    optimizer = torch.optim.SGD(loss.parameters(), lr=0.01)
    before = [parameter.clone() for parameter in metric.parameters()]
    loss(features(), LABELS).backward()
    optimizer.step()
    for old, new in zip(before, metric.parameters(), strict=True):
        assert not torch.equal(old, new)


def test_losses_of_angles_refuse_a_score_without_a_range():
    with pytest.raises(AssertionError, match="requires the distance metric to be CosineSimilarity"):
        losses.CircleLoss(distance=GSSFDistance(perturbed()))


@pytest.mark.parametrize("make", MINERS.values(), ids=MINERS)
def test_every_miner_mines_by_the_metric(make):
    metric, x = perturbed(), features()
    mined = make(GSSFDistance(metric))(x, LABELS)
    assert all(not part.requires_grad for part in mined)
    assert any(len(part) for part in mined)
    loss = losses.TripletMarginLoss(margin=1.0, distance=GSSFDistance(metric))(x, LABELS, mined)
    assert loss.isfinite()


def test_batch_hard_miner_finds_the_extremes_of_the_metric():
    metric, x = perturbed(), features()
    scores = metric(x, x).detach()
    anchors, positives, negatives = miners.BatchHardMiner(distance=GSSFDistance(metric))(x, LABELS)
    same = LABELS[:, None] == LABELS
    hardest = scores.masked_fill(~same | torch.eye(24).bool(), float("inf")).argmin(1)
    nearest = scores.masked_fill(same, float("-inf")).argmax(1)
    assert torch.equal(positives, hardest[anchors])
    assert torch.equal(negatives, nearest[anchors])


def test_calculator_tester_and_match_finder_search_by_the_metric():
    metric, x, y = perturbed(), features(), features()
    distance = GSSFDistance(metric)
    right = (LABELS[metric(x, y).argmax(1)] == LABELS).double().mean().item()
    calculator = AccuracyCalculator(include=("precision_at_1",), knn_func=CustomKNN(distance), k=5)
    assert calculator.get_accuracy(x, LABELS, y, LABELS)["precision_at_1"] == pytest.approx(right)
    data = torch.utils.data.TensorDataset(x, LABELS)
    tester = testers.GlobalEmbeddingSpaceTester(
        normalize_embeddings=False, accuracy_calculator=calculator, dataloader_num_workers=0, batch_size=8
    )
    found = tester.test({"val": data}, 0, torch.nn.Identity())["val"]
    assert 0 < found["precision_at_1_level0"] <= 1
    matches = MatchFinder(distance, threshold=0.5).get_matching_pairs(x, y)
    assert (torch.as_tensor(matches) == (metric(x, y) >= 0.5)).all()


@pytest.mark.parametrize("batch_size", [None, 5])
def test_the_peers_neighbours_leave_the_item_itself_out_by_its_index(batch_size):
    """What losses/pml.py says of release 2.9: also where an item is not its own first neighbour, or not among k + 1."""
    with torch.no_grad():
        metric = GSSFMetric(8, terms=("diagonal",))
        next(metric.parameters()).copy_(torch.tensor([1.0, 1, 1, 1, -1, -1, -1, -1]))
    x = torch.randn(24, 8)
    scores = metric(x, x).detach()
    own = (scores > scores.diagonal()[:, None]).sum(1)  # the place of each item in its own ranking
    assert (own == 0).any()
    assert (own == 1).any()
    assert (own > 3).any()
    _, found = CustomKNN(GSSFDistance(metric), batch_size=batch_size)(x, 3, x, ref_includes_query=True)
    others = scores.masked_fill(torch.eye(24, dtype=torch.bool), float("-inf"))
    assert torch.equal(found, others.topk(3).indices)
    calculator = AccuracyCalculator(include=("precision_at_1",), knn_func=CustomKNN(GSSFDistance(metric)), k=3)
    right = instance_recall(x, LABELS, metric=metric, ks=(1,))["R@1"]
    assert 100 * calculator.get_accuracy(x, LABELS)["precision_at_1"] == pytest.approx(right)


def test_metric_learning_loss_trains_in_the_trainer_and_its_checkpoint_is_loaded(tmp_path):
    metric = perturbed()
    rows = [{"x": x, "label": label} for x, label in zip(features(), LABELS, strict=True)]

    def collate(rows):
        return {
            "inputs": torch.stack([row["x"] for row in rows]),
            "labels": torch.stack([row["label"] for row in rows]),
        }

    distance = GSSFDistance(metric)
    proxies = losses.ProxyAnchorLoss(6, 8, distance=distance)
    pairs = MetricLearningLoss(
        losses.MultiSimilarityLoss(distance=distance), miners.MultiSimilarityMiner(distance=distance)
    )
    loss = WeightedSum(MetricLearningLoss(proxies), pairs, IdentityLoss(8, 6))
    before = [parameter.detach().clone() for parameter in (*metric.parameters(), proxies.proxies)]

    def trainer(epochs):
        config = RetrievalConfig(output_dir=tmp_path, epochs=epochs, batch_size=12, schedule="constant", progress=False)
        model = OneTower(torch.nn.Linear(8, 8), metric)
        return RetrievalTrainer(model=model, loss=loss, config=config, train_data=rows, collate=collate)

    torch.manual_seed(0)
    first = trainer(2)
    names = [group["name"] for group in first.optimizer.param_groups for _ in group["params"]]
    assert names.count("metric") == len(list(metric.parameters()))
    first.train()
    for old, new in zip(before, (*metric.parameters(), proxies.proxies), strict=True):
        assert not torch.equal(old, new)
    trained = [parameter.detach().clone() for parameter in metric.parameters()]
    with torch.no_grad():
        for parameter in metric.parameters():
            parameter.zero_()
    trainer(2).train(resume=True)  # nothing left to do: the weights are the checkpoint's
    assert all(torch.equal(a, b) for a, b in zip(trained, metric.parameters(), strict=True))


@pytest.mark.bad_input
def test_width():
    with pytest.raises(ArgumentError, match=r"must have 8 channels in its last dimension, but got shape \(3, 9\)"):
        GSSFDistance(perturbed())(torch.randn(3, 9))


def test_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pytorch_metric_learning.distances", None)
    monkeypatch.delitem(sys.modules, "gssf_plug.losses.pml")
    with pytest.raises(ImportError, match="pip install pytorch-metric-learning"):
        import_module("gssf_plug.losses.pml")


@pytest.mark.parametrize(("classes", "items"), [(4, 4), (8, 4), (4, 8)])
def test_smooth_ap_is_zero_for_perfect_features_only_in_square_batches(classes, items):
    """What the module's documentation warns of."""
    labels = torch.arange(classes).repeat_interleave(items)
    value = losses.SmoothAPLoss()(torch.eye(classes)[labels], labels)
    assert (value.item() < 0.01) == (classes == items)


def test_instance_loss_takes_the_number_of_a_class_for_a_row():
    """What the module's documentation warns of: rows of the second class are drawn to row 1, which is of the first."""
    labels = torch.arange(2).repeat_interleave(4)
    assert losses.InstanceLoss()(torch.eye(2)[labels], labels).item() > 10
