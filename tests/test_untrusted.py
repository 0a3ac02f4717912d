"""Folders from strangers, of every kind that we read: whatever is in them, a `CheckpointError` or the content.

What is allocated stays in proportion to the files, nothing is unpickled, no file outside is named, nothing hangs.
"""

import json
import os
import pickle
import random
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tools.forged import copy, edit, rewrite
from torch import Tensor, nn
from transformers import BertConfig, BertModel

import gssf_plug.files.reading
from gssf_plug import GSSFMetric
from gssf_plug.attention import load_attention, patch_attention
from gssf_plug.distillation import Distiller, Tap, TeacherCache, precompute
from gssf_plug.errors import CheckpointError
from gssf_plug.features import GPO
from gssf_plug.files import inside
from gssf_plug.files.folders import DIGEST_KEY, text_digest
from gssf_plug.metric.checkpoint import DIM_LIMIT
from gssf_plug.retrieval import (
    OneTower,
    Tower,
    TwoTower,
)

DAMAGES = 60  # random ones per kind of folder


# every kind of folder that we read


def bert() -> BertModel:
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    return BertModel(BertConfig(vocab_size=9, max_position_embeddings=8, **shape)).eval()


def metric(**options: Any) -> GSSFMetric:
    made = GSSFMetric(8, **{"block_size": 4, "grouping": torch.randperm(8), **options})
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    return made


def distiller() -> Distiller:
    made = Distiller(bert(), bert(), pairs={"encoder.layer.0": "encoder.layer.0"}, loss="gssf")
    made.plan({"input_ids": torch.randint(9, (4, 5))})
    return made


def save_cache(folder: Path) -> None:
    def collate(rows: list[Any]) -> dict[str, Tensor]:
        return {"input_ids": torch.tensor([row["input_ids"] for row in rows])}

    rows = [{"input_ids": row.tolist()} for row in torch.randint(9, (6, 5))]
    precompute(bert(), [Tap("encoder.layer.0")], rows, folder, collate=collate, batch_size=3, shard_batches=1)


def model() -> TwoTower:
    return TwoTower(Tower(None, token_projection=nn.Linear(6, 8), pooling=GPO()), None, metric())


SAVERS: dict[str, Callable[[Path], object]] = {
    "metric": lambda folder: metric().save_pretrained(folder),
    "adjacency": lambda folder: metric(adjacency=torch.ones(8, 8).bool(), grouping=None).save_pretrained(folder),
    "adapter": lambda folder: patch_attention(bert(), block_size=4).save_pretrained(folder),
    "distiller": lambda folder: distiller().save_parts(folder),
    "cache": save_cache,
    "retrieval": lambda folder: model().save_pretrained(folder),
}


def load_distiller(folder: Path) -> Distiller:
    made = distiller()
    made.load_parts(folder)
    return made


LOADERS: dict[str, Callable[[Path], object]] = {
    "metric": GSSFMetric.from_pretrained,
    "adjacency": GSSFMetric.from_pretrained,
    "adapter": lambda folder: load_attention(bert(), folder),
    "distiller": load_distiller,
    "cache": lambda folder: TeacherCache(folder, verify=False),
    "retrieval": TwoTower.from_pretrained,
}
KINDS = list(SAVERS)


def content(kind: str, loaded: Any) -> dict[str, Tensor]:
    """Every number that was loaded."""
    if kind == "adapter":
        return dict(loaded.named_parameters())
    if kind == "cache":
        return {f"{n}.{name}": tensor for n, shard in enumerate(loaded._shards) for name, tensor in shard.items()}
    module: nn.Module = nn.ModuleList([loaded.projectors, loaded.losses]) if kind == "distiller" else loaded
    return module.state_dict()


def same(kind: str, loaded: Any, original: Any) -> bool:
    ours, theirs = content(kind, loaded), content(kind, original)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    torch.manual_seed(0)
    folders = {kind: tmp_path_factory.mktemp("originals") / kind for kind in KINDS}
    for kind, folder in folders.items():
        SAVERS[kind](folder)
        LOADERS[kind](folder)
    return folders


@pytest.fixture
def folder(originals: dict[str, Path], tmp_path: Path) -> Callable[[str], Path]:
    return lambda kind: copy(originals[kind], tmp_path / kind)


# numbers that ask for memory


@pytest.mark.parametrize("terms", [["diagonal"], ["block_diagonal"], ["dense"], ["diagonal", "block_diagonal"]])
@pytest.mark.parametrize("dim", [2**24, 10**9, 10**30])
@pytest.mark.usefixtures("little_memory")
def test_absurd_sizes_allocate_nothing(folder: Callable[[str], Path], terms: list[str], dim: int) -> None:
    found = folder("metric")
    edit(found, lambda config: config.update(dim=dim, terms=terms, block_size=min(dim, 2**24)))
    message = f"'dim' is not between 1 and {DIM_LIMIT:,}" if dim > DIM_LIMIT else "tensor|`grouping` must be"
    with pytest.raises(CheckpointError, match=message):
        GSSFMetric.from_pretrained(found)


@pytest.mark.usefixtures("little_memory")
def test_an_absurd_size_that_its_tensors_agree_to_costs_nothing_either(tmp_path: Path) -> None:
    """All blocks pruned: nothing is stored for any number of channels."""
    small = GSSFMetric(8, terms=("block_diagonal",), block_size=8)
    small.prune(1.0)
    small.save_pretrained(tmp_path)
    edit(tmp_path, lambda config: config.update(dim=DIM_LIMIT))
    assert GSSFMetric.from_pretrained(tmp_path).dim == DIM_LIMIT


@pytest.mark.usefixtures("little_memory")
def test_absurd_sizes_in_an_adapter(folder: Callable[[str], Path]) -> None:
    found = folder("adapter")
    name = "adapter_config.json"
    edit(found, lambda config: next(iter(config["layers"].values()))["metric"].update(dim=2**24), name)
    with pytest.raises(CheckpointError, match="does not hold together at 'encoder.layer.0.attention.self'"):
        load_attention(bert(), found)


@pytest.mark.usefixtures("little_memory")
def test_absurd_sizes_in_a_retrieval_model(folder: Callable[[str], Path]) -> None:
    found = folder("retrieval")
    tower = json.loads((found / "config.json").read_text())["parts"]["image_tower"]["arguments"]
    assert tower["token_projection"]["class"] == "Linear"

    def grow(config: dict[str, Any]) -> None:
        linear = config["parts"]["image_tower"]["arguments"]["token_projection"]
        linear["arguments"].update(in_features=10**6, out_features=10**6)

    edit(found, grow)
    with pytest.raises(CheckpointError):
        TwoTower.from_pretrained(found)


# types, texts, values


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("kind", ["metric", "adapter", "distiller"])
def test_what_is_not_finite(folder: Callable[[str], Path], kind: str, bad: float) -> None:
    found = folder(kind)
    path = next(found.glob("*.safetensors"))
    tensors = load_file(path)
    name = next(name for name, tensor in tensors.items() if tensor.is_floating_point() and tensor.numel())
    tensors[name].view(-1)[0] = bad
    config = next(found.glob("*config.json"))
    rewrite(found, config.read_text(), config.name, tensors)
    with pytest.raises(CheckpointError, match="holds NaN or infinity in '.*'. Its training diverged; go back"):
        LOADERS[kind](found)


@pytest.mark.parametrize(
    ("record", "value"),
    [("layout", ["query"]), ("heads", "2"), ("metric", [1]), ("query_norm", {}), ("head_size", None)],
)
def test_wrong_types_in_an_adapter(folder: Callable[[str], Path], record: str, value: object) -> None:
    found = folder("adapter")
    edit(found, lambda config: next(iter(config["layers"].values())).update({record: value}), "adapter_config.json")
    with pytest.raises(CheckpointError, match="has a damaged record of the layer"):
        load_attention(bert(), found)


# texts that are no configuration


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 200_000, "is not valid JSON"),
        ('{"a":' * 100 + "1" + "}" * 100, "nested deeper than 64"),
        ('{"dim": 8, "dim": 9}', "the key 'dim' stands there twice"),
        ('{"dim": ' + "9" * 5000 + "}", "is not valid JSON"),
        ("[1, 2]", "holds no JSON object but a list"),
        ("null", "holds no JSON object but a NoneType"),
        ("", "is not valid JSON"),
        ("\ufeff{}", "is not valid JSON"),
    ],
    ids=["deep", "deeper", "twice", "digits", "list", "null", "empty", "mark"],
)
@pytest.mark.parametrize("kind", KINDS)
def test_odd_json(folder: Callable[[str], Path], kind: str, text: str, message: str) -> None:
    found = folder(kind)
    next(path for path in found.glob("*.json")).write_text(text)
    with pytest.raises(CheckpointError, match=message):
        LOADERS[kind](found)


def test_a_huge_configuration_is_not_read(folder: Callable[[str], Path]) -> None:
    found = folder("metric")
    with (found / "config.json").open("wb") as file:
        file.truncate(2**40)  # a sparse file: a terabyte that takes no room
    with pytest.raises(CheckpointError, match="is larger than 16777216 bytes"):
        GSSFMetric.from_pretrained(found)


# files that are no safetensors


def test_a_huge_header_is_not_read(folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    found = folder("metric")
    with (found / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", 2**40))
        file.truncate(2**40)
    with pytest.raises(CheckpointError, match=r"it has a header of 1,099,511,627,776 bytes, above 16,777,216"):
        GSSFMetric.from_pretrained(found)
    monkeypatch.setattr(gssf_plug.files.reading, "HEADER_LIMIT_BYTES", 8)
    metric().save_pretrained(found)
    with pytest.raises(CheckpointError, match="above 8"):
        GSSFMetric.from_pretrained(found)


@pytest.mark.parametrize(
    "header",
    [
        {"x": {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 4 * 10**12]}},
        {"x": {"dtype": "F32", "shape": [2**62, 8], "data_offsets": [0, 4]}},
        {"x": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}},
        {"x": {"dtype": "F32", "shape": [0, 2**63 - 1], "data_offsets": [0, 0]}},
        {"x": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}},
        {"x": {"dtype": "O", "shape": [1], "data_offsets": [0, 4]}},
        {"__metadata__": {DIGEST_KEY: 5}},
        {"__metadata__": [1]},
        [1],
    ],
)
@pytest.mark.usefixtures("little_memory")
def test_headers_that_lie(folder: Callable[[str], Path], header: object) -> None:
    found = folder("metric")
    text = json.dumps(header).encode()
    (found / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(4))
    with pytest.raises(CheckpointError, match=r"is no whole safetensors file|tensor|two different saves"):
        GSSFMetric.from_pretrained(found)


class Explosive:
    """Runs code when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.trace,))


@pytest.mark.parametrize("kind", KINDS)
def test_a_pickle_is_never_opened(folder: Callable[[str], Path], kind: str, tmp_path: Path) -> None:
    found, trace = folder(kind), tmp_path / "it ran"
    pickle.loads(pickle.dumps(Explosive(trace)))
    assert trace.exists(), "the check below could not fail"
    trace.unlink()
    for path in list(found.rglob("*.safetensors")):
        path.write_bytes(pickle.dumps(Explosive(trace)))
        torch.save({"weight": torch.ones(1), "x": Explosive(trace)}, path.with_name("pytorch_model.bin"))
    with pytest.raises(CheckpointError):
        LOADERS[kind](found)
    for path in list(found.rglob("*.safetensors")):
        path.unlink()
    with pytest.raises(CheckpointError):
        LOADERS[kind](found)
    assert not trace.exists()


def test_a_pickle_beside_a_model_of_transformers_is_never_opened(tmp_path: Path) -> None:
    """Also where the digests were made to agree, and the safetensors taken away."""
    OneTower(Tower(bert()), None).save_pretrained(tmp_path)
    trace = tmp_path / "it ran"
    weights = next(path for path in tmp_path.rglob("*.safetensors") if path.parent != tmp_path)
    torch.save({"x": Explosive(trace)}, weights.with_name("pytorch_model.bin"))
    weights.unlink()
    edit(tmp_path, lambda config: config["files"].pop(str(weights.relative_to(tmp_path))))
    with pytest.raises(CheckpointError):
        OneTower.from_pretrained(tmp_path)
    assert not trace.exists()


# names and links


@pytest.mark.parametrize(
    "name",
    ["../secret", "a/../../secret", "/etc/passwd", "..\\secret", "C:\\secret", "C:secret", "a\0b", "", 3, None, ["a"]],
)
@pytest.mark.bad_input
def test_no_file_outside_is_named(tmp_path: Path, name: Any) -> None:
    with pytest.raises(CheckpointError, match="names a file outside itself"):
        inside(tmp_path, name)


def test_files_inside_are_named(tmp_path: Path) -> None:
    assert inside(tmp_path, "metric/model.safetensors") == tmp_path / "metric" / "model.safetensors"
    assert inside(tmp_path, "..hidden") == tmp_path / "..hidden"


def test_a_cache_names_no_shard_elsewhere(folder: Callable[[str], Path], tmp_path: Path) -> None:
    found = folder("cache")
    manifest = json.loads((found / "cache.json").read_text())
    name = manifest["shards"][0]["name"]
    (tmp_path / "elsewhere").write_bytes((found / name).read_bytes())
    manifest["shards"][0]["name"] = "../elsewhere"
    (found / "cache.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="names a file outside itself, '../elsewhere'"):
        TeacherCache(found)


@pytest.mark.parametrize("place", ["files", "processors"])
def test_a_retrieval_model_names_no_file_elsewhere(folder: Callable[[str], Path], place: str) -> None:
    found = folder("retrieval")
    edit(found, lambda config: config[place].update({"../../elsewhere": "BertTokenizerFast"}))
    with pytest.raises(CheckpointError, match="names a file outside itself"):
        TwoTower.from_pretrained(found)


def test_links_are_read_through_and_replaced_when_written(folder: Callable[[str], Path], tmp_path: Path) -> None:
    """The Hub's cache is made of links into its blobs; a save into it must not change the blobs."""
    found = folder("metric")
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    for path in list(found.iterdir()):
        path.rename(blobs / path.name)
        path.symlink_to(blobs / path.name)
    before = {path.name: path.read_bytes() for path in blobs.iterdir()}
    GSSFMetric.from_pretrained(found).save_pretrained(found)
    metric(terms=("diagonal",)).save_pretrained(found)
    assert {path.name: path.read_bytes() for path in blobs.iterdir()} == before
    assert not (found / "model.safetensors").is_symlink()
    assert GSSFMetric.from_pretrained(found).terms == ("diagonal",)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_pipes_devices_and_dead_links_are_no_files(folder: Callable[[str], Path], name: str) -> None:
    found = folder("metric")
    path = found / name
    for make in (
        lambda: os.mkfifo(path),
        lambda: path.symlink_to("/dev/zero"),
        lambda: path.symlink_to(found / "nowhere"),
        lambda: path.symlink_to(name),
        path.mkdir,
    ):
        path.unlink()
        make()
        with pytest.raises(CheckpointError, match=f"{name}' is missing"):
            GSSFMetric.from_pretrained(found)


# chance


def damage(data: bytes, chance: random.Random) -> bytes:
    """One of what happens to files: bytes flipped, cut off, cut out, doubled, overwritten; JSON values exchanged."""
    at = chance.randrange(max(len(data), 1))
    kind = chance.randrange(7)
    if kind == 0:
        return data[:at] + bytes([data[at] ^ (1 << chance.randrange(8))]) + data[at + 1 :]
    if kind == 1:
        return data[:at]
    if kind == 2:
        return data[:at] + data[at + chance.randrange(1, 40) :]
    if kind == 3:
        return data[:at] + data[max(at - 30, 0) :]
    if kind == 4:
        head = bytearray(data)
        head[at : at + 8] = chance.randbytes(8)
        return bytes(head)
    if kind == 5:
        return data[:at] + chance.choice([b"{", b"}", b"[", b"null", b'"', b"1e999", b"-1", b"\0", b"true"]) + data[at:]
    numbers = [b"0", b"-1", b"1e5", b"18446744073709551616", b"999999999", b"null", b'"x"', b"[]", b"{}", b"NaN"]
    digits = [place for place in range(len(data)) if data[place : place + 1].isdigit()][:400]
    return data.replace(data[(place := chance.choice(digits or [0])) : place + 1], chance.choice(numbers), 1)


def consistent(folder: Path) -> None:
    """Give the weights the digest of the damaged configuration, so that what lies behind that check is reached."""
    for config in folder.rglob("*config.json"):
        weights = config.with_name(config.name.replace("config.json", "model.safetensors"))
        try:
            text = config.read_text(encoding="utf-8", errors="replace")
            save_file(load_file(weights), weights, metadata={DIGEST_KEY: text_digest(text)})
        except Exception:  # whatever is wrong with the damaged weights: they stay as they are
            continue


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("no_hang")
def test_random_damage(originals: dict[str, Path], kind: str, tmp_path: Path) -> None:
    """A CheckpointError, or what was saved; never another error. Where the damage was made to agree, any content."""
    refused = 0
    load = TeacherCache if kind == "cache" else LOADERS[kind]
    original = load(originals[kind])
    for seed in range(DAMAGES):
        chance = random.Random(seed)
        folder = copy(originals[kind], tmp_path / str(seed))
        victims = sorted(path for path in folder.rglob("*") if path.suffix in (".json", ".safetensors"))
        victim = chance.choice(victims)
        victim.write_bytes(damage(victim.read_bytes(), chance))
        agreeing = chance.random() < 0.5
        if agreeing:
            consistent(folder)
        try:
            loaded = load(folder)
        except CheckpointError:
            refused += 1
        except Exception as error:
            raise AssertionError(f"seed {seed}, {victim.name}: {type(error).__name__}: {error}") from error
        else:
            assert agreeing or same(kind, loaded, original), (
                f"seed {seed}: {victim.name} was damaged and taken as it is"
            )
    assert refused > DAMAGES / 2, "the damage was too kind to show anything"


def test_json_of_very_many_values_is_not_parsed(folder: Callable[[str], Path]) -> None:
    found = folder("metric")
    (found / "config.json").write_text(json.dumps({"dim": [[]] * 300_000}))
    with pytest.raises(CheckpointError, match="holds more than 200,000 values"):
        GSSFMetric.from_pretrained(found)


def test_loading_runs_no_code_of_the_folder(originals: dict[str, Path], tmp_path: Path) -> None:
    """Python files in a folder are never imported, not even as the working directory."""
    found = copy(originals["metric"], tmp_path / "metric")
    for name in ("gssf_plug_metric.py", "modeling.py", "conftest.py", "config.py"):
        (found / name).write_text("raise SystemExit('it ran')")
    program = f"from gssf_plug import GSSFMetric; print(GSSFMetric.from_pretrained({str(found)!r}).dim)"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert run.stdout.strip() == "8", run.stderr
