"""What is kept for ever: small things of every kind that is published, how each is saved, and what it must still give.

A case is made from code and seeds when it is written, and never again: what a later version reads is the folder and the
tensors beside it, which hold the inputs, the outputs of that day, and the weights of whatever model stands below.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel, LlamaConfig, LlamaModel, PreTrainedModel

from gssf_plug import GSSFMetric
from gssf_plug.attention import load_attention, patch_attention
from gssf_plug.attention.saving import FORMAT as ATTENTION
from gssf_plug.distillation import Distiller, Tap, TeacherCache, precompute
from gssf_plug.distillation.cache.shards import VERSION as CACHE_VERSION
from gssf_plug.distillation.checkpoint import FORMAT as DISTILLER
from gssf_plug.distillation.losses import Relation
from gssf_plug.features import GPO
from gssf_plug.retrieval import OneTower, Tower, TwoTower
from gssf_plug.retrieval.models.saving import PublishedModel

__all__ = ["CASES", "CURRENT", "Case", "folder_of"]

CURRENT = {  # kind -> the format version that this library writes
    "metric": GSSFMetric.file_format.version,
    "attention": ATTENTION.version,
    "distiller": DISTILLER.version,
    "retrieval": PublishedModel.file_format.version,
    "cache": CACHE_VERSION,
}
Tensors = Mapping[str, Tensor]
SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 24}


@dataclass(frozen=True)
class Case:
    """One thing: `save` writes it into a folder and gives the inputs; `read` loads it and gives the outputs."""

    kind: str
    save: Callable[[Path], Tensors]
    read: Callable[[Path, Tensors], Tensors]


def folder_of(name: str, version: int) -> Path:
    """tests/golden/<kind>/v<version>/<name>; the tensors lie beside it, with the suffix .safetensors."""
    return Path(__file__).resolve().parent / CASES[name].kind / f"v{version}" / name


def perturb(module: nn.Module, scale: float = 0.3) -> None:
    """Nothing shall hold because the metric is the identity."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=scale)


def metric_case(change: Callable[[GSSFMetric], object] = lambda metric: None, **options: Any) -> Case:
    def save(folder: Path) -> Tensors:
        metric = GSSFMetric(12, **options)
        perturb(metric)
        change(metric)
        metric.save_pretrained(folder)
        return {"x": torch.randn(3, 12), "y": torch.randn(4, 12)}

    def read(folder: Path, inputs: Tensors) -> Tensors:
        metric = GSSFMetric.from_pretrained(folder)
        x, y = inputs["x"], inputs["y"]
        return {"scores": metric(x, y), "fold": metric.fold(x), "gallery": metric.gallery(y), "matrix": metric.matrix()}

    return Case("metric", save, read)


def drop_second_block(metric: GSSFMetric) -> None:
    part = metric.structures["block_diagonal"]
    with torch.no_grad():
        part.weight[1] = part.start()[1]
    assert metric.prune(1e-6).dropped == {"block_diagonal": [1]}


def drop_all_blocks(metric: GSSFMetric) -> None:
    metric.prune(1e6)


def weights_of(prefix: str, model: nn.Module) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": value for name, value in model.state_dict().items()}


def model_with(prefix: str, make: Callable[[], PreTrainedModel], inputs: Tensors) -> PreTrainedModel:
    model = make().eval()
    model.load_state_dict(
        {key.removeprefix(f"{prefix}."): t for key, t in inputs.items() if key.startswith(f"{prefix}.")}
    )
    return model


def small_bert() -> BertModel:
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    config = BertConfig(vocab_size=11, max_position_embeddings=8, **still, **SMALL)
    return BertModel(config, add_pooling_layer=False).eval()


def small_llama() -> LlamaModel:
    return LlamaModel(LlamaConfig(vocab_size=11, num_key_value_heads=2, **SMALL)).eval()


def attention_case(make: Callable[[], PreTrainedModel], **options: Any) -> Case:
    def save(folder: Path) -> Tensors:
        model = make()
        base = {name: value.clone() for name, value in weights_of("base", model).items()}
        patch = patch_attention(model, **options)
        for parameter in patch.parameters():
            parameter.data += 0.3 * torch.randn_like(parameter)
        patch.save_pretrained(folder)
        return {**base, "ids": torch.randint(11, (2, 6))}

    def read(folder: Path, inputs: Tensors) -> Tensors:
        model = model_with("base", make, inputs)
        load_attention(model, folder)
        return {"hidden": model(input_ids=inputs["ids"]).last_hidden_state}

    return Case("attention", save, read)


def relation() -> Relation:
    """What "gssf" was when these files were written."""
    return Relation(GSSFMetric(SMALL["hidden_size"], block_size=min(SMALL["hidden_size"], 16), constraint="symmetric"))


def distiller_case(loss: Callable[[], str | Relation]) -> Case:
    pairs = {"encoder.layer.0": "encoder.layer.0"}

    def save(folder: Path) -> Tensors:
        student, teacher, ids = small_bert(), small_bert(), torch.randint(11, (4, 6))
        inputs = {**weights_of("student", student), **weights_of("teacher", teacher), "ids": ids}
        distiller = Distiller(student, teacher, pairs=pairs, loss=loss())
        distiller.plan({"input_ids": ids})
        perturb(distiller.losses, 0.1)
        perturb(distiller.projectors, 0.1)
        distiller.save_parts(folder)
        return inputs

    def read(folder: Path, inputs: Tensors) -> Tensors:
        student, teacher = (model_with(name, small_bert, inputs) for name in ("student", "teacher"))
        distiller = Distiller(student, teacher, pairs=pairs, loss=loss())
        distiller.plan({"input_ids": inputs["ids"]})
        distiller.load_parts(folder)
        torch.manual_seed(0)  # CRD draws its negatives
        return {"loss": distiller({"input_ids": inputs["ids"]})["loss"]}

    return Case("distiller", save, read)


def cache_case() -> Case:
    def save(folder: Path) -> Tensors:
        rows = [{"input_ids": row.tolist()} for row in torch.randint(11, (5, 6))]

        def collate(rows: list[Any]) -> dict[str, Tensor]:
            return {"input_ids": torch.tensor([row["input_ids"] for row in rows])}

        precompute(small_bert(), [Tap("encoder.layer.0")], rows, folder, collate=collate, batch_size=2, shard_batches=1)
        return {"rows": torch.tensor([4, 0, 2])}

    def read(folder: Path, inputs: Tensors) -> Tensors:
        cache = TeacherCache(folder)
        cache.watch({"first": Tap("encoder.layer.0")})
        feature = cache.features({"teacher_row": inputs["rows"]}, torch.device("cpu"))["first"]
        assert len(cache) == 5
        return (
            {"tokens": feature.tensor, "mask": feature.mask} if feature.mask is not None else {"tokens": feature.tensor}
        )

    return Case("cache", save, read)


def two_tower_case() -> Case:
    def save(folder: Path) -> Tensors:
        image = Tower(None, token_projection=nn.Linear(6, 12), pooling=GPO(code=8, hidden=8))
        model = TwoTower(image, Tower(small_bert(), projection=nn.Linear(16, 12)), GSSFMetric(12, block_size=4)).eval()
        perturb(model, 0.1)
        model.save_pretrained(folder)
        mask = torch.tensor([[True] * 4, [True, True, False, False], [True] * 4])
        return {"regions": torch.randn(3, 4, 6), "mask": mask, "ids": torch.randint(11, (5, 6))}

    def read(folder: Path, inputs: Tensors) -> Tensors:
        model = TwoTower.from_pretrained(folder)
        images = model.encode_image({"features": inputs["regions"], "attention_mask": inputs["mask"]})
        ids = inputs["ids"]
        texts = model.encode_text({"input_ids": ids, "attention_mask": torch.ones_like(ids)})
        return {"images": images, "texts": texts, "scores": model.score(images, texts)}

    return Case("retrieval", save, read)


def one_tower_case() -> Case:
    def save(folder: Path) -> Tensors:
        metric = GSSFMetric(12, block_size=4, constraint="symmetric")
        model = OneTower(nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 12)), metric).eval()
        perturb(model)
        model.save_pretrained(folder)
        return {"x": torch.randn(5, 6)}

    def read(folder: Path, inputs: Tensors) -> Tensors:
        model = OneTower.from_pretrained(folder)
        features = model.encode(inputs["x"])
        return {"features": features, "scores": model.score(features, features)}

    return Case("retrieval", save, read)


# "one_switch": as written since the weights carry their configuration; the others were written before
CASES: dict[str, Case] = {
    "diagonal": metric_case(terms=("diagonal",)),
    "block_diagonal": metric_case(terms=("block_diagonal",), block_size=3),
    "both": metric_case(block_size=4),
    "every_term": metric_case(terms=("diagonal", "block_diagonal", "dense"), block_size=4),
    "dense": metric_case(terms=("dense",)),
    "grouping": metric_case(block_size=4, grouping=torch.tensor([7, 0, 11, 3, 1, 9, 2, 10, 4, 8, 5, 6])),
    "adjacency": metric_case(adjacency=torch.eye(12, dtype=torch.bool) | (torch.arange(12) % 3 == 0)),
    "symmetric": metric_case(block_size=4, constraint="symmetric"),
    "psd": metric_case(block_size=4, constraint="psd"),
    "raw": metric_case(block_size=4, normalize=False),
    "pruned": metric_case(drop_second_block, block_size=4),
    "pruned_blocks_alone": metric_case(drop_second_block, terms=("block_diagonal",), block_size=4),
    "pruned_whole": metric_case(drop_all_blocks, block_size=4),
    "bfloat16": metric_case(lambda metric: metric.to(torch.bfloat16), block_size=4),
    "one_switch": metric_case(block_size=4, grouping=torch.tensor([3, 1, 4, 0, 5, 9, 2, 6, 8, 7, 11, 10])),
    "bert": attention_case(small_bert, block_size=2),
    "bert_one_switch": attention_case(small_bert, block_size=2),
    "bert_shared": attention_case(small_bert, block_size=4, per_head=False),
    "llama": attention_case(small_llama, terms=("diagonal",)),
    "llama_score": attention_case(small_llama, block_size=2, sites="score"),
    "gssf": distiller_case(relation),
    "crd": distiller_case(lambda: "crd"),
    "gssf_one_switch": distiller_case(relation),
    "tokens": cache_case(),
    "two_tower": two_tower_case(),
    "two_tower_one_switch": two_tower_case(),
    "one_tower": one_tower_case(),
}
