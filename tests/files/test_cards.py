"""Model cards of what is published: what the author said, front matter that the Hub reads, nothing made up."""

from collections.abc import Callable
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import ModelCard, ModelCardData
from torch import nn
from transformers import BertConfig, BertModel

from gssf_plug import GSSFMetric
from gssf_plug.attention import patch_attention
from gssf_plug.errors import ArgumentError
from gssf_plug.files import CardFacts, render_card
from gssf_plug.retrieval import TwoTower

FACTS: CardFacts = {
    "data": "6,133 drawings of emoji: *train*",
    "measures": {"mAP": 45.6, "R@1": 41},
    "evaluated_on": "Emoji: test split",
    "license": "mit",
    "datasets": ["someone/emoji"],
    "base_model": "someone/encoder",
    "language": "en",
    "notes": "Not for photographs.",
}


def metric() -> GSSFMetric:
    return GSSFMetric(8, block_size=4)


def adapter() -> Any:
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    return patch_attention(BertModel(BertConfig(vocab_size=9, **shape)), block_size=4)


def retrieval_model() -> TwoTower:
    return TwoTower(nn.Linear(6, 8), None, metric())


published = pytest.mark.parametrize("make", [metric, adapter, retrieval_model], ids=lambda make: make.__name__)


def front_matter(card: str) -> dict[str, Any]:
    """The YAML between the first two lines of dashes, with the rules that the Hub has for it."""
    head, _, _ = card.removeprefix("---\n").partition("\n---\n")
    found = yaml.safe_load(head)
    known = {*signature(ModelCardData.__init__).parameters, "model-index"} - {"eval_results", "model_name"}
    assert found.keys() <= known
    for key in ("tags", "datasets"):
        assert all(isinstance(value, str) for value in found.get(key, []))
    for model in found.get("model-index", []):
        for result in model["results"]:
            assert result["task"]["type"]
            assert result["dataset"].keys() >= {"type", "name"}
            assert all(isinstance(entry["value"], float) and entry["type"] for entry in result["metrics"])
    return found


@published
def test_a_card_says_what_its_author_said(make: Callable[[], Any], tmp_path: Path) -> None:
    make().save_pretrained(tmp_path, model_card_kwargs=FACTS)
    text = (tmp_path / "README.md").read_text()
    found = front_matter(text)
    expected = {key: FACTS[key] for key in ("license", "datasets", "base_model", "language")}
    assert expected.items() <= found.items()
    assert found["library_name"] == "gssf-plug"
    assert "gssf" in found["tags"]
    for said in (FACTS["data"], FACTS["notes"], "| mAP | 45.6 |", "| R@1 | 41 |", "## Measures on Emoji: test split"):
        assert said in text
    results = ModelCard.load(tmp_path / "README.md").data.eval_results
    assert results is not None
    assert {(result.metric_type, result.metric_value) for result in results} == {("mAP", 45.6), ("R@1", 41.0)}
    assert {(result.dataset_type, result.dataset_name) for result in results} == {
        ("emoji-test-split", "Emoji: test split")
    }


@published
def test_a_card_makes_nothing_up(make: Callable[[], Any], tmp_path: Path) -> None:
    make().save_pretrained(tmp_path)
    text = (tmp_path / "README.md").read_text()
    assert front_matter(text).keys() == {"library_name", "tags"}
    assert text.count("Not stated by whoever saved this.") == 3, "data, measures and licence"
    assert "import " in text.partition("## How to load")[2].partition("## Licence")[0]


@published
def test_an_edited_card_stays_until_facts_are_given(make: Callable[[], Any], tmp_path: Path) -> None:
    thing = make()
    thing.save_pretrained(tmp_path)
    (tmp_path / "README.md").write_text("mine")
    thing.save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"
    thing.save_pretrained(tmp_path, model_card_kwargs={"data": "new data"})
    assert "new data" in (tmp_path / "README.md").read_text()


@published
def test_a_wrong_fact_is_named_and_nothing_is_written(make: Callable[[], Any], tmp_path: Path) -> None:
    message = r"`model_card_kwargs` must hold only .*, but got 'licence'. Did you mean 'license'"
    with pytest.raises(ArgumentError, match=message):
        make().save_pretrained(tmp_path / "new", model_card_kwargs={"licence": "mit"})
    assert not (tmp_path / "new").exists() or not list((tmp_path / "new").iterdir())


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"measures": {"mAP": float("nan")}}, "`measures` must hold finite numbers, but got mAP=nan"),
        ({"measures": {"mAP": "45"}}, "`measures` must hold finite numbers, but got mAP='45'"),
        (
            {"base_model": "/home/me/model"},
            "`base_model` must hold ids of the Hugging Face Hub, but got '/home/me/model'",
        ),
        ({"datasets": ["ok/name", "not a name"]}, "`datasets` must hold ids .* 'not a name'. Give Hub ids such as"),
    ],
)
def test_facts_that_the_hub_would_refuse(facts: CardFacts, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        render_card("T", "About.", "import x", ["tag"], facts)


def test_texts_cannot_leave_their_field() -> None:
    facts: CardFacts = {"license": "mit\n---\nextra: 1", "language": "en: [", "base_model": ["a/b", "c/d"]}
    found = yaml.safe_load(
        render_card("T", "About.", "import x", ["a: b"], facts).removeprefix("---\n").split("\n---\n")[0]
    )
    assert found["license"] == facts["license"]
    assert found["tags"] == ["a: b"]
    assert "extra" not in found


def test_the_base_of_an_adapter_from_the_hub_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    patch = adapter()
    for name, said in (("google/tiny-bert", "google/tiny-bert"), (str(tmp_path), None), ("local", None)):
        (tmp_path / "local").mkdir(exist_ok=True)
        patch.model.name_or_path = name
        patch.save_pretrained(tmp_path / "card", model_card_kwargs={})
        assert front_matter((tmp_path / "card" / "README.md").read_text()).get("base_model") == said


def test_pushing_hands_the_facts_on(monkeypatch: pytest.MonkeyPatch) -> None:
    uploaded: list[str] = []

    class Hub:
        def __init__(self, token: str | None = None) -> None: ...

        def create_repo(self, repo_id: str, **options: object) -> object:
            return type("Repo", (), {"repo_id": repo_id})

        def upload_folder(self, *, folder_path: Path, **options: object) -> str:
            uploaded.append((Path(folder_path) / "README.md").read_text())
            return "commit"

    monkeypatch.setattr("gssf_plug.files.uploads.HfApi", Hub)
    metric().push_to_hub("me/metric", model_card_kwargs=FACTS)
    adapter().push_to_hub("me/adapter", model_card_kwargs=FACTS)
    assert [front_matter(card)["license"] for card in uploaded] == ["mit", "mit"]


def test_the_documented_keys_are_all() -> None:
    documented = CardFacts.__doc__
    assert documented is not None
    assert all(f"        {key}: " in documented for key in CardFacts.__annotations__)
    assert FACTS.keys() == CardFacts.__annotations__.keys(), "this test uses every fact"


def test_a_metric_of_any_dtype_and_structure_has_a_card() -> None:
    assert "adjacency, 16 parameters" in GSSFMetric(4, adjacency=torch.ones(4, 4).bool()).model_card()
