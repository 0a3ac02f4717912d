"""What transformers' Trainer offers: it works around a Distiller, with the same losses, or it is refused by name."""

import inspect
import logging

import pytest
import torch
from distillation.test_trainer import PAIR, arguments, build, dataset, quiet_bert
from transformers import EarlyStoppingCallback, ProgressCallback, Trainer
from transformers.trainer_pt_utils import AcceleratorConfig

from gssf_plug.distillation import DistillationTrainer, Distiller
from gssf_plug.distillation.compatibility import check_arguments
from gssf_plug.errors import ArgumentError

# Options of a run, and how near its losses must be to those of a plain run; None: only that it trains.
SAME = {
    "accumulation of one": ({"gradient_accumulation_steps": 1}, 0.0),
    "activation checkpointing": ({"activation_checkpointing": True}, 1e-6),
    "reentrant": ({"activation_checkpointing": True, "activation_checkpointing_kwargs": {"use_reentrant": True}}, 1e-6),
    "bf16": ({"bf16": True}, 3e-2),
    "workers": ({"dataloader_num_workers": 1}, 0.0),
    "batch metrics": ({"batch_eval_metrics": False, "eval_accumulation_steps": 1}, 0.0),
    "eval on start": ({"eval_on_start": True}, 0.0),
    "every column": ({"remove_unused_columns": False}, 0.0),
    "dispatched": ({"accelerator_config": AcceleratorConfig(dispatch_batches=True)}, 0.0),
    "split": ({"accelerator_config": AcceleratorConfig(split_batches=True)}, 0.0),
    "found batch size": ({"auto_find_batch_size": True}, 0.0),
    "no memory kept": ({"torch_empty_cache_steps": 1}, 0.0),
    "best is saved": (
        {"save_strategy": "best", "eval_strategy": "steps", "eval_steps": 2, "metric_for_best_model": "loss"},
        0.0,
    ),
    "tokens averaged": ({"average_tokens_across_devices": False}, 0.0),
    "no accelerated forward": ({"full_determinism": False, "seed": 42}, 0.0),
    "model only": ({"save_strategy": "steps", "save_steps": 2, "save_only_model": True}, 0.0),
    "noise": ({"neftune_noise_alpha": 5.0}, None),
    "length groups": ({"train_sampling_strategy": "group_by_length"}, None),
    "adafactor": ({"optim": "adafactor"}, None),
    "plateau": ({"lr_scheduler_type": "reduce_lr_on_plateau", "eval_strategy": "steps", "eval_steps": 2}, None),
    "smoothing": ({"label_smoothing_factor": 0.1}, None),
}


def losses(folder, **options):
    trainer = build(folder, ["gssf", "mse"], logging_steps=1, **options)
    trainer.train()
    return trainer, [log["loss"] for log in trainer.state.log_history if "loss" in log]


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return losses(tmp_path_factory.mktemp("plain"))[1]


@pytest.mark.parametrize("name", sorted(SAME))
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_it_works(name, tmp_path, plain):
    options, near = SAME[name]
    _, found = losses(tmp_path, **options)
    assert len(found) == len(plain)
    if near is not None:
        assert found == pytest.approx(plain, rel=near, abs=near or 1e-12)


@pytest.mark.compile
@pytest.mark.filterwarnings("ignore")
def test_a_compiled_run_has_the_same_losses_and_a_plain_student_after_it(tmp_path, plain):
    trainer, found = losses(tmp_path, torch_compile=True, torch_compile_backend="eager")
    assert found == pytest.approx(plain, rel=1e-5)
    assert trainer.model._compiled_call_impl is None
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in trainer.model.modules())


def test_a_batch_that_is_too_large_is_halved(tmp_path):
    trainer = build(tmp_path, "mse", auto_find_batch_size=True)
    sizes, forward = [], trainer.distiller.forward

    def full(batch, **options):
        sizes.append(len(batch["input_ids"]))
        if sizes[-1] > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return forward(batch, **options)

    trainer.distiller.forward = full
    trainer.train()
    assert sizes[0] == 4
    assert set(sizes[1:]) <= {3, 2}
    assert trainer.state.global_step == 4


REFUSED = {
    "n_gpu": ({}, "nn.DataParallel"),
    "use_liger_kernel": ({"use_liger_kernel": True}, r"`args\.use_liger_kernel` must be False"),
    "optim_target_modules": ({"optim_target_modules": ["query"]}, r"`args\.optim_target_modules` must be None"),
    "lomo": ({"optim": "lomo"}, r"`args\.optim` must be an optimizer that steps after backward"),
}


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_does_not_work_is_refused_by_name(name, tmp_path):
    options, message = REFUSED[name]
    args = arguments(tmp_path, **options)
    if name == "n_gpu":
        args._n_gpu = 2
    with pytest.raises(ArgumentError, match=message):
        check_arguments(args, sharded=False)


def test_a_parallel_plan_and_sharding_are_refused(tmp_path):
    args = arguments(tmp_path)
    with pytest.raises(ArgumentError, match="FSDP or DeepSpeed"):
        check_arguments(args, sharded=True)
    args.parallelism_config = object()
    with pytest.raises(ArgumentError, match=r"`args\.parallelism_config` must be None"):
        check_arguments(args, sharded=False)


def test_reentrant_checkpoints_in_several_processes_are_refused(tmp_path, monkeypatch):
    args = arguments(tmp_path, activation_checkpointing_kwargs={"use_reentrant": True})
    check_arguments(args, sharded=False)
    monkeypatch.setattr(type(args), "world_size", 2)
    with pytest.raises(ArgumentError, match=r"`args\.activation_checkpointing_kwargs` must have use_reentrant=False"):
        check_arguments(args, sharded=False)


def test_a_trainer_that_makes_its_own_model_is_refused(tmp_path):
    distiller = Distiller(quiet_bert(), quiet_bert(24, 4, seed=2), PAIR, "mse")
    with pytest.raises(ArgumentError, match="`model_init` must be left out"):
        DistillationTrainer(
            model_init=lambda: distiller.student,
            args=arguments(tmp_path),
            train_dataset=dataset(),
            distiller=distiller,
        )


def test_a_wrong_optimizer_class_still_has_the_parts(tmp_path):
    """`optimizer_cls_and_kwargs` makes the optimizer of the Trainer underneath: projectors and metrics join it."""
    distiller = Distiller(quiet_bert(), quiet_bert(24, 4, seed=2), PAIR, ["gssf", "mse"])
    trainer = DistillationTrainer(
        model=distiller.student,
        args=arguments(tmp_path, max_steps=1),
        train_dataset=dataset(),
        distiller=distiller,
        optimizer_cls_and_kwargs=(torch.optim.SGD, {"lr": 0.1}),
    )
    before = distiller.projectors[0].weight.detach().clone()
    trainer.train()
    assert not torch.equal(distiller.projectors[0].weight, before)


def test_terms_are_told_with_their_weights_and_the_bar_shows_the_loss(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("gssf_plug.distillation.trainer.SHOW_SECONDS", 0.0)
    shown = []
    distiller = Distiller(quiet_bert(), quiet_bert(24, 4, seed=2), PAIR, ["gssf", "mse"], weight=[2.0, 0.5])
    with caplog.at_level(logging.INFO, logger="gssf_plug"):
        trainer = build(tmp_path, distiller=distiller, disable_tqdm=False, logging_steps=1)
    told = [record.getMessage() for record in caplog.records if "distillation term" in record.getMessage()]
    assert told == [
        "distillation term encoder.layer.1:gssf, weight 2",
        "distillation term encoder.layer.1:mse, weight 0.5",
    ]
    bar = next(c for c in trainer.callback_handler.callbacks if isinstance(c, ProgressCallback))
    begin = bar.on_train_begin

    def watched(*args, **kwargs):
        begin(*args, **kwargs)
        monkeypatch.setattr(bar.training_bar, "set_postfix", lambda **numbers: shown.append(numbers["distillation"]))

    bar.on_train_begin = watched
    trainer.train()
    logged = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    assert [float(number) for number in shown] == pytest.approx(logged, rel=1e-3)


def test_other_callbacks_go_along(tmp_path):
    trainer = build(
        tmp_path,
        "mse",
        max_steps=8,
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        load_best_model_at_end=True,
        learning_rate=0.0,
    )
    trainer.add_callback(EarlyStoppingCallback(early_stopping_patience=2))
    trainer.train()
    assert trainer.state.global_step < 8
    assert isinstance(trainer, Trainer)


def test_the_arguments_of_the_trainer_underneath_are_shown():
    """To `help`, editors and the pages: `*args, **kwargs` would say nothing."""
    shown = inspect.signature(DistillationTrainer).parameters
    assert [*shown] == [*list(inspect.signature(Trainer).parameters), "distiller"]
    assert shown["distiller"].kind is inspect.Parameter.KEYWORD_ONLY

    class Own(DistillationTrainer):
        def __init__(self, folder: str) -> None: ...

    class Below(Own):
        """Its constructor is that of the class above it."""

    assert [*inspect.signature(Own).parameters] == [*inspect.signature(Below).parameters] == ["folder"]
