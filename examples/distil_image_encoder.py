"""Distil ImageNet's MobileNetV2 into a CNN of a seventh of its size: across architectures, in a plain Accelerate loop.

    python examples/distil_image_encoder.py                                   # the bundled MobileNetV2, no network
    python examples/distil_image_encoder.py --teacher facebook/dinov2-small --size 224
    accelerate launch examples/distil_image_encoder.py                        # the same on many GPUs
    python examples/distil_image_encoder.py --quick                           # a smoke test

Teacher: pretrained on ImageNet, 1280 wide, on drawings of 96×96. Student: four strided convolutions, 128 wide, from
scratch, on drawings of 32×32. The test emoji were never trained on. Rows, measures and statistics are those of
distil_text_encoder.py, here

  rho     Spearman correlation of a drawing's similarities to all other test drawings with the teacher's
  NN@10   how many of a drawing's ten nearest drawings are among the teacher's ten nearest
  mAP     finding the other vendors' drawings of the same emoji: a task that neither side was trained for

The loop below is all that a Distiller needs: plan, prepare the distiller (not the student), backward, save the student.
"""

import argparse
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from data.emoji import load_emoji
from distil_text_encoder import (
    WIDTH,
    Method,
    optimizer_for,
    own_side,
    tabulate,
)
from shared.agreement import Score, agreement, average_precisions
from shared.pretrained import BUNDLED, image_batch, load_image_encoder
from shared.runs import add_options
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset
from tqdm.auto import tqdm

from gssf_plug import GSSFMetric
from gssf_plug.distillation import Distiller, Tap, TeacherCache, precompute
from gssf_plug.distributed import hold_group
from gssf_plug.retrieval.data.images import image_tensor

SIZE, BATCH = 32, 64
POOLED = Tap("", output="pooler_output")


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
    """One split: the student's pixels, emoji, vendor, and the row of each drawing in the cache."""

    def __init__(self, split: str, every: int) -> None:
        rows = load_emoji(split)
        self.rows = rows.select([row for row, label in enumerate(rows["label"][:]) if label % every == 0])
        pixels = torch.stack([image_tensor(image, SIZE) for image in tqdm(self.rows["image"], desc=split)])
        self.images = pixels.float() / 127.5 - 1
        self.labels, self.cameras = (torch.tensor(self.rows[name][:]) for name in ("label", "camera"))
        self.teacher_row = torch.arange(len(pixels))


def cached_teacher(name: str, size: int, folder: Path, split: str, drawings: Drawings) -> TeacherCache:
    """The teacher's features of the drawings of one split."""

    def collate(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        return {"pixel_values": image_batch([row["image"] for row in rows], size)}

    images = drawings.rows.select_columns(["image"])
    cache = precompute(load_image_encoder(name), [POOLED], images, folder / split, collate=collate)
    cache.watch({"0": POOLED})
    return cache


def teacher_features(cache: TeacherCache) -> Tensor:
    """All of them."""
    return cache.features({"teacher_row": torch.arange(len(cache))}, torch.device("cpu"))["0"].tensor


def distil(
    accelerator: Accelerator,
    train: Drawings,
    held: Drawings,
    caches: tuple[TeacherCache, Tensor],
    epochs: int,
    method: Method | None,
    seed: int,
) -> dict[str, Any]:
    """Train one student; None classifies the training emoji instead."""
    cache, target = caches
    torch.manual_seed(seed)
    student = SmallCNN()
    columns = TensorDataset(train.images, train.teacher_row, train.labels.unique(return_inverse=True)[1])
    data = DataLoader(columns, batch_size=BATCH, shuffle=True, drop_last=len(columns) >= BATCH)
    if method is None:
        module: nn.Module = nn.Sequential(student, nn.Linear(WIDTH, len(train.labels.unique())))
    else:
        module = Distiller(student, cache, [("", POOLED)], **method.options(WIDTH, target.shape[1]))
        module.plan({"image": train.images[:8], "teacher_row": train.teacher_row[:8]})
    optimizer, schedule = optimizer_for(module, rate=2e-3, steps=epochs * len(data))
    wrapped, optimizer, data, schedule = accelerator.prepare(module.train(), optimizer, data, schedule)
    for _ in range(epochs):
        for image, row, label in data:
            if method is None:
                loss = cross_entropy(wrapped(image), label)
            else:
                loss = wrapped({"image": image, "teacher_row": row})["loss"]
            optimizer.zero_grad()
            accelerator.backward(loss)
            optimizer.step()
            schedule.step()
    accelerator.free_memory()
    return measure(student.eval(), *own_side(module), held, target)


@torch.no_grad()
def measure(
    student: SmallCNN, projector: nn.Module, metric: GSSFMetric | None, held: Drawings, target: Tensor
) -> dict[str, Any]:
    """The three measures, plain and own, per drawing."""
    device = next(student.parameters()).device
    features = torch.cat([student(part.to(device)) for part in held.images.split(512)]).cpu()
    projector, metric = projector.cpu(), None if metric is None else metric.cpu()
    other_vendor = held.cameras[:, None] != held.cameras[None, :]
    same = (held.labels[:, None] == held.labels[None, :]) & other_vendor
    asks = same.any(1)

    def precision(score: Score) -> Tensor:
        return average_precisions(score(features, features).masked_fill(~other_vendor, float("-inf")), same)[asks]

    return agreement(features, target, projector, metric, precision)


def main() -> None:
    """Read, cache, train what is missing, print the table."""
    options = parse_options()
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    hold_group()  # else a student wrapped in DDP, freed after end_training, may keep the process from its end
    train, held = (Drawings(split, options.every) for split in ("train", options.split))
    with accelerator.main_process_first():
        cache, other = (
            cached_teacher(options.teacher, options.size, options.out / "teacher", split, drawings)
            for split, drawings in (("train", train), (options.split, held))
        )
    run = partial(distil, accelerator, train, held, (cache, teacher_features(other)), options.epochs)
    accelerator.wait_for_everyone()
    tabulate(options, "none (classification)", run, accelerator.is_main_process)
    accelerator.end_training()


def parse_options() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", default=BUNDLED, help="Hub id or folder of an image encoder with a pooler_output")
    parser.add_argument("--size", type=int, default=96, help="of the teacher's drawings")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--every", type=int, default=1, help="keep every n-th emoji")
    add_options(parser, Path("outputs/distil_image_encoder"))
    options = parser.parse_args()
    if options.quick:
        options.seeds, options.epochs, options.every, options.size = 1, 1, 16, 32
    return options


if __name__ == "__main__":
    main()
