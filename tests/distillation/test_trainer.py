"""DistillationTrainer: the Trainer contract (F16), parts that train, columns, logs, saving, resuming, other bases."""

import logging

import pytest
import torch
from datasets import Dataset
from distillation.models import bert, text
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModel, LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from gssf_plug.distillation import DistillationTrainer, Distiller, Tap, distillation_trainer, precompute
from gssf_plug.errors import ArgumentError

PAIR = {"encoder.layer.1": "encoder.layer.3"}


def dataset(count=16, **columns):
    batch = text(count)
    return Dataset.from_dict({**{name: value.tolist() for name, value in batch.items()}, **columns})


def arguments(folder, **options):
    defaults = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 4,
        "max_steps": 4,
        "learning_rate": 1e-2,
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "save_strategy": "no",
        "logging_steps": 2,
        "dataloader_pin_memory": False,
    }
    return TrainingArguments(**{**defaults, **options})


def quiet_bert(width=16, layers=2, seed=1):
    return bert(width, layers, seed, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)


def build(folder, loss="mse", base=DistillationTrainer, data=None, distiller=None, **options):
    student, teacher = quiet_bert(), quiet_bert(24, 4, seed=2)
    distiller = distiller or Distiller(student, teacher, PAIR, loss)
    return base(
        model=distiller.student,
        args=arguments(folder, **options),
        train_dataset=data or dataset(),
        eval_dataset=dataset(8),
        distiller=distiller,
    )


def test_everything_beside_the_student_trains(tmp_path):
    trainer = build(tmp_path, ["gssf", "mse", "vid"])
    before = {name: p.detach().clone() for name, p in trainer.distiller.named_parameters()}
    trainer.train()
    moved = {n for n, p in trainer.distiller.named_parameters() if not torch.equal(p, before[n])}
    beside = {n for n in before if not n.startswith("student.")}
    assert len(beside) == 5  # the projector is one for both
    assert beside <= moved
    assert any(n.startswith("student.encoder.layer.1") for n in moved)
    held = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    assert {id(p) for p in trainer.distiller.parameters() if p.requires_grad} == held
    assert trainer.model is trainer.distiller.student


def test_metrics_are_never_decayed_towards_zero(tmp_path):
    trainer = build(tmp_path, ["gssf", "mse"], weight_decay=0.1)
    trainer.create_optimizer()
    decayed = {id(p) for group in trainer.optimizer.param_groups if group["weight_decay"] for p in group["params"]}
    assert id(trainer.distiller.projectors[0].weight) in decayed
    assert not decayed & {id(p) for p in trainer.distiller.losses.parameters()}


def first_gradient(trainer):
    """Gradients of the first optimizer step."""
    found = {}

    def keep(*_):
        if not found:
            named = trainer.distiller.named_parameters()
            found.update({n: p.grad.clone() for n, p in named if p.grad is not None})

    trainer.create_optimizer()
    trainer.optimizer.register_step_pre_hook(keep)
    trainer.train()
    return found


@pytest.mark.parametrize("loss", ["mse", "cosine"])
def test_accumulation_is_the_large_batch_for_losses_per_example(tmp_path, loss):
    options = {"max_steps": 1, "max_grad_norm": 0.0}
    whole = first_gradient(build(tmp_path, loss, per_device_train_batch_size=16, **options))
    split = first_gradient(build(tmp_path, loss, gradient_accumulation_steps=4, **options))
    assert whole.keys() == split.keys()
    for name, gradient in whole.items():
        torch.testing.assert_close(split[name], gradient, atol=1e-6, rtol=1e-4, msg=name)
    assert max(gradient.abs().max() for gradient in whole.values()) > 1e-3


def test_relational_losses_say_that_accumulation_is_not_the_large_batch(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, logger="gssf_plug"):
        build(tmp_path, "mse", gradient_accumulation_steps=2)
        assert not caplog.records
        build(tmp_path, "gssf", gradient_accumulation_steps=2)
    assert "['Relation'] compares the examples of one micro-batch only" in caplog.text


def test_logs_each_part_and_evaluates_without_labels(tmp_path):
    trainer = build(tmp_path, ["gssf", "mse"])
    trainer.train()
    measured = trainer.evaluate()
    logged = trainer.state.log_history[0]
    total = logged["encoder.layer.1:gssf"] + logged["encoder.layer.1:mse"]
    assert logged["loss"] == pytest.approx(total, rel=1e-3)
    assert measured["eval_loss"] > 0
    last = trainer.state.log_history[-1]
    parts = last["eval_encoder.layer.1:gssf"] + last["eval_encoder.layer.1:mse"]
    assert last["eval_loss"] == pytest.approx(parts, rel=1e-3)


def test_the_teacher_gets_its_columns(tmp_path):
    """Trainer drops what the student does not take; the teacher's columns stay, others go."""
    other = text(16, seed=9)
    data = dataset(
        teacher_input_ids=other["input_ids"].tolist(),
        teacher_attention_mask=other["attention_mask"].tolist(),
        note=list(range(16)),
    )
    seen = []
    teacher = quiet_bert(24, 4, seed=2)
    teacher.register_forward_pre_hook(lambda _, args, kwargs: seen.append(kwargs), with_kwargs=True)
    distiller = Distiller(quiet_bert(), teacher, PAIR, "mse")
    trainer = build(tmp_path, data=data, distiller=distiller, max_steps=1)
    trainer.train()
    taken = {tuple(row) for row in other["input_ids"].tolist()}
    assert len(seen) >= 2
    assert all(tuple(row) in taken for call in seen for row in call["input_ids"].tolist())
    assert "note" not in next(iter(trainer.get_train_dataloader()))


def test_save_model_writes_a_plain_student(tmp_path):
    trainer = build(tmp_path, ["gssf", "mse"])
    trainer.train()
    trainer.save_model(tmp_path / "out")
    loaded = AutoModel.from_pretrained(tmp_path / "out", add_pooling_layer=False)
    assert loaded.state_dict().keys() == trainer.model.state_dict().keys()
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)
    assert sorted(p.name for p in (tmp_path / "out/distillation").iterdir()) == ["config.json", "model.safetensors"]
    assert not any("teacher" in str(path) for path in (tmp_path / "out").rglob("*"))


def test_resume_restores_everything(tmp_path):
    whole = build(tmp_path / "a", ["gssf", "mse"], max_steps=4, save_strategy="steps", save_steps=2)
    whole.train()
    resumed = build(tmp_path / "b", ["gssf", "mse"], max_steps=4)
    with torch.no_grad():
        for parameter in resumed.distiller.parameters():
            parameter.mul_(1.5)
    resumed.train(resume_from_checkpoint=str(tmp_path / "a/checkpoint-2"))
    for name, value in whole.distiller.state_dict().items():
        torch.testing.assert_close(resumed.distiller.state_dict()[name], value, msg=name)


def test_the_best_model_comes_back_whole(tmp_path):
    trainer = build(
        tmp_path,
        ["gssf", "mse"],
        save_strategy="steps",
        save_steps=2,
        eval_strategy="steps",
        eval_steps=2,
        load_best_model_at_end=True,
        learning_rate=0.5,
    )
    trainer.train()
    assert trainer.state.best_model_checkpoint
    assert trainer.evaluate()["eval_loss"] == pytest.approx(trainer.state.best_metric, rel=1e-4)


def test_another_trainer_underneath_keeps_its_loss(tmp_path):
    class TaskTrainer(Trainer):
        calls = 0

        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            TaskTrainer.calls += 1
            outputs = model(**inputs)
            loss = outputs.last_hidden_state.square().mean()
            return (loss, outputs) if return_outputs else loss

    student, teacher = quiet_bert(), quiet_bert(24, 4, seed=2)
    distiller = Distiller(student, teacher, PAIR, "mse", task_weight=0.5)
    made = distillation_trainer(TaskTrainer)
    trainer = build(tmp_path, base=made, distiller=distiller, logging_steps=1, max_steps=2)
    assert made.__name__ == "DistillationTaskTrainer"
    trainer.train()
    assert TaskTrainer.calls == 2
    logged = trainer.state.log_history[0]
    assert logged["loss"] == pytest.approx(logged["encoder.layer.1"] + 0.5 * logged["task"], rel=1e-3)


def test_trains_from_a_cache_without_a_teacher(tmp_path):
    """The same student as with the teacher online; the rows find their features in any order."""
    weights = []
    for cached in (False, True):
        teacher, data = quiet_bert(24, 4, seed=2), dataset()
        if cached:
            stack = lambda rows: {name: torch.tensor([row[name] for row in rows]) for name in rows[0]}  # noqa: E731
            source = precompute(teacher, [Tap("encoder.layer.3")], data, tmp_path / "cache", collate=stack)
            data = source.attach(data)
        else:
            source = teacher
        trainer = build(tmp_path, distiller=Distiller(quiet_bert(), source, PAIR, "gssf"), data=data)
        trainer.eval_dataset = None
        trainer.train()
        weights.append(trainer.model.state_dict())
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, atol=1e-5, rtol=1e-4, msg=name)


def test_a_loss_that_runs_the_student_twice_is_refused(tmp_path):
    class Twice(Trainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            loss = model(**inputs).last_hidden_state.mean() + model(**inputs).last_hidden_state.mean()
            return (loss, {}) if return_outputs else loss

    distiller = Distiller(quiet_bert(), quiet_bert(24, 4, seed=2), PAIR, "mse", task_weight=0.5)
    trainer = build(tmp_path, base=distillation_trainer(Twice), distiller=distiller)
    with pytest.raises(ArgumentError, match="`run` must run the student once a step.* but got 2 forwards"):
        trainer.train()


def test_a_last_batch_of_one_is_found_before_training(tmp_path):
    with pytest.raises(ArgumentError, match="`train_dataset` must not end in a batch of one example.* but got 13 exam"):
        build(tmp_path, "gssf", data=dataset(13))
    with pytest.raises(ArgumentError, match=r"`eval_dataset` must not end.* per_device_eval_batch_size"):
        build(tmp_path, "gssf", per_device_eval_batch_size=7)
    build(tmp_path, "mse", data=dataset(13), per_device_eval_batch_size=7)
    build(tmp_path, "gssf", data=dataset(13), dataloader_drop_last=True).train()


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_changes_nothing(tmp_path, reentrant):
    """On the output of a block, both modes give the weights of a run without."""
    weights = []
    for options in ({}, {"activation_checkpointing": True}):
        kind = {"activation_checkpointing_kwargs": {"use_reentrant": reentrant}} if options else {}
        trainer = build(tmp_path, ["gssf", "mse"], **options, **kind)
        trainer.train()
        weights.append(trainer.distiller.state_dict())
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, msg=name)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft 0.21
def test_a_student_with_adapters(tmp_path):
    """Only LoRA's weights of the student train; the adapter alone is saved, and comes back."""
    student = get_peft_model(quiet_bert(), LoraConfig(target_modules=["query"]))
    distiller = Distiller(student, quiet_bert(24, 4, seed=2), PAIR, ["gssf", "cosine"])
    trainer = build(tmp_path, distiller=distiller)
    before = {name: p.detach().clone() for name, p in distiller.named_parameters()}
    trainer.train()
    moved = {name for name, p in distiller.named_parameters() if not torch.equal(p, before[name])}
    assert {n for n in before if n.startswith(("losses", "projectors"))} <= moved
    assert {n for n in moved if n.startswith("student")}
    assert all("lora" in name for name in moved if name.startswith("student"))
    trainer.save_model(tmp_path / "out")
    assert (tmp_path / "out/adapter_model.safetensors").is_file()
    again = PeftModel.from_pretrained(quiet_bert(), tmp_path / "out").eval()
    torch.testing.assert_close(again(**text()).last_hidden_state, student.eval()(**text()).last_hidden_state)


def test_an_optimizer_without_the_parts_is_refused(tmp_path):
    student, teacher = quiet_bert(), quiet_bert(24, 4, seed=2)
    distiller = Distiller(student, teacher, PAIR, ["gssf", "mse"])
    distiller.plan(text())
    build_one = lambda parameters: DistillationTrainer(  # noqa: E731
        model=student,
        args=arguments(tmp_path, max_steps=1),
        train_dataset=dataset(),
        distiller=distiller,
        optimizers=(torch.optim.SGD(parameters, lr=0.1), None),
    )
    with pytest.raises(ArgumentError, match=r"`optimizers` must hold the projectors and metrics.*losses\.0\.metric"):
        build_one(student.parameters()).train()
    before = distiller.projectors[0].weight.detach().clone()
    build_one(distiller.parameters()).train()
    assert not torch.equal(distiller.projectors[0].weight, before)


def test_refusals(tmp_path):
    distiller = Distiller(quiet_bert(), quiet_bert(24, 4, seed=2), PAIR, "mse")
    with pytest.raises(ArgumentError, match="`model` must be the distiller's student, but got another model"):
        DistillationTrainer(model=quiet_bert(), args=arguments(tmp_path), train_dataset=dataset(), distiller=distiller)
    with pytest.raises(ArgumentError, match="`distiller` must be planned where the Trainer gets no data"):
        DistillationTrainer(model=distiller.student, args=arguments(tmp_path), distiller=distiller)


def evaluated(folder, *, columns, before=None, sets=None):
    """The loss of an evaluation whose rows hold the teacher's own inputs."""
    other = text(8, seed=9)
    own = {"teacher_input_ids": other["input_ids"].tolist(), "teacher_attention_mask": other["attention_mask"].tolist()}
    rows = dataset(8, **(own if columns else {}))
    trainer = build(folder, data=dataset(16))
    trainer.distiller.load_state_dict(fixed_parts(trainer.distiller))
    if before == "train":
        trainer.get_train_dataloader()
    return trainer, rows


def fixed_parts(distiller):
    torch.manual_seed(5)
    return {name: torch.randn_like(value) * 0.1 for name, value in distiller.state_dict().items()}


@pytest.mark.parametrize("before", [None, "train"])
@pytest.mark.parametrize("named", [False, True])
def test_the_teachers_columns_follow_the_data_that_is_read(tmp_path, before, named):
    """With or without training first, and where the training set lacks a column that the evaluated set has."""
    trainer, rows = evaluated(tmp_path, columns=True, before=before)
    measured = trainer.evaluate({"a": rows, "b": rows} if named else rows)
    batch = {name: torch.tensor(rows[name]) for name in rows.column_names}
    trainer.distiller.eval()
    with torch.no_grad():
        expected = float(trainer.distiller(batch)["loss"])
        wrong = float(trainer.distiller({n: v for n, v in batch.items() if not n.startswith("teacher")})["loss"])
    assert abs(expected - wrong) > 1e-4
    for name in ("eval_a_loss", "eval_b_loss") if named else ("eval_loss",):
        assert measured[name] == pytest.approx(expected, rel=1e-5)


def test_rows_of_a_list_keep_the_teachers_columns_too(tmp_path):
    trainer, rows = evaluated(tmp_path, columns=True)
    trainer.args.per_device_eval_batch_size = 8
    assert trainer.evaluate(list(rows.with_format("torch")))["eval_loss"] == pytest.approx(
        trainer.evaluate(rows)["eval_loss"], rel=1e-5
    )


class Pair(torch.nn.Module):
    """Returns what a student with `return_dict=False` or a hand-written one returns."""

    def __init__(self, form):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head, self.form = quiet_bert(), torch.nn.Linear(16, 3), form

    def forward(self, input_ids, attention_mask, labels=None):
        logits = self.head(self.body(input_ids, attention_mask).last_hidden_state[:, 0])
        loss = None if labels is None else torch.nn.functional.cross_entropy(logits, labels)
        forms = {
            "dict": {"logits": logits} if loss is None else {"loss": loss, "logits": logits},
            "tuple": (logits,) if loss is None else (loss, logits),
            "tensor": logits,
        }
        return forms[self.form]


@pytest.mark.parametrize("task_weight", [0.0, 1.0])
@pytest.mark.parametrize("form", ["dict", "tuple", "tensor"])
@pytest.mark.parametrize("labelled", [True, False])
def test_predictions_are_those_of_a_plain_trainer(tmp_path, form, task_weight, labelled):
    if task_weight and not (labelled and form != "tensor"):
        return  # such a student has no loss of its own
    student = Pair(form)
    data = dataset(8, **({"labels": [0, 1, 2, 0, 1, 2, 0, 1]} if labelled else {}))
    pairs = {"body.encoder.layer.1": "encoder.layer.3"}
    distiller = Distiller(student, quiet_bert(24, 4, seed=2), pairs, "mse", task_weight=task_weight)
    trainer = DistillationTrainer(
        model=student, args=arguments(tmp_path), train_dataset=data, eval_dataset=data, distiller=distiller
    )
    found = trainer.predict(data)
    with torch.no_grad():
        batch = {name: torch.tensor(data[name]) for name in ("input_ids", "attention_mask")}
        expected = student.eval().head(student.body(**batch).last_hidden_state[:, 0])
    torch.testing.assert_close(torch.as_tensor(found.predictions), expected, atol=1e-5, rtol=1e-5)
    assert found.metrics["test_loss"] > 0


def ragged_llama(folder, trainer_class, **options):
    torch.manual_seed(3)
    settings = {"vocab_size": 40, "num_attention_heads": 2, "num_key_value_heads": 1, "pad_token_id": 0}
    student = LlamaForCausalLM(LlamaConfig(hidden_size=16, num_hidden_layers=2, intermediate_size=32, **settings))
    teacher = LlamaForCausalLM(LlamaConfig(hidden_size=24, num_hidden_layers=2, intermediate_size=32, **settings))
    ids = torch.randint(1, 40, (8, 12), generator=torch.Generator().manual_seed(1))
    kept = torch.arange(12) < torch.tensor([2, 3, 12, 4, 2, 11, 5, 2])[:, None]
    data = Dataset.from_dict({"input_ids": ids.tolist(), "labels": torch.where(kept, ids, -100).tolist()})
    more = {}
    if trainer_class is not Trainer:
        pairs = {"model.layers.1": "model.layers.1"}
        more["distiller"] = Distiller(student, teacher, pairs, "mse", task_weight=1.0, **options)
    args = arguments(
        folder,
        max_steps=1,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=8,
        optim="sgd",
        max_grad_norm=0.0,
        logging_steps=1,
    )
    return student, trainer_class(model=student, args=args, train_dataset=data, **more)


def student_step(student, trainer):
    before = {name: p.detach().clone() for name, p in student.named_parameters()}
    trainer.train()
    return {name: before[name] - p.detach() for name, p in student.named_parameters()}, trainer.state.log_history[0]


def test_the_task_loss_is_the_token_mean_of_the_whole_step(tmp_path):
    """Eight micro-batches of ragged labels: gradients and logged loss of plain Trainer."""
    plain, plain_log = student_step(*ragged_llama(tmp_path, Trainer))
    ours, our_log = student_step(*ragged_llama(tmp_path, DistillationTrainer, weight=0.0))
    for name, step in plain.items():
        torch.testing.assert_close(ours[name], step, atol=1e-7, rtol=1e-5, msg=name)
    assert our_log["task"] == pytest.approx(plain_log["loss"], rel=1e-5)
    assert our_log["loss"] == pytest.approx(plain_log["loss"], rel=1e-5)
    both, log = student_step(*ragged_llama(tmp_path, DistillationTrainer, weight=1.0))
    assert log["loss"] == pytest.approx(log["task"] + log["model.layers.1"], rel=1e-4)
    assert any(not torch.allclose(both[name], step) for name, step in plain.items())
