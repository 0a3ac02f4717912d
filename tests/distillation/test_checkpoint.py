"""What a checkpoint holds: the parts beside the student, how batches were formed; the student comes back whole or not.

All types to the bit: `python tests/tools/restoring.py`.
"""

import copy
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from distillation.models import bert, images, text, vit
from safetensors.torch import load_file, save_file
from tools.restoring import OWN_FAULT, count_restored, spoil
from tools.tiny import model_types, tiny_model
from torch import nn
from transformers import TrainingArguments, ViTConfig, ViTModel, conversion_mapping

from gssf_plug import GSSFMetric
from gssf_plug.distillation import DistillationTrainer, Distiller
from gssf_plug.distillation.checkpoint import check_batch, restore_student, write_batch
from gssf_plug.distillation.losses import Relation
from gssf_plug.errors import ArgumentError, CheckpointError

PAIR = {"encoder.layer.1": "encoder.layer.3"}
DOZEN = ["vit", "deit", "beit", "dinov2", "dinov3_vit", "swin", "segformer", "llava", "gemma3", "mixtral", "qwen3_moe"]


def renamed_types() -> list[str]:
    """One type of each rule by which transformers saves a model under other names than it has in memory."""
    conversion_mapping.get_checkpoint_conversion_mapping("")
    table = conversion_mapping._checkpoint_conversion_mapping_cache
    rules = {str([(c.source_patterns, c.target_patterns) for c in table[k]]): k for k in model_types() if k in table}
    return sorted(rules.values())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("part", range(4))
def test_every_rule_of_other_names(part, tmp_path):
    """By the count of tensors; each was spoiled before."""
    whole, bad = 0, {}
    for number, kind in enumerate(renamed_types()[part::4]):
        try:
            model = tiny_model(kind)
        except Exception:  # noqa: S112 - not built by a tiny configuration: see tools/tiny.py
            continue
        if kind not in OWN_FAULT:
            raw, ours, every = count_restored(model, tmp_path / str(number))
            whole += raw < ours == every
            bad |= {kind: (raw, ours, every)} if ours != every else {}
    assert not bad
    assert whole > 5


@pytest.mark.parametrize("kind", DOZEN)
def test_a_dozen_types_to_the_bit(kind, tmp_path):
    raw, ours, every = count_restored(tiny_model(kind), tmp_path)
    assert raw < ours == every


def test_a_model_keeps_its_parameters_and_its_construction(tmp_path):
    """By value, so that an optimizer goes on; a pooler that is not there is not asked for."""
    model = vit()
    held = {name: id(p) for name, p in model.named_parameters()}
    raw, ours, every = count_restored(model, tmp_path)
    assert raw < ours == every
    assert {name: id(p) for name, p in model.named_parameters()} == held
    masked = ViTModel(copy.deepcopy(model.config), add_pooling_layer=False, use_mask_token=True)
    raw, ours, every = count_restored(masked, tmp_path / "masked")
    assert raw < ours == every


def test_what_a_checkpoint_lacks_or_holds_too_much_is_refused(tmp_path):
    small, large = bert(layers=2), bert(layers=3)
    small.save_pretrained(tmp_path / "small")
    large.save_pretrained(tmp_path / "large")
    with pytest.raises(CheckpointError, match=r"lacks 'encoder\.layer\.2\..*of its 53 tensors"):
        restore_student(large, tmp_path / "small")
    with pytest.raises(CheckpointError, match=r"holds more than the student has: 'encoder\.layer\.2\."):
        restore_student(small, tmp_path / "large")
    for size in ("small", "large"):
        folder = tmp_path / f"vit-{size}"
        vit(layers=2 if size == "small" else 3).save_pretrained(folder)
    with pytest.raises(CheckpointError, match="lacks 'layers.2"):
        restore_student(vit(layers=3), tmp_path / "vit-small")
    plain = nn.Linear(2, 2)
    save_file({"weight": torch.ones(2, 2)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"lacks 'bias' \(1 of its 2 tensors\)"):
        restore_student(plain, tmp_path)


def image_trainer(folder, **options):
    torch.manual_seed(0)
    quiet = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    sizes = {"image_size": 16, "patch_size": 4, "num_attention_heads": 2, "num_hidden_layers": 2}
    student = ViTModel(ViTConfig(hidden_size=16, intermediate_size=32, **sizes, **quiet), add_pooling_layer=False)
    distiller = Distiller(student, vit(24, 2, seed=2), "last", ["gssf", "mse"])
    rows = Dataset.from_dict({"pixel_values": images(16)["pixel_values"].tolist()})
    defaults = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "learning_rate": 1e-2, "report_to": "none"}
    quiet_run = {"disable_tqdm": True, "use_cpu": True, "dataloader_pin_memory": False}
    args = TrainingArguments(str(folder), per_device_train_batch_size=4, **{**defaults, **quiet_run, **options})
    return DistillationTrainer(
        model=student, args=args, train_dataset=rows, eval_dataset=rows.select(range(8)), distiller=distiller
    )


def test_a_resumed_image_student_is_the_unbroken_one(tmp_path):
    whole = image_trainer(tmp_path / "a")
    whole.train()
    resumed = image_trainer(tmp_path / "b")
    spoil(resumed.model)
    resumed.train(resume_from_checkpoint=str(tmp_path / "a/checkpoint-2"))
    for name, value in whole.distiller.state_dict().items():
        assert torch.equal(resumed.distiller.state_dict()[name], value), name


def test_the_best_image_student_comes_back_unmixed(tmp_path):
    trainer = image_trainer(
        tmp_path / "a",
        learning_rate=0.5,
        load_best_model_at_end=True,
        eval_strategy="steps",
        eval_steps=2,
        save_steps=2,
    )
    trainer.train()
    best = trainer.state.best_model_checkpoint
    loaded = ViTModel.from_pretrained(best, add_pooling_layer=False).state_dict()
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(loaded[name], value), name
    trainer.save_model(str(tmp_path / "out"))
    saved, was = (load_file(f"{folder}/model.safetensors") for folder in (tmp_path / "out", best))
    assert all(torch.equal(saved[name], value) for name, value in was.items())


def test_parts_are_saved_beside_the_student(tmp_path):
    student, teacher = bert(seed=1), bert(width=24, layers=4, seed=2)
    first = Distiller(student, teacher, PAIR, ["gssf", "mse"])
    first.plan(text())
    with torch.no_grad():
        for parameter in first.losses.parameters():
            parameter.add_(0.1)
    first.save_parts(tmp_path)
    second = Distiller(student, teacher, PAIR, ["gssf", "mse"])
    second.plan(text())
    held = next(second.losses.parameters())
    second.load_parts(tmp_path)
    assert next(second.losses.parameters()) is held  # an optimizer that holds it goes on
    first.eval()
    second.eval()
    torch.testing.assert_close(second(text()), first(text()))
    metric = first.metrics()["encoder.layer.1:gssf"]
    metric.save_pretrained(tmp_path / "metric")
    x = torch.randn(3, 16)
    torch.testing.assert_close(GSSFMetric.from_pretrained(tmp_path / "metric")(x, x), metric(x, x))
    third = Distiller(student, teacher, PAIR, "mse")
    third.plan(text())
    with pytest.raises(CheckpointError, match="was saved from another distiller: its losses are"):
        third.load_parts(tmp_path)


def test_parts_of_another_metric_are_refused(tmp_path):
    """A matrix that was trained as LᵀL has the shapes of one that was not."""
    student, teacher = bert(seed=1), bert(width=24, layers=4, seed=2)
    for constraint in ("psd", "symmetric"):
        distiller = Distiller(student, teacher, PAIR, Relation(GSSFMetric(16, constraint=constraint)))
        distiller.plan(text())
        if constraint == "psd":
            distiller.save_parts(tmp_path)
    with pytest.raises(CheckpointError, match="another distiller: its metrics are .*'constraint': 'psd'"):
        distiller.load_parts(tmp_path)


def run(processes, steps=1):
    """What `write_batch` and `check_batch` read of a Trainer's arguments."""
    return SimpleNamespace(world_size=processes, gradient_accumulation_steps=steps)


def test_a_run_goes_on_with_the_batch_of_all_processes(tmp_path, caplog):
    folder = tmp_path / "checkpoint-2" / "gssf"
    folder.parent.mkdir()
    check_batch(folder, run(4), 8)  # a checkpoint of before it was noted
    write_batch(folder, run(2), 8)
    check_batch(folder, run(2), 8)
    assert not caplog.text
    check_batch(folder, run(4), 4)
    assert "was written by 2 processes and is resumed by 4: same batches, other dropout" in caplog.text
    with pytest.raises(ArgumentError, match=r"make batches of 16 rows .* but got 8 on each of 4. Set it to 4\."):
        check_batch(folder, run(4), 8)
    with pytest.raises(ArgumentError, match="but got 5 on each of 3. Use another number of processes"):
        check_batch(folder, run(3), 5)
    with pytest.raises(ArgumentError, match="`gradient_accumulation_steps` must be 1, as in the run in .*, but got 2"):
        check_batch(folder, run(2, steps=2), 8)
    (folder / "batch.json").write_text('{"rows": "16", "processes": 2, "steps": 1}')
    with pytest.raises(CheckpointError, match="batch.json' is damaged. Resume from another checkpoint"):
        check_batch(folder, run(2), 8)
