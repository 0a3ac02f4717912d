"""Every framework with parts so small that a test trains it, and data that it can learn; shared by tests."""

import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import (
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPModel,
    PreTrainedTokenizerFast,
    ResNetConfig,
    ResNetModel,
    SiglipConfig,
    SiglipModel,
    VisionTextDualEncoderModel,
    ViTConfig,
    ViTModel,
)

from gssf_plug import GSSFMetric
from gssf_plug.features import GPO, BNNeck, SizeAugmentation, cls_pool, last_pool, mean_max_pool
from gssf_plug.retrieval import (
    AnySize,
    DualEncoder,
    FrozenNorms,
    ImageToText,
    LastStrideOne,
    LocalAlignment,
    OneTower,
    ResidualMLP,
    TextToImage,
    Tower,
    TwoTower,
    WordGRU,
)
from gssf_plug.retrieval.data.images import image_tensor

WORDS = ["<pad>", "<unk>", "<mask>", *(f"w{number}" for number in range(12))]
SIZES = {"hidden_size": 12, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
TEXT = {**SIZES, "vocab_size": len(WORDS)}
VISION = {**SIZES, "image_size": 16, "patch_size": 8}


def tokenizer():
    words = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"pad_token": "<pad>", "unk_token": "<unk>", "mask_token": "<mask>"}
    return PreTrainedTokenizerFast(tokenizer_object=words, model_input_names=["input_ids", "attention_mask"], **special)


def transform(image):
    return image_tensor(image, 16).float() / 127.5 - 1


def pairs(count, column):
    """An item is one of twelve things in one of three shades; its captions name them, twice."""
    generator = torch.Generator().manual_seed(1)
    rows = []
    for label in range(count):
        thing, shade = label % 12, label // 12 % 4
        captions = [f"w{thing} " + "w11 " * shade, f"w{thing} w{thing} " + "w11 " * shade]
        if column == "image":
            colour = tuple(int(c) for c in torch.randint(0, 200, (3,), generator=torch.Generator().manual_seed(thing)))
            content = Image.new("RGB", (20, 16), tuple(c + 18 * shade for c in colour))
        else:
            one = torch.zeros(6)
            one[thing % 6], one[shade] = 1 + thing // 6, 3.0
            content = one + 0.1 * torch.randn(3 + label % 3, 6, generator=generator)
        rows.append({column: content, "captions": captions, "label": label})
    return rows


def identities(count, images):
    """Identities are colours, cameras brightness."""
    rows = []
    for number in range(count * images):
        identity, camera = number % count, number // count % 2
        colour = torch.randint(0, 180, (3,), generator=torch.Generator().manual_seed(identity)).tolist()
        shade = 10 * (number // count)
        rows.append(
            {"image": Image.new("RGB", (8, 16), tuple(c + shade for c in colour)), "label": identity, "camera": camera}
        )
    return rows


def resnet():
    return ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1], layer_type="basic"))


def bert():
    return BertModel(BertConfig(**TEXT), add_pooling_layer=False)


def metric_of(wanted, dim=8):
    return GSSFMetric(dim, block_size=4) if wanted else None


def vsepp(metric, words):
    text = Tower(WordGRU(len(words), 8, embedding=12, bidirectional=False), pooling=last_pool)
    return TwoTower(
        Tower(resnet(), projection=nn.Linear(12, 8)), text, metric_of(metric), processors={"tokenizer": words}
    )


def vse_infinity_regions(metric, words):
    image = Tower(None, token_projection=ResidualMLP(6, 8), pooling=SizeAugmentation(GPO()))
    text = Tower(WordGRU(len(words), 8, embedding=12), pooling=GPO())
    return TwoTower(image, text, metric_of(metric), processors={"tokenizer": words})


def vse_infinity_grids(metric, words):
    image = Tower(resnet(), token_projection=nn.Linear(12, 8), pooling=SizeAugmentation(GPO()))
    text = Tower(bert(), token_projection=nn.Linear(12, 8), pooling=GPO())
    return TwoTower(image, text, metric_of(metric), processors={"tokenizer": words})


def clip(metric, words):
    text = {**TEXT, "max_position_embeddings": 16, "eos_token_id": 2}
    config = CLIPConfig(text_config=text, vision_config=VISION, projection_dim=8)
    return DualEncoder(CLIPModel(config), metric_of(metric), processors={"tokenizer": words})


def siglip(metric, words):
    config = SiglipConfig(text_config={**TEXT, "max_position_embeddings": 16}, vision_config=VISION)
    model = SiglipModel(config)
    nn.init.constant_(model.logit_scale, 2.0)
    nn.init.constant_(model.logit_bias, -5.0)
    return DualEncoder(model, metric_of(metric, 12), processors={"tokenizer": words})


def dual(metric, words):
    text = BertModel(BertConfig(**TEXT))
    model = VisionTextDualEncoderModel(vision_model=ViTModel(ViTConfig(**VISION)), text_model=text)
    model.config.projection_dim = 8
    model.visual_projection, model.text_projection = nn.Linear(12, 8, bias=False), nn.Linear(12, 8, bias=False)
    return DualEncoder(model, metric_of(metric), processors={"tokenizer": words})


def scan(metric, words):
    text = Tower(WordGRU(len(words), 8, embedding=12))
    return LocalAlignment(
        Tower(None, token_projection=nn.Linear(6, 8)),
        text,
        metric=metric_of(metric),
        attention_metric=metric_of(metric),
        alignments=[TextToImage(), ImageToText()],
        processors={"tokenizer": words},
    )


def symmetric(dim):
    return GSSFMetric(dim, block_size=4, constraint="symmetric")


def bot():
    return OneTower(Tower(LastStrideOne(resnet())), symmetric(12), neck=BNNeck(12))


def bot_vit():
    encoder = AnySize(ViTModel(ViTConfig(**{**VISION, "image_size": 8}), add_pooling_layer=False))
    return OneTower(Tower(encoder, pooling=cls_pool), symmetric(12), neck=BNNeck(12))


def proxy_anchor():
    tower = Tower(FrozenNorms(resnet()), pooling=mean_max_pool, projection=nn.Linear(12, 8))
    return OneTower(tower, symmetric(8))
