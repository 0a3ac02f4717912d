"""Claim: images cached by `cache_images` are read faster than a model trains on them, which files need not be.

python tests/benchmarks/data_loading.py               # about two minutes, one reading process
python tests/benchmarks/data_loading.py --workers 2   # ... reading ahead in two
... --small                                           # fewer images and rounds

JPEG photos of 500×375 (drawings enlarged), made in a temporary folder. Candidates, interleaved: batches of 64 read from
the files, decoded and resized to 256×128 at every visit; the same from a cache; the same pixels out of memory, which is
the least that collating costs; and training steps of MobileNetV2 on a batch that is there already. Printed are images
per second and, for each source, the median ratio to the model. Where the ratio is below 1, the model waits.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from accelerate.utils import send_to_device
from measure import interleave, machine, ratio
from PIL import Image
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))

from data.emoji import load_emoji
from shared.pretrained import load_image_encoder

from gssf_plug import GSSFMetric
from gssf_plug.losses import BatchHardTriplet
from gssf_plug.retrieval import LabelCollator, OneTower, RandomBatches, Tower
from gssf_plug.retrieval.data import cache_images
from gssf_plug.retrieval.data.batches import BatchReader, load_batches
from gssf_plug.retrieval.data.images import ImageRows
from gssf_plug.retrieval.data.transforms import PedestrianTransform
from gssf_plug.retrieval.training.objective import Objective

BATCH, HEIGHT, WIDTH = 64, 256, 128
Row = dict[str, Any]


def photos(folder: Path, count: int) -> list[Row]:
    """JPEG files, four to an identity."""
    drawings = load_emoji("train", "noto")
    for number in tqdm(range(count), desc="photos"):
        drawing = drawings[number % len(drawings)]["image"]
        drawing.resize((500, 375), Image.Resampling.BICUBIC).save(folder / f"{number}.jpg", quality=90)
    return [{"image": str(folder / f"{number}.jpg"), "label": number // 4} for number in range(count)]


def reading(rows: Any, workers: int) -> Callable[[], None]:
    """All batches of an epoch, read and collated as the trainer does."""
    collate = LabelCollator(transform=PedestrianTransform(train=True, size=(HEIGHT, WIDTH)))
    plan = list(RandomBatches(len(rows), BATCH))

    def read() -> None:
        for _ in load_batches(BatchReader(rows, collate, plan), workers=workers):
            pass

    return read


def training(batch: dict[str, Any], steps: int, device: str) -> Callable[[], None]:
    """As many steps as an epoch has, on one batch."""
    tower = Tower(load_image_encoder(), output="pooler_output")
    model = OneTower(tower, GSSFMetric(1280, block_size=16, constraint="symmetric"))
    objective = Objective(model, BatchHardTriplet()).to(device).train()
    optimizer = torch.optim.AdamW(objective.parameters(), lr=1e-4, fused=True)
    placed = send_to_device(batch, device)

    def train() -> None:
        for _ in range(steps):
            optimizer.zero_grad()
            with torch.autocast(device, torch.bfloat16, enabled=device != "cpu"):
                loss = objective(placed)
            loss.backward()
            optimizer.step()
        loss.item()

    return train


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    count, rounds = (128, 2) if options.small else (512, options.rounds)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with tempfile.TemporaryDirectory() as name:
        rows = photos(Path(name), count)
        cached = cache_images(rows, Path(name) / "cache", size=(HEIGHT, WIDTH), progress=True)
        files = ImageRows(rows, transform=lambda image: image)
        collate = LabelCollator(transform=PedestrianTransform(train=True, size=(HEIGHT, WIDTH)))
        steps = count // BATCH
        candidates = {
            "files": reading(files, options.workers),
            "cache": reading(cached, options.workers),
            "memory": reading([cached[row] for row in range(count)], options.workers),
            "model": training(collate([cached[row] for row in range(BATCH)]), steps, device),
        }
        seconds = interleave(candidates, rounds, warmup=1)
    print(f"{machine()}, {device}, {options.workers} reading processes, {count} images, {rounds} rounds")
    for source, taken in seconds.items():
        share = "" if source == "model" else f"   {ratio(seconds['model'], taken)} of what the model consumes"
        print(f"{source:8} {steps * BATCH / median(taken):8.0f} images/s{share}")


if __name__ == "__main__":
    main()
