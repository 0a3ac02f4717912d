"""Names of terms; nothing left on the models; what is wrong in a batch is named."""

import copy
import gc

import numpy as np
import pytest
import torch
from distillation.models import bert, images, text, vit
from torch import nn
from transformers import CLIPConfig, CLIPModel

from gssf_plug.distillation import Distiller, Tap, TeacherModel
from gssf_plug.distillation.losses import Relation
from gssf_plug.distillation.terms import name_pairs
from gssf_plug.errors import ArgumentError
from gssf_plug.features import mean_pool
from gssf_plug.metric import GSSFMetric

PAIR = {"encoder.layer.1": "encoder.layer.3"}


def hooks(*models):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for model in models for m in model.modules())


def clip(width=16, seed=0):
    torch.manual_seed(seed)
    sizes = {"hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": 2, "num_attention_heads": 2}
    return CLIPModel(
        CLIPConfig(
            text_config={"vocab_size": 50, "max_position_embeddings": 16, "eos_token_id": 49, **sizes},
            vision_config={"image_size": 16, "patch_size": 4, **sizes},
            projection_dim=width,
        )
    )


def pairs_of_clip():
    ids = text(6)
    ids["input_ids"][:, -1] = 49
    return {**ids, **images(6)}


@pytest.mark.parametrize(
    ("pairs", "names"),
    [
        ([("a", "b"), ("c", "b")], ["a", "c"]),
        ([("a", "b"), ("a", "c")], ["a<-b", "a<-c"]),
        ([("", "b")], ["output"]),
        ([(Tap("", output="image_embeds"), Tap("", output="image_embeds"))], ["output"]),
        (
            [(Tap("", output=name), Tap("", output=name)) for name in ("image_embeds", "text_embeds")],
            ["image_embeds<-image_embeds", "text_embeds<-text_embeds"],
        ),
        (
            [(Tap("", output="pooler_output"), Tap("x")), (Tap("", output="last_hidden_state", token=0), Tap("x"))],
            ["pooler_output<-x", "last_hidden_state[0]<-x"],
        ),
        ([(Tap("a", pooling=mean_pool), Tap("b")), (Tap("a"), Tap("b"))], ["a:mean_pool<-b", "a<-b"]),
        ([("a", "b"), ("a", "b")], ["a<-b", "a<-b#2"]),
        ([("loss", "b"), ("task", "c")], ["loss<-b", "task<-c"]),
    ],
)
def test_names_of_pairs_are_all_different_and_speak(pairs, names):
    taps = [tuple(side if isinstance(side, Tap) else Tap(side) for side in pair) for pair in pairs]
    assert name_pairs(taps) == names


def test_two_outputs_of_one_module_make_two_terms():
    student, teacher, batch = clip(), clip(24, seed=1), pairs_of_clip()
    both = [(Tap("", output=name), Tap("", output=name)) for name in ("image_embeds", "text_embeds")]
    distiller = Distiller(student, teacher, both, ["mse", "gssf"])
    assert [row.name for row in distiller.plan(batch).rows] == distiller.term_names()
    distiller.check(batch)
    losses = distiller.eval()(batch)
    assert list(losses) == [
        "loss",
        *(f"{n}<-{n}:{loss}" for n in ("image_embeds", "text_embeds") for loss in ("mse", "gssf")),
    ]
    with torch.no_grad():
        ours, theirs = student(**batch), teacher.eval()(**batch)
    expected = (distiller.projectors[1](ours.text_embeds) - theirs.text_embeds).square().mean()
    torch.testing.assert_close(losses["text_embeds<-text_embeds:mse"], expected)


def test_the_same_loss_twice_has_two_names():
    """With two temperatures, say."""
    losses = [Relation(GSSFMetric(16), temperature=t) for t in (0.1, 0.5)]
    distiller = Distiller(bert(), bert(24, 4, seed=2), PAIR, losses)
    distiller.plan(text())
    assert distiller.term_names() == ["encoder.layer.1:relation", "encoder.layer.1:relation#2"]
    assert len(set(distiller(text()).values())) == 3


def test_hooks_are_there_during_the_forward_alone():
    student, teacher, seen = bert(), bert(24, 4, seed=2), []
    distiller = Distiller(student, teacher, PAIR, "mse")
    student.encoder.layer[0].register_forward_hook(lambda *_: seen.append(hooks(student, teacher)))
    assert hooks(student, teacher) == 1
    distiller.plan(text())
    distiller(text())["loss"].backward()
    distiller.check(text())
    assert hooks(student, teacher) == 1
    assert min(seen) > 1


def test_an_error_leaves_nothing_on_the_models():
    """Neither a wrong pair, nor a wrong batch, nor an error of the model itself."""
    student, teacher, batch = bert(), bert(24, 4, seed=2), text()
    wrong = Distiller(student, teacher, [(Tap("encoder.layer.1", token=99), Tap("encoder.layer.3", token=0))], "mse")
    rule = r"`token` must be the place of a token of 'encoder\.layer\.1'.*7 tokens, but got 99.*"
    with pytest.raises(ArgumentError, match=rule + r"It is read for the pair .*layer\.1\[99\] <- .*layer\.3\[0\]\."):
        wrong.plan(batch)
    there = Distiller(student, teacher, [(Tap("encoder.layer.1", token=0), Tap("encoder.layer.3", token=99))], "mse")
    with pytest.raises(ArgumentError, match=r"token of 'encoder\.layer\.3'.*for the pair .*\[0\] <- .*\[99\]\."):
        there.plan(batch)
    assert hooks(student, teacher) == 0
    student(**batch)
    teacher(**batch)
    with pytest.raises(ArgumentError, match="`output` must be a part of what 'encoder.layer.1' returns"):
        Distiller(student, teacher, [(Tap("encoder.layer.1", output="nothing"), Tap(""))], "mse").plan(batch)
    right = Distiller(student, teacher, PAIR, "mse")
    right.plan(batch)
    with pytest.raises(IndexError):
        right({**batch, "input_ids": batch["input_ids"] + 50})
    assert hooks(student, teacher) == 0
    assert right(batch)["loss"] > 0


def test_dropped_distillers_leave_nothing_and_removed_ones_come_back():
    student, teacher = bert(), bert(24, 4, seed=2)
    for _ in range(5):
        distiller = Distiller(student, teacher, PAIR, "mse")
        distiller.plan(text())
    distiller.remove()
    value = distiller.eval()(text())["loss"]
    assert torch.equal(copy.deepcopy(distiller)(text())["loss"], value)
    del distiller
    gc.collect()
    assert hooks(student, teacher) == 0


@pytest.mark.compile
def test_a_compiled_student_keeps_its_hooks_until_the_distiller_goes():
    student, teacher = bert(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0), bert(24, 4, seed=2)
    distiller = Distiller(student, teacher, PAIR, "mse")
    distiller.plan(text())
    expected = distiller(text())["loss"]
    student.compile(backend="eager")
    for _ in range(2):
        torch.testing.assert_close(distiller(text())["loss"], expected)
        student(**text())
    assert hooks(student) > 0
    del distiller
    gc.collect()
    assert hooks(student) == 0


def test_two_distillers_share_a_teacher():
    """Each reads its own places."""
    student, teacher, batch = bert().eval(), TeacherModel(bert(24, 4, seed=2)), text()
    first = Distiller(student, teacher, {"encoder.layer.1": "encoder.layer.3"}, "cka")
    first.plan(batch)
    value = first.eval()(batch)["loss"]
    second = Distiller(student, teacher, {"encoder.layer.1": "encoder.layer.0"}, "cka")
    second.plan(batch)
    assert torch.equal(first.eval()(batch)["loss"], value)
    assert not torch.equal(second.eval()(batch)["loss"], value)


def test_a_token_of_what_has_no_tokens():
    """A channel is no token."""
    with pytest.raises(ArgumentError, match=r"gives no tokens but shape \(6, 16\), but got 0"):
        Tap("x", token=0).read(torch.zeros(6, 16), None)


def test_pooling_inside_a_checkpointed_block():
    """Nothing is computed there that the recomputation would not find."""
    gradients = []
    for checkpointed in (False, True):
        student = bert(seed=1, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
        if checkpointed:
            student.activation_checkpointing_enable({"use_reentrant": False})
        inner = Tap("encoder.layer.0.attention.output", pooling=mean_pool)
        distiller = Distiller(student, bert(24, 4, seed=2), [(inner, Tap("", pooling=mean_pool))], "gssf")
        distiller.plan(text())
        distiller.train()(text())["loss"].backward()
        gradients.append(student.encoder.layer[0].attention.self.query.weight.grad)
    torch.testing.assert_close(gradients[1], gradients[0])


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"input_ids": np.zeros((6, 7), dtype=int)},
            "`batch` must hold tensors where the .* reads, but got ndarray in",
        ),
        ({"input_ids": None}, "`batch` must hold tensors where the .* reads, but got NoneType in 'input_ids'"),
        (
            {"input_ids": ["a red apple"] * 6},
            "`batch` must hold tensors where the .* reads, but got list in 'input_ids'",
        ),
        ({"attention_mask": [[1] * 7] * 6}, "`batch` must hold tensors"),
    ],
)
def test_what_is_no_tensor_is_named(change, message):
    distiller = Distiller(bert(), bert(24, 4, seed=2), PAIR, "mse")
    with pytest.raises(ArgumentError, match=message):
        distiller.plan({**text(), **change})


def test_a_student_may_take_texts():
    """What a model reads is its own affair as long as it runs."""

    class Reader(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(128, 8)

        def forward(self, texts, hint=None):
            return torch.stack([self.table(torch.tensor([ord(c) for c in t])).mean(0) for t in texts])

    distiller = Distiller(Reader(), Reader(), {"": ""}, "cosine")
    distiller.plan({"texts": ["apple", "pear", "plum"], "hint": None})


@pytest.mark.parametrize("loss", ["mse", "gssf"])
def test_an_empty_batch_is_named(loss):
    distiller = Distiller(bert(), bert(24, 4, seed=2), PAIR, loss)
    distiller.plan(text())
    with pytest.raises(ArgumentError, match=r"`(batch|student)` must hold at least (one example|two examples)"):
        distiller({name: value[:0] for name, value in text().items()})
    with pytest.raises(ArgumentError, match="`teacher_inputs` must give the teacher"):
        distiller({})


def test_a_teacher_of_another_modality_without_inputs_is_named():
    distiller = Distiller(bert(), vit(), {"": ""}, "gssf")
    with pytest.raises(
        ArgumentError, match=r"`teacher_inputs` must give the teacher \['pixel_values'\], which it reads"
    ):
        distiller.plan(text())
    with pytest.raises(ArgumentError, match=r"`student_inputs` must give the student \['input_ids'\], which it reads"):
        Distiller(bert(), vit(), {"": ""}, "gssf").plan(images())
