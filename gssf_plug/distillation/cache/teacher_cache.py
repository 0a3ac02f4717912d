"""Teacher features computed once and kept on disk; afterwards the teacher need not be loaded at all.

    cache = precompute(teacher, {"pooled": Tap("", pooling=mean_pool)}, dataset, "cache/", collate=collator)
    dataset = cache.attach(dataset)                            # adds the column "teacher_row"
    distiller = Distiller(student, cache, pairs={"encoder.layer.1": ""})

The folder holds safetensors shards, memory-mapped when read, and cache.json with what they were made from: digests of
the teacher's weights, of its architecture and of what it was given for the first rows (which tells another tokenizer or
image size); the taps, the dtype, the columns. Promises: shards are renamed into place one by one, so a killed
run goes on where it stopped; a folder made from anything else is refused, never mixed; every example is found by a
digest of its content, so a shuffled or shortened data set gets its own features and a foreign example is refused.
Tokens are stored without padding.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm.auto import tqdm

from gssf_plug.arguments import (
    check_function,
    check_module,
    check_path,
    checked_count,
    checked_flag,
    described,
    holds_whole_numbers,
)
from gssf_plug.distillation.cache.digests import (
    digest_architecture,
    digest_inputs,
    digest_row,
    digest_weights,
    tap_key,
)
from gssf_plug.distillation.cache.options import check_dataset, checked_columns, checked_taps
from gssf_plug.distillation.cache.shards import MANIFEST, VERSION, digest_file, read_manifest, read_shard
from gssf_plug.distillation.taps import Feature, Tap
from gssf_plug.distillation.teacher import ROW, TeacherInputs, TeacherModel, get_inputs, moved
from gssf_plug.errors import ArgumentError, CheckpointError, near_matches
from gssf_plug.files import named_folder, write_atomically
from gssf_plug.metric.arrays import to_tensor

__all__ = ["TeacherCache", "precompute"]

STALE = "Give another folder, or delete this one."


class TeacherCache:
    """The features that `precompute` left in a folder, as the teacher of a `Distiller`.

    Args:
        folder: folder that `precompute` wrote and finished.
        teacher: model that the features must come from, which a digest of its weights shows; None (default) trusts the
            folder.
        verify: True (default) reads every shard once and compares its digest; False trusts the files.

    Raises:
        CheckpointError: the folder is missing, incomplete, damaged, or made from another teacher.
    """

    def __init__(
        self, folder: str | os.PathLike[str], *, teacher: nn.Module | None = None, verify: bool = True
    ) -> None:
        check_path("folder", folder)
        check_module("teacher", teacher, "None trusts the folder.", optional=True)
        verify = checked_flag("verify", verify)
        self.folder = Path(folder)
        self.manifest = read_manifest(self.folder)
        if teacher is not None and self.manifest["key"]["teacher"] != digest_weights(teacher):
            raise CheckpointError(folder, "was made from another teacher's weights", STALE)
        rows, done = self.manifest["rows"], sum(shard["rows"] for shard in self.manifest["shards"])
        if rows != done:
            raise CheckpointError(folder, f"holds {done} of {rows} examples", "Run precompute again to complete it.")
        self._shards = [
            read_shard(self.folder, shard, self.manifest["kinds"], verify=verify) for shard in self.manifest["shards"]
        ]
        self._starts = torch.tensor([0, *[s["rows"] for s in self.manifest["shards"]]]).cumsum(0)
        digests = torch.cat([shard["digests"] for shard in self._shards]).tolist()
        self._row_of = {digest: row for row, digest in enumerate(digests)}
        self._asked: dict[str, int] = {}

    def __len__(self) -> int:
        return int(self.manifest["rows"])

    def layers(self) -> list[str]:
        """Paths of the cached features, in their order."""
        return [tap["path"] for tap in self.manifest["key"]["taps"]]

    def find(self, path: str) -> list[str]:
        """The path as it is: whether it is there, and with which pooling, `watch` finds out."""
        return [path]

    def watch(self, taps: Mapping[str, Tap]) -> None:
        """Say which features will be asked for; raises `ArgumentError` for one that the cache does not hold."""
        self._asked = {name: self._find(tap) for name, tap in taps.items()}

    @property
    def watching(self) -> bool:
        """Whether it reads for someone already."""
        return bool(self._asked)

    def columns(self, available: Iterable[str]) -> list[str]:
        """The column of rows."""
        return [name for name in available if name == ROW]

    def find_rows(self, dataset: Iterable[Mapping[str, Any]]) -> list[int]:
        """Where each example of a data set lies in the cache.

        Raises:
            ArgumentError: the cache does not hold an example.
        """
        return [self._row(number, example) for number, example in enumerate(dataset)]

    rows_of = find_rows  # its older name

    def attach(self, dataset: Dataset) -> Dataset:
        """The data set with `find_rows` as its column "teacher_row", in any order and selection."""
        return dataset.add_column(ROW, self.find_rows(dataset))

    def features(self, batch: Any, device: torch.device) -> dict[str, Feature]:
        """The features of the examples in batch["teacher_row"]."""
        if not isinstance(batch, Mapping) or ROW not in batch:
            raise ArgumentError(
                "batch",
                f"hold the column '{ROW}'",
                sorted(batch) if isinstance(batch, Mapping) else type(batch).__name__,
                "Add it with cache.attach(dataset), and keep it in the collator.",
            )
        rows = to_tensor(ROW, batch[ROW])
        if rows.ndim != 1 or not (holds_whole_numbers(rows) or rows.numel() == 0):
            rule, remedy = "be whole numbers, one for each example", "Keep the column as the collator gives it."
            raise ArgumentError(ROW, rule, described(rows), remedy)
        rows = rows.long().cpu()
        if len(rows) == 0:
            raise ArgumentError("batch", "hold at least one example", "none", "Leave empty batches out.")
        if not 0 <= int(rows.min()) <= int(rows.max()) < len(self):
            raise ArgumentError(
                ROW, f"lie in [0, {len(self)})", f"{int(rows.min())} to {int(rows.max())}", "Use cache.attach(dataset)."
            )
        # the last shard that starts at or before the row
        shard_of = torch.searchsorted(self._starts, rows, right=True) - 1
        inside = (rows - self._starts[shard_of]).tolist()
        found = {}
        for name, tap in self._asked.items():
            parts = [_example(self._shards[s], tap, i) for s, i in zip(shard_of.tolist(), inside, strict=True)]
            found[name] = _stack(parts, self.manifest["kinds"][tap], device)
        return found

    def _row(self, number: int, example: Mapping[str, Any]) -> int:
        row = self._row_of.get(digest_row(example, self.manifest["key"]["columns"]))
        if row is None:
            raise ArgumentError(
                "dataset",
                "hold only examples that the cache was made from",
                f"another one in row {number}",
                f"Student and teacher would see different examples. Run precompute on this data set. ({self.folder})",
            )
        return row

    def _find(self, tap: Tap) -> int:
        known: list[dict[str, Any]] = self.manifest["key"]["taps"]
        for number, entry in enumerate(known):
            if entry == tap_key(tap) or (tap == Tap(tap.path) and entry["path"] == tap.path):
                return number
        raise ArgumentError(
            "pairs (teacher)",
            "be features that the cache holds, read in the same way",
            f"{tap.path!r}",
            near_matches(tap.path, [entry["path"] for entry in known]),
        )


def precompute(
    teacher: nn.Module | TeacherModel,
    taps: Mapping[str, Tap] | Sequence[Tap],
    dataset: Any,
    folder: str | os.PathLike[str],
    *,
    collate: Callable[[list[Any]], Any],
    batch_size: int = 64,
    shard_batches: int = 16,
    columns: Sequence[str] | None = None,
    teacher_inputs: TeacherInputs = None,
) -> TeacherCache:
    """Run the teacher over a data set and keep its features; goes on where a killed run stopped.

    Args:
        teacher: the model whose features are kept, or a `TeacherModel`, which has its dtype and device.
        taps: features to keep, as a list or by name. Give a tap a pooling where the loss compares vectors, since tokens
            take T times as much room.
        dataset: data set with a length whose rows are dicts: a `datasets.Dataset` or a list.
        folder: folder of the cache, which is created where it is missing.
        collate: function that makes of a list of rows the batch that the teacher is given. It must not draw random
            numbers.
        batch_size: number of examples in a forward; default 64.
        shard_batches: number of batches in a shard, which is what a kill can lose; default 16.
        columns: columns that make an example; None (default) takes all. Name those of the teacher where rows also hold
            columns of the student.
        teacher_inputs: how the teacher's inputs are made of a batch, as in `TeacherModel`; only with a plain model.

    Returns:
        The cache, verified.

    Raises:
        CheckpointError: the folder holds the features of another teacher, or of other taps, dtype, columns, examples or
            inputs (a collate function of another tokenizer, or one that draws random numbers).
        ArgumentError: the data set is empty; there are no columns, or they do not tell examples apart; a feature holds
            NaN; or a pooling has no name, such as a lambda.
    """
    folder = named_folder("folder", folder)
    source = teacher if isinstance(teacher, TeacherModel) else TeacherModel(teacher, inputs=teacher_inputs)
    wanted = checked_taps(taps)
    check_dataset(dataset)
    check_function("collate", collate, "It makes a batch of a list of rows.", takes=1)
    batch_size = checked_count("batch_size", batch_size, "Such as 64.")
    shard_batches = checked_count("shard_batches", shard_batches, "Such as 16.")
    chosen = checked_columns(columns, dataset[0])
    digests = [digest_row(dataset[row], chosen) for row in tqdm(range(len(dataset)), desc="examples", leave=False)]
    _check_distinct(digests, lambda row: get_inputs(source.model, collate([dataset[row]]), source.inputs))
    folder.mkdir(parents=True, exist_ok=True)
    first = collate([dataset[row] for row in range(min(batch_size, len(dataset)))])
    manifest = _start(folder, _key(source, wanted, chosen, first), digests)
    source.watch({str(number): tap for number, tap in enumerate(wanted)})
    size = batch_size * shard_batches
    done = sum(shard["rows"] for shard in manifest["shards"])
    for start in tqdm(range(done, len(dataset), size), desc="teacher features", initial=done // size):
        rows = range(start, min(start + size, len(dataset)))
        parts = [_run(source, dataset, rows[at : at + batch_size], collate) for at in range(0, len(rows), batch_size)]
        _write_shard(folder, manifest, parts, digests[start : start + len(rows)])
    source.release()
    return TeacherCache(folder)


def _check_distinct(digests: Sequence[int], teacher_inputs: Callable[[int], Any]) -> None:
    """Rows that are one example by the chosen columns must be one for the teacher, too, or one gets the other's."""
    first: dict[int, int] = {}
    for row, digest in enumerate(digests):
        other = first.setdefault(digest, row)
        if other != row and digest_inputs(teacher_inputs(row)) != digest_inputs(teacher_inputs(other)):
            raise ArgumentError(
                "columns",
                "tell examples apart that the teacher is given in different ways",
                f"rows {other} and {row}, equal in these columns and unequal as inputs",
                "Name the columns that the teacher's inputs are made of, and use no chance in collate.",
            )


def _key(source: TeacherModel, taps: Sequence[Tap], columns: list[str], first: Any) -> dict[str, Any]:
    return {
        "teacher": digest_weights(source.model),
        "architecture": digest_architecture(source.model),
        "inputs": digest_inputs(get_inputs(source.model, first, source.inputs)),
        "taps": [tap_key(tap) for tap in taps],
        "dtype": str(next((p.dtype for p in source.model.parameters()), torch.float32)),
        "columns": columns,
    }


def _start(folder: Path, key: dict[str, Any], digests: list[int]) -> dict[str, Any]:
    """The manifest to go on with: a new one, or that of an interrupted run over the same things."""
    content = hashlib.sha256(torch.tensor(digests).numpy().tobytes()).hexdigest()
    if not (folder / MANIFEST).exists():
        return {"version": VERSION, "key": key, "rows": len(digests), "content": content, "kinds": [], "shards": []}
    manifest = read_manifest(folder)
    for part in sorted(key.keys() - {"inputs"}, reverse=True):  # the teacher first
        if manifest["key"].get(part) != key[part]:
            raise CheckpointError(folder, f"holds features of another {part} ({manifest['key'].get(part)})", STALE)
    if manifest["content"] != content:
        raise CheckpointError(folder, "holds features of other examples, or of another order", STALE)
    if manifest["key"].get("inputs") != key["inputs"]:
        raise CheckpointError(
            folder,
            "holds features of other inputs: collate makes something else of the same rows",
            "Use the tokenizer, length and image size of before, and no chance in collate. " + STALE,
        )
    # shards hold consecutive rows: behind a gap their numbers would be wrong
    intact: list[dict[str, Any]] = []
    for shard in manifest["shards"]:  # what comes after the first broken shard is redone
        if not (folder / shard["name"]).is_file() or digest_file(folder / shard["name"]) != shard["digest"]:
            break
        intact.append(shard)
    return {**manifest, "shards": intact}


def _run(source: TeacherModel, dataset: Any, rows: Iterable[int], collate: Callable[[list[Any]], Any]) -> list[Feature]:
    """The features of some rows, on the CPU; the teacher stays on its device."""
    # offloaded parameters are on no device, and accelerate moves what they are multiplied with
    home = next((p.device for p in source.model.parameters() if not p.is_meta), torch.device("cpu"))
    batch = collate([dataset[row] for row in rows])
    return [moved(feature, torch.device("cpu")) for feature in source.features(batch, home).values()]


def _write_shard(folder: Path, manifest: dict[str, Any], parts: list[list[Feature]], digests: list[int]) -> None:
    tensors: dict[str, Tensor] = {"digests": torch.tensor(digests)}
    kinds = ["tokens" if feature.tensor.ndim == 3 else "whole" for feature in parts[0]]
    for tap, kind in enumerate(kinds):
        examples = [example for part in parts for example in _examples(part[tap])]
        tensors[f"{tap}.data"] = torch.cat(examples) if kind == "tokens" else torch.stack(examples)
        if kind == "tokens":
            tensors[f"{tap}.ends"] = torch.tensor([len(example) for example in examples]).cumsum(0)
    path = folder / f"shard-{len(manifest['shards']):05d}.safetensors"
    write_atomically(path, lambda temporary: save_file(tensors, temporary))
    manifest["kinds"] = kinds
    manifest["shards"].append({"name": path.name, "rows": len(digests), "digest": digest_file(path)})
    text = json.dumps(manifest, indent=1, sort_keys=True)
    write_atomically(folder / MANIFEST, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def _examples(feature: Feature) -> list[Tensor]:
    if feature.mask is None:
        return list(feature.tensor)
    return [tokens[valid] for tokens, valid in zip(feature.tensor, feature.mask, strict=True)]


def _example(shard: dict[str, Tensor], tap: int, row: int) -> Tensor:
    data, ends = shard[f"{tap}.data"], shard.get(f"{tap}.ends")
    # tokens of all rows lie end to end: row i begins where the one before it ends
    return data[row] if ends is None else data[int(ends[row - 1]) if row else 0 : int(ends[row])]


def _stack(parts: list[Tensor], kind: str, device: torch.device) -> Feature:
    if kind == "whole":
        return Feature(torch.stack(parts).to(device))
    counts = torch.tensor([len(part) for part in parts])
    padded = nn.utils.rnn.pad_sequence(parts, batch_first=True)
    mask = torch.arange(padded.shape[1]) < counts[:, None]
    return Feature(padded.to(device), mask.to(device))
