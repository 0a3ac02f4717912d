"""Claims: what distillation adds to the student's own training step, and what a cached teacher saves.

python tests/benchmarks/distillation_step.py            # BERT-base student, batch 32; some minutes
python tests/benchmarks/distillation_step.py --small    # a quarter of the layers and the width

1. Taps + projector + GSSF loss cost at most 3% of the student's own forward and backward (teacher features given),
   2% where whole examples are compared; the step's peak of memory is at most 5% higher.
2. Their memory is the tapped tensors', not that of all hidden states.
3. With a teacher of twice the student's layers, cached features give at least 1.6 times the online throughput.
4. A teacher that is tapped at half of its layers runs half of its forward, to the same bits.

The teacher of claim 1 is a third wider than the student, as BERT-large is than BERT-base: every token goes through a
projector. `--part flops`, `overhead`, `added`, `peak`, `memory`, `throughput` or `early_exit` runs one of them.
"""

import argparse
import copy
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from measure import interleave, machine, peak_megabytes, ratio
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertConfig, BertModel

from gssf_plug import GSSFMetric
from gssf_plug.distillation import Distiller, FeatureTaps, Tap, TeacherModel, precompute
from gssf_plug.distillation.losses import Contrastive, DistillationLoss, Regression, Relation
from gssf_plug.features import mean_pool


def encoder(width: int, layers: int) -> BertModel:
    config = BertConfig(
        vocab_size=1000,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        intermediate_size=4 * width,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return BertModel(config, add_pooling_layer=False)


def texts(count: int, length: int) -> list[dict[str, Tensor]]:
    return [{"input_ids": torch.randint(1, 1000, (length,))} for _ in range(count)]


def collate(rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    ids = torch.stack([row["input_ids"] for row in rows])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def objectives(student: int, teacher: int) -> dict[str, Callable[[], DistillationLoss]]:
    """Each is given tokens: Regression on all of them, the relational ones on their mean."""
    return {
        "GSSF relation": lambda: Relation(GSSFMetric(student, constraint="symmetric")),
        "GSSF relation, projected, with temperature": lambda: Relation(
            GSSFMetric(teacher, constraint="psd"), projected=True, temperature=0.1
        ),
        "GSSF contrastive (with projector)": lambda: Contrastive(GSSFMetric(teacher)),
        "GSSF regression of all tokens (with projector)": lambda: Regression(
            GSSFMetric(teacher, constraint="psd", normalize=False)
        ),
    }


def step(module: nn.Module, loss: Callable[[], Tensor]) -> Callable[[], None]:
    def run() -> None:
        module.zero_grad()
        loss().backward()

    return run


class Still(nn.Module):
    """A student without work: its features are its parameter, so that all the time is the distillation's own."""

    def __init__(self, width: int, length: int) -> None:
        super().__init__()
        self.features = nn.Parameter(torch.randn(32, length, width))
        self.last = nn.Identity()

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """The features, whatever the tokens."""
        output: Tensor = self.last(self.features)
        return output


@contextmanager
def steps(
    options: argparse.Namespace, width: int, layers: int, *, still: bool = False
) -> Iterator[dict[str, Callable[[], None]]]:
    """The student's step alone, whose loss is a mean of its output and costs nothing, and with each objective."""
    student = encoder(width, layers).train()
    tapped = Still(width, options.length) if still else student
    data = texts(32, options.length)
    with tempfile.TemporaryDirectory() as folder:
        teacher_width = width * 4 // 3
        cache = precompute(encoder(teacher_width, 2), [Tap("")], data, folder, collate=collate)
        batch = {**collate(data), "teacher_row": torch.arange(32)}
        inputs = collate(data)
        candidates = {"student alone": step(student, lambda: student(**inputs).last_hidden_state.square().mean())}
        for name, loss in objectives(width, teacher_width).items():
            place = "last" if still else f"encoder.layer.{layers - 1}"
            distiller = Distiller(tapped, cache, [(place, Tap(""))], loss())
            distiller.plan(batch)
            candidates[name] = step(distiller, lambda d=distiller: d(batch)["loss"])
        yield candidates


def overhead(options: argparse.Namespace, width: int, layers: int) -> None:
    with steps(options, width, layers) as candidates:
        seconds = interleave(candidates, options.rounds, warmup=1)
    print(f"Width {width}, {layers} layers, batch 32 × {options.length} tokens; {machine()}\n")
    print("| step | ÷ student alone, median [95%] | seconds |\n|---|---:|---:|")
    for name, times in seconds.items():
        print(f"| {name} | {ratio(times, seconds['student alone'])} | {sorted(times)[len(times) // 2]:.3f} |")


def added(options: argparse.Namespace, width: int, layers: int) -> None:
    """What the whole step's ratio is 1 more than: the same work with a student that has none, ÷ the student's step."""
    with steps(options, width, layers, still=True) as candidates:
        seconds = interleave(candidates, options.rounds, warmup=1)
    print("\n| added by | ÷ student's step, median [95%] | seconds |\n|---|---:|---:|")
    for name, times in list(seconds.items())[1:]:
        print(f"| {name} | {ratio(times, seconds['student alone'])} | {sorted(times)[len(times) // 2]:.4f} |")


def peak(options: argparse.Namespace, width: int, layers: int) -> None:
    """Memory beyond weights and gradients at its highest during one step, the teacher's features given."""
    with steps(options, width, layers) as candidates:
        found = {}
        for name, run in candidates.items():
            run()
            found[name] = peak_megabytes(run)
    print("\n| step | peak beyond weights and gradients, MB | ÷ student alone |\n|---|---:|---:|")
    for name, megabytes in found.items():
        print(f"| {name} | {megabytes:.0f} | {megabytes / found['student alone']:.3f} |")


def flops(options: argparse.Namespace, width: int, layers: int) -> None:
    """Products counted on tensors without numbers, forward and backward: the same on every machine, busy or not."""
    teacher_width = width * 4 // 3
    with FakeTensorMode():
        student = encoder(width, layers).train()
        inputs = collate(texts(32, options.length))
        features = torch.empty(32, options.length, width, requires_grad=True)
        target = torch.empty(32, options.length, teacher_width)
        mask = torch.ones(32, options.length, dtype=torch.bool)
        own = count(lambda: student(input_ids=inputs["input_ids"]).last_hidden_state.sum().backward())
        print(f"\n| part | ÷ {own / 1e12:.2f} TFLOP of the student's own step |\n|---|---:|")
        for name, make in objectives(width, teacher_width).items():
            loss, projector = make(), nn.Linear(width, teacher_width)

            def run(loss: DistillationLoss = loss, projector: nn.Linear = projector) -> None:
                x, y, m = (
                    (mean_pool(features, mask), mean_pool(target, mask), None)
                    if loss.vectors
                    else (features, target, mask)
                )
                loss(projector(x) if loss.same_width else x, y, m).backward()

            print(f"| {name} | {count(run) / own:.4f} |")


def count(run: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        run()
    return int(counter.get_total_flops())


def memory(options: argparse.Namespace, width: int, layers: int) -> None:
    """Bytes that are held after a teacher's forward without gradients: counted, not sampled."""
    model = encoder(width, layers).eval()
    batch = collate(texts(32, options.length))
    with torch.no_grad(), FeatureTaps(model, [f"encoder.layer.{layers - 1}"]) as taps:
        every = model(**batch, output_hidden_states=True).hidden_states
        model(**batch)
        held = [feature.tensor for feature in taps.features.values()]
    size = lambda tensors: sum(t.numel() * t.element_size() for t in tensors) / 1e6  # noqa: E731
    print(f"\nHeld by one tap: {size(held):.2f} MB; by output_hidden_states: {size(every):.2f} MB\n")
    assert size(held) * (layers + 1) <= size(every) * 1.001


def throughput(options: argparse.Namespace, width: int, layers: int) -> None:
    student, teacher, data = encoder(width, layers).train(), encoder(width, 2 * layers), texts(32, options.length)
    with tempfile.TemporaryDirectory() as folder:
        cache = precompute(teacher, [Tap("")], data, folder, collate=collate)
        batch: dict[str, Any] = {**collate(data), "teacher_row": torch.arange(32)}
        candidates = {}
        for name, source in (("online teacher", teacher), ("cached teacher", cache)):
            distiller = Distiller(student, source, [("", Tap(""))], "gssf")
            distiller.plan(batch)
            candidates[name] = step(distiller, lambda d=distiller: d(batch)["loss"])
        seconds = interleave(candidates, options.rounds, warmup=1)
    online, cached = seconds["online teacher"], seconds["cached teacher"]
    print(f"Cached ÷ online throughput, teacher twice the student: {ratio(online, cached)}")


def early_exit(options: argparse.Namespace, width: int, layers: int) -> None:
    """The teacher alone, tapped at its middle layer."""
    teacher, batch = encoder(width, 2 * layers), collate(texts(32, options.length))
    candidates: dict[str, Callable[[], object]] = {}
    found = {}
    for name, choice in (("whole forward", False), ("early exit", True)):
        source = TeacherModel(copy.deepcopy(teacher), early_exit=choice)
        source.watch({"0": Tap(f"encoder.layer.{layers - 1}")})
        source.features(batch, torch.device("cpu"))  # the first goes to the end in both
        candidates[name] = lambda source=source: source.features(batch, torch.device("cpu"))
        found[name] = source.features(batch, torch.device("cpu"))["0"].tensor
    assert torch.equal(found["whole forward"], found["early exit"])
    seconds = interleave(candidates, options.rounds, warmup=1)
    print(f"Early exit at half of the layers ÷ whole forward: {ratio(seconds['early exit'], seconds['whole forward'])}")


PARTS = {
    "flops": flops,
    "overhead": overhead,
    "added": added,
    "peak": peak,
    "memory": memory,
    "throughput": throughput,
    "early_exit": early_exit,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--part", choices=sorted(PARTS), help="default all")
    options = parser.parse_args()
    torch.manual_seed(0)
    width, layers = (192, 3) if options.small else (768, 12)
    for part in [options.part] if options.part else PARTS:
        PARTS[part](options, width, layers)


if __name__ == "__main__":
    main()
