"""Popular architectures in configurations that an outsider would write, with the outsider's inputs and usual weights.

Unlike the sweep's: built by hand, by their classes, often with a task's head, at transformers' own initialisation. The
patch gets the model alone, and what it does is judged on inputs that it never saw.
"""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
import transformers
from attention.patching import perturb
from tools.sweep import tensors
from torch import Tensor

from gssf_plug.attention import patch_attention
from gssf_plug.errors import ArgumentError

WIDTH = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 32}
TEXT = WIDTH | {"vocab_size": 50, "max_position_embeddings": 40}
IMAGE = WIDTH | {"image_size": 32, "patch_size": 8}
GROUPED = TEXT | {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0}
PAIR = {"d_model": 24, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 3,
        "decoder_attention_heads": 3, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "vocab_size": 50,
        "max_position_embeddings": 40}  # fmt: skip

CONFIGURATIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("BertForSequenceClassification", TEXT),
    "roberta": ("RobertaForMaskedLM", TEXT),
    "distilbert": ("DistilBertModel", {"dim": 24, "n_layers": 2, "n_heads": 3, "hidden_dim": 32, "vocab_size": 50}),
    "albert": ("AlbertModel", TEXT | {"embedding_size": 16}),
    "electra": ("ElectraForTokenClassification", TEXT | {"embedding_size": 16}),
    "deberta-v2": ("DebertaV2Model", TEXT | {
        "relative_attention": True, "position_buckets": 8, "pos_att_type": ["p2c", "c2p"], "share_att_key": True,
        "norm_rel_ebd": "layer_norm", "position_biased_input": False}),
    "mpnet": ("MPNetModel", TEXT),
    "xlnet": ("XLNetModel", {"vocab_size": 50, "d_model": 24, "n_layer": 2, "n_head": 3, "d_inner": 32}),
    "modernbert": ("ModernBertModel", TEXT | {
        "local_attention": 4, "global_attn_every_n_layers": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
        "cls_token_id": 1, "sep_token_id": 2}),
    "gpt2": ("GPT2LMHeadModel", {"vocab_size": 50, "n_embd": 24, "n_layer": 2, "n_head": 3, "n_positions": 40}),
    "gptj": ("GPTJForCausalLM", {
        "vocab_size": 50, "n_embd": 24, "n_layer": 2, "n_head": 3, "n_positions": 40, "rotary_dim": 4}),
    "gpt_neo": ("GPTNeoModel", {
        "vocab_size": 50, "hidden_size": 24, "num_layers": 2, "num_heads": 3,
        "attention_types": [[["global", "local"], 1]], "window_size": 4, "max_position_embeddings": 40,
        "intermediate_size": 32}),
    "gpt_neox": ("GPTNeoXForCausalLM", TEXT | {"rotary_pct": 0.5}),
    "opt": ("OPTForCausalLM", {
        "vocab_size": 50, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "ffn_dim": 32,
        "word_embed_proj_dim": 16, "max_position_embeddings": 40}),
    "bloom": ("BloomForCausalLM", {"vocab_size": 50, "hidden_size": 24, "n_layer": 2, "n_head": 3}),
    "falcon, grouped": ("FalconModel", {
        "vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_kv_heads": 2,
        "new_decoder_architecture": True}),
    "falcon, one key": ("FalconForCausalLM", {
        "vocab_size": 50, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "multi_query": True}),
    "llama": ("LlamaForCausalLM", GROUPED),
    "mistral": ("MistralForCausalLM", GROUPED | {"sliding_window": 4}),
    "mixtral": ("MixtralModel", GROUPED | {"num_local_experts": 2, "num_experts_per_tok": 2}),
    "qwen2": ("Qwen2ForCausalLM", GROUPED),
    "qwen3": ("Qwen3ForCausalLM", GROUPED | {"head_dim": 12}),
    "gemma": ("GemmaForCausalLM", GROUPED | {"head_dim": 8, "num_key_value_heads": 1}),
    "gemma2": ("Gemma2Model", GROUPED | {"head_dim": 8, "sliding_window": 4}),
    "gemma3": ("Gemma3ForCausalLM", GROUPED | {"head_dim": 8, "sliding_window": 4}),
    "phi": ("PhiForCausalLM", TEXT | {"hidden_size": 48, "partial_rotary_factor": 0.5}),
    "phi3": ("Phi3ForCausalLM", GROUPED),
    "olmo2": ("Olmo2ForCausalLM", GROUPED),
    "stablelm": ("StableLmModel", GROUPED),
    "t5": ("T5ForConditionalGeneration", {
        "vocab_size": 50, "d_model": 24, "d_kv": 8, "num_heads": 3, "d_ff": 32, "num_layers": 2,
        "decoder_start_token_id": 0}),
    "bart": ("BartForConditionalGeneration", PAIR),
    "pegasus": ("PegasusModel", PAIR),
    "marian": ("MarianModel", PAIR | {"pad_token_id": 0, "decoder_start_token_id": 0}),
    "whisper": ("WhisperForConditionalGeneration", PAIR | {
        "num_mel_bins": 8, "max_source_positions": 20, "max_target_positions": 20, "pad_token_id": 0,
        "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1, "suppress_tokens": None,
        "begin_suppress_tokens": None}),
    "wav2vec2": ("Wav2Vec2ForCTC", WIDTH | {
        "vocab_size": 50, "conv_dim": [8, 8], "conv_stride": [4, 4], "conv_kernel": [8, 4],
        "num_feat_extract_layers": 2, "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2}),
    "vit": ("ViTForImageClassification", IMAGE),
    "deit": ("DeiTModel", IMAGE),
    "beit": ("BeitModel", IMAGE | {"use_relative_position_bias": True}),
    "dinov2": ("Dinov2Model", IMAGE | {"mlp_ratio": 2}),
    "swin": ("SwinModel", {
        "image_size": 32, "patch_size": 4, "embed_dim": 12, "depths": [2, 2], "num_heads": [2, 3], "window_size": 4}),
    "segformer": ("SegformerForSemanticSegmentation", {
        "num_encoder_blocks": 2, "depths": [1, 1], "sr_ratios": [2, 1], "hidden_sizes": [16, 24],
        "num_attention_heads": [2, 3], "patch_sizes": [7, 3], "strides": [4, 2], "mlp_ratios": [2, 2],
        "decoder_hidden_size": 16}),
    "detr": ("DetrModel", {
        "use_timm_backbone": False, "backbone": None, "use_pretrained_backbone": False, "d_model": 24,
        "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 3, "decoder_attention_heads": 3,
        "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "num_queries": 5,
        "backbone_config": transformers.ResNetConfig(
            embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", out_features=["stage2"])}),
    "clip": ("CLIPModel", {"text_config": TEXT, "vision_config": IMAGE, "projection_dim": 16}),
    "siglip": ("SiglipModel", {"text_config": TEXT, "vision_config": IMAGE}),
    "blip": ("BlipForImageTextRetrieval", {
        "text_config": TEXT | {"encoder_hidden_size": 24, "projection_dim": 16}, "projection_dim": 16,
        "vision_config": IMAGE | {"initializer_range": 0.02},  # 1e-10 by default
        "image_text_hidden_size": 16}),
    "vilt": ("ViltModel", TEXT | IMAGE),
    "lxmert": ("LxmertModel", {
        "vocab_size": 50, "hidden_size": 24, "num_attention_heads": 3, "intermediate_size": 32, "l_layers": 1,
        "x_layers": 1, "r_layers": 1, "visual_feat_dim": 10, "visual_pos_dim": 4}),
    "visual_bert": ("VisualBertModel", TEXT | {"visual_embedding_dim": 10}),
}  # fmt: skip
AFTER_A_NORM = {"qwen3", "gemma3", "olmo2"}


def example(model: transformers.PreTrainedModel) -> dict[str, Tensor]:
    """What an outsider feeds: by the names of the model's main input and what its kind needs beside."""
    draw = torch.Generator().manual_seed(1)
    ids = torch.randint(5, 50, (2, 9), generator=draw)
    kind = model.config.model_type
    if kind == "whisper":
        return {"input_features": torch.randn(2, 8, 40, generator=draw), "decoder_input_ids": ids}
    if kind == "wav2vec2":
        return {"input_values": torch.randn(2, 400, generator=draw)}
    image = {"pixel_values": torch.randn(2, 3, 32, 32, generator=draw)}
    if model.main_input_name == "pixel_values":
        return image
    text = {"input_ids": ids}
    if model.config.is_encoder_decoder:
        text["decoder_input_ids"] = ids[:, :6]
    if kind == "lxmert":
        regions, places = torch.randn(2, 5, 10, generator=draw), torch.rand(2, 5, 4, generator=draw)
        return text | {"visual_feats": regions, "visual_pos": places}
    if kind == "visual_bert":
        return text | {"visual_embeds": torch.randn(2, 4, 10, generator=draw)}
    return text | (image if kind in ("blip", "clip", "siglip", "vilt") else {})


def run(model: transformers.PreTrainedModel, inputs: Mapping[str, Tensor]) -> list[Tensor]:
    """All floating-point outputs, without gradients."""
    torch.manual_seed(0)  # ViLT shuffles its patches
    with torch.no_grad():
        return tensors(model(**inputs))


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    """To the bit."""
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_the_contract(name: str) -> None:
    """Exactly what a separate sweep calls: patch, parameters, merge, unmerge, remove."""
    class_name, options = CONFIGURATIONS[name]
    torch.manual_seed(0)
    model_class = getattr(transformers, class_name)
    model = model_class(model_class.config_class(**options)).eval()
    inputs = example(model)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    base = run(model, inputs)

    patch = patch_attention(model, terms=("diagonal", "block_diagonal"), block_size=2)
    assert not patch.left_alone
    neutral = run(model, inputs)
    if name == "siglip":  # nn.MultiheadAttention gets a copy of its weight; torch rounds otherwise for any copy
        for one, other in zip(neutral, base, strict=True):
            torch.testing.assert_close(one, other, rtol=0.0, atol=1e-6)
    else:
        assert same(neutral, base)

    perturb(patch)
    patched = run(model, inputs)
    assert not same(patched, base)
    sum(output.square().mean() for output in tensors(model(**inputs)) if output.requires_grad).backward()
    assert all(p.grad is not None for p in patch.parameters())
    unmoved = {key.partition(".gssf.")[0] for key, p in patch.named_parameters() if not p.grad.any()}
    assert unmoved == ({"decoder.layers.0.self_attn"} if name == "detr" else set())  # its values are all zero there

    if name in AFTER_A_NORM:
        with pytest.raises(ArgumentError, match="it sits after the query norm 'q_norm'"):
            patch.merge()
    else:
        patch.merge()
        assert list(model.state_dict()) == list(state)
        assert any(not torch.equal(value, state[key]) for key, value in model.state_dict().items())
        for one, other in zip(run(model, inputs), patched, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
        patch.unmerge()
    assert same(run(model, inputs), patched)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items() if key in state)

    patch.remove()
    assert same(run(model, inputs), base)
    now = model.state_dict()
    assert list(now) == list(state)
    assert all(torch.equal(value, state[key]) for key, value in now.items())
