"""Exact top-k in a large half-precision gallery, beside faiss on the CPU and a plain product and topk on the device."""

import importlib.util

import torch

from device.record import Record, compared, peak_mebibytes, timed
from gssf_plug import GSSFMetric
from gssf_plug.metric import topk

LIMIT_SHARE = 0.8  # of what the card's bandwidth or product allows, whichever binds
CHUNK = 262_144


def run(record: Record, device: torch.device, quick: bool) -> None:
    items, queries, dim, k = (2_000, 20, 64, 10) if quick else (4_000_000, 1_000, 512, 100)
    dtype = torch.float16
    metric = GSSFMetric(dim, block_size=16).to(device)
    with torch.no_grad():
        for parameter in metric.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    asked = torch.randn(queries, dim, device=device)
    gallery = torch.empty(items, dim, dtype=dtype, device=device)
    for start in range(0, items, CHUNK):
        part = gallery[start : start + CHUNK]
        part.copy_(metric.gallery(torch.randn(len(part), dim, device=device)))
    title = f"{queries:,} queries × {items:,} × {dim}, float16, k = {k}"
    with torch.inference_mode():
        ours = lambda: topk(metric, asked, gallery, k)  # noqa: E731
        plain = lambda: _plain(metric, asked, gallery, k)  # noqa: E731
        with record.step("same items"):
            share = (ours().indices == plain()[1]).double().mean().item()
            record.at_least(f"{title}: share of ranks equal to the plain product's", share, 0.99)
        with record.step("time"):
            seconds = timed({"ours": ours, "plain": plain}, device, 1 if quick else 5)
            value, shown = compared(seconds, "ours", "plain")
            record.measured(f"{title}: topk ÷ plain product and topk", shown)
            if device.type == "cuda" and not quick:
                _against_limit(record, title, min(seconds["ours"]), queries, items, dim, device)
            record.measured(f"{title}: peak memory", peak_mebibytes(ours, device))
        with record.step("faiss"):
            _faiss(record, title, metric, asked, gallery, k, min(seconds["ours"]), quick)


def _plain(metric: GSSFMetric, asked: torch.Tensor, gallery: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """What one would write by hand: half-precision products in chunks, a topk of each, a topk of those."""
    folded = metric.fold(asked).to(gallery.dtype)
    values, ids = [], []
    for start in range(0, len(gallery), CHUNK):
        best = (folded @ gallery[start : start + CHUNK].T).topk(min(k, len(gallery) - start))
        values.append(best.values)
        ids.append(best.indices + start)
    best = torch.cat(values, 1).topk(k)
    return best.values, torch.cat(ids, 1).gather(1, best.indices)


def _against_limit(
    record: Record, title: str, seconds: float, queries: int, items: int, dim: int, device: torch.device
) -> None:
    """Bandwidth and product rate are measured here, on this card, not taken from a sheet."""
    block = torch.empty(2**29, dtype=torch.float16, device=device)
    copy = min(timed({"copy": lambda: block.clone()}, device, 5)["copy"])
    bandwidth = 2 * block.numel() * 2 / copy
    a = torch.randn(8192, 8192, dtype=torch.float16, device=device)
    rate = 2 * 8192**3 / min(timed({"product": lambda: a @ a}, device, 5)["product"])
    bound = max(items * dim * 2 / bandwidth, 2 * queries * items * dim / rate)
    record.measured("this card", f"{bandwidth / 1e12:.2f} TB/s, {rate / 1e12:.0f} TFLOP/s in float16")
    record.at_least(f"{title}: share of the limit of the card", bound / seconds, LIMIT_SHARE)


def _faiss(
    record: Record,
    title: str,
    metric: GSSFMetric,
    asked: torch.Tensor,
    gallery: torch.Tensor,
    k: int,
    ours: float,
    quick: bool,
) -> None:
    if importlib.util.find_spec("faiss") is None:
        record.not_run(f"{title}: beside faiss on the CPU", "faiss is not installed")
        return
    import time

    import faiss

    part = min(
        len(gallery), 2_000 if quick else 200_000
    )  # a twentieth: float32 of the whole would take 8 GB and a minute
    index = faiss.IndexFlatIP(gallery.shape[1])
    index.add(gallery[:part].float().cpu().numpy())
    folded = metric.fold(asked).float().cpu().numpy()
    began = time.perf_counter()
    index.search(folded, k)
    scaled = (time.perf_counter() - began) * len(gallery) / part
    record.measured(f"{title}: topk ÷ faiss IndexFlatIP on the CPU ({part:,} items, scaled up)", f"{ours / scaled:.4f}")
