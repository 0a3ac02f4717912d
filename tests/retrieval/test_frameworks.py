"""Every framework as its recipe builds it: trains, ranks, saves, resumes; equal to its cosine version at the start."""

import json
from functools import partial

import pytest
import torch
from accelerate.state import AcceleratorState
from pytorch_metric_learning.losses import ProxyAnchorLoss
from retrieval import frameworks, toy
from torch import nn

from gssf_plug import GSSFMetric
from gssf_plug.errors import ArgumentError
from gssf_plug.losses import BatchHardTriplet, Hinge, IdentityLoss, InfoNCE, Sigmoid, WeightedSum
from gssf_plug.losses.pml import GSSFDistance, MetricLearningLoss
from gssf_plug.retrieval import (
    IdentityBatches,
    LabelCollator,
    NeckLoss,
    OneTower,
    PairCollator,
    RetrievalTrainer,
    WithRowNumbers,
    WordAugmentation,
    alignment_measures,
    image_text_measures,
    instance_measures,
    reid_measures,
)
from gssf_plug.retrieval.training.objective import Objective

pytestmark = pytest.mark.usefixtures("fresh_accelerator")


PAIRS = {
    "vse++": (frameworks.vsepp, Hinge, "image"),
    "vse-infinity, regions, words": (frameworks.vse_infinity_regions, partial(Hinge, warmup_steps=4), "features"),
    "vse-infinity, grids, bert": (frameworks.vse_infinity_grids, partial(Hinge, warmup_steps=4), "image"),
    "clip": (frameworks.clip, partial(InfoNCE, scale=1.0, learned_scale=False), "image"),
    "siglip": (frameworks.siglip, Sigmoid, "image"),
    "vision-text dual encoder": (frameworks.dual, partial(InfoNCE, scale=1.0, learned_scale=False), "image"),
    "scan": (frameworks.scan, Hinge, "features"),
}


def losses_of(trainer):
    lines = (trainer.folder / "log.jsonl").read_text().splitlines()
    return [record["loss"] for record in map(json.loads, lines) if record["kind"] == "train"]


def pair_trainer(name, folder, metric=True, **changes):
    make, loss, column = PAIRS[name]
    torch.manual_seed(0)
    tokenizer = frameworks.tokenizer()
    model = make(metric, tokenizer)
    transform = frameworks.transform if column == "image" else None
    words = WordAugmentation(tokenizer) if "infinity" in name else None
    evaluation = alignment_measures(model) if name == "scan" else image_text_measures
    settings = {"epochs": 6, "batch_size": 8, "accumulation": 1, "log_every": 6, "learning_rate": 3e-3, **changes}
    return RetrievalTrainer(
        model=model,
        loss=loss(),
        config=toy.recipe(folder, eval_every=12, checkpoint_every=18, **settings),
        train_data=frameworks.pairs(48, column),
        collate=PairCollator(tokenizer, transform=transform, captions="one", words=words),
        eval_data=frameworks.pairs(12, column),
        eval_collate=PairCollator(tokenizer, transform=transform),
        evaluation=evaluation,
    )


@pytest.mark.parametrize("name", PAIRS)
def test_image_text_frameworks_learn_save_and_load(name, tmp_path):
    trainer = pair_trainer(name, tmp_path / "run")
    trainer.train()
    losses = losses_of(trainer)
    assert losses[-1] < 0.9 * losses[0], losses
    moved = [metric.matrix().sub(torch.eye(metric.dim)).abs().max() for metric in trainer.model.metrics()]
    assert moved
    assert min(moved) > 1e-3
    trainer.load_best()
    trainer.save_model(tmp_path / "saved", model_card_kwargs={"data": "twelve things"})
    assert "twelve things" in (tmp_path / "saved" / "README.md").read_text()
    before = trainer.evaluate()
    assert before["rsum"] == pytest.approx(trainer.progress.best_score)
    loaded = type(trainer.model).from_pretrained(tmp_path / "saved")
    assert loaded.processors["tokenizer"]("w1 w2")["input_ids"] == frameworks.tokenizer()("w1 w2")["input_ids"]
    AcceleratorState._reset_state(reset_partial_state=True)
    again = pair_trainer(name, tmp_path / "again")
    again.model.load_state_dict(loaded.state_dict())
    assert again.evaluate() == pytest.approx(before)


@pytest.mark.parametrize("name", PAIRS)
def test_a_neutral_metric_is_the_framework_as_published(name, tmp_path):
    neutral, cosine = pair_trainer(name, tmp_path / "a"), pair_trainer(name, tmp_path / "b", metric=False)
    assert not cosine.model.metrics()
    batch = neutral.eval_collate(neutral.train_data[:6])
    for trainer in (neutral, cosine):
        trainer.model.eval()
    one, other = neutral.model(batch), cosine.model(batch)
    scores = neutral.model.score(one.queries, one.gallery)
    torch.testing.assert_close(scores, cosine.model.score(other.queries, other.gallery), atol=1e-5, rtol=1e-5)
    assert scores.std() > 1e-6


@pytest.mark.parametrize("name", PAIRS)
def test_half_precision_trains(name, tmp_path):
    trainer = pair_trainer(name, tmp_path, mixed_precision="bf16", epochs=4)
    trainer.train()
    assert losses_of(trainer)[-1] < losses_of(trainer)[0]
    assert all(parameter.dtype == torch.float32 for parameter in trainer.model.parameters())


@pytest.mark.parametrize("name", ["clip", "siglip", "vision-text dual encoder"])
def test_scores_are_the_models_own_logits(name, tmp_path):
    trainer = pair_trainer(name, tmp_path)
    model, batch = trainer.model.eval(), trainer.eval_collate(trainer.train_data[:5])
    nn.init.constant_(model.encoder.logit_scale, 1.5)
    own = model(batch)
    theirs = model.encoder(**batch["images"], **batch["texts"]).logits_per_image
    torch.testing.assert_close(model.score(own.queries, own.gallery), theirs, atol=1e-5, rtol=1e-5)
    Objective(model, Sigmoid())(batch).backward()
    assert model.encoder.logit_scale.grad.abs() > 0
    assert (getattr(model.encoder, "logit_bias", None) is None) == (name != "siglip")


def one_tower_trainer(folder, model, loss, evaluation, best, **changes):
    data = frameworks.identities(8, 6)
    settings = {"epochs": 8, "batch_size": 16, "accumulation": 1, "log_every": 6, "learning_rate": 3e-3, **changes}
    return RetrievalTrainer(
        model=model,
        loss=loss,
        config=toy.recipe(folder, eval_every=12, checkpoint_every=24, best=best, **settings),
        train_data=data,
        collate=LabelCollator(transform=frameworks.transform),
        eval_data=WithRowNumbers(data),
        eval_collate=LabelCollator(transform=frameworks.transform, ids="row"),
        batches=IdentityBatches([row["label"] for row in data], identities=4, images=4),
        evaluation=evaluation(data),
    )


def by_camera(data):
    ids, cameras = (torch.tensor([row[name] for row in data]) for name in ("label", "camera"))
    return reid_measures(ids, cameras, is_query=cameras == 0)


def by_class(data):
    return instance_measures(torch.tensor([row["label"] for row in data]))


def necked(loss_before):
    def build(model):
        after = IdentityLoss(12, 8) if loss_before else WeightedSum(IdentityLoss(12, 8), BatchHardTriplet())
        return NeckLoss(model.neck, before=BatchHardTriplet(margin=0.3) if loss_before else None, after=after)

    return build


def proxies(model):
    distance = GSSFDistance(model.metric)
    return MetricLearningLoss(ProxyAnchorLoss(8, 8, margin=0.1, alpha=32, distance=distance))


SINGLE = {
    "bag of tricks": (frameworks.bot, necked(True), by_camera, "mAP"),
    "bag of tricks, metric": (frameworks.bot, necked(False), by_camera, "mAP"),
    "bag of tricks, ViT": (frameworks.bot_vit, necked(False), by_camera, "mAP"),
    "proxy-anchor": (frameworks.proxy_anchor, proxies, by_class, "R@1"),
}


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("name", SINGLE)
def test_one_tower_frameworks_learn_save_and_load(name, precision, tmp_path):
    make, loss, evaluation, best = SINGLE[name]
    torch.manual_seed(0)
    model = make()
    changes = {"loss_learning_rate": 0.03, "mixed_precision": precision}
    trainer = one_tower_trainer(tmp_path / "run", model, loss(model), evaluation, best, **changes)
    trainer.train()
    losses = losses_of(trainer)
    assert losses[-1] < losses[0], losses
    model.save_pretrained(tmp_path / "saved")
    loaded = OneTower.from_pretrained(tmp_path / "saved")
    inputs = trainer.eval_collate([{**trainer.train_data[0], "row": 0}])["inputs"]
    torch.testing.assert_close(loaded.encode(inputs), model.eval().encode(inputs))


@pytest.mark.bad_input
def test_bad_parts_are_named():
    with pytest.raises(ArgumentError, match="`loss` must apply the model's neck, but got IdentityLoss"):
        Objective(frameworks.bot(), IdentityLoss(12, 4))
    from gssf_plug.retrieval import DualEncoder, LocalAlignment

    with pytest.raises(
        ArgumentError, match="`encoder` must have get_image_features.*Linear without get_image_features"
    ):
        DualEncoder(nn.Linear(2, 2))
    with pytest.raises(ArgumentError, match="`alignments` must hold at least one alignment"):
        LocalAlignment(None, None, alignments=[])
    with pytest.raises(ArgumentError, match="`attention_metric` must normalise where fragments are aligned"):
        LocalAlignment(None, None, attention_metric=GSSFMetric(4, block_size=2, normalize=False))
    with pytest.raises(ArgumentError, match=r"`queries` must be Fragments, but got torch.float32 of shape \(2, 4\)"):
        LocalAlignment(None, None).score(torch.ones(2, 4), torch.ones(2, 4))
    scan = frameworks.scan(True, frameworks.tokenizer())
    batch = PairCollator(frameworks.tokenizer())(frameworks.pairs(4, "features"))
    with pytest.raises(ArgumentError, match=r"`queries` must hold one vector per item, .*alignment_measures\(model\)"):
        image_text_measures(scan(batch), None)
