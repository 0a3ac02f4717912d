"""Folders of tiny models of transformers with a tokenizer: what recipes name instead of hub models in CI."""

from pathlib import Path

import torch
from retrieval.data import miniature
from transformers import (
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPVisionConfig,
    ResNetConfig,
    ResNetModel,
    SiglipConfig,
    SiglipModel,
    SiglipTextConfig,
    SiglipVisionConfig,
    ViTConfig,
    ViTModel,
)

from gssf_plug.retrieval.data.vocabulary import word_tokenizer

SMALL = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}


def save(folder: Path) -> dict[str, str]:
    """Folders by kind: resnet, vit, bert, clip, siglip."""
    torch.manual_seed(0)
    tokenizer = word_tokenizer([" ".join(miniature.WORDS), "number 0 1 2 3 ."], least=1)
    words, ends = len(tokenizer), {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    clip = CLIPConfig(
        text_config=CLIPTextConfig(vocab_size=words, max_position_embeddings=80, **SMALL, **ends).to_dict(),
        vision_config=CLIPVisionConfig(image_size=32, patch_size=16, **SMALL).to_dict(),
        projection_dim=16,
    )
    siglip = SiglipConfig(
        text_config=SiglipTextConfig(vocab_size=words, max_position_embeddings=80, **SMALL, **ends).to_dict(),
        vision_config=SiglipVisionConfig(image_size=32, patch_size=16, **SMALL).to_dict(),
    )
    models = {
        "resnet": ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")),
        "vit": ViTModel(ViTConfig(image_size=32, patch_size=8, **SMALL)),
        "bert": BertModel(BertConfig(vocab_size=words, max_position_embeddings=80, **SMALL)),
        "clip": CLIPModel(clip),
        "siglip": SiglipModel(siglip),
    }
    for name, model in models.items():
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return {name: str(folder / name) for name in models}
