"""The teacher cache: the same features as online, kills, stale and damaged folders, foreign examples."""

import json
import os
import time
from functools import partial

import pytest
import torch
from contracts.teacher import TAPS, TeacherContract, examples, padded
from datasets import Dataset
from distillation.models import TinyCNN, bert, images, text
from workers import launching

from gssf_plug.distillation import Distiller, Tap, TeacherCache, precompute
from gssf_plug.distillation.teacher import TeacherModel
from gssf_plug.errors import ArgumentError, CheckpointError
from gssf_plug.features import GPO, mean_pool

POOLED, TOKENS, LAYER = Tap("", pooling=mean_pool), Tap("encoder.layer.3"), Tap("encoder.layer.1", token=0)
CPU = torch.device("cpu")


class TestTeacherCache(TeacherContract):
    kind = TeacherCache

    @pytest.fixture
    def teacher(self, tmp_path):
        kept = [*TAPS.values(), *(Tap(f"encoder.layer.{layer}") for layer in (0, 1))]
        return precompute(self.model(), kept, examples(), tmp_path / "cache", collate=padded, batch_size=2)

    def batch(self, teacher, rows):
        return padded([{**examples()[row], "teacher_row": row} for row in rows])


def rows(count=21):
    generator = torch.Generator().manual_seed(3)
    lengths = torch.randint(2, 9, (count,), generator=generator).tolist()
    return [{"input_ids": torch.randint(1, 50, (n,), generator=generator).tolist()} for n in lengths]


def collate(batch):
    longest = max(len(row["input_ids"]) for row in batch)
    ids = torch.tensor([row["input_ids"] + [0] * (longest - len(row["input_ids"])) for row in batch])
    mask = torch.tensor([[1] * len(r["input_ids"]) + [0] * (longest - len(r["input_ids"])) for r in batch])
    extra = {"teacher_row": torch.tensor([r["teacher_row"] for r in batch])} if "teacher_row" in batch[0] else {}
    return {"input_ids": ids, "attention_mask": mask, **extra}


def make(folder, teacher=None, taps=(POOLED, TOKENS, LAYER), data=None, **options):
    options = {"batch_size": 4, "shard_batches": 2, "collate": collate, **options}
    return precompute(teacher or bert(24, 4, seed=2), list(taps), data or rows(), folder, **options)


def test_gives_what_the_teacher_gives(tmp_path):
    teacher = bert(24, 4, seed=2)
    cache = make(tmp_path, teacher)
    assert len(cache) == 21
    assert len(list(tmp_path.glob("shard-*.safetensors"))) == 3
    online = TeacherModel(teacher)
    for source in (online, cache):
        source.watch({"0": POOLED, "1": TOKENS, "2": LAYER})
    picked = [17, 0, 9, 8, 20]
    batch = collate([rows()[i] for i in picked]) | {"teacher_row": torch.tensor(picked)}
    expected, found = online.features(batch, CPU), cache.features(batch, CPU)
    for name in ("0", "2"):
        torch.testing.assert_close(found[name].tensor, expected[name].tensor)
    mask = batch["attention_mask"].bool()
    assert torch.equal(found["1"].mask, mask)
    torch.testing.assert_close(found["1"].tensor[mask], expected["1"].tensor[mask])


@pytest.mark.parametrize("loss", ["mse", "gssf"])
def test_the_distiller_needs_no_teacher(tmp_path, loss):
    teacher = bert(24, 4, seed=2)
    cache = make(tmp_path, teacher, taps=[TOKENS])
    data = cache.attach(Dataset.from_list(rows()).shuffle(seed=0).select(range(12)))
    batch = collate(list(data.select(range(6))))
    losses = []
    for source in (cache, teacher):
        torch.manual_seed(0)
        distiller = Distiller(bert(seed=1), source, {"encoder.layer.1": "encoder.layer.3"}, loss)
        distiller.plan(batch)
        distiller.check(batch)
        losses.append(distiller.eval()(batch)["loss"])
    torch.testing.assert_close(losses[0], losses[1])
    by_rule = Distiller(bert(seed=1), cache, "last", loss)
    assert by_rule.pairs[0][1].path == "encoder.layer.3"


def test_images_and_maps(tmp_path):
    teacher, pixels = TinyCNN(10), images(5)["pixel_values"]
    data = [{"pixel_values": image} for image in pixels]
    stack = lambda batch: {"pixel_values": torch.stack([row["pixel_values"] for row in batch])}  # noqa: E731
    cache = make(tmp_path, teacher, [Tap("stages.0"), Tap("")], data, collate=stack)
    cache.watch({"map": Tap("stages.0"), "vector": Tap("")})
    found = cache.features({"teacher_row": torch.arange(5)}, CPU)
    torch.testing.assert_close(found["vector"].tensor, teacher.eval()(pixels))
    assert found["map"].tensor.shape == (5, 10, 8, 8)
    assert found["map"].mask is None


def test_a_second_call_runs_nothing(tmp_path):
    make(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("shard*")}
    make(tmp_path)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("shard*")} == before


def test_goes_on_after_a_kill(tmp_path):
    """A process is killed while it writes; the next call keeps its whole shards and ends with the same features."""
    script = tmp_path / "make.py"
    script.write_text(
        "import time\n"
        "from distillation.cache.test_teacher_cache import make, rows, collate\n"
        f"make({str(tmp_path / 'killed')!r}, collate=lambda batch: (time.sleep(0.3), collate(batch))[1])\n"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(launching.TESTS)}
    process = launching.fork(script, [], environment, tmp_path, [tmp_path / "said", tmp_path / "wrong"])
    while not list((tmp_path / "killed").glob("cache.json")):
        assert process.is_alive(), (tmp_path / "wrong").read_text()
        time.sleep(0.02)
    process.kill()
    process.join()
    with pytest.raises(CheckpointError, match=r"holds 8 of 21 examples. Run precompute again"):
        TeacherCache(tmp_path / "killed")
    kept = (tmp_path / "killed/shard-00000.safetensors").stat().st_mtime_ns
    resumed, whole = make(tmp_path / "killed"), make(tmp_path / "whole")
    assert (tmp_path / "killed/shard-00000.safetensors").stat().st_mtime_ns == kept
    assert resumed.manifest == whole.manifest


def test_stale_folders_are_refused(tmp_path):
    make(tmp_path)
    for change, part in (
        ({"teacher": bert(24, 4, seed=3)}, "teacher"),
        ({"taps": [POOLED]}, "taps"),
        ({"teacher": bert(24, 4, seed=2).to(torch.bfloat16)}, "teacher"),
    ):
        with pytest.raises(CheckpointError, match=f"holds features of another {part} .*Give another folder"):
            make(tmp_path, **change)
    with pytest.raises(CheckpointError, match="holds features of other examples, or of another order"):
        make(tmp_path, data=rows(20))
    with pytest.raises(CheckpointError, match="was made from another teacher's weights"):
        TeacherCache(tmp_path, teacher=bert(24, 4, seed=3))
    TeacherCache(tmp_path, teacher=bert(24, 4, seed=2))


def reversed_collate(batch):
    found = collate(batch)
    return {**found, "input_ids": found["input_ids"].flip(1), "attention_mask": found["attention_mask"].flip(1)}


def test_another_tokenizer_or_architecture_is_stale(tmp_path):
    """The rows are the same texts, the weights are the same numbers: what the teacher makes of them is not."""
    make(tmp_path)
    with pytest.raises(CheckpointError, match="holds features of other inputs: collate makes something else"):
        make(tmp_path, collate=reversed_collate)
    other = bert(24, 4, seed=2)
    other.config.hidden_act = "relu"
    with pytest.raises(CheckpointError, match="holds features of another architecture"):
        make(tmp_path, other)
    renamed = bert(24, 4, seed=2)
    renamed.config._name_or_path = "elsewhere"
    make(tmp_path, renamed)


def test_a_pooling_needs_a_name_or_weights_of_its_own(tmp_path):
    """Two lambdas look alike: a cache of one would be taken for that of the other."""
    inner = lambda tokens, mask: tokens[:, 0]  # noqa: E731
    for pooling in (inner, partial(mean_pool)):
        with pytest.raises(ArgumentError, match="`pooling` must have a name of its own where features are cached"):
            make(tmp_path / "a", taps=[Tap("", pooling=pooling)])
    torch.manual_seed(1)
    pooled = [Tap("", pooling=GPO()), Tap("", pooling=GPO())]
    make(tmp_path / "b", taps=pooled[:1])
    with pytest.raises(CheckpointError, match="holds features of another taps"):
        make(tmp_path / "b", taps=pooled[1:])


def test_rows_outside_the_cache_are_refused(tmp_path):
    cache = make(tmp_path, taps=[POOLED])
    cache.watch({"0": POOLED})
    for row in (-1, 21):
        with pytest.raises(ArgumentError, match=r"`teacher_row` must lie in \[0, 21\), but got"):
            cache.features({"teacher_row": torch.tensor([0, row])}, CPU)


def test_an_example_is_found_in_any_form(tmp_path):
    """Lists, numpy and torch formats of one data set are the same examples."""
    cache = make(tmp_path, taps=[POOLED])
    plain = Dataset.from_list(rows())
    assert cache.find_rows(plain.with_format("torch")) == list(range(21))
    assert cache.find_rows(plain.with_format("numpy")) == list(range(21))
    assert cache.rows_of(plain) == list(range(21))  # its older name


def test_the_teacher_keeps_its_device_and_loses_its_taps(tmp_path):
    teacher = bert(24, 4, seed=2)
    make(tmp_path, teacher)
    assert next(teacher.parameters()).device == CPU
    assert not any(module._forward_hooks for module in teacher.modules())


def test_damage_is_found_and_repaired(tmp_path):
    whole = make(tmp_path).manifest
    shard = tmp_path / "shard-00001.safetensors"
    spoilt = bytearray(shard.read_bytes())
    spoilt[-5] ^= 1  # one bit of one feature
    shard.write_bytes(spoilt)
    with pytest.raises(CheckpointError, match=r"shard-00001.safetensors' is not what precompute wrote. It is damaged"):
        TeacherCache(tmp_path)
    assert make(tmp_path).manifest == whole
    shard.write_bytes(shard.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="is no whole safetensors file"):
        TeacherCache(tmp_path, verify=False)
    shard.unlink()
    with pytest.raises(CheckpointError, match="is missing"):
        TeacherCache(tmp_path)
    assert make(tmp_path).manifest == whole
    (tmp_path / "cache.json").write_text("{" * 10)
    with pytest.raises(CheckpointError, match="is no manifest of a teacher cache"):
        TeacherCache(tmp_path)
    (tmp_path / "cache.json").write_text(json.dumps({**whole, "version": 99}))
    with pytest.raises(CheckpointError, match="is of another format"):
        TeacherCache(tmp_path)
    with pytest.raises(CheckpointError, match="holds no cache.json"):
        TeacherCache(tmp_path / "nowhere")


def test_foreign_examples_and_features_are_refused(tmp_path):
    cache = make(tmp_path, taps=[TOKENS])
    foreign = Dataset.from_list([*rows()[:2], {"input_ids": [9, 9, 9]}])
    with pytest.raises(ArgumentError, match=r"`dataset` must hold only examples .* but got another one in row 2"):
        cache.attach(foreign)
    with pytest.raises(ArgumentError, match=r"`pairs \(teacher\)` must be features that the cache holds"):
        Distiller(bert(), cache, {"encoder.layer.1": "encoder.layer.2"}, "mse")
    distiller = Distiller(bert(), cache, {"encoder.layer.1": "encoder.layer.3"}, "mse")
    with pytest.raises(ArgumentError, match="`batch` must hold the column 'teacher_row'"):
        distiller.plan(text())
    with pytest.raises(ArgumentError, match="`columns` must be columns of the data set, but got 'text'"):
        make(tmp_path / "b", columns=["text"])
    with pytest.raises(ArgumentError, match="`dataset` must hold at least one example"):
        precompute(bert(), [TOKENS], [], tmp_path / "c", collate=collate)


def test_nan_is_never_written(tmp_path):
    teacher = bert(24, 4, seed=2)
    with torch.no_grad():
        teacher.encoder.layer[3].output.dense.bias[0] = float("nan")
    with pytest.raises(ArgumentError, match="NaN or infinity from 'encoder.layer.3' in example 0"):
        make(tmp_path, teacher, taps=[TOKENS])
    assert not list(tmp_path.glob("shard*"))


def test_columns_must_tell_examples_apart(tmp_path):
    """Or every example would get the features of the last."""
    with pytest.raises(ArgumentError, match="`columns` must name at least one column"):
        make(tmp_path / "a", columns=[])
    data = [{**row, "kind": number % 3} for number, row in enumerate(rows())]
    with pytest.raises(ArgumentError, match="`columns` must tell examples apart.* but got rows 0 and 3"):
        make(tmp_path / "b", data=data, columns=["kind"])
    twice = [*rows(4), *rows(4)]  # the same example twice is one example
    cache = make(tmp_path / "c", data=twice)
    assert len(cache) == 8
