"""The studies run from features to table, on small random features that hold a planted dependency between channels."""

import importlib
import sys
from pathlib import Path

import pytest
import torch
from data.emoji import SPLITS, load_emoji
from safetensors.torch import save_file
from studies.first_five import FIRST, SHOWN, compared, middles
from studies.first_five import draw as draw_first_five
from studies.grid import paired
from studies.tasks import Split, Task, average_precision, load_task
from studies.whitening import whiten
from torch.nn.functional import normalize

from gssf_plug import GSSFMetric

WIDTH = 64


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Features of the right number of rows; drawings of one emoji are alike up to a mixing of channels per camera."""
    folder = tmp_path_factory.mktemp("features")
    rows = {
        split: load_emoji(split).select_columns(["label", "name", "keywords", "captions"]).to_list() for split in SPLITS
    }
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(2000, WIDTH, generator=generator)
    images = {split: centres[torch.tensor([row["label"] for row in part])] for split, part in rows.items()}
    noise = {split: torch.randn(part.shape, generator=generator) for split, part in images.items()}
    save_file({split: (images[split] + noise[split]).half() for split in SPLITS}, folder / "images.safetensors")
    every = [row for part in rows.values() for row in part]
    texts = {text for row in every for text in (row["name"], *row["keywords"], *row["captions"])}
    save_file({"texts": torch.randn(len(texts), WIDTH, generator=generator)}, folder / "texts.safetensors")
    return folder


def test_average_precision_against_a_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(6, 9, generator=generator)
    relevant, hidden = (torch.rand(6, 9, generator=generator) < share for share in (0.4, 0.2))
    relevant[0] = False
    found = average_precision(scores, Split(scores, scores, relevant, hidden)).tolist()
    expected = []
    for row in range(6):
        kept = [(scores[row, m].item(), bool(relevant[row, m])) for m in range(9) if not hidden[row, m]]
        right = [match for _, match in sorted(kept, reverse=True)]
        hits = [sum(right[: place + 1]) / (place + 1) for place, match in enumerate(right) if match]
        expected += [100 * sum(hits) / len(hits)] if hits else []
    assert found == pytest.approx(expected)


@pytest.mark.parametrize("name", ["text", "image-text", "re-id", "fine-grained"])
def test_tasks_hold_together(name: str, cache: Path) -> None:
    task = load_task(name, cache)
    for split in task.splits.values():
        assert split.relevant.shape == split.hidden.shape == (len(split.queries), len(split.gallery))
        assert (split.relevant & ~split.hidden).any(1).float().mean() > 0.95
        if task.one_sided:
            assert split.hidden.diagonal().all()


def test_paired_test_finds_a_gain_and_no_gain() -> None:
    values = torch.linspace(0, 100, 200)
    runs = {(name, 0): {"per_query": (values + shift).tolist()} for name, shift in (("a", 0.0), ("b", 0.0))}
    runs["c", 0] = {"per_query": (values + 1 + values.sin()).tolist()}
    assert paired(runs, "b", "a") == (0.0, 1.0)
    gain, p = paired(runs, "c", "a")
    assert gain == pytest.approx(1.0, abs=0.2)
    assert p < 1e-6


def test_whitening_finds_what_noise_along_one_direction_hides() -> None:
    generator = torch.Generator().manual_seed(0)

    def split() -> Split:
        rows = torch.randn(60, 1, 8, generator=generator) + 0.1 * torch.randn(60, 4, 8, generator=generator)
        rows[..., 0] = 20 * torch.randn(60, 4, generator=generator)
        features, labels = rows.flatten(0, 1), torch.arange(60).repeat_interleave(4)
        return Split(features, features, labels[:, None] == labels, torch.eye(240, dtype=torch.bool))

    task = Task("re-id", one_sided=True, splits={name: split() for name in SPLITS})
    test = task.splits["test"]
    cosine = average_precision(normalize(test.queries, dim=1) @ normalize(test.gallery, dim=1).T, test).mean()
    found = {by_pairs: whiten(task, by_pairs) for by_pairs in (False, True)}
    assert found[False]["mAP"] > cosine + 5
    assert found[True]["mAP"] > found[False]["mAP"] + 5
    assert len(found[True]["per_query"]) == 240


@pytest.mark.parametrize("study", ["three_tasks", "data_size", "encoder_rate", "grouping", "softmax", "transfer"])
def test_study_makes_its_table(study: str, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module, training = importlib.import_module(f"studies.{study}"), importlib.import_module("studies.training")
    monkeypatch.setattr(training, "STEPS", 4)
    monkeypatch.setattr(training, "LOOKS", 1)
    monkeypatch.setattr(sys, "argv", [study, "--quick", "--cache", str(cache), "--output", str(tmp_path)])
    threads = torch.get_num_threads()
    module.main()
    torch.set_num_threads(threads)
    text = (tmp_path / f"{study}.md").read_text()
    assert ("| cosine + scale |" if study == "encoder_rate" else "| cosine |") in text
    logs = list(tmp_path.glob("*.jsonl"))
    before = [log.read_text() for log in logs]
    module.main()  # nothing is run again
    torch.set_num_threads(threads)
    assert [log.read_text() for log in logs] == before


def test_fit_metric_as_it_comes(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["fit_auto", "--quick", "--cache", str(cache)])
    importlib.import_module("studies.fit_auto").main()
    assert "| text | " in capsys.readouterr().out


def test_the_first_picture_takes_the_middle_of_each_fifth() -> None:
    change = torch.tensor([5.0, -3, 0, 9, 1, -1, 2, 8, 7, 6, -9, -8, 4, 3, -2])
    assert change[middles(change, 5)].tolist() == [-8, -1, 2, 5, 8]
    assert change[middles(-change, 5)].tolist() == [8, 5, 2, -1, -8]  # the same queries, whichever side is asked for


def test_the_first_picture_shows_both_as_they_rank(cache: Path) -> None:
    split = load_task("re-id", cache).splits["test"]
    metric = GSSFMetric(WIDTH, block_size=16)
    with torch.no_grad():
        for parameter in metric.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    both = compared(metric, split)
    figure, told = draw_first_five(both)
    cells = [axis for axis in figure.axes if axis.images]
    assert len(cells) == SHOWN * (1 + 2 * FIRST)
    change = both.precision[1] - both.precision[0]
    assert f"{int((change > 0).sum())} gain, {int((change < 0).sum())} lose" in told
    unit = normalize(split.queries, dim=1)
    torch.testing.assert_close(both.scores[0], unit @ unit.T)
    framed = sum(axis.spines["top"].get_linewidth() > 2 for axis in cells if axis.spines["top"].get_visible())
    queries = (split.relevant & ~split.hidden).any(1).nonzero()[:, 0][middles(change, SHOWN)]
    expected = 0
    for scores in both.scores:
        for query in queries.tolist():
            order = [item for item in scores[query].argsort(descending=True).tolist() if not split.hidden[query, item]]
            expected += int(split.relevant[query, order[:FIRST]].sum())
    assert framed == expected
