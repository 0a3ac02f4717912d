"""Distil a text encoder into a small CNN: across architectures and modalities, in a plain Accelerate loop.

    python examples/distil_image_encoder.py                                   # the packaged MiniLM, no network
    accelerate launch examples/distil_image_encoder.py                        # the same on many GPUs
    python examples/distil_image_encoder.py --quick                           # a smoke test

Teacher: MiniLM (a transformer) on the emoji's name. Student: a CNN of 0.3 M parameters, from scratch, on its drawing at
32×32. The test emoji were never trained on. Rows and measures are those of distil_text_encoder.py, here

  rho     Spearman correlation of a drawing's similarities to all other test drawings with those of the names
  NN@10   how many of a drawing's ten nearest drawings have names among the ten nearest, drawings of one emoji apart
  mAP     finding the other vendors' drawings of the same emoji: what the teacher cannot see at all

The loop below is all that a Distiller needs: plan, prepare the distiller (not the student), backward, save the student.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from data.emoji import load_emoji
from distil_text_encoder import (
    MEASURES,
    WIDTH,
    Method,
    average_precisions,
    methods,
    own_side,
    row_correlations,
    shared_neighbours,
)
from pretrained import PACKAGED, load_text_encoder
from runs import append, difference, finished, render
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize
from torch.utils.data import DataLoader, TensorDataset
from tqdm.auto import tqdm

from gssf_plug import GSSFMetric
from gssf_plug.distillation import Distiller, Tap, TeacherCache, precompute
from gssf_plug.features import mean_pool
from gssf_plug.retrieval.data.images import image_tensor

SIZE = 32
NAME = Tap("", pooling=mean_pool)


class SmallCNN(nn.Module):
    """Four strided convolutions and a mean: (N, 3, 32, 32) -> (N, 128)."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 32, 64, 128, WIDTH)
        self.stages = nn.Sequential(
            *(
                nn.Sequential(nn.Conv2d(a, b, 3, 2, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU())
                for a, b in zip(widths[:-1], widths[1:], strict=True)
            ),
            nn.Conv2d(WIDTH, WIDTH, 1),
        )

    def forward(self, image: Tensor) -> Tensor:
        """Features."""
        return self.stages(image).mean((2, 3))


class Drawings:
    """One split: pixels, emoji, vendor, and the row of each emoji's name in the cache."""

    def __init__(self, split: str, every: int) -> None:
        rows = load_emoji(split)
        rows = rows.select([row for row, label in enumerate(rows["label"]) if label % every == 0])
        pixels = torch.stack([image_tensor(image, SIZE) for image in tqdm(rows["image"], desc=split)])
        self.images = pixels.float() / 127.5 - 1
        self.labels, self.cameras = torch.tensor(rows["label"]), torch.tensor(rows["camera"])
        self.names = rows["name"]
        self.teacher_row = torch.empty(0, dtype=torch.long)


def cached_names(teacher: str, folder: Path, splits: list[Drawings]) -> TeacherCache:
    """The teacher's features of every name; each drawing is told its row."""
    tokenizer, model = load_text_encoder(teacher)
    names = sorted({name for split in splits for name in split.names})

    def collate(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        return dict(tokenizer([row["text"] for row in rows], padding=True, return_tensors="pt"))

    cache = precompute(model, [NAME], [{"text": name} for name in names], folder, collate=collate)
    row_of = {name: row for row, name in enumerate(names)}
    for split in splits:
        split.teacher_row = torch.tensor([row_of[name] for name in split.names])
    return cache


def distil(
    accelerator: Accelerator,
    method: Method | None,
    train: Drawings,
    test: Drawings,
    cache: TeacherCache,
    seed: int,
    epochs: int,
) -> dict[str, Any]:
    """Train one student; None classifies the training emoji instead."""
    torch.manual_seed(seed)
    student = SmallCNN()
    data = DataLoader(
        TensorDataset(train.images, train.teacher_row), batch_size=128, shuffle=True, drop_last=len(train.images) >= 128
    )
    if method is None:
        module: nn.Module = nn.Sequential(student, nn.Linear(WIDTH, len(cache)))
    else:
        width = cache.features({"teacher_row": torch.tensor([0])}, torch.device("cpu"))["0"].tensor.shape[1]
        module = Distiller(student, cache, [("", NAME)], method.losses(WIDTH, width), weight=list(method.weights))
        module.plan({"image": train.images[:8], "teacher_row": train.teacher_row[:8]})
    optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=2e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=epochs * len(data) + 1)
    wrapped, optimizer, data = accelerator.prepare(module.train(), optimizer, data)
    for _ in range(epochs):
        for image, row in data:
            if method is None:
                loss = cross_entropy(wrapped(image), row)
            else:
                loss = wrapped({"image": image, "teacher_row": row})["loss"]
            optimizer.zero_grad()
            accelerator.backward(loss)
            optimizer.step()
            schedule.step()
    accelerator.free_memory()
    own = (nn.Identity(), None) if method is None else own_side(module)
    return measure(student.eval(), *own, test, cache)


@torch.no_grad()
def measure(
    student: SmallCNN, projector: nn.Module, metric: GSSFMetric | None, test: Drawings, cache: TeacherCache
) -> dict[str, Any]:
    """The three measures, plain and own, per drawing."""
    device = next(student.parameters()).device
    features = torch.cat([student(part.to(device)) for part in test.images.split(512)]).cpu()
    projector, metric = projector.cpu(), None if metric is None else metric.cpu()
    cosine = lambda x, y: normalize(x, dim=-1) @ normalize(y, dim=-1).T  # noqa: E731
    names = cache.features({"teacher_row": test.teacher_row}, torch.device("cpu"))["0"].tensor
    one = torch.tensor([test.labels.tolist().index(label) for label in test.labels.unique().tolist()])
    other_vendor = test.cameras[:, None] != test.cameras[None, :]
    same = (test.labels[:, None] == test.labels[None, :]) & other_vendor
    asks = same.any(1)
    result = {}
    for kind, score in (("plain", cosine), ("own", metric or (lambda x, y: cosine(projector(x), projector(y))))):
        ours = score(features, features)
        result[f"rho {kind}"] = row_correlations(score(features[one], features[one]), cosine(names[one], names[one]))
        result[f"NN@10 {kind}"] = shared_neighbours(
            score(features[one], features[one]), cosine(names[one], names[one]), k=10
        )
        result[f"mAP {kind}"] = average_precisions(ours.masked_fill(~other_vendor, float("-inf")), same)[asks]
    return {key: [round(value, 4) for value in (100 * values).tolist()] for key, values in result.items()}


def main() -> None:
    """Read, cache, train what is missing, print the table."""
    options = parse_options()
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    train, test = (Drawings(split, options.every) for split in ("train", "test"))
    with accelerator.main_process_first():
        cache = cached_names(options.teacher, options.out / "teacher", [train, test])
    cache.watch({"0": NAME})
    rows: list[Method | None] = [None, *methods()]
    named = {"none (classification)" if method is None else method.name: method for method in rows}
    log = options.out / "runs.jsonl"
    kept = finished(log)
    todo = [(name, seed) for seed in range(options.seeds) for name in named if (name, seed) not in kept]
    accelerator.wait_for_everyone()
    for name, seed in tqdm(todo, desc="students", disable=not accelerator.is_main_process):
        result = distil(accelerator, named[name], train, test, cache, seed, options.epochs)
        if accelerator.is_main_process:
            append(log, name, seed, result)
    if not accelerator.is_main_process:
        return
    kept = finished(log)
    columns = [f"{measure} {kind}" for measure in MEASURES for kind in ("plain", "own")]
    print("\n" + render(kept, columns, list(named)))
    for column in columns:
        print(difference(kept, column, {method.name for method in rows if method is not None and method.ours}))


def parse_options() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", default=PACKAGED, help="Hub id or folder of a text encoder")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--every", type=int, default=1, help="keep every n-th emoji")
    parser.add_argument("--out", type=Path, default=Path("outputs/distil_image_encoder"))
    parser.add_argument("--quick", action="store_true", help="one seed, one epoch, every sixteenth emoji")
    options = parser.parse_args()
    if options.quick:
        options.seeds, options.epochs, options.every = 1, 1, 16
    return options


if __name__ == "__main__":
    main()
