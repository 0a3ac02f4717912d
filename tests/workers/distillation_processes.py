"""Run by test_processes.py in two processes: gradients under DDP against one process that holds the whole batch.

Here of masked tokens of a real student, by hand and by the Trainer; every loss stands in test_equality.py.
"""

import copy
import sys
import warnings
from pathlib import Path

import torch
import torch.distributed as dist
from datasets import Dataset
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.fsdp.wrap import ModuleWrapPolicy
from torch.nn.parallel import DistributedDataParallel
from transformers import TrainingArguments

sys.path.insert(0, str(Path(__file__).parents[1]))

from distillation.models import bert, text

from gssf_plug.distillation import DistillationTrainer, Distiller, FeatureTaps
from gssf_plug.distributed import process_count

RELATIONAL, PER_EXAMPLE = ("gssf", "crd"), ("mse", "cosine")


def make(loss):
    student = bert(seed=1, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    distiller = Distiller(student, bert(24, 4, seed=2), {"encoder.layer.0": "encoder.layer.3"}, loss)
    torch.manual_seed(3)
    distiller.plan(text(8))
    with torch.no_grad():
        for parameter in distiller.losses.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return distiller.train()


def by_hand(loss, own):
    """Gradients on the own rows under DDP; the student's upper layer gets none, as is usual with taps."""
    distiller = make(loss)
    alone = copy.deepcopy(distiller)
    wrapped = DistributedDataParallel(distiller, find_unused_parameters=True)
    wrapped({name: value[own] for name, value in text(8).items()})["loss"].backward()
    return distiller, alone


def whole_batch(alone):
    """One process: the same loss without a process group."""
    module = sys.modules["gssf_plug.distributed"]
    count, module.process_count = module.process_count, lambda: 1
    try:
        alone(text(8))["loss"].backward()
    finally:
        module.process_count = count


def compare(name, distiller, alone):
    expected = {n: p.grad for n, p in alone.named_parameters() if p.grad is not None}
    found = {n: p.grad for n, p in distiller.named_parameters() if p.grad is not None and p.grad.any()}
    assert found.keys() == {n for n, grad in expected.items() if grad.any()}, name
    assert max(grad.abs().max() for grad in expected.values()) > 1e-4, name
    for key, grad in found.items():
        torch.testing.assert_close(
            grad, expected[key], atol=2e-6, rtol=2e-4, msg=lambda m, key=key: f"{name} {key} {m}"
        )


def with_trainer(folder, **options):
    """One SGD step of DistillationTrainer, four rows on each process, is the step of the whole batch.

    With `bf16` within its rounding: a tenth of each gradient's length.
    """
    distiller = make(["gssf", "mse"])
    alone = copy.deepcopy(distiller)
    args = TrainingArguments(
        output_dir=folder,
        per_device_train_batch_size=4,
        max_steps=1,
        learning_rate=0.5,
        optim="sgd",
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
        report_to="none",
        use_cpu=True,
        ddp_backend="gloo",
        save_strategy="no",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        **options,
    )
    data = Dataset.from_dict({name: value.tolist() for name, value in text(8).items()})
    trainer = DistillationTrainer(model=distiller.student, args=args, train_dataset=data, distiller=distiller)
    assert trainer.accelerator.num_processes == 2
    before = {name: p.detach().clone() for name, p in distiller.named_parameters()}
    trainer.train()
    assert isinstance(trainer.model_wrapped, DistributedDataParallel)
    whole_batch(alone)
    for name, parameter in alone.named_parameters():
        if parameter.grad is not None:
            moved = (before[name] - dict(distiller.named_parameters())[name]) / 0.5
            if "bf16" in options:
                assert (moved - parameter.grad).norm() <= 0.1 * parameter.grad.norm() + 1e-3, name
            else:
                torch.testing.assert_close(moved, parameter.grad, atol=2e-6, rtol=2e-4)


def with_fsdp():
    """Taps on a fully sharded student: the same features and, gathered, the same gradients."""
    plain = bert(seed=1, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    sharded = copy.deepcopy(plain)
    for layer in sharded.encoder.layer:
        fully_shard(layer)
    fully_shard(sharded)
    features, gradients = [], []
    for model in (plain, sharded):
        with FeatureTaps(model, ["encoder.layer.0"]) as taps:
            model(**text(8))
            features.append(taps["encoder.layer.0"].tensor)
            features[-1].square().mean().backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    torch.testing.assert_close(features[1], features[0])
    assert gradients[0].keys() <= gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name].full_tensor(), gradient, atol=1e-6, rtol=1e-4, msg=name)


def with_fsdp1():
    """Taps resolved on a model that is wrapped already, in every block, read the same features."""
    plain = bert(seed=1, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    policy = ModuleWrapPolicy({type(plain.encoder.layer[0])})
    sharded = FullyShardedDataParallel(copy.deepcopy(plain), auto_wrap_policy=policy, device_id=torch.device("cpu"))
    with FeatureTaps(plain, ["encoder.layer.*"]) as ours, FeatureTaps(sharded, ["encoder.layer.*"]) as theirs:
        plain(**text(8))
        sharded(**text(8))
        assert list(theirs.features) == ["encoder.layer.0", "encoder.layer.1"]
        for name, feature in ours.features.items():
            torch.testing.assert_close(theirs[name].tensor, feature.tensor)


def main(folder):
    dist.init_process_group("gloo")
    assert process_count() == 2
    rank = dist.get_rank()
    for own in (slice(0, 4), slice(4, 8)), (slice(0, 5), slice(5, 8)):
        even = own[0].stop == 4  # uneven: DDP weighs processes alike, so means per example differ
        for loss in RELATIONAL + (PER_EXAMPLE if even else ()):
            distiller, alone = by_hand(loss, own[rank])
            whole_batch(alone)
            compare(loss, distiller, alone)
    with_fsdp()
    with_fsdp1()
    with_trainer(folder)
    with_trainer(folder, activation_checkpointing=True)
    with_trainer(folder, torch_compile=True, torch_compile_backend="eager")
    with_trainer(folder, bf16=True)
    dist.barrier()
    if rank == 0:
        print("2 processes agree")
    dist.destroy_process_group()


if __name__ == "__main__":
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", message="find_unused_parameters=True was specified")
    warnings.filterwarnings("ignore", message=".*FullyShardedDataParallel")
    main(sys.argv[1])
