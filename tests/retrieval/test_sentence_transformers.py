"""The metric inside sentence-transformers: queries fold, documents do not; trained, saved and loaded by the library."""

from pathlib import Path

import pytest
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.base.modules import Router
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from sentence_transformers.util import dot_score
from transformers import BertConfig, BertModel, BertTokenizerFast

from gssf_plug import GSSFMetric
from gssf_plug.errors import ArgumentError, CheckpointError
from gssf_plug.retrieval.sentence_transformers import MetricModule, merged_modules

WIDTH = 32
QUERIES, DOCUMENTS = ["a cat", "red", "dog fruit"], ["dog a", "fruit", "cat cat red", "a"]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> list[torch.nn.Module]:
    folder = tmp_path_factory.mktemp("bert")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "cat", "dog", "red", "fruit"]
    (folder / "vocab.txt").write_text("\n".join(words))
    BertTokenizerFast(vocab_file=str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    shape = {"hidden_size": WIDTH, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": WIDTH}
    BertModel(BertConfig(vocab_size=len(words), **shape)).save_pretrained(folder)
    return [Transformer(str(folder)), Pooling(WIDTH)]


def perturbed(*, normalize: bool = True) -> GSSFMetric:
    metric = GSSFMetric(WIDTH, block_size=8, normalize=normalize)
    with torch.no_grad():
        for parameter in metric.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    return metric


def model_of(modules: list[torch.nn.Module]) -> SentenceTransformer:
    return SentenceTransformer(modules=modules, similarity_fn_name="dot", device="cpu")


def sides(model: SentenceTransformer) -> tuple[torch.Tensor, torch.Tensor]:
    encoded = model.encode_query(QUERIES), model.encode_document(DOCUMENTS)
    return tuple(torch.from_numpy(side) for side in encoded)


@pytest.mark.parametrize("normalize", [True, False])
def test_similarity_of_the_model_is_the_metric(encoder: list[torch.nn.Module], normalize: bool) -> None:
    metric, plain = perturbed(normalize=normalize), SentenceTransformer(modules=encoder, device="cpu")
    queries, documents = (torch.from_numpy(plain.encode(texts)) for texts in (QUERIES, DOCUMENTS))
    model = model_of([*encoder, MetricModule(metric)])
    torch.testing.assert_close(model.similarity(*sides(model)), metric(queries, documents).detach())
    torch.testing.assert_close(torch.from_numpy(model.encode(DOCUMENTS)), sides(model)[1])
    assert model.get_embedding_dimension() == WIDTH


@pytest.mark.parametrize("normalize", [True, False])
def test_merged_modules_are_equal_and_need_nothing_of_ours(
    encoder: list[torch.nn.Module], normalize: bool, tmp_path: Path
) -> None:
    metric = perturbed(normalize=normalize)
    expected = sides(model_of([*encoder, MetricModule(metric)]))
    model_of([*encoder, *merged_modules(metric)]).save_pretrained(str(tmp_path / "merged"))
    loaded = SentenceTransformer(str(tmp_path / "merged"), device="cpu")  # no trust_remote_code
    torch.testing.assert_close(sides(loaded), expected)
    assert loaded.similarity_fn_name == "dot"
    assert not any(type(module).__module__.startswith("gssf_plug") for module in loaded.modules())
    assert any(isinstance(module, Router) for module in loaded.modules())


def test_the_library_saves_and_loads_it(encoder: list[torch.nn.Module], tmp_path: Path) -> None:
    model = model_of([*encoder, MetricModule(perturbed())])
    model.save_pretrained(str(tmp_path / "model"))
    loaded = SentenceTransformer(str(tmp_path / "model"), device="cpu", trust_remote_code=True)
    torch.testing.assert_close(sides(loaded), sides(model), rtol=0, atol=0)
    weights = tmp_path / "model" / "2_MetricModule" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(CheckpointError, match="is no whole safetensors file"):
        SentenceTransformer(str(tmp_path / "model"), device="cpu", trust_remote_code=True)


def test_sentence_transformers_trains_it(encoder: list[torch.nn.Module], tmp_path: Path) -> None:
    metric = perturbed()
    before = {name: value.clone() for name, value in metric.state_dict().items()}
    model = model_of([*encoder, MetricModule(metric)])
    data = Dataset.from_dict({"anchor": QUERIES, "positive": DOCUMENTS[:3]})
    arguments = SentenceTransformerTrainingArguments(
        str(tmp_path),
        max_steps=2,
        learning_rate=1e-2,
        router_mapping={"anchor": "query", "positive": "document"},
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        save_strategy="no",
    )
    loss = MultipleNegativesRankingLoss(model, similarity_fct=dot_score)
    SentenceTransformerTrainer(model, arguments, train_dataset=data, loss=loss).train()
    assert all(not torch.equal(value, before[name]) for name, value in metric.state_dict().items())


def test_training_without_a_task_is_refused(encoder: list[torch.nn.Module]) -> None:
    module = MetricModule(perturbed()).train()
    with pytest.raises(ArgumentError, match=r"`task` must be given while training.*router_mapping"):
        module({"sentence_embedding": torch.randn(2, WIDTH)})
    with pytest.raises(ArgumentError, match=r"`task` must be 'query' or 'document', but got 'anchor'"):
        module({"sentence_embedding": torch.randn(2, WIDTH), "task": "anchor"})


def test_before_pooling_it_is_refused() -> None:
    with pytest.raises(ArgumentError, match="hold 'sentence_embedding', but got 'token_embeddings'.*behind pooling"):
        MetricModule(GSSFMetric(8, block_size=4)).forward({"token_embeddings": torch.ones(1, 2, 8)}, "query")
