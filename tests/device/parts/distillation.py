"""One step of a student with a teacher in bfloat16 beside it: the loss against float32, its cost, its memory."""

import torch
from transformers import BertConfig, BertModel

from device.record import Record, compared, peak_mebibytes, timed
from gssf_plug.distillation import Distiller


def _bert(layers: int, width: int) -> BertModel:
    heads = max(1, width // 64)
    config = BertConfig(
        vocab_size=1000,
        num_hidden_layers=layers,
        hidden_size=width,
        num_attention_heads=heads,
        intermediate_size=2 * width,
        initializer_range=0.2,
    )
    return BertModel(config, add_pooling_layer=False)


def run(record: Record, device: torch.device, quick: bool) -> None:
    layers, width, shape = (2, 64, (4, 8)) if quick else (6, 768, (64, 128))
    ids = torch.randint(1000, shape, device=device)
    for loss in ("gssf", "mse", "crd"):
        with record.step(loss):
            torch.manual_seed(0)
            student, teacher = _bert(layers, width).to(device), _bert(2 * layers, width).to(device).eval()
            distiller = Distiller(
                student, teacher, {f"encoder.layer.{layers - 1}": f"encoder.layer.{2 * layers - 1}"}, loss
            )
            batch = {"input_ids": ids, **({"index": torch.arange(shape[0], device=device)} if loss == "crd" else {})}
            distiller.plan(batch)
            distiller.to(device).eval()  # without dropout, so that both precisions see the same features
            exact = distiller(batch)["loss"].item()
            with torch.autocast(device.type, torch.bfloat16):
                half = distiller(batch)["loss"]
            half.backward()
            finite = all(p.grad is None or bool(p.grad.isfinite().all()) for p in distiller.parameters())
            record.equal(f"{loss}: gradients of a bfloat16 step are finite", finite)
            record.at_most(f"{loss}: bfloat16 ÷ float32 loss − 1", abs(half.item() / exact - 1), 0.05)
            teacher.bfloat16()
            with torch.autocast(device.type, torch.bfloat16):
                held = distiller(batch)["loss"].item()
            record.at_most(f"{loss}: teacher held in bfloat16 ÷ float32 loss − 1", abs(held / exact - 1), 0.05)
            if loss == "gssf":
                _cost(record, distiller, student, batch, device, quick)


def _cost(
    record: Record, distiller: Distiller, student: BertModel, batch: dict, device: torch.device, quick: bool
) -> None:
    def alone() -> None:
        student.zero_grad()
        with torch.autocast(device.type, torch.bfloat16):
            student(input_ids=batch["input_ids"]).last_hidden_state.float().square().mean().backward()

    def distilled() -> None:
        distiller.zero_grad()
        with torch.autocast(device.type, torch.bfloat16):
            distiller(batch)["loss"].backward()

    value, shown = compared(
        timed({"alone": alone, "distilled": distilled}, device, 2 if quick else 15), "distilled", "alone"
    )
    record.measured("a step with the teacher online ÷ the student's step", shown)
    record.measured("peak memory of the step", peak_mebibytes(distilled, device))
