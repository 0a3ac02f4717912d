"""The measures as `evaluate` modules, by path, offline, alone and with two processes."""

import json
from importlib import import_module

import pytest
import torch

evaluate = import_module("evaluate")

from workers import launching  # noqa: E402

from gssf_plug import GSSFMetric  # noqa: E402
from gssf_plug.errors import ArgumentError  # noqa: E402
from gssf_plug.evaluation import MODULES, image_text_recall, instance_recall, reid_ranking  # noqa: E402


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, tmp_path):
    monkeypatch.setattr("evaluate.config.HF_METRICS_CACHE", tmp_path)


def load(name, tmp_path, **options):
    return evaluate.load(str(MODULES / name), cache_dir=str(tmp_path), **options)


def test_instance_recall(tmp_path):
    features, labels = torch.randn(40, 8), torch.randint(8, (40,))
    metric = GSSFMetric(8, block_size=4)
    torch.nn.init.normal_(metric.structures["block_diagonal"].weight)
    module = load("instance_recall", tmp_path)
    for rows in torch.arange(40).split(16):
        module.add_batch(features=features[rows].tolist(), labels=labels[rows].tolist())
    got = module.compute(metric=metric, ks=(1, 3))
    assert got == pytest.approx(instance_recall(features, labels, metric=metric, ks=(1, 3)))


def test_reid_ranking_takes_numpy_rows_in_any_order(tmp_path):
    features, identities, cameras = torch.randn(60, 8), torch.randint(6, (60,)), torch.randint(3, (60,))
    query = torch.rand(60) < 0.3
    right = reid_ranking(
        features[query],
        features[~query],
        identities[query],
        identities[~query],
        cameras[query],
        cameras[~query],
    )
    module = load("reid_ranking", tmp_path)
    columns = {"features": features, "identities": identities, "cameras": cameras, "queries": query}
    for rows in torch.arange(60).split(25):
        module.add_batch(**{name: column[rows].numpy() for name, column in columns.items()})
    assert module.compute() == pytest.approx(right)


def rows_of_images_and_texts():
    images, owners = torch.randn(20, 8), torch.arange(20).repeat_interleave(3)
    texts = images[owners] + torch.randn(60, 8)
    rows = {
        "features": torch.cat([images, texts]),
        "images": torch.cat([torch.arange(20), owners]) * 7 + 5,  # numbers need not be rows
        "texts": torch.arange(80) >= 20,
    }
    return image_text_recall(images, texts, owners, folds=2), rows


def test_image_text_recall_takes_rows_in_any_order(tmp_path):
    right, rows = rows_of_images_and_texts()
    shuffle = torch.randperm(80)
    got = load("image_text_recall", tmp_path).compute(
        predictions=None, references=None, folds=2, **{name: column[shuffle].tolist() for name, column in rows.items()}
    )
    assert got == pytest.approx(right)


def test_image_text_recall_refuses_repeated_and_missing_images(tmp_path):
    _, rows = rows_of_images_and_texts()
    twice = {name: torch.cat([column, column[:1]]).tolist() for name, column in rows.items()}
    with pytest.raises(ArgumentError, match="`images` must hold every image once, but got image 5 more than once"):
        load("image_text_recall", tmp_path).compute(**twice)
    missing = {name: column[1:].tolist() for name, column in rows.items()}
    with pytest.raises(ArgumentError, match="`images` must name an image that was added, but got 5 of a caption"):
        load("image_text_recall", tmp_path / "again").compute(**missing)


def rows_of_reid():
    features, identities, cameras = torch.randn(60, 8), torch.randint(6, (60,)), torch.randint(3, (60,))
    query = torch.arange(60) % 3 == 0
    sides = [column[side] for column in (features, identities, cameras) for side in (query, ~query)]
    rows = {"features": features, "identities": identities, "cameras": cameras, "queries": query}
    return reid_ranking(*sides, ranks=(1, 5)), rows


def rows_of_instances():
    features, labels = torch.randn(41, 8), torch.randint(8, (41,))
    return instance_recall(features, labels, ks=(1, 3)), {"features": features, "labels": labels}


TWO_PROCESSES = """
import json, sys
import evaluate, torch
modules, cache, process, tasks = sys.argv[1], sys.argv[2], int(sys.argv[3]), torch.load(sys.argv[4])
for name, (rows, options) in tasks.items():
    module = evaluate.load(f"{modules}/{name}", cache_dir=cache, num_process=2, process_id=process, experiment_id=name)
    for part in torch.arange(process, len(rows["features"]), 2).split(7):
        module.add_batch(**{column: values[part].tolist() for column, values in rows.items()})
    measures = module.compute(**options)
    print("result", json.dumps([name, module.num_process, measures]))
"""


def test_two_processes_accumulate_into_one_result(tmp_path):
    made = {
        "image_text_recall": (*rows_of_images_and_texts(), {"folds": 2}),
        "reid_ranking": (*rows_of_reid(), {"ranks": [1, 5]}),
        "instance_recall": (*rows_of_instances(), {"ks": [1, 3]}),
    }
    assert set(made) == {folder.name for folder in MODULES.iterdir() if folder.is_dir()}
    torch.save({name: (rows, options) for name, (_, rows, options) in made.items()}, tmp_path / "tasks.pt")
    (tmp_path / "job.py").write_text(TWO_PROCESSES)
    words = [[*map(str, (MODULES, tmp_path / "cache", process, tmp_path / "tasks.pt"))] for process in (0, 1)]
    done = launching.run_together(tmp_path / "job.py", words, cwd=tmp_path)
    assert [job.returncode for job in done] == [0, 0], done[0].stderr + done[1].stderr
    printed = [job.stdout.splitlines() for job in done]
    first, second = ([json.loads(line[7:]) for line in lines if line.startswith("result ")] for lines in printed)
    assert [name for name, *_ in first] == list(made)
    for (name, processes, measures), (*_, nothing) in zip(first, second, strict=True):
        assert processes == 2
        assert measures == pytest.approx(made[name][0]), name
        assert nothing is None
