"""distillation_trainer over the Trainers that people have: TRL's SFTTrainer and SentenceTransformerTrainer."""

import copy

import pytest
import torch
from datasets import Dataset
from distillation.models import bert
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer import losses
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer

from gssf_plug.distillation import Distiller, Tap, distillation_trainer
from gssf_plug.errors import ArgumentError

WORDS = ["the", "a", "cat", "dog", "sat", "ran", "on", "under", "mat", "tree", "big", "small", "red", "blue"]
QUIET = {
    "report_to": "none",
    "disable_tqdm": True,
    "use_cpu": True,
    "save_strategy": "no",
    "logging_steps": 1,
    "dataloader_pin_memory": False,
    "max_steps": 3,
    "per_device_train_batch_size": 4,
    "learning_rate": 1e-2,
}


def tokenizer():
    special = ["[PAD]", "[UNK]", "[EOS]"]
    vocabulary = {word: row for row, word in enumerate([*special, *WORDS])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]", eos_token="[EOS]", model_max_length=16
    )


def sentences(count):
    picks = torch.randint(len(WORDS), (count, 5), generator=torch.Generator().manual_seed(4))
    return [" ".join(WORDS[i] for i in row) for row in picks.tolist()]


def llama(width, layers, seed):
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(WORDS) + 3,
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=2,
            num_key_value_heads=1,
            intermediate_size=2 * width,
            pad_token_id=0,
            eos_token_id=2,
        )
    )


def moved(before, module):
    return {name for name, value in module.named_parameters() if not torch.equal(value, before[name])}


def test_over_trl_sft(tmp_path):
    """SFT's own loss and a feature loss in one forward; all parts train; what is saved is a plain student."""
    student, teacher = llama(16, 2, 1), llama(24, 4, 2)
    distiller = Distiller(student, teacher, {"model.layers.1": "model.layers.3"}, ["gssf", "mse"], task_weight=1.0)
    trainer = distillation_trainer(SFTTrainer)(
        model=student,
        args=SFTConfig(  # trl 1.16 still sets the deprecated name
            str(tmp_path), eos_token="[EOS]", gradient_checkpointing=None, activation_checkpointing=False, **QUIET
        ),
        train_dataset=Dataset.from_dict({"text": sentences(16)}),
        processing_class=tokenizer(),
        distiller=distiller,
    )
    before = copy.deepcopy(dict(distiller.named_parameters()))
    trainer.train()
    changed = moved(before, distiller)
    assert {n for n in before if not n.startswith("student.")} <= changed
    assert "student.lm_head.weight" in changed
    logged = trainer.state.log_history[0]
    parts = sum(value for name, value in logged.items() if name == "task" or name.startswith("model.layers.1"))
    assert logged["loss"] == pytest.approx(parts, rel=1e-3)
    trainer.save_model(tmp_path / "out")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    for name, value in student.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)


def sentence_student(folder):
    bert(seed=1, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0).save_pretrained(folder / "bert")
    tokenizer().save_pretrained(folder / "bert")
    return SentenceTransformer(modules=[Transformer(str(folder / "bert")), Pooling(16)], device="cpu")


def sentence_trainer(folder, student, distiller, **options):
    return distillation_trainer(SentenceTransformerTrainer)(
        model=student,
        args=SentenceTransformerTrainingArguments(str(folder), **{**QUIET, **options}),
        train_dataset=Dataset.from_dict({"anchor": sentences(32)[:16], "positive": sentences(32)[16:]}),
        loss=losses.MultipleNegativesRankingLoss(student),
        distiller=distiller,
    )


def column(name):
    return lambda batch: {part: batch[f"{name}_{part}"] for part in ("input_ids", "attention_mask")}


def test_over_sentence_transformers(tmp_path):
    """A ranking loss runs the student once per column; features are distilled on the column that was named."""
    student, teacher = sentence_student(tmp_path), bert(24, 4, seed=2)
    distiller = Distiller(
        student,
        teacher,
        [(Tap("", output="sentence_embedding"), Tap("", token=0))],
        ["gssf", "cosine"],
        student_inputs=lambda batch: {"input": column("anchor")(batch)},
        teacher_inputs=column("anchor"),
        task_weight=1.0,
    )
    trainer = sentence_trainer(tmp_path, student, distiller)
    before = copy.deepcopy(dict(distiller.named_parameters()))
    trainer.train()
    changed = moved(before, distiller)
    assert {n for n in before if not n.startswith("student.")} <= changed
    assert any(name.startswith("student.") for name in changed)
    logged = trainer.state.log_history[0]
    parts = sum(value for name, value in logged.items() if name == "task" or name.startswith("output"))
    assert logged["loss"] == pytest.approx(parts, rel=1e-3)
    assert logged["task"] > 0
    trainer.save_model(str(tmp_path / "out"))
    again = SentenceTransformer(str(tmp_path / "out"), device="cpu")
    texts = sentences(3)
    torch.testing.assert_close(torch.tensor(again.encode(texts)), torch.tensor(student.encode(texts)))


def test_sentence_transformers_resume(tmp_path):
    """Student, metric and projector come back; three steps straight are two and then one."""
    results = []
    for folder, options in (("a", {"save_strategy": "steps", "save_steps": 2}), ("b", {})):
        (tmp_path / folder).mkdir()
        student = sentence_student(tmp_path / folder).train()
        distiller = Distiller(
            student,
            bert(24, 4, seed=2),
            [(Tap("", output="sentence_embedding"), Tap("", token=0))],
            ["gssf", "cosine"],
            student_inputs=lambda batch: {"input": column("anchor")(batch)},
            teacher_inputs=column("anchor"),
        )
        trainer = sentence_trainer(tmp_path / folder, student, distiller, **options)
        trainer.train(resume_from_checkpoint=str(tmp_path / "a/checkpoint-2") if folder == "b" else None)
        results.append(distiller.state_dict())
    for name, value in results[0].items():
        torch.testing.assert_close(results[1][name], value, msg=name)


def test_a_loss_of_several_forwards_without_student_inputs_is_refused(tmp_path):
    student = sentence_student(tmp_path)
    inner = [(Tap("0.model.encoder.layer.1", token=0), Tap("", token=0))]
    distiller = Distiller(student, bert(24, 4, seed=2), inner, "gssf", teacher_inputs=column("anchor"), task_weight=1.0)
    with pytest.raises((ArgumentError, TypeError), match="student_inputs|missing 1 required positional argument"):
        sentence_trainer(tmp_path, student, distiller).train()
