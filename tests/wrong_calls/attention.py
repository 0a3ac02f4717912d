"""Doors of `gssf_plug.attention`."""

import functools
from pathlib import Path
from typing import Any

import torch
from transformers import BertConfig, BertModel
from wrong_calls.door import Door, tokens

from gssf_plug.attention import AttentionPatch, GSSFAttention, Layout, Packing, layouts, load_attention, patch_attention

__all__ = ["ATTENTION"]


def _bert() -> BertModel:
    torch.manual_seed(0)
    sizes = {"vocab_size": 16, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    return BertModel(BertConfig(intermediate_size=8, max_position_embeddings=16, **sizes)).eval()


def _patched() -> AttentionPatch:
    """A patch of two adapters, of which the second acts."""
    model = _bert()
    patch_attention(model, terms=("diagonal",))
    return patch_attention(model, terms=("diagonal",), adapter_name="other")


_kept: dict[bool, BertModel] = {}


def _model(*, patched: bool = False) -> BertModel:
    """A model that every call gets again, as a call that is refused leaves it as it was; a new one once it is cast."""
    if patched not in _kept or any(one.is_meta or one.dtype != torch.float32 for one in _kept[patched].parameters()):
        _kept[patched] = _patched().model if patched else _bert()
    layers = [module for module in _kept[patched].modules() if "gssf" in module._modules]
    assert bool(layers) == patched, "the last call left another model"
    return _kept[patched]


def _attention() -> dict[str, Any]:
    return {
        "model": _model(), "terms": ("diagonal",), "block_size": 4, "layers": None, "per_head": True,
        "sites": "projection", "query_norm": "after", "dtype": None, "adapter_name": "default", "example_inputs": None,
    }  # fmt: skip


@functools.cache
def _save(folder: Path) -> None:
    patch_attention(_bert(), terms=("diagonal",)).save_pretrained(folder / "adapter")


def _loading() -> dict[str, Any]:
    _save(Path.cwd())
    return {
        "model": _model(), "path": "adapter", "adapter_name": "default", "hot_swap": False, "dtype": None,
        "example_inputs": None, "revision": None, "token": None, "cache_dir": None, "local_files_only": True,
    }  # fmt: skip


def _swapping() -> dict[str, Any]:
    _save(Path.cwd())
    return {"model": _model(patched=True), "path": "adapter", "adapter_name": "default"}


def registered(layout: Layout) -> None:
    """A layout that is declared, and a model for which it is tried."""
    layouts.register(layout)
    try:
        patch_attention(_model(), terms=("diagonal",)).remove()
    finally:
        layouts.unregister(layout.name)


def _layout() -> dict[str, Any]:
    return {
        "name": "mine", "query": "query", "key": "key", "query_packing": Packing("q"), "key_packing": Packing("k"),
        "besides": (), "bias": None, "key_is_value": False, "only_attention": False,
    }  # fmt: skip


def _attending() -> dict[str, Any]:
    forbidden = torch.zeros(6, 3).bool()
    return {
        "query": tokens(), "key": tokens(), "value": tokens(), "key_padding_mask": forbidden,
        "attn_mask": torch.zeros(3, 3), "is_causal": False, "need_weights": True,
    }  # fmt: skip


_patch = _patched()

ATTENTION = [
    Door(patch_attention, _attention, check=AttentionPatch.remove),
    Door(load_attention, _loading, check=AttentionPatch.remove),
    Door(
        functools.partial(load_attention, hot_swap=True), _swapping, name="load_attention, swapping",
        left_out=(  # which the door above opens
            "hot_swap", "dtype", "example_inputs", "revision", "token", "cache_dir", "local_files_only",
        ),
    ),
    Door(
        AttentionPatch, lambda: {"model": _model(patched=True), "left_alone": {"a": "no attention"}},
        check=AttentionPatch.summary,
    ),
    *(Door(read, lambda: {"adapter_name": "default"}, check=list) for read in (
        _patch.named_parameters, _patch.parameters,
    )),
    Door(_patch.set_adapter, lambda: {"adapter_name": "default"}),
    Door(_patched().delete_adapter, lambda: {"adapter_name": "default"}),
    Door(_patch.merge, lambda: {"partial": False}, check=lambda report: (str(report), _patch.unmerge())),
    Door(_patch.callback, lambda: {"save_base": False, "fold_evaluation": True}),
    Door(
        _patch.save_pretrained,
        lambda: {"path": "saved", "adapter_name": None, "model_card_kwargs": {"license": "mit", "datasets": ["a/b"]}},
    ),
    Door(
        Packing, lambda: {"order": "qkv", "groups": 1},
        check=lambda made: registered(Layout("mine", "query", "key", made, made)),
    ),
    Door(Layout, _layout, check=registered),
    Door(
        layouts.register, lambda: {"layout": Layout("mine", "query", "key")},
        check=lambda made: layouts.unregister("mine"),
    ),
    Door(layouts.unregister, lambda: {"name": "mine"}),
    Door(
        GSSFAttention,
        lambda: {
            "embed_dim": 8, "num_heads": 2, "terms": ("diagonal",), "block_size": 4, "kdim": 8, "vdim": 8,
            "normalize": False, "bias": True, "dropout": 0.0,
        },
    ),
    Door(GSSFAttention(8, 2, block_size=4).forward, _attending, nan_passes=True),
]  # fmt: skip
