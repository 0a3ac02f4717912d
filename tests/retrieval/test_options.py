"""What the trainer and its evaluations are given: taken as it is, or refused by name before anything runs."""

import numpy as np
import pytest
import torch

from gssf_plug.errors import ArgumentError
from gssf_plug.losses import InfoNCE
from gssf_plug.retrieval import Embedding, Fragments, RetrievalConfig, TwoTower, image_text_measures, options

pytestmark = pytest.mark.bad_input


def refuses(match, check, *given, **named):
    with pytest.raises(ArgumentError, match=match):
        check(*given, **named)


def parts(**changed):
    config = RetrievalConfig(output_dir="run")
    whole = {
        "model": TwoTower(None, None), "loss": InfoNCE(), "config": config, "collate": list, "eval_collate": None,
        "evaluation": image_text_measures, "evaluated": (None, [{}]),
    }  # fmt: skip
    return {**whole, **changed}


def test_parts_of_a_trainer():
    options.check_parts(**parts())
    wrong = {
        "model": (torch.nn.Linear(2, 2), "`model` must be a RetrievalModel, but got Linear"),
        "loss": (InfoNCE, "`loss` must be a module of torch.nn, but got the class InfoNCE"),
        "config": ({"output_dir": "run"}, "`config` must be a RetrievalConfig, but got dict"),
        "collate": (None, "`collate` must be a function, but got NoneType"),
        "evaluation": (len, "`evaluation` must be None or a function of 2 arguments"),
        "evaluated": ((None, {"train": []}), "`eval_gallery` must be a data set with a length"),
    }
    for name, (value, match) in wrong.items():
        refuses(match, options.check_parts, **parts(**{name: value}))
    refuses(
        "`loss` must hold values, but got weights on the meta", options.check_parts, **parts(loss=InfoNCE().to("meta"))
    )


def test_an_embedding_has_ids_for_all_rows():
    rows, ids = torch.randn(3, 4), torch.arange(3)
    options.check_embedding(Embedding(rows, ids, rows, ids))
    options.check_embedding(Embedding(Fragments(rows[None], torch.ones(1, 3).bool()), ids[:1], rows, ids))
    refuses("`embedding` must be an Embedding, but got tuple", options.check_embedding, (rows, ids, rows, ids))
    refuses("`queries` must be floating-point rows", options.check_embedding, Embedding(ids, ids, rows, ids))
    for wrong in (ids[:2], ids.float(), ids.to(torch.uint64), [0, 1, 2]):
        refuses("`gallery_ids` must hold one signed whole", options.check_embedding, Embedding(rows, ids, rows, wrong))


def test_columns_of_numbers_and_choices():
    for right in ([0, 1], np.array([0, 1]), torch.tensor([0, 1])):
        assert options.checked_column("ids", right, 2).tolist() == [0, 1]
    for wrong in ([0, 1, 2], [0.0, 1.0], ["a", "b"], None, torch.zeros(2, 1).long()):
        refuses("`ids` must", options.checked_column, "ids", wrong, 2)
    assert options.checked_choice(None, 2) is None
    assert options.checked_choice([True, False], 2).tolist() == [True, False]
    for wrong in ([0, 1], [True], "ab"):
        refuses("`is_query` must", options.checked_choice, wrong, 2)
    options.check_relevant(torch.zeros(3, 2).long())
    for wrong in (torch.zeros(3, 3).long(), torch.zeros(3, 2), [[0, 1]]):
        refuses(r"`relevant` must be None or whole numbers \(P, 2\)", options.check_relevant, wrong)
