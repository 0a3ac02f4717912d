"""Weights that are not simply there: accelerate's offloading to CPU and disk, in both orders, at both sites."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from accelerate import cpu_offload, disk_offload, dispatch_model
from attention.patching import hidden, perturb
from attention.small_models import IDS, small_bert, small_llama
from torch import Tensor, nn
from transformers import BertModel, LlamaForCausalLM

from gssf_plug.attention import AttentionPatch, load_attention, patch_attention
from gssf_plug.errors import ArgumentError

CPU = torch.device("cpu")
MAPS = {
    "bert": {"embeddings": "cpu", "encoder.layer.0": "cpu", "encoder.layer.1": "disk"},
    "llama": {
        "model.embed_tokens": "cpu", "model.layers.0": "cpu", "model.layers.1": "disk", "model.norm": "cpu",
        "model.rotary_emb": "cpu", "lm_head": "cpu",
    },
}  # fmt: skip
MODELS = {"bert": small_bert, "llama": small_llama}
EVERYWHERE = pytest.mark.parametrize("sites", ["projection", "score"])
EVERY_MODEL = pytest.mark.parametrize("name", MODELS)


def patched(name: str, sites: str) -> tuple[nn.Module, AttentionPatch, Tensor]:
    model = MODELS[name]()
    patch = patch_attention(model, block_size=4, sites=sites)
    torch.manual_seed(0)
    perturb(patch)
    return model, patch, hidden(model, IDS)


def to_disk(model: nn.Module, folder: Path) -> None:
    disk_offload(model, folder, CPU)


def a_layer_on_disk(model: nn.Module, folder: Path) -> None:
    dispatch_model(
        model, MAPS["bert" if isinstance(model, BertModel) else "llama"], "cpu", offload_dir=folder, force_hooks=True
    )


OFFLOAD: dict[str, Callable[[nn.Module, Path], object]] = {
    "cpu": lambda model, folder: cpu_offload(model, CPU),
    "disk": to_disk,
    "a layer on disk": a_layer_on_disk,
}


@EVERY_MODEL
@EVERYWHERE
@pytest.mark.parametrize("how", OFFLOAD)
def test_patched_then_offloaded(name: str, sites: str, how: str, tmp_path: Path) -> None:
    model, patch, before = patched(name, sites)
    OFFLOAD[how](model, tmp_path / "offload")
    assert any(parameter.is_meta for parameter in patch.parameters())
    assert torch.equal(hidden(model, IDS), before)
    patch.save_pretrained(tmp_path / "adapter")
    twin = MODELS[name]()
    load_attention(twin, tmp_path / "adapter")
    assert torch.equal(hidden(twin, IDS), before)
    with pytest.raises(ArgumentError, match="fold into the weights at every layer"):
        patch.merge()
    with pytest.raises(ArgumentError, match="fold into the weights at every layer"), patch.folded():
        pass
    assert "its weights are offloaded; save the adapter, and merge it into a model that is in memory" in patch.summary()
    with pytest.raises(ArgumentError, match="offloaded"):
        load_attention(model, tmp_path / "adapter", hot_swap=True)
    with patch.disabled():
        assert torch.equal(hidden(model, IDS), hidden(MODELS[name](), IDS))
    patch.remove()
    assert torch.equal(hidden(model, IDS), hidden(MODELS[name](), IDS))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_half_precision(dtype: torch.dtype) -> None:
    """There the deviations of all structures are read at once."""
    model = small_llama().to(dtype)
    perturb(patch_attention(model, block_size=4))
    before = hidden(model, IDS)
    cpu_offload(model, CPU)
    assert torch.equal(hidden(model, IDS), before)


@EVERY_MODEL
@EVERYWHERE
def test_loaded_with_a_device_map_then_patched(name: str, sites: str, tmp_path: Path) -> None:
    model, patch, before = patched(name, sites)
    patch.save_pretrained(tmp_path / "adapter")
    MODELS[name]().save_pretrained(tmp_path / "base")
    kind: type[BertModel | LlamaForCausalLM] = type(model)
    options = {"add_pooling_layer": False} if name == "bert" else {}

    def loaded(folder: str) -> nn.Module:
        place = {"device_map": MAPS[name], "offload_folder": tmp_path / folder}
        return kind.from_pretrained(tmp_path / "base", **place, **options).eval()

    twin = loaded("one")
    assert any(parameter.is_meta for parameter in twin.parameters())
    load_attention(twin, tmp_path / "adapter")
    assert torch.equal(hidden(twin, IDS), before)
    fresh = loaded("other")
    plain = hidden(fresh, IDS)
    patch = patch_attention(fresh, block_size=4, sites=sites)
    assert torch.equal(hidden(fresh, IDS), plain)
    torch.manual_seed(0)
    perturb(patch)
    assert torch.equal(hidden(fresh, IDS), before)
    assert not any(parameter.is_meta for parameter in patch.parameters())


@EVERY_MODEL
@EVERYWHERE
def test_shards_placed_by_auto_between_memory_and_disk(name: str, sites: str, tmp_path: Path) -> None:
    """`device_map="auto"` with too little memory: the placement is accelerate's own."""
    model, patch, before = patched(name, sites)
    patch.save_pretrained(tmp_path / "adapter")
    base = MODELS[name]()
    base.save_pretrained(tmp_path / "base", max_shard_size="20kB")
    assert len(list((tmp_path / "base").glob("*.safetensors"))) > 1
    memory = sum(parameter.nbytes for parameter in base.parameters()) * 9 // 10
    place = {"device_map": "auto", "max_memory": {"cpu": memory}, "offload_folder": tmp_path / "offload"}
    options = {"add_pooling_layer": False} if name == "bert" else {}
    twin = type(model).from_pretrained(tmp_path / "base", **place, **options).eval()
    assert "disk" in twin.hf_device_map.values()
    assert any(parameter.is_meta for parameter in twin.parameters())
    handle = load_attention(twin, tmp_path / "adapter")
    assert torch.equal(hidden(twin, IDS), before)
    with handle.disabled():
        assert torch.equal(hidden(twin, IDS), hidden(base, IDS))
