"""Distiller: projectors, shapes across architectures, the teacher's promises, plan, check, refusals."""

import copy

import pytest
import torch
from distillation.models import TinyCNN, bert, images, text, vit
from torch import nn
from torch.nn.functional import mse_loss

from gssf_plug import GSSFMetric
from gssf_plug.distillation import Distiller, Tap
from gssf_plug.distillation.losses import MSE, DistillationLoss, LogitKL, Relation
from gssf_plug.distillation.losses.short_names import LOSSES
from gssf_plug.errors import ArgumentError
from gssf_plug.features import mean_pool

PAIR = {"encoder.layer.1": "encoder.layer.3"}


def pair_of_berts(**options):
    return bert(seed=1), bert(width=24, layers=4, seed=2, **options)


@pytest.mark.parametrize("loss", sorted(LOSSES))
def test_every_name_plans_checks_and_trains(loss):
    student, teacher = pair_of_berts()
    distiller, batch = Distiller(student, teacher, PAIR, loss), text()
    plan = distiller.plan(batch)
    assert plan.rows[0].student_shape == (6, 7, 16)
    assert distiller.check(batch).rows[0].gradient > 0
    before = copy.deepcopy(dict(distiller.named_parameters()))
    optimizer = torch.optim.SGD(distiller.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        distiller(batch)["loss"].backward()
        optimizer.step()
    still = [n for n, p in distiller.named_parameters() if torch.equal(p, before[n])]
    assert not [name for name in still if not name.startswith("student.") and "log_scale" not in name]
    assert any(not torch.equal(p, before[f"student.{n}"]) for n, p in student.named_parameters())


def test_the_loss_by_hand():
    student, teacher = pair_of_berts()
    student.eval()
    batch = text()
    distiller = Distiller(student, teacher, PAIR, "mse", weight=3.0)
    distiller.plan(batch)
    distiller.eval()
    losses = distiller(batch)
    ours = student(**batch).last_hidden_state
    theirs = teacher(**batch, output_hidden_states=True).hidden_states[4]
    squared = (distiller.projectors[0](ours) - theirs).square().mean(-1)
    mask = batch["attention_mask"]
    expected = ((squared * mask).sum(1) / mask.sum(1)).mean()
    torch.testing.assert_close(losses["encoder.layer.1"], expected)
    torch.testing.assert_close(losses["loss"], 3 * expected)


def test_several_pairs_several_losses_and_rules():
    student, teacher = pair_of_berts()
    distiller = Distiller(student, teacher, "uniform", ["gssf", "cosine"], weight=[2.0, 0.5])
    plan = distiller.plan(text())
    assert [(r.student[-1], r.teacher[-1], r.loss, r.weight) for r in plan.rows] == [
        ("0", "1", "Relation", 2.0),
        ("0", "1", "Cosine", 0.5),
        ("1", "3", "Relation", 2.0),
        ("1", "3", "Cosine", 0.5),
    ]
    losses = distiller(text())
    assert list(losses) == ["loss", *[f"encoder.layer.{i}:{name}" for i in (0, 1) for name in ("gssf", "cosine")]]
    values = list(losses.values())
    torch.testing.assert_close(values[0], 2 * values[1] + 0.5 * values[2] + 2 * values[3] + 0.5 * values[4])
    assert list(distiller.metrics()) == ["encoder.layer.0:gssf", "encoder.layer.1:gssf"]
    assert distiller.relational
    last = Distiller(student, teacher, "last", "mse")
    assert [(a.path, b.path) for a, b in last.pairs] == [("encoder.layer.1", "encoder.layer.3")]
    braces = Distiller(student, teacher, {"encoder.layer.*": "encoder.layer.{3,0}"}, "mse")
    assert [b.path for _, b in braces.pairs] == ["encoder.layer.3", "encoder.layer.0"]


@pytest.mark.parametrize(
    ("student", "teacher", "pairs"),
    [
        (TinyCNN, vit, {"stages.1": "layers.1"}),
        (vit, TinyCNN, {"layers.0": "stages.0"}),
        (TinyCNN, lambda: TinyCNN(10), {"stages.0": "stages.1"}),
        (vit, lambda: vit(24, patch=8), {"layers.1": "layers.0"}),
        (TinyCNN, lambda: TinyCNN(10), {"": ""}),
    ],
)
@pytest.mark.parametrize("loss", ["mse", "gssf"])
def test_across_architectures_and_grids(student, teacher, pairs, loss):
    student, teacher = student(), teacher()
    distiller = Distiller(student, teacher, {_path(student, a): _path(teacher, b) for a, b in pairs.items()}, loss)
    distiller.plan(images())
    check = distiller.check(images())
    assert check.rows[0].reached > 2


def _path(model, path):
    """transformers names ViT's stack `layers` or `encoder.layer`, by version."""
    return (
        path if not path.startswith("layers") or hasattr(model, "layers") else path.replace("layers", "encoder.layer")
    )


def test_the_teacher_has_its_own_inputs():
    """Another tokenizer: other ids, other lengths."""
    student, teacher = pair_of_berts()
    other = text(length=4, seed=5)
    batch = {**text(), **{f"teacher_{name}": value for name, value in other.items()}}
    distiller = Distiller(student, teacher, PAIR, "mse")
    plan = distiller.plan(batch)
    assert plan.rows[0].teacher_shape == (6, 4, 24)
    distiller.check(batch)
    taken = distiller.teacher.features(batch, torch.device("cpu"))["encoder.layer.1"].tensor
    torch.testing.assert_close(taken, teacher(**other, output_hidden_states=True).hidden_states[4])


def test_across_modalities():
    """An image teacher and a text student, by a mapping and by a function."""
    batch = {**text(), **images()}
    for inputs in ({"pixel_values": "pixel_values"}, lambda b: b["pixel_values"]):
        distiller = Distiller(bert(), TinyCNN(), {"": ""}, "gssf", teacher_inputs=inputs)
        distiller.plan(batch)
        assert distiller.check(batch).rows[0].gradient > 0
    with pytest.raises(ArgumentError, match=r"`teacher_inputs` must name columns of the batch, but got 'pixels'"):
        Distiller(bert(), TinyCNN(), {"": ""}, "gssf", teacher_inputs={"pixel_values": "pixels"}).plan(batch)


def test_a_student_that_takes_one_dictionary():
    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = bert()

        def forward(self, input):
            return {"sentence_embedding": mean_pool(self.inner(**input).last_hidden_state, input["attention_mask"])}

    sentence = Tap("", output="sentence_embedding")
    distiller = Distiller(
        Wrapped(),
        bert(24, 4, seed=2),
        [(sentence, Tap("", pooling=mean_pool))],
        "gssf",
        student_inputs=lambda batch: {"input": batch},
    )
    plan = distiller.plan(text())
    assert plan.rows[0].student_shape == (6, 16)
    assert str(plan).splitlines()[1].startswith("sentence_embedding  output:mean_pool  6×16 ~ 6×24")
    assert distiller.check(text()).rows[0].gradient > 0


def test_the_teacher_is_always_in_evaluation_mode_and_without_gradients():
    student, teacher = pair_of_berts(hidden_dropout_prob=0.9)
    distiller, batch = Distiller(student, teacher, PAIR, "mse"), text()
    distiller.plan(batch)
    distiller.train()
    teacher.train()  # what a careless loop does
    first = distiller.teacher.features(batch, torch.device("cpu"))["encoder.layer.1"].tensor
    assert torch.equal(distiller.teacher.features(batch, torch.device("cpu"))["encoder.layer.1"].tensor, first)
    assert not teacher.training
    distiller(batch)["loss"].backward()
    assert all(p.grad is None for p in teacher.parameters())


def test_batch_statistics_of_a_teacher_do_not_move():
    teacher = TinyCNN(10)
    before = copy.deepcopy(teacher.state_dict())
    distiller = Distiller(TinyCNN(), teacher, {"stages.1": "stages.1"}, "mse")
    distiller.plan(images())
    distiller.train()
    distiller(images())
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


def test_the_teacher_is_in_no_state_dict_and_the_student_is_plain():
    student, teacher = pair_of_berts()
    keys = list(student.state_dict())
    distiller = Distiller(student, teacher, PAIR, "mse")
    distiller.plan(text())
    assert list(student.state_dict()) == keys
    assert set(distiller.state_dict()) == {f"student.{k}" for k in keys} | {"projectors.0.weight", "projectors.0.bias"}
    inner = {id(p) for p in teacher.parameters()}
    assert not inner & {id(p) for p in distiller.parameters()}


def test_teacher_dtype():
    student, teacher = pair_of_berts()
    reference = Distiller(student, copy.deepcopy(teacher), PAIR, "cosine")
    half = Distiller(student, teacher, PAIR, "cosine", teacher_dtype=torch.bfloat16)
    for distiller in (reference, half):
        torch.manual_seed(0)
        distiller.plan(text())
        distiller.eval()
    assert half.teacher.features(text(), torch.device("cpu"))["encoder.layer.1"].tensor.dtype == torch.bfloat16
    ours, exact = half(text())["loss"], reference(text())["loss"]
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, exact, atol=2e-2, rtol=2e-2)
    pixels = Distiller(TinyCNN(), TinyCNN(10), {"": ""}, "mse", teacher_dtype=torch.bfloat16)
    pixels.plan(images())


def test_autocast_and_checkpointing_train():
    student, teacher = pair_of_berts()
    student.activation_checkpointing_enable({"use_reentrant": False})
    distiller = Distiller(student, teacher, {"encoder.layer.0.output.dense": "encoder.layer.1"}, ["gssf", "mse"])
    distiller.plan(text())
    distiller.train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = distiller(text())
    assert losses["loss"].dtype == torch.float32
    losses["loss"].backward()
    assert student.encoder.layer[0].attention.self.query.weight.grad.abs().max() > 0
    assert student.encoder.layer[1].attention.self.query.weight.grad is None


def test_task_loss_and_logits():
    class Classifier(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.body, self.head = nn.Linear(4, width), nn.Linear(width, 3)

        def forward(self, x, labels=None):
            logits = self.head(self.body(x).relu())
            return {"logits": logits} if labels is None else {"logits": logits, "loss": mse_loss(logits, labels)}

    student, teacher = Classifier(6), Classifier(9)
    batch = {"x": torch.randn(5, 4), "labels": torch.randn(5, 3)}
    head = Tap("", output="logits")
    distiller = Distiller(student, teacher, [(head, head)], LogitKL(temperature=2.0), weight=0.3, task_weight=0.7)
    assert distiller.plan(batch).rows[0].projector == "none"
    losses, outputs = distiller(batch, return_outputs=True)
    torch.testing.assert_close(losses["task"], outputs["loss"])
    torch.testing.assert_close(losses["loss"], 0.3 * losses["output"] + 0.7 * losses["task"])
    del batch["labels"]
    with pytest.raises(ArgumentError, match="`task_weight` must be 0 where the student returns no loss"):
        distiller(batch)


def test_projectors_given_and_forbidden():
    student, teacher = pair_of_berts()
    mine = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 24))
    distiller = Distiller(student, teacher, PAIR, "mse", projector=mine)
    assert distiller.plan(text()).rows[0].projector == "Sequential"
    assert distiller.projectors[0] is mine
    forbidden = Distiller(student, teacher, PAIR, ["gssf", "mse"], projector=None)
    for _ in range(2):  # a plan that failed leaves nothing half-built
        with pytest.raises(ArgumentError, match="`student` must have the teacher's width 24 for MSE, but got 16"):
            forbidden.plan(text())
        assert not forbidden.planned
    with pytest.raises(ArgumentError, match="`projector` must be a module for a single pair only, but got one module"):
        Distiller(student, teacher, "uniform", "mse", projector=mine)
    with pytest.raises(ArgumentError, match="`projector` must be 'auto', None or a module, but got 'linear'"):
        Distiller(student, teacher, PAIR, "mse", projector="linear")


def test_plan_prints_and_builds_once():
    student, teacher = pair_of_berts()
    distiller = Distiller(student, teacher, PAIR, "mse")
    plan = distiller.plan(text())
    printed = str(plan)
    assert "6×7×16 ~ 6×7×24" in printed
    assert "Linear" in printed
    assert plan.parameters == 16 * 24 + 24
    projector = distiller.projectors[0]
    assert distiller.plan(text(count=3)).rows[0].student_shape == (3, 7, 16)
    assert distiller.projectors[0] is projector
    assert "teacher is in evaluation mode" in str(distiller.check(text()))


def test_check_leaves_nothing_behind():
    student = TinyCNN()
    distiller = Distiller(student, TinyCNN(10), {"stages.1": "stages.1"}, "mgd")
    distiller.plan(images())
    before, state = copy.deepcopy(distiller.state_dict()), torch.get_rng_state()
    distiller.check(images())
    assert all(torch.equal(value, before[name]) for name, value in distiller.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None for p in distiller.parameters())


def test_check_finds_what_is_wrong():
    student, teacher = pair_of_berts()
    student.encoder.requires_grad_(False)
    student.embeddings.requires_grad_(False)
    distiller = Distiller(student, teacher, PAIR, "mse")
    distiller.plan(text())
    with pytest.raises(
        ArgumentError, match="`student` must get a finite gradient from 'encoder.layer.1', but got none"
    ):
        distiller.check(text())

    class Restless(TinyCNN):
        def forward(self, pixel_values):
            return nn.functional.dropout(super().forward(pixel_values), 0.5, training=True)

    distiller = Distiller(TinyCNN(), Restless(10), {"": ""}, "mse")
    distiller.plan(images())
    with pytest.raises(ArgumentError, match="`teacher` must give the same features twice"):
        distiller.check(images())


class Neutral(DistillationLoss):
    def compute(self, student, teacher, mask):
        return student.sum() * 0


def test_refusals_at_construction():
    student, teacher = pair_of_berts()
    with pytest.raises(ArgumentError, match=r"`pairs \(teacher\)` must be the path of a module"):
        Distiller(student, teacher, {"encoder.layer.1": "encoder.layer.9"}, "mse")
    with pytest.raises(ArgumentError, match="`weight` must be a number of at least 0, or one for each of 1 losses"):
        Distiller(student, teacher, PAIR, "mse", weight=[1.0, 2.0])
    with pytest.raises(ArgumentError, match="`teacher` must share no weights with the student, but got 'embeddings"):
        Distiller(student, student, PAIR, "mse")


@pytest.mark.bad_input
def test_refusals_at_the_batch():
    student, teacher = pair_of_berts()
    distiller = Distiller(student, teacher, PAIR, "gssf")
    with pytest.raises(ArgumentError, match=r"`batch` must come after distiller.plan\(batch\)"):
        distiller(text())
    distiller.plan(text())
    with pytest.raises(ArgumentError, match="`student` must hold at least two examples for Relation"):
        distiller(text(count=1))
    other = {f"teacher_{name}": value for name, value in text(count=4).items()}
    with pytest.raises(ArgumentError, match="`teacher` must have the student's batch size 6, but got 4"):
        distiller({**text(), **other})
    ids = {"example_id": torch.arange(6), "teacher_example_id": torch.arange(6).flip(0)}
    with pytest.raises(ArgumentError, match="`batch` must hold the same examples for student and teacher"):
        distiller({**text(), **{f"teacher_{n}": v for n, v in text().items()}, **ids})
    with torch.no_grad():
        teacher.embeddings.word_embeddings.weight[int(text()["input_ids"][2, 0])] = float("nan")
    with pytest.raises(
        ArgumentError, match="`teacher` must give finite features, but got NaN or infinity from 'encoder"
    ):
        distiller(text())


def test_one_loss_with_parameters_serves_one_pair():
    student, teacher = pair_of_berts()
    shared = Relation(GSSFMetric(16))
    with pytest.raises(ArgumentError, match="`loss` must have no parameters to serve several pairs"):
        Distiller(student, teacher, "uniform", shared).plan(text())
    Distiller(student, teacher, "uniform", MSE()).plan(text())
    one = Distiller(student, teacher, [(Tap("", pooling=mean_pool), Tap("", pooling=mean_pool))], shared)
    one.plan(text())
    assert one.metrics()["output"] is shared.metric


def test_the_losses_of_a_pair_share_its_projector():
    """One Linear for those that compare channels; the others see the student's own features."""
    student, teacher = pair_of_berts()
    shared = Relation(GSSFMetric(24, block_size=8, constraint="psd"), projected=True)
    distiller = Distiller(student, teacher, PAIR, ["mse", shared, "gssf", "cosine"])
    plan = distiller.plan(text())
    assert [row.projector for row in plan.rows] == ["Linear", "the same", "none", "the same"]
    assert len(distiller.projectors) == 1
    assert plan.parameters == sum(
        p.numel() for part in (distiller.projectors, distiller.losses) for p in part.parameters()
    )
    distiller.eval()
    losses, batch = distiller(text()), text()
    ours = mean_pool(student(**batch).last_hidden_state, batch["attention_mask"])
    theirs = mean_pool(teacher(**batch).last_hidden_state, batch["attention_mask"])
    projected = distiller.projectors[0](ours)
    expected = [shared(projected, theirs), distiller.losses[2](ours, theirs)]
    found = [losses["encoder.layer.1:relation"], losses["encoder.layer.1:gssf"]]
    torch.testing.assert_close(found, expected)


@pytest.mark.bad_input
def test_a_projector_that_serves_nothing_is_refused():
    student, teacher = pair_of_berts()
    with pytest.raises(ArgumentError, match="`projector` must serve a loss that compares channel by channel"):
        Distiller(student, teacher, PAIR, "sp", projector=nn.Linear(16, 24)).plan(text())
