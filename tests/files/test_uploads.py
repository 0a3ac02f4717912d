"""What an upload is told wrongly is refused by name, and then nothing is written, nor anything on the Hub made."""

from pathlib import Path
from typing import Any

import pytest
import torch
from attention.small_models import small_bert

from gssf_plug import GSSFMetric
from gssf_plug.attention import patch_attention
from gssf_plug.errors import ArgumentError

WRONG: dict[str, list[Any]] = {
    "private": ["no", 0, 1, [True]],
    "create_pr": ["yes", 1],
    "token": [4, b"secret", ["secret"]],
    "branch": [4, Path("main")],
    "commit_message": [4, b"first", ["first"]],
    "ignore_patterns": [4, [4], {"*.json": 1}],
    "model_card_kwargs": [4, "mit", {"nonsense": 1}],
    "privat": [True],
    "adapter_name": ["default"],
}
ADAPTER = {name: WRONG[name] for name in ("private", "token", "commit_message", "model_card_kwargs")}
ADAPTER |= {"revision": WRONG["branch"], "adapter_name": [4, "other"]}
NO_ID = [None, "", 4, b"me/metric", Path("me/metric"), ["me/metric"], "a/b/c", "a b", "-a", torch.ones(2)]


@pytest.fixture(autouse=True)
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    def reached(*_: object, **__: object) -> None:
        raise AssertionError("the Hub was reached")

    for method in ("create_repo", "upload_folder"):
        monkeypatch.setattr(f"huggingface_hub.HfApi.{method}", reached)


def pairs(wrong: dict[str, list[Any]]) -> list[tuple[str, Any]]:
    return [(name, value) for name, values in wrong.items() for value in values]


@pytest.fixture(scope="module")
def metric() -> GSSFMetric:
    return GSSFMetric(8, block_size=4)


@pytest.fixture(scope="module")
def patch() -> Any:
    return patch_attention(small_bert(), block_size=4)


@pytest.mark.bad_input
@pytest.mark.parametrize("repo_id", NO_ID)
def test_what_is_no_id(metric: GSSFMetric, patch: Any, repo_id: Any, tmp_path: Path) -> None:
    for owner in (metric, patch):
        with pytest.raises(ArgumentError, match="`repo_id` must be a Hub id, but got .*\\. Such as 'user/name'"):
            owner.push_to_hub(repo_id)
    if repo_id is not None:  # which takes the name of the folder
        with pytest.raises(ArgumentError, match="`repo_id` must be a Hub id"):
            metric.save_pretrained(tmp_path / "saved", push_to_hub=True, repo_id=repo_id)
    assert not list(tmp_path.iterdir())


@pytest.mark.bad_input
@pytest.mark.parametrize(("name", "value"), pairs(WRONG))
def test_options(metric: GSSFMetric, name: str, value: Any, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=f"`{name}` must "):
        metric.push_to_hub("me/metric", **{name: value})
    with pytest.raises(ArgumentError, match=f"`{name}` must "):
        metric.save_pretrained(tmp_path / "saved", push_to_hub=True, **{name: value})
    assert not list(tmp_path.iterdir())


@pytest.mark.bad_input
@pytest.mark.parametrize(("name", "value"), pairs(ADAPTER))
def test_options_of_an_adapter(patch: Any, name: str, value: Any) -> None:
    with pytest.raises(ArgumentError, match=f"`{name}` must "):
        patch.push_to_hub("me/metric", **{name: value})


@pytest.mark.bad_input
@pytest.mark.parametrize("value", [None, "", "no", 0, 1, torch.ones(2)])
def test_whether_to_upload(metric: GSSFMetric, value: Any, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="`push_to_hub` must be True or False"):
        metric.save_pretrained(tmp_path / "saved", push_to_hub=value)
    assert not list(tmp_path.iterdir())


@pytest.mark.bad_input
def test_an_option_that_is_misspelt_is_named_without_an_upload_too(metric: GSSFMetric, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="`privat` must be an option of push_to_hub, .*private"):
        metric.save_pretrained(tmp_path / "saved", privat=True)
    assert not list(tmp_path.iterdir())
