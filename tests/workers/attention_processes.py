"""Run by test_processes.py in two processes: DDP and FSDP2 on a patched model against one process."""

import copy
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

sys.path.insert(0, str(Path(__file__).parents[1]))

from attention.patching import hidden, perturb
from attention.small_models import small_llama

from gssf_plug.attention import AttentionPatch, load_attention, patch_attention
from gssf_plug.errors import ArgumentError

IDS = torch.randint(64, (4, 9), generator=torch.Generator().manual_seed(3))


def make(sites):
    """The same patched model in every process."""
    model = small_llama()
    patch = patch_attention(model, block_size=4, sites=sites)
    torch.manual_seed(5)
    perturb(patch)
    return model, patch


def loss(model, ids):
    return model(input_ids=ids, labels=ids, use_cache=False).loss


def gradients(patch):
    return {name: parameter.grad for name, parameter in patch.named_parameters()}


def agree(found, expected):
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert gradient.abs().max() > 1e-6, name
        got = found[name].full_tensor() if hasattr(found[name], "full_tensor") else found[name]
        torch.testing.assert_close(got, gradient, atol=1e-6, rtol=1e-4, msg=lambda m, name=name: f"{name}: {m}")


def with_ddp(sites, own):
    """Gradients of the own half, averaged by DDP, are those of one process on the whole batch."""
    model, patch = make(sites)
    alone = copy.deepcopy(model)
    loss(alone, IDS).backward()
    patch.freeze_base()
    wrapped = DistributedDataParallel(model)
    loss(wrapped, IDS[own]).backward()
    agree(gradients(patch), gradients(AttentionPatch(alone)))


def with_a_second_adapter(sites, own):
    """DDP waits for every parameter that asks for a gradient: the adapter that rests asks for none, until it acts."""
    model, patch = make(sites)
    patch = patch_attention(model, block_size=4, sites=sites, adapter_name="second")
    patch.freeze_base()
    wrapped = DistributedDataParallel(model)
    for _ in range(2):
        loss(wrapped, IDS[own]).backward()
    assert all(parameter.grad is not None for parameter in patch.parameters("second"))
    assert all(parameter.grad is None for parameter in patch.parameters("default"))
    patch.set_adapter("default")
    assert all(parameter.requires_grad for parameter in patch.parameters("default"))
    assert not any(parameter.requires_grad for parameter in patch.parameters("second"))
    loss(DistributedDataParallel(model), IDS[own]).backward()


def split_afterwards(sites):
    """Tensor parallel after patching: a refusal in words, not torch's "mixed torch.Tensor and DTensor"."""
    model, _ = make(sites)
    mesh = init_device_mesh("cpu", (2,))
    parallelize_module(model.model.layers[0].self_attn, mesh, {"q_proj": ColwiseParallel()})
    refused(lambda: hidden(model, IDS), "not be split over devices")


def with_fsdp(sites, own, folder):
    """Sharded like any parameter: outputs, gradients, the full state dict, and the adapter's files."""
    model, patch = make(sites)
    alone = copy.deepcopy(model)
    expected = hidden(alone, IDS)
    loss(alone, IDS).backward()
    for layer in model.model.layers:
        fully_shard(layer)
    fully_shard(model)
    torch.testing.assert_close(hidden(model, IDS), expected, atol=1e-6, rtol=1e-5)
    assert all(hasattr(parameter, "full_tensor") for parameter in patch.parameters())
    loss(model, IDS[own]).backward()
    agree(gradients(patch), gradients(AttentionPatch(alone)))
    whole = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))
    if dist.get_rank() == 0:
        assert whole.keys() == alone.state_dict().keys()
        assert all(torch.equal(value, alone.state_dict()[name]) for name, value in whole.items())

    patch.save_pretrained(folder / sites)
    fresh = small_llama()
    load_attention(fresh, folder / sites)
    torch.testing.assert_close(hidden(fresh, IDS), expected, atol=1e-6, rtol=1e-5)

    with torch.no_grad():
        for parameter in patch.parameters():
            parameter.mul_(0.5)
    assert not torch.allclose(hidden(model, IDS), expected, atol=1e-3)
    load_attention(model, folder / sites, hot_swap=True)
    torch.testing.assert_close(hidden(model, IDS), expected, atol=1e-6, rtol=1e-5)
    with patch.disabled():
        torch.testing.assert_close(hidden(model, IDS), hidden(small_llama(), IDS), atol=1e-6, rtol=1e-5)


def too_late(sites):
    """What is sharded already is refused in words, and so is merging it; nothing hangs and nothing changes."""
    plain = small_llama()
    keys = list(plain.state_dict())
    fully_shard(plain)
    refused(lambda: patch_attention(plain, block_size=4, sites=sites), "be patched before it is sharded")
    assert list(plain.state_dict()) == keys
    model, patch = make(sites)
    fully_shard(model)
    refused(patch.merge, "weights are sharded over processes")


def refused(call, words):
    with pytest.raises(ArgumentError, match=words):
        call()


def main(folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    assert dist.get_world_size() == 2
    own = slice(2 * dist.get_rank(), 2 * dist.get_rank() + 2)
    for sites in ("projection", "score"):
        with_ddp(sites, own)
        with_a_second_adapter(sites, own)
        with_fsdp(sites, own, Path(folder))
        too_late(sites)
    split_afterwards("projection")
    if dist.get_rank() == 0:
        print("2 processes agree")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
