"""Ranks on the device are the CPU's, to the last tie: measures and top-k of features that are full of ties."""

from collections.abc import Callable

import torch

from device.record import Record
from gssf_plug import GSSFMetric
from gssf_plug.evaluation import image_text_recall, instance_recall, reid_ranking
from gssf_plug.metric import topk

Case = Callable[[torch.dtype, torch.device], object]


def run(record: Record, device: torch.device, quick: bool) -> None:
    count = 200 if quick else 4_000
    for kind, make in {"continuous": torch.randn, "signs": _signs, "duplicates": _duplicates}.items():
        features = make(count, 32)
        metric = _trained(32)
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            name = f"{kind}, {str(dtype).removeprefix('torch.')}"
            given = features.to(dtype)
            for what, case in _cases(given, metric).items():
                with record.step(f"{what}: {name}"):
                    here, there = case(torch.device("cpu")), case(device)
                    record.equal(f"{what}: {name}", here == there, "" if here == there else f"{here} / {there}"[:300])


def _signs(rows: int, dim: int) -> torch.Tensor:
    return torch.randn(rows, dim).sign()


def _duplicates(rows: int, dim: int) -> torch.Tensor:
    half = torch.randn((rows + 1) // 2, dim)
    return torch.cat([half, half])[:rows]


def _trained(dim: int) -> GSSFMetric:
    metric = GSSFMetric(dim, block_size=8)
    with torch.no_grad():
        for parameter in metric.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return metric


def _cases(features: torch.Tensor, metric: GSSFMetric) -> dict[str, Callable[[torch.device], object]]:
    rows = len(features)
    labels, cameras = torch.arange(rows) % (rows // 4), torch.arange(rows) % 3
    half = rows // 2

    def on(device: torch.device) -> tuple[torch.Tensor, GSSFMetric]:
        return features.to(device), metric.to(device)

    def neighbours(device: torch.device) -> object:
        x, m = on(device)
        return topk(m, x[:half], x, 10).indices.cpu().tolist()

    def instances(device: torch.device) -> object:
        x, m = on(device)
        return instance_recall(x, labels.to(device), metric=m)

    def identities(device: torch.device) -> object:
        x, m = on(device)
        ids, cams = labels.to(device), cameras.to(device)
        return reid_ranking(x[:half], x[half:], ids[:half], ids[half:], cams[:half], cams[half:], metric=m)

    def captions(device: torch.device) -> object:
        x, m = on(device)
        return image_text_recall(x[: rows // 5], x, (torch.arange(rows) % (rows // 5)).to(device), metric=m)

    return {"topk": neighbours, "instance_recall": instances, "reid_ranking": identities, "image_text_recall": captions}
