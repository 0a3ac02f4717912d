"""distillation_trainer over the Trainers that people have: TRL's SFTTrainer and SentenceTransformerTrainer."""

import copy
from typing import ClassVar

import pytest
import torch
from datasets import Dataset
from distillation.models import bert, images, text
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.base.modules import InputModule
from sentence_transformers.sentence_transformer import losses
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    TrainingArguments,
)
from trl import SFTConfig, SFTTrainer

from gssf_plug.distillation import DistillationTrainer, Distiller, Tap, distillation_trainer
from gssf_plug.errors import ArgumentError
from gssf_plug.features import mean_pool

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


def two_towers(width, seed):
    torch.manual_seed(seed)
    sizes = {"hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": 2, "num_attention_heads": 2}
    texts = {"vocab_size": 50, "max_position_embeddings": 16, "eos_token_id": 49, **sizes}
    sights = {"image_size": 16, "patch_size": 4, **sizes}
    return CLIPModel(CLIPConfig(text_config=texts, vision_config=sights, projection_dim=width))


def image_text_pairs(count=16):
    captions = {name: value.tolist() for name, value in text(count).items()}
    return Dataset.from_dict({**captions, "pixel_values": images(count)["pixel_values"].tolist()})


EMBEDS = [(Tap("", output=name), Tap("", output=name)) for name in ("image_embeds", "text_embeds")]


def test_two_towers_into_two_towers(tmp_path):
    """Image and text pairs together: from the plan to a saved plain student."""
    student, teacher, data = two_towers(16, 1), two_towers(24, 2), image_text_pairs()
    distiller = Distiller(student, teacher, EMBEDS, ["gssf", "mse"])
    args = TrainingArguments(str(tmp_path), **QUIET)
    trainer = DistillationTrainer(model=student, args=args, train_dataset=data, distiller=distiller)
    before = copy.deepcopy(dict(distiller.named_parameters()))
    trainer.train()
    changed = moved(before, distiller)
    assert {n for n in before if not n.startswith("student.")} <= changed
    assert {"student.text_projection.weight", "student.visual_projection.weight"} <= changed
    logged = trainer.state.log_history[0]
    names = [f"{side}<-{side}:{loss}" for side in ("image_embeds", "text_embeds") for loss in ("gssf", "mse")]
    assert logged["loss"] == pytest.approx(sum(logged[name] for name in names), rel=1e-3)
    trainer.save_model(tmp_path / "out")
    loaded = CLIPModel.from_pretrained(tmp_path / "out").state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in student.state_dict().items())


class TwoTowers(InputModule):
    """A sentence-transformers module around a CLIP-like model: the embedding of images, of texts, or of pairs both."""

    config_keys: ClassVar = []

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, features, **kwargs):
        taken = {n: features[n] for n in ("input_ids", "attention_mask", "pixel_values") if n in features}
        if len(taken) == 3:
            found = self.model(**taken)
            return {**features, "image_embeds": found.image_embeds, "text_embeds": found.text_embeds}
        side = self.model.get_text_features if "input_ids" in taken else self.model.get_image_features
        embedding = side(**taken)
        return {**features, "sentence_embedding": getattr(embedding, "pooler_output", embedding)}

    def preprocess(self, inputs, **kwargs):
        if isinstance(inputs[0], str):
            return dict(tokenizer()(list(inputs), padding=True, return_tensors="pt"))
        return {"pixel_values": torch.tensor(inputs)}

    def get_embedding_dimension(self):
        return self.model.config.projection_dim

    def save(self, output_path, *args, **kwargs):
        self.model.save_pretrained(output_path)

    @classmethod
    def load(cls, path, **kwargs):
        return cls(CLIPModel.from_pretrained(path))


INPUTS = {"pixel_values": "image_pixel_values"} | {n: f"caption_{n}" for n in ("input_ids", "attention_mask")}


def test_two_towers_over_sentence_transformers(tmp_path):
    """A ranking loss runs the towers one by one; pairs are distilled in a forward of their own."""
    clip, teacher = two_towers(16, 1), two_towers(24, 2)
    student = SentenceTransformer(modules=[TwoTowers(clip)], device="cpu")
    distiller = Distiller(
        student,
        teacher,
        EMBEDS,
        ["gssf", "mse"],
        student_inputs=lambda batch: {"input": {name: batch[column] for name, column in INPUTS.items()}},
        teacher_inputs=INPUTS,
        task_weight=1.0,
    )
    pairs = {"image": images(16)["pixel_values"].tolist(), "caption": sentences(16)}
    trainer = distillation_trainer(SentenceTransformerTrainer)(
        model=student,
        args=SentenceTransformerTrainingArguments(str(tmp_path), **QUIET),
        train_dataset=Dataset.from_dict(pairs),
        loss=losses.MultipleNegativesRankingLoss(student),
        distiller=distiller,
    )
    before = copy.deepcopy(dict(distiller.named_parameters()))
    trainer.train()
    changed = moved(before, distiller)
    assert {n for n in before if not n.startswith("student.")} <= changed
    assert any("visual_projection" in name for name in changed)
    logged = trainer.state.log_history[0]
    assert logged["task"] > 0
    assert logged["text_embeds<-text_embeds:mse"] > 0
    trainer.save_model(str(tmp_path / "out"))
    folder = next(
        path.parent for path in (tmp_path / "out").rglob("model.safetensors") if "distillation" not in str(path)
    )
    loaded = CLIPModel.from_pretrained(folder).state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in clip.state_dict().items())


def test_the_text_tower_of_a_clip_over_trl_sft(tmp_path):
    """A decoder under SFT's own loss takes the sentence embedding of a CLIP-like teacher along."""
    student = llama(16, 2, 1)
    sizes = {"hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    texts = CLIPTextConfig(vocab_size=50, max_position_embeddings=16, eos_token_id=2, projection_dim=24, **sizes)
    teacher = CLIPTextModelWithProjection(texts)
    pair = (Tap("model.layers.1", pooling=mean_pool), Tap("", output="text_embeds"))
    distiller = Distiller(student, teacher, [pair], ["gssf", "cosine"], task_weight=1.0)
    trainer = distillation_trainer(SFTTrainer)(
        model=student,
        args=SFTConfig(
            str(tmp_path), eos_token="[EOS]", gradient_checkpointing=None, activation_checkpointing=False, **QUIET
        ),
        train_dataset=Dataset.from_dict({"text": sentences(16)}),
        processing_class=tokenizer(),
        distiller=distiller,
    )
    trainer.train()
    logged = trainer.state.log_history[0]
    parts = sum(value for name, value in logged.items() if name == "task" or name.startswith("model.layers.1"))
    assert logged["loss"] == pytest.approx(parts, rel=1e-3)
    trainer.save_model(tmp_path / "out")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").config.hidden_size == 16
