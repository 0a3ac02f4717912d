"""Fine-grained retrieval of unseen classes: frozen features of a small CNN, a trained head, and the metric.

    python examples/fine_grained_retrieval.py             # under ten minutes on two quiet cores, no network
    python examples/fine_grained_retrieval.py --quick     # half a minute: shows that it runs, learns next to nothing

Class = emoji; the drawings of five vendors are its instances (fluent-flat, a second shading of fluent, is left out).
For each seed a small CNN is trained from scratch on the training emoji, with cosine, and its frozen features are kept
in a file. Then, with one loss of pytorch-metric-learning (--loss) that takes the metric as its distance:

    first rows      the features as they are; the metric is all that is trained
    "head + …"      a linear head with BNNeck is trained along, which can do much of what a metric does

The loss has fixed margins, so the baseline of the second group is cosine with a learned scale (in the first, scale
alone ranks as cosine does). The epoch is chosen by MAP@R on validation emoji; test emoji were never trained on and are
measured once: every drawing asks all others, itself masked by index. "subgroup" counts any drawing of the same Unicode
subgroup as right: what the features know beyond their classes.

Writes into --output: features, one folder per run, results.json, table.md, ranked.png, learned.png.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from data.emoji import VENDORS
from pytorch_metric_learning import losses, miners
from pytorch_metric_learning.distances import BaseDistance, CosineSimilarity
from safetensors.torch import load_file, save_file
from shared.baselines import ScaledCosine
from shared.emoji_drawings import (
    SHOWN,
    WIDTH,
    Drawings,
    Variant,
    build_model,
    folder_name,
    make_trainer,
    metric_parameters,
    options_parser,
    parse_options,
    render,
    run_all,
    variants,
)
from shared.resumable import resumable
from torch import Tensor, nn

from gssf_plug import GSSFMetric
from gssf_plug.evaluation import instance_recall
from gssf_plug.features import BNNeck
from gssf_plug.losses import BatchHardTriplet, IdentityLoss, WeightedSum
from gssf_plug.losses.pml import GSSFDistance, MetricLearningLoss
from gssf_plug.metric import topk
from gssf_plug.retrieval import Embedding, OneTower, RetrievalTrainer, Tower
from gssf_plug.retrieval.evaluation import Evaluation
from gssf_plug.retrieval.plots import plot_metric, plot_retrieved

MEASURES = ("R@1", "R@2", "R@4", "R@8", "MAP@R", "R-precision", "subgroup R@1", "subgroup MAP@R")
HEAD = "head + "
FIVE_VENDORS = tuple(vendor for vendor in VENDORS if vendor != "fluent-flat")

LOSSES: dict[str, Callable[[BaseDistance, int], nn.Module]] = {
    "multi-similarity": lambda distance, _: MetricLearningLoss(
        losses.MultiSimilarityLoss(distance=distance), miners.MultiSimilarityMiner(distance=distance)
    ),
    "proxy-anchor": lambda distance, classes: MetricLearningLoss(
        losses.ProxyAnchorLoss(classes, WIDTH, distance=distance)
    ),
    "contrastive": lambda distance, _: MetricLearningLoss(
        losses.ContrastiveLoss(pos_margin=0.8, neg_margin=0.2, distance=distance)
    ),
    "triplet": lambda distance, _: MetricLearningLoss(
        losses.TripletMarginLoss(margin=0.2, distance=distance), miners.BatchHardMiner(distance=distance)
    ),
}


class Features:
    """Frozen features of one split, with the labels of its drawings."""

    def __init__(self, features: Tensor, drawings: Drawings) -> None:
        self.features, self.drawings = features, drawings
        self.labels, self.classes = drawings.labels, drawings.classes

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, row: int) -> dict[str, Any]:
        return {"row": row, "feature": self.features[row], "label": int(self.labels[row])}


def collate(key: str) -> Callable[[Sequence[dict[str, Any]]], dict[str, Tensor]]:
    """Features of a batch; "label" for training, "row" for evaluation, which looks labels up by row."""

    def batch(rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        return {
            "inputs": torch.stack([row["feature"] for row in rows]),
            "labels": torch.tensor([row[key] for row in rows]),
        }

    return batch


def recall_of(drawings: Drawings) -> Evaluation:
    """An evaluation: recall by emoji, and by subgroup; ids of the embedding are rows of the split."""

    def evaluation(embedding: Embedding, metric: GSSFMetric | None) -> dict[str, float]:
        rows = embedding.query_ids
        fine = instance_recall(embedding.queries, drawings.labels[rows], metric=metric)
        coarse = instance_recall(embedding.queries, drawings.subgroups[rows], metric=metric, ks=(1,))
        return {**fine, **{f"subgroup {name}": coarse[name] for name in ("R@1", "MAP@R")}}

    return evaluation


def frozen_features(data: dict[str, Drawings], seed: int, options: argparse.Namespace) -> dict[str, Features]:
    """Features of a CNN trained with cosine on the training emoji; trained once per seed and kept in a file."""
    path = options.output / f"features-seed{seed}.safetensors"
    if not path.exists():
        loss = WeightedSum(IdentityLoss(WIDTH, data["train"].classes), BatchHardTriplet())
        folder = options.output / f"backbone-seed{seed}"
        trainer = make_trainer(
            folder, seed, options.backbone_epochs, data, build_model(None, seed), loss, recall_of, "MAP@R"
        )
        trainer.train(resume=True)
        trainer.load_best()
        save_file({split: _encode(trainer, drawings) for split, drawings in data.items()}, path)
    return {split: Features(features, data[split]) for split, features in load_file(path).items()}


def _encode(trainer: RetrievalTrainer, drawings: Drawings) -> Tensor:
    return trainer.embed(drawings).queries.contiguous()


def rows() -> list[Variant]:
    """What is compared: metrics on the frozen features, then every variant with a head."""
    plain = [variant for variant in variants() if not variant.learned_scale]
    return [*plain, *(replace(variant, name=HEAD + variant.name) for variant in variants())]


def trainer_of(variant: Variant, seed: int, data: dict[str, Features], options: argparse.Namespace) -> RetrievalTrainer:
    """The metric, and the head where the row has one, on frozen features."""
    torch.manual_seed(seed)
    metric = variant.metric()
    model = OneTower(Tower(None, projection=make_head() if variant.name.startswith(HEAD) else None), metric)
    if metric is not None:
        distance: BaseDistance = GSSFDistance(metric)
    else:
        distance = GSSFDistance(ScaledCosine(WIDTH)) if variant.learned_scale else CosineSimilarity()
    return make_trainer(
        options.output / folder_name(variant, seed),
        seed,
        options.epochs,
        data,
        model,
        LOSSES[options.loss](distance, data["train"].classes),
        lambda features: recall_of(features.drawings),
        "MAP@R",
        (collate("label"), collate("row")),
    )


def make_head() -> nn.Module:
    """Linear and BNNeck, the identity at the start."""
    linear = nn.Linear(WIDTH, WIDTH)
    nn.init.eye_(linear.weight)
    return nn.Sequential(linear, BNNeck(WIDTH))


def run(variant: Variant, seed: int, data: dict[str, Drawings], options: argparse.Namespace) -> dict[str, float]:
    """Train, choose the epoch on validation, measure on test once."""
    features = frozen_features(data, seed, options)
    if variant.name == "cosine":  # nothing to train
        x, everything = features["test"].features, torch.arange(len(data["test"]))
        embedding = Embedding(x, everything, x, everything)
        return {**recall_of(data["test"])(embedding, None), "parameters": 0}
    trainer = trainer_of(variant, seed, features, options)
    trainer.train(resume=True)
    trainer.load_best()
    measured = trainer.evaluate(features["test"], evaluation=recall_of(data["test"]))
    return {**measured, "parameters": metric_parameters(trainer.model)}


def draw(data: dict[str, Drawings], options: argparse.Namespace) -> None:
    """ranked.png: nearest drawings under cosine and the variant shown, seed 0. learned.png: its metric."""
    variant = next(variant for variant in variants() if variant.name == SHOWN)
    features, test = frozen_features(data, 0, options), data["test"]
    trainer = trainer_of(variant, 0, features, options)
    trainer.load_best()
    x, metric = trainer.embed(features["test"]).queries, trainer.model.metric
    assert metric is not None
    rows = torch.linspace(0, len(test) - 1, 8).long()
    found = torch.cat([nearest(x, rows, scorer) for scorer in (GSSFMetric(WIDTH), metric)], dim=1)
    plot_retrieved(
        [test.images[row] for row in rows],
        [[test.images[item] for item in items] for items in found],
        test.labels[found] == test.labels[rows][:, None],
        systems=("cosine", SHOWN),
        title="The five nearest drawings of emoji never trained on, by the same frozen features; right ones framed",
    ).savefig(options.output / "ranked.png", dpi=160)
    plot_metric(metric, title=f"{SHOWN}: what was learned").savefig(options.output / "learned.png", dpi=110)


def nearest(x: Tensor, rows: Tensor, metric: GSSFMetric, k: int = 5) -> Tensor:
    """The k nearest of some rows, without themselves."""
    return topk(metric, x[rows], x, k, forbidden=lambda queries, items: rows[queries][:, None] == items).indices


def main() -> None:
    """Read, train, print the table, draw."""
    parser = options_parser(__doc__ or "", "fine_grained_retrieval", epochs=10)
    parser.add_argument("--loss", choices=LOSSES, default="multi-similarity", help="default multi-similarity")
    parser.add_argument("--backbone-epochs", type=int, help="of the CNN, default 8")
    options = parse_options(parser)
    options.backbone_epochs = options.backbone_epochs or (1 if options.quick else 8)
    with resumable(options.output, options.resume):
        data = {split: Drawings(split, options.every, FIVE_VENDORS) for split in ("train", "validation", "test")}
        print({name: f"{len(split)} drawings of {split.classes} emoji" for name, split in data.items()})
        for seed in range(options.seeds):
            frozen_features(data, seed, options)
        results = run_all(
            options.output, rows(), options.seeds, lambda variant, seed: run(variant, seed, data, options)
        )
        table = f"Loss: {options.loss}\n\n{render(results, MEASURES)}"
        (options.output / "table.md").write_text(table)
        print("\n" + table)
        draw(data, options)
    print(f"Pictures: {options.output / 'ranked.png'}, {options.output / 'learned.png'}")


if __name__ == "__main__":
    main()
