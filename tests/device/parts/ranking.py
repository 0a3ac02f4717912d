"""Ranks on the device, to the last tie: top-k and measures beside plain loops in float64, TF32 off and on.

Features have eleven significant bits and the metric's entries six after the point, so that float64 holds every fold,
product and sum of the loops exactly: what they sort is the truth, and equal means tied.
"""

import warnings
from collections.abc import Mapping

import torch
from evaluation import test_image_text, test_instance, test_reidentification
from torch import Tensor

from device.parts.metric import tensor_cores
from device.record import Record, peak_mebibytes
from gssf_plug import GSSFMetric
from gssf_plug.evaluation import image_text_recall, instance_recall, reid_ranking
from gssf_plug.metric import topk

DIM, NEIGHBOURS = 32, 10
ROUNDING = 1e-9  # of a measure in %: means are summed in another order


def run(record: Record, device: torch.device, quick: bool) -> None:
    warnings.filterwarnings("ignore", "The positive is tied")  # here they are meant to be
    count = 40 if quick else 1_000
    for kind, make in {"continuous": torch.randn, "signs": _signs, "duplicates": _duplicates}.items():
        features, metric = make(count, DIM).half(), _trained()
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            given = features.to(dtype)
            right = by_loops(given, metric)
            for tf32 in (False, True) if device.type == "cuda" and dtype == torch.float32 else (False,):
                name = f"{kind}, {str(dtype).removeprefix('torch.')}{', TF32' if tf32 else ''}"
                with record.step(name), tensor_cores(tf32):
                    found = on(device, given, metric)
                    for what, value in found.items():
                        record.equal(f"{what}: {name}", same(value, right[what]), _both(value, right[what]))
    if device.type == "cuda" and not quick:
        with record.step("larger than loops can sort"):
            _beside_the_cpu(record, device)


def _beside_the_cpu(record: Record, device: torch.device) -> None:
    """Many chunks: the device beside the CPU, whose results the smaller loops have proven."""
    features, metric = _duplicates(8_000, DIM).half(), _trained()
    here, there = (on(place, features, metric) for place in (torch.device("cpu"), device))
    for what, value in there.items():
        record.equal(f"{what}: 8,000 with duplicates, as on the CPU", same(value, here[what]), _both(value, here[what]))
    record.measured("peak memory of it", peak_mebibytes(lambda: on(device, features, metric), device))


def on(device: torch.device, features: Tensor, metric: GSSFMetric) -> dict[str, object]:
    """Neighbours and measures by the library."""
    x, m, half = features.to(device), metric.to(device), len(features) // 2
    labels, cameras, owners = (values.to(device) for values in _labels(len(features)))
    protocol = (labels[:half], labels[half:], cameras[:half], cameras[half:])
    images = x[: len(x) // 5]
    return {
        "topk": topk(m, x[:half], x, NEIGHBOURS).indices.cpu().tolist(),
        "instance_recall": instance_recall(x, labels, metric=m),
        "reid_ranking": reid_ranking(x[:half], x[half:], *protocol, metric=m),
        "image_text_recall": image_text_recall(images, x, owners, metric=m),
    }


def by_loops(features: Tensor, metric: GSSFMetric) -> dict[str, object]:
    """The same by scores in float64 and one sort of each row by itself."""
    x, half = features.cpu().double(), len(features) // 2
    labels, cameras, owners = _labels(len(features))
    products = x @ metric.cpu().matrix().detach().double() @ x.T
    scores = products / (x.square().sum(1)[:, None] * x.square().sum(1)[None]).sqrt()
    order = scores[:half].sort(dim=1, descending=True, stable=True).indices  # falling score, then rising index
    protocol = (labels[:half], labels[half:], cameras[:half], cameras[half:])
    return {
        "topk": order[:, :NEIGHBOURS].tolist(),
        "instance_recall": test_instance.reference(scores, labels),
        "reid_ranking": test_reidentification.plain_protocol(scores[:half, half:], *protocol)[0],
        "image_text_recall": test_image_text.reference(scores[: len(x) // 5], owners),
    }


def same(found: object, right: object) -> bool:
    """Equal lists; equal measures up to the order in which means are summed."""
    if isinstance(found, Mapping) and isinstance(right, Mapping):
        return found.keys() == right.keys() and all(abs(found[name] - right[name]) <= ROUNDING for name in right)
    return found == right


def _both(found: object, right: object) -> str:
    return "" if same(found, right) else f"{found} / {right}"[:300]


def _labels(rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """Classes, cameras, and the image of each caption."""
    numbers = torch.arange(rows)
    return numbers % (rows // 4), numbers % 3, numbers % (rows // 5)


def _signs(rows: int, dim: int) -> Tensor:
    return torch.randn(rows, dim).sign()


def _duplicates(rows: int, dim: int) -> Tensor:
    half = torch.randn((rows + 1) // 2, dim)
    return torch.cat([half, half])[:rows]


def _trained() -> GSSFMetric:
    metric = GSSFMetric(DIM, block_size=8)
    with torch.no_grad():
        for parameter in metric.parameters():
            moved = parameter + 0.1 * torch.randn_like(parameter)
            parameter.copy_((64 * moved).round() / 64)
    return metric
