"""TeacherModel: where a forward may end, quantised teachers, its own inputs, several users of one model."""

import copy

import pytest
import torch
from accelerate import cpu_offload, dispatch_model
from contracts.teacher import TeacherContract, examples, padded
from distillation.models import TinyCNN, bert, text
from optimum.quanto import freeze, qint8, quantize
from torch import nn

from gssf_plug.distillation import Distiller, FeatureTaps, Tap, TeacherCache, TeacherModel, precompute
from gssf_plug.distillation.cache.digests import digest_weights
from gssf_plug.errors import ArgumentError
from gssf_plug.features import mean_pool

CPU = torch.device("cpu")
PAIR = {"encoder.layer.1": "encoder.layer.1"}


class TestTeacherModel(TeacherContract):
    kind = TeacherModel

    @pytest.fixture
    def teacher(self):
        return TeacherModel(self.model())

    def batch(self, teacher, rows):
        return padded([examples()[row] for row in rows])


def counting(model, path):
    """How often a module runs."""
    runs = []
    model.get_submodule(path).register_forward_hook(lambda *_: runs.append(1))
    return runs


def read(model, path="encoder.layer.1", times=3, **options):
    source = TeacherModel(model, **options)
    source.watch({"0": Tap(path)})
    return [source.features(text(), CPU)["0"] for _ in range(times)]


def test_runs_no_further_than_its_last_tap():
    """The first forward goes to its end; later ones stop, and give the same to the bit."""
    model = bert(24, 4, seed=2)
    tapped, beyond = counting(model, "encoder.layer.1"), counting(model, "encoder.layer.2")
    first, second, third = read(model)
    assert (len(tapped), len(beyond)) == (3, 1)
    assert torch.equal(first.tensor, second.tensor)
    assert torch.equal(first.tensor, third.tensor)
    assert torch.equal(first.mask, second.mask)
    assert len(beyond) == 1
    model(**text())  # others run the whole model still
    assert len(beyond) == 2


def test_two_taps_end_at_the_later_one():
    model = bert(24, 4, seed=2)
    beyond = counting(model, "encoder.layer.3")
    source = TeacherModel(model)
    source.watch({"0": Tap("encoder.layer.2"), "1": Tap("encoder.layer.0")})
    for _ in range(2):
        found = source.features(text(), CPU)
    expected = model(**text(), output_hidden_states=True).hidden_states
    assert torch.equal(found["0"].tensor, expected[3])
    assert torch.equal(found["1"].tensor, expected[1])
    assert len(beyond) == 2  # the first forward, and the one above


@pytest.mark.parametrize("wrap", [lambda m: m, nn.DataParallel])
@pytest.mark.parametrize("choice", [None, True, False])
def test_early_exit_is_a_choice_where_it_may_not_be_safe(wrap, choice):
    model = bert(24, 4, seed=2)
    beyond = counting(model, "encoder.layer.2")
    wrapped = wrap(model)
    read(wrapped, early_exit=choice)
    stops = choice if choice is not None else wrapped is model
    assert len(beyond) == (1 if stops else 3)


def test_offloaded_and_compiled_teachers_run_to_their_end():
    for spoil in (
        lambda m: setattr(m.encoder.layer[0], "_hf_hook", object()),
        lambda m: setattr(m.encoder.layer[0], "_compiled_call_impl", m.encoder.layer[0]._call_impl),
    ):
        model = bert(24, 4, seed=2)
        spoil(model)
        beyond = counting(model, "encoder.layer.2")
        read(model)
        assert len(beyond) == 3


def on_disk(model, folder):
    places = {"embeddings": "cpu", "encoder": "disk"}
    return dispatch_model(model, places, offload_dir=folder / "offloaded", main_device="cpu")


@pytest.mark.parametrize("offload", [lambda model, folder: cpu_offload(model, execution_device="cpu"), on_disk])
def test_offloaded_teachers_teach_and_are_cached_as_those_in_memory(offload, tmp_path):
    plain, offloaded = bert(24, 4, seed=2), offload(bert(24, 4, seed=2), tmp_path)
    assert any(parameter.is_meta for parameter in offloaded.parameters())
    losses = []
    for teacher in (plain, offloaded):
        distiller = Distiller(bert(seed=1), teacher, {"encoder.layer.1": "encoder.layer.3"}, "mse")
        torch.manual_seed(0)
        distiller.plan(text())
        losses.append(distiller(text())["loss"])
    assert torch.equal(*losses)
    rows = [{"input_ids": row} for row in text()["input_ids"]]
    collate = lambda rows: {"input_ids": torch.stack([row["input_ids"] for row in rows])}  # noqa: E731
    precompute(offloaded, [Tap("encoder.layer.3")], rows, tmp_path / "kept", collate=collate, batch_size=2)
    TeacherCache(tmp_path / "kept", teacher=plain)  # whose weights are the same
    assert digest_weights(offloaded) == digest_weights(plain)


def test_the_model_s_own_output_needs_the_whole_forward():
    model = bert(24, 4, seed=2)
    last = counting(model, "encoder.layer.3")
    read(model, path="")
    assert len(last) == 3


def test_several_distillers_share_a_teacher():
    """What one needs does not end the forward of the other, and each reads its own."""
    teacher, batch = bert(24, 4, seed=2), text()
    low, high = (
        Distiller(bert(seed=1), teacher, {"encoder.layer.1": f"encoder.layer.{layer}"}, "mse") for layer in (0, 3)
    )
    for distiller in (low, high, low, high):
        distiller.plan(batch)
    expected = teacher(**batch, output_hidden_states=True).hidden_states
    for _ in range(2):
        for distiller, layer in ((low, 0), (high, 3)):
            found = distiller.teacher.features(batch, CPU)["encoder.layer.1"].tensor
            assert torch.equal(found, expected[layer + 1])


def test_a_hook_that_fails_is_still_an_error():
    model = bert(24, 4, seed=2)
    read(model, times=1)
    source = TeacherModel(model)
    source.watch({"0": Tap("encoder.layer.1", output="nothing")})
    with pytest.raises(ArgumentError, match="`output` must be a part of what 'encoder.layer.1' returns"):
        source.features(text(), CPU)


def test_a_quantised_teacher():
    """int8 weights stay as they are, are close to the plain ones, train a student, and have a digest of their own."""
    plain = bert(24, 4, seed=2)
    quantised = copy.deepcopy(plain)
    quantize(quantised, weights=qint8, exclude="embeddings*")
    freeze(quantised)
    expected, found = read(plain, times=1)[0].tensor, read(quantised, times=2)[1].tensor
    assert not torch.equal(found, expected)
    torch.testing.assert_close(found, expected, atol=0.1, rtol=0.1)
    distiller = Distiller(bert(seed=1), quantised, PAIR, "mse")
    distiller.plan(text())
    assert distiller.check(text()).rows[0].gradient > 0
    digests = {digest_weights(quantised), digest_weights(plain)}
    with torch.no_grad():
        quantised.encoder.layer[0].attention.self.query.weight._data[0, 0] += 1
    assert len(digests | {digest_weights(quantised)}) == 3


def test_options_belong_to_a_plain_model():
    source = TeacherModel(bert(24, 4, seed=2), dtype=torch.bfloat16, early_exit=False)
    distiller = Distiller(bert(seed=1), source, PAIR, "mse")
    assert distiller.teacher is source
    distiller.plan(text())
    with pytest.raises(ArgumentError, match="teacher_dtype, teacher_device` must be given with a plain model only"):
        Distiller(bert(seed=1), source, PAIR, "mse", teacher_dtype=torch.float32)
    student = bert(seed=1)
    with pytest.raises(ArgumentError, match="`teacher` must share no weights with the student"):
        Distiller(student, TeacherModel(student), PAIR, "mse")


def test_parameters_without_a_place_are_not_shared():
    """On the meta device, and where sharding freed them, all parameters lie at address 0."""
    with torch.device("meta"):
        student, teacher = TinyCNN(), TinyCNN()
    Distiller(student, teacher, {"": ""}, "mse")
    with pytest.raises(ArgumentError, match="share no weights"):
        Distiller(student, student, {"": ""}, "mse")


def test_examples_are_compared_with_every_kind_of_inputs():
    batch = {**text(), "example_id": torch.arange(6), "teacher_example_id": torch.arange(6).flip(0)}
    for inputs in (None, {"input_ids": "input_ids"}, lambda b: {"input_ids": b["input_ids"]}):
        distiller = Distiller(bert(seed=1), bert(24, 4, seed=2), PAIR, "mse", teacher_inputs=inputs)
        with pytest.raises(ArgumentError, match="`batch` must hold the same examples for student and teacher"):
            distiller.plan(batch)


def test_taps_are_taken_away_again():
    model = bert(24, 4, seed=2)
    source = TeacherModel(model)
    source.watch({"0": Tap("", pooling=mean_pool)})
    source.release()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    with FeatureTaps(model, ["encoder.layer.0"]) as taps:
        model(**text())
        assert taps["encoder.layer.0"].tensor.shape == (6, 7, 24)
