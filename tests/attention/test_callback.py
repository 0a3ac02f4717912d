"""Under transformers' Trainer: checkpoints, resuming and the best, to the bit, also where keys are renamed on save."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from attention.patching import hidden, perturb
from attention.small_models import IDS, small_bert, small_llama
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import (
    AutoModelForImageClassification,
    BertConfig,
    BertForSequenceClassification,
    LlamaForCausalLM,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
)

from gssf_plug.attention import AttentionPatch, load_attention, patch_attention
from gssf_plug.errors import ArgumentError

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # by PEFT
ROWS = torch.Generator().manual_seed(1)
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 40}
IMAGES = torch.randn(16, 3, 8, 8, generator=ROWS)
TEXTS = torch.randint(64, (16, 9), generator=ROWS)


def vit() -> ViTForImageClassification:
    torch.manual_seed(0)
    return ViTForImageClassification(
        ViTConfig(image_size=8, patch_size=4, initializer_range=0.3, num_labels=2, **SMALL)
    )


def bert() -> BertForSequenceClassification:
    torch.manual_seed(0)
    return BertForSequenceClassification(BertConfig(vocab_size=64, initializer_range=0.3, **SMALL))


CASES: dict[str, tuple[Callable[[], nn.Module], Dataset]] = {
    "vit": (vit, Dataset.from_dict({"pixel_values": IMAGES, "labels": [0, 1] * 8}).with_format("torch")),
    "bert": (bert, Dataset.from_dict({"input_ids": TEXTS.tolist(), "labels": [0, 1] * 8})),
    "llama": (small_llama, Dataset.from_dict({"input_ids": TEXTS.tolist(), "labels": TEXTS.tolist()})),
}
EVERY_MODEL = pytest.mark.parametrize("name", CASES)


class StopAtFour(TrainerCallback):
    """A run that ends too early, after its second checkpoint."""

    def on_step_end(self, args: object, state: object, control: object, **options: object) -> object:
        control.should_training_stop = state.global_step >= 4
        return control


def ready(name: str, frozen: bool = True) -> tuple[nn.Module, AttentionPatch]:
    model = CASES[name][0]()
    patch = patch_attention(model, block_size=4)
    if frozen:
        patch.freeze_base()
        if hasattr(model, "classifier"):
            model.classifier.requires_grad_(True)
    return model, patch


def trainer_of(name: str, model: nn.Module, folder: Path, *callbacks: TrainerCallback, **options: object) -> Trainer:
    common = {
        "per_device_train_batch_size": 4, "max_steps": 6, "learning_rate": 3e-2, "report_to": "none", "use_cpu": True,
        "disable_tqdm": True, "dataloader_pin_memory": False, "save_steps": 2, "eval_steps": 2, "logging_steps": 2,
        "eval_strategy": "steps", "seed": 0, "weight_decay": 0.0,
    }  # fmt: skip
    arguments = TrainingArguments(output_dir=str(folder), **{**common, **options})
    rows = CASES[name][1]
    return Trainer(model, arguments, train_dataset=rows, eval_dataset=rows.select(range(8)), callbacks=list(callbacks))


def values(model: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


@EVERY_MODEL
@pytest.mark.parametrize("frozen", [True, False], ids=["frozen base", "whole model"])
def test_resumed_and_best_equal_the_unbroken_run_to_the_bit(
    name: str, frozen: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model, patch = ready(name, frozen)
    trainer_of(name, model, tmp_path / "whole", patch.callback()).train()
    unbroken = values(model)

    model, patch = ready(name, frozen)
    trainer_of(name, model, tmp_path / "half", patch.callback(), StopAtFour()).train()
    model, patch = ready(name, frozen)
    trainer = trainer_of(name, model, tmp_path / "half", patch.callback())
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 6
    assert all(torch.equal(value, unbroken[key]) for key, value in values(model).items())
    assert "missing keys" not in caplog.text

    model, patch = ready(name, frozen)  # the first checkpoint is taken for the best: most loss
    best = {"load_best_model_at_end": True, "metric_for_best_model": "loss", "greater_is_better": True}
    trainer = trainer_of(name, model, tmp_path / "best", patch.callback(), **best)
    trainer.train()
    losses = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert max(losses) > 1.01 * losses[-1]
    assert trainer.evaluate()["eval_loss"] == max(losses)
    patch.remove()
    assert "save_pretrained" not in vars(model)


@EVERY_MODEL
def test_a_checkpoint_of_a_frozen_base_is_as_small_as_the_adapter(name: str, tmp_path: Path) -> None:
    model, patch = ready(name)
    if hasattr(model, "classifier"):
        model.classifier.requires_grad_(False)
    trainer = trainer_of(name, model, tmp_path, patch.callback())
    trainer.train()
    patch.save_pretrained(tmp_path / "adapter")
    checkpoint = tmp_path / "checkpoint-6"
    weights = sum(file.stat().st_size for file in checkpoint.rglob("*.safetensors"))
    assert weights <= 2 * sum(file.stat().st_size for file in (tmp_path / "adapter").iterdir())
    assert not (checkpoint / "config.json").exists()  # nobody takes it for a whole model

    twin = CASES[name][0]()
    load_attention(twin, checkpoint / "gssf" / "default")
    inputs = IMAGES if name == "vit" else IDS
    assert torch.equal(hidden(twin.eval(), inputs), hidden(model.eval(), inputs))


def test_with_the_base_in_the_checkpoint(tmp_path: Path) -> None:
    """Plain transformers reads it under the names of today, too."""
    model, patch = ready("vit")
    trainer = trainer_of("vit", model, tmp_path, patch.callback(save_base=True))
    trainer.train()
    plain = AutoModelForImageClassification.from_pretrained(tmp_path / "checkpoint-6").eval()
    with patch.disabled():
        assert torch.equal(hidden(model.eval(), IMAGES), hidden(plain, IMAGES))


@pytest.mark.parametrize("how", ["resume", "best"])
def test_without_the_callback_a_lost_metric_is_an_error(how: str, tmp_path: Path) -> None:
    model, _ = ready("vit")
    if how == "best":
        trainer = trainer_of("vit", model, tmp_path, load_best_model_at_end=True, metric_for_best_model="loss")
        with pytest.raises(ArgumentError, match="under other names, as transformers' save_pretrained renames keys"):
            trainer.train()
        return
    trainer_of("vit", model, tmp_path, StopAtFour()).train()
    model, _ = ready("vit")
    with pytest.raises(ArgumentError, match=r"callbacks=\[patch.callback\(\)\]"):
        trainer_of("vit", model, tmp_path).train(resume_from_checkpoint=True)


def test_resuming_what_was_never_patched_is_an_error(tmp_path: Path) -> None:
    model = bert()
    trainer_of("bert", model, tmp_path, StopAtFour()).train()
    patched, patch = ready("bert")
    with pytest.raises(ArgumentError, match="not at all"):
        trainer_of("bert", patched, tmp_path).train(resume_from_checkpoint=True)
    patched.load_state_dict(model.state_dict(), strict=False)  # by hand it is meant
    patch.remove()
    assert not patched._load_state_dict_pre_hooks


@pytest.mark.parametrize("beneath", [True, False], ids=["LoRA beneath", "LoRA on top"])
def test_beside_peft(beneath: bool, tmp_path: Path) -> None:
    def made() -> tuple[nn.Module, AttentionPatch]:
        model = small_llama()
        lora = LoraConfig(r=2, target_modules=["q_proj"])
        wrapped = get_peft_model(model, lora) if beneath else model
        patch = patch_attention(model, block_size=4)
        wrapped = wrapped if beneath else get_peft_model(model, lora)
        for parameter in patch.parameters():
            parameter.requires_grad_(True)
        return wrapped, patch

    model, patch = made()
    trainer_of("llama", model, tmp_path / "whole", patch.callback()).train()
    unbroken = values(model)
    model, patch = made()
    trainer_of("llama", model, tmp_path / "half", patch.callback(), StopAtFour()).train()
    assert not (tmp_path / "half" / "checkpoint-4" / "model.safetensors").exists()
    model, patch = made()
    trainer_of("llama", model, tmp_path / "half", patch.callback()).train(resume_from_checkpoint=True)
    assert all(torch.equal(value, unbroken[key]) for key, value in values(model).items())
    model, _ = made()
    with pytest.raises(ArgumentError, match="not at all"):  # PEFT's file holds no metric
        trainer_of("llama", model, tmp_path / "half").train(resume_from_checkpoint=True)


def test_evaluation_uses_folded_weights_and_leaves_them_at_its_end(tmp_path: Path) -> None:
    model, patch = ready("llama")
    perturb(patch)
    seen: list[bool] = []
    model.lm_head.register_forward_hook(lambda *_: seen.append(patch.is_folded))
    trainer = trainer_of("llama", model, tmp_path, patch.callback(), per_device_eval_batch_size=2)
    folded = trainer.evaluate()["eval_loss"]
    assert seen == [False, True, True, True]
    assert not patch.is_folded
    plain = trainer_of("llama", model, tmp_path, patch.callback(fold_evaluation=False)).evaluate()["eval_loss"]
    assert folded == pytest.approx(plain, rel=1e-5)

    def fails(*_: object) -> None:
        raise KeyError("interrupted")

    handle = model.lm_head.register_forward_hook(lambda *_: fails() if patch.is_folded else None)
    with pytest.raises(KeyError):
        trainer.evaluate()
    handle.remove()
    with pytest.raises(RuntimeError, match=r"patch.folded\(\) is for inference"):
        model(IDS)[0].sum().backward()
    trainer.train()
    assert not patch.is_folded


def test_the_callback_of_another_patch(tmp_path: Path) -> None:
    patch = patch_attention(small_bert(), block_size=4)
    with pytest.raises(ArgumentError, match="a Trainer of a LlamaForCausalLM, which does not hold it"):
        trainer_of("llama", ready("llama")[0], tmp_path, patch.callback())


def test_other_folders_are_written_as_always(tmp_path: Path) -> None:
    model, patch = ready("llama")
    trainer = trainer_of("llama", model, tmp_path, patch.callback(), StopAtFour())
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    plain = LlamaForCausalLM.from_pretrained(tmp_path / "saved").eval()
    with patch.disabled():
        assert torch.equal(hidden(model.eval(), IDS), hidden(plain, IDS))
