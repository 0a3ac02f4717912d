"""Every recipe is started on a miniature copy of its data set: plan, training, evaluation, results."""

import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import train_retrieval
import yaml
from datasets import Dataset, DatasetDict
from examples.recipe_runs import small
from recipes.data import load_data
from recipes.plan import activation_bytes, kept_bytes
from recipes.reading import RECIPES, load_recipe
from retrieval.data import miniature
from transformers import (
    CLIPModel,
    ConvNextConfig,
    ConvNextModel,
    Dinov2Config,
    Dinov2Model,
    EfficientNetConfig,
    EfficientNetModel,
    MobileNetV2Config,
    MobileNetV2Model,
    RegNetConfig,
    RegNetModel,
    SwinConfig,
    SwinModel,
)
from workers import launching

from gssf_plug.retrieval import OneTower
from gssf_plug.retrieval.models.dual_encoder import DualEncoder

# CLIP's tiny tokenizer reads two of the five captions alike, so that one right caption of five is tied
TINY_WORDS = pytest.mark.filterwarnings("ignore:The positive is tied with another item for 20.0 %:UserWarning")

NAMES = sorted(path.stem for path in RECIPES.glob("*.yaml"))
TWINS = [name for name in NAMES if name.endswith("_gssf")]
SCRIPT = Path(train_retrieval.__file__)


@pytest.mark.parametrize("name", NAMES)
@TINY_WORDS
def test_every_recipe_plans_trains_and_measures(name, folders, tmp_path, capsys, monkeypatch):
    drawn = []  # really, by the other runs of this file
    monkeypatch.setattr("gssf_plug.retrieval.trainer.draw_run", lambda folder, measure: drawn.append((folder, measure)))
    arguments = small(name, folders, tmp_path / "run")
    assert train_retrieval.main([*arguments, "--dry-run"]) == 0
    plan = capsys.readouterr().out
    for line in ("data", "model", "loss", "steps", "memory"):
        assert f"\n{line} " in plan
    assert not (tmp_path / "run").exists()
    assert train_retrieval.main(arguments) == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert drawn == [(tmp_path / "run", load_recipe(name).training.best)] * (name != "clip_coco_zero_shot")
    measures = results["test"]
    wanted = "rsum" if load_recipe(name).data.dataset in ("flickr30k", "coco", "region_features") else "R@1"
    assert 0 <= measures[wanted] <= 600
    assert all(math.isfinite(value) for value in measures.values())
    assert f"{measures[wanted]:8.2f}" in capsys.readouterr().out
    assert ("5-fold rsum" in measures) == ("_coco_" in name and "clip" not in name)
    assert ("mAP" in measures) == name.startswith(("bot_", "vit_"))
    assert load_recipe(name).data.dataset in (tmp_path / "run" / "model" / "README.md").read_text()


def test_every_setting_has_its_twin_and_its_source():
    assert [name.removesuffix("_gssf") for name in TWINS] == [name for name in NAMES if name not in TWINS]
    for name in NAMES:
        text = (RECIPES / f"{name}.yaml").read_text()
        assert text.startswith("# ")
        assert max(map(len, text.splitlines())) <= 120
        if name not in TWINS and name != "clip_f30k":  # a setting of our own
            assert "arXiv" in text
            assert "Published" in text or "table" in text


@pytest.mark.parametrize("name", TWINS)
def test_a_twin_differs_in_the_similarity_alone(name):
    base, twin = load_recipe(name.removesuffix("_gssf")), load_recipe(name)
    assert (base.metric.metric, twin.metric.metric) == ("cosine", "gssf")
    assert base.model == twin.model
    assert base.loss == twin.loss
    if name != "clip_coco_zero_shot_gssf":  # without training there is nothing to compare
        assert base.data == twin.data
        changed = {**base.training.to_json(), "output_dir": ""}
        assert changed == {**twin.training.to_json(), "output_dir": ""}


def test_the_values_of_a_recipe_reach_its_parts():
    recipe = load_recipe("bot_market1501")
    assert recipe.training.decay_at == (0.3333, 0.5833)
    assert recipe.training.max_gradient_norm is None
    assert recipe.loss.images_per_identity == 4
    assert recipe.training.output_dir == "outputs/bot_market1501"
    assert recipe.model.image_model == "microsoft/resnet-50"
    assert yaml.safe_load((RECIPES / "bot_market1501.yaml").read_text())["learning_rate"] == 0.00035


def test_the_plan_counts(folders, tmp_path, capsys):
    arguments = small("vse_infinity_f30k_regions_bigru_gssf", folders, tmp_path)
    train_retrieval.main([*arguments, "--epochs", "3", "--accumulation", "2", "--dry_run"])
    plan = " ".join(capsys.readouterr().out.split())
    assert "train 60 pairs of 12 images" in plan
    assert "dev 5 images, 25 captions" in plan
    assert "test 6 images, 30 captions" in plan
    assert "metric 80 " in plan  # 16 + 16·4
    assert "steps 3 = 3 epochs × 1; batches of 24 rows" in plan
    train_retrieval.main([*small("bot_market1501", folders, tmp_path), "--dry_run"])
    plan = " ".join(capsys.readouterr().out.split())
    assert "train 24 images of 6 classes" in plan
    assert "test 6 queries, 13 in the gallery" in plan
    assert "loss before the neck batch hard triplet (margin 0.3); after the neck identity loss (" in plan
    assert "smoothing 0.1)" in plan
    train_retrieval.main([*small("proxy_anchor_cub200_gssf", folders, tmp_path), "--dry_run"])
    plan = " ".join(capsys.readouterr().out.split())
    assert "loss proxy anchor loss (" in plan
    assert "by GSSFDistance" in plan
    assert "Module" not in plan


@pytest.mark.parametrize("name", ["vsepp_f30k_regions_bigru_gssf", "scan_f30k_i2t_avg_gssf", "bot_market1501"])
def test_the_memory_of_a_batch_is_that_of_its_first_rows(name, folders, tmp_path):
    recipe = load_recipe(name, small(name, folders, tmp_path)[1:])
    trainer = train_retrieval.make_trainer(recipe, load_data(recipe))
    whole = next(iter(trainer.feed.batches))
    assert activation_bytes(trainer) == pytest.approx(kept_bytes(trainer, whole), rel=0.1)


def test_own_folders_and_columns(folders, tmp_path):
    pictures = miniature.image_folder(tmp_path)
    arguments = small("proxy_anchor_cub200_gssf", folders, tmp_path / "a")
    train_retrieval.main([*arguments, "--dataset", "image_folder", "--data_dir", str(pictures)])
    images = [str(path) for path in sorted((pictures / "train").rglob("*.png"))][:10]
    texts = [f"a picture number {number}" for number in range(len(images))]
    rows = Dataset.from_dict({"file": images, "text": texts})
    DatasetDict({"train": rows, "val": rows, "test": rows}).save_to_disk(tmp_path / "saved")
    names = ["--image_column", "file", "--captions_column", "text", "--batch_size", "6"]
    arguments = [*small("vse_infinity_f30k_grids_bigru_gssf", folders, tmp_path / "b"), "--dataset", "columns"]
    assert train_retrieval.main([*arguments, "--data_dir", str(tmp_path / "saved"), *names]) == 0
    for run, measure in (("a", "R@1"), ("b", "rsum")):
        assert measure in json.loads((tmp_path / run / "results.json").read_text())["test"]


def pictures_of_classes(folder, classes=6, images=4):
    for owner in range(classes):
        for number in range(images):
            miniature.draw(folder / f"class {owner}" / f"{number}.png", 10 * owner + number, owner)
    return str(folder)


def test_one_folder_of_classes_is_split_by_class(folders, tmp_path, capsys):
    arguments = small("proxy_anchor_cub200_gssf", folders, tmp_path / "run")
    arguments += ["--dataset", "image_folder", "--data_dir", pictures_of_classes(tmp_path / "imgs")]
    arguments += ["--split_classes", "0.34"]
    assert train_retrieval.main([*arguments, "--dry_run"]) == 0
    plan = " ".join(capsys.readouterr().out.split())
    assert "train 16 images of 4 classes" in plan
    assert "test 8 images" in plan
    assert train_retrieval.main(arguments) == 0
    assert json.loads((tmp_path / "run" / "results.json").read_text())["test"]["R@1"] >= 0
    assert train_retrieval.main([*arguments, "--validation_split", "val"]) == 2
    assert "`validation_split` must be left out where split_classes" in capsys.readouterr().err


IMAGE_MODELS = {
    "mobilenet_v2": lambda: MobileNetV2Model(MobileNetV2Config(depth_multiplier=0.1, depth_divisible_by=4)),
    "convnext": lambda: ConvNextModel(ConvNextConfig(hidden_sizes=[8, 12], depths=[1, 1], num_stages=2)),
    "swin": lambda: SwinModel(
        SwinConfig(image_size=32, patch_size=4, embed_dim=8, depths=[1, 1], num_heads=[2, 2], window_size=4)
    ),
    "dinov2": lambda: Dinov2Model(
        Dinov2Config(image_size=32, patch_size=8, hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
    ),
    "efficientnet": lambda: EfficientNetModel(
        EfficientNetConfig(image_size=32, width_coefficient=0.1, depth_coefficient=0.1, hidden_dim=128)
    ),
    "regnet": lambda: RegNetModel(RegNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], groups_width=4)),
}


@pytest.mark.parametrize("kind", IMAGE_MODELS)
def test_any_image_model_of_transformers(kind, folders, tmp_path):
    torch.manual_seed(0)
    IMAGE_MODELS[kind]().save_pretrained(tmp_path / kind)
    arguments = small("proxy_anchor_cub200_gssf", folders, tmp_path / "run")
    assert train_retrieval.main([*arguments, "--image_model", str(tmp_path / kind)]) == 0
    assert OneTower.from_pretrained(tmp_path / "run" / "model").metric.dim == 16


def test_a_network_without_stages_keeps_its_stride(folders, tmp_path, capsys, caplog):
    IMAGE_MODELS["mobilenet_v2"]().save_pretrained(tmp_path / "mobilenet")
    arguments = [*small("bot_market1501_gssf", folders, tmp_path / "run"), "--image_model", str(tmp_path / "mobilenet")]
    assert train_retrieval.main([*arguments, "--dry_run"]) == 0
    assert "MobileNetV2Model has no last stage with a stride" in caplog.text


def test_what_is_no_image_model(folders, tmp_path, capsys):
    arguments = small("proxy_anchor_cub200", folders, tmp_path / "run")
    assert train_retrieval.main([*arguments, "--image_model", folders[1]["bert"]]) == 2
    assert "`image_model` must encode pictures of 32×32 pixels, but got BertModel" in capsys.readouterr().err


@pytest.mark.parametrize("way", [[], ["--dry_run"]])
def test_a_test_set_of_one_camera_is_refused_before_training(way, folders, tmp_path, capsys):
    images = [str(path) for path in sorted(Path(pictures_of_classes(tmp_path / "imgs")).rglob("*.png"))]
    table = {"file": images, "who": [path.split("/")[-2] for path in images], "camera": ["hall"] * len(images)}
    rows = Dataset.from_dict(table)
    seen = Dataset.from_dict({**table, "camera": ["hall", "yard"] * (len(images) // 2)})
    DatasetDict({"train": rows, "test": rows, "seen": seen}).save_to_disk(tmp_path / "saved")
    arguments = [*small("bot_market1501_gssf", folders, tmp_path / "run"), "--dataset", "columns"]
    arguments += ["--data_dir", str(tmp_path / "saved"), "--image_column", "file", "--label_column", "who"]
    arguments += ["--camera_column", "camera", *way]
    assert train_retrieval.main(arguments) == 2
    assert "but got only one camera" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert train_retrieval.main([*arguments, "--test_split", "seen", "--dry_run"]) == 0


@TINY_WORDS
def test_a_rate_of_zero_freezes_the_encoders_and_the_metric_learns(folders, tmp_path):
    train_retrieval.main(small("clip_coco_zero_shot_gssf", folders, tmp_path / "run"))
    model = DualEncoder.from_pretrained(tmp_path / "run" / "model")
    before = CLIPModel.from_pretrained(folders[1]["clip"]).state_dict()
    assert all(torch.equal(value, before[name]) for name, value in model.encoder.state_dict().items())
    assert not torch.allclose(model.metric.matrix(), torch.eye(16), atol=1e-4)


def test_siglip_in_the_place_of_clip(folders, tmp_path, capsys):
    arguments = [*small("clip_f30k_gssf", folders, tmp_path / "run"), "--image_model", folders[1]["siglip"]]
    assert train_retrieval.main([*arguments, "--statistics", "half", "--max_words", "80", "--dry-run"]) == 0
    assert re.search(r"loss +sigmoid", capsys.readouterr().out)
    assert train_retrieval.main([*arguments, "--statistics", "half", "--max_words", "80"]) == 0


@TINY_WORDS
def test_without_training_only_the_test_images_are_needed(folders, tmp_path):
    root = miniature.coco(tmp_path / "coco")
    shutil.rmtree(root / "train2014")
    arguments = [*small("clip_coco_zero_shot", folders, tmp_path / "run"), "--data_dir", str(root)]
    assert train_retrieval.main(arguments) == 0
    assert train_retrieval.main([*arguments, "--train", "true"]) == 2


def test_workers_change_nothing_and_a_run_is_resumed(folders, tmp_path):
    name = "vse_infinity_f30k_regions_bigru_gssf"
    measured = []
    for run, workers in (("a", "0"), ("b", "2")):
        train_retrieval.main([*small(name, folders, tmp_path / run), "--num_workers", workers])
        measured.append(json.loads((tmp_path / run / "results.json").read_text())["test"])
    assert measured[0] == measured[1]
    again = small(name, folders, tmp_path / "a")
    assert train_retrieval.main(again) == 2  # refuses to train over it
    assert train_retrieval.main([*again, "--resume"]) == 0
    assert json.loads((tmp_path / "a" / "results.json").read_text())["test"] == measured[0]


def test_what_was_trained_is_published(folders, tmp_path):
    train_retrieval.main(small("bot_market1501_gssf", folders, tmp_path / "run"))
    model = OneTower.from_pretrained(tmp_path / "run" / "model")
    assert model.metric.dim == 16


def test_as_a_script_and_with_accelerate(folders, tmp_path):
    environment = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    recipe = "vsepp_f30k_regions_bigru_gssf"
    alone = launching.run(SCRIPT, *small(recipe, folders, tmp_path / "1"), cwd=tmp_path, environment=environment)
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    together = subprocess.run(
        [*launch, "--main_process_port", "0", str(SCRIPT), *small(recipe, folders, tmp_path / "2")],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    results = []
    for processes, done in ((1, alone), (2, together)):
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stdout.count("i2t_R@1 ") == 1  # one process prints
        result = json.loads((tmp_path / str(processes) / "results.json").read_text())
        assert result["processes"] == processes
        results.append(result["test"])
    assert results[0] == pytest.approx(results[1])  # no dropout, the same batches
