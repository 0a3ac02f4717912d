"""fit_metric beside a hand-written loop and sentence-transformers' trainer: seconds to the same validation mAP.

    python tests/benchmarks/fit.py
    python tests/benchmarks/fit.py --quick      # a tenth of the emoji: shows that it runs
    python tests/benchmarks/fit.py --large      # 100,000 queries, 1,000,000 documents, 384 wide, in float16: memory

Data: keywords and names of emoji, MiniLM vectors, embedded before the clock starts. Structure of every row: diagonal
and blocks of 64. The target is the best validation mAP that the loop of examples/adapt_embeddings.py as of revision
2d6a9af reaches in its 20 epochs (a look every third), less 0.1. Two clocks: until the first look at the target, and
until the call is over (the loop's 20 epochs; fit_metric with cosine, whitening and the choice). Loop and fit_metric
take turns, seed by seed, in one process with one thread.

sentence-transformers trains a `MetricModule` with MultipleNegativesRankingLoss: once over vectors that a module looks
up (the same information that we have), once over MiniLM, which it runs anew in every step. For the latter ten steps
are timed, and multiplied by the steps that the row above it needed. Its looks are outside its clock.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "examples"), str(ROOT)]

import torch  # noqa: E402
from adapt_embeddings import Split, load_splits  # noqa: E402
from measure import machine, peak_anonymous  # noqa: E402
from shared.pretrained import PACKAGED, _packaged_folder  # noqa: E402

from gssf_plug import GSSFMetric  # noqa: E402
from gssf_plug.losses import InfoNCE  # noqa: E402
from gssf_plug.metric import topk  # noqa: E402
from gssf_plug.retrieval import fit_metric  # noqa: E402

Curve = list[tuple[int, float, float]]  # step, seconds, mAP of validation


def loop(splits: dict[str, Split], seed: int, epochs: int = 20) -> tuple[Curve, float]:
    """The loop of examples/adapt_embeddings.py at revision 2d6a9af: its looks, and the seconds of all epochs."""
    torch.manual_seed(seed)
    train, validation = splits["train"], splits["validation"]
    metric, objective, began, curve, step = GSSFMetric(384, block_size=64), InfoNCE(), time.perf_counter(), [], 0
    parameters = [*metric.parameters(), *objective.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.0)
    pairs = train.relevant.nonzero()
    for epoch in range(epochs):
        for batch in pairs[torch.randperm(len(pairs))].split(256):
            keyword, emoji = batch.T
            value = objective(metric(train.queries[keyword], train.gallery[emoji]), train.relevant[keyword][:, emoji])
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            step += 1
        if epoch % 3 == 2 or epoch == epochs - 1:
            curve.append((step, time.perf_counter() - began, sorted_ap(metric, validation)))
    return curve, time.perf_counter() - began


def sorted_ap(metric: GSSFMetric, data: Split) -> float:
    """mAP by a full sort, as that revision did."""
    right = data.relevant.gather(1, topk(metric, data.queries, data.gallery, len(data.names)).indices)
    precision = right.cumsum(1) / torch.arange(1, right.shape[1] + 1)
    return 100 * ((precision * right).sum(1) / right.sum(1)).mean().item()


def ours(splits: dict[str, Split], seed: int) -> tuple[Curve, float]:
    """fit_metric, the same structure: its looks, and the whole call with reading, cosine, whitening and the choice."""
    began = time.perf_counter()
    options: dict[str, Any] = {"structures": [{"block_size": 64}], "loss": "softmax", "progress": False, "seed": seed}
    result = fit_metric(*splits["train"].triple, validation=splits["validation"].triple, **options)
    whole = time.perf_counter() - began
    before = whole - result.table[-1].seconds
    return [(step, before + seconds, value) for step, seconds, value in result.table[-1].curve], whole


def sentence_transformers(splits: dict[str, Split], seed: int, steps: int, *, encode: bool) -> Curve:
    """Its trainer over `MetricModule`; looks every 45 steps (one epoch), outside the clock."""
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer
    from sentence_transformers import SentenceTransformerTrainingArguments as Arguments
    from sentence_transformers.losses import MultipleNegativesRankingLoss
    from transformers import TrainerCallback

    from gssf_plug.retrieval.sentence_transformers import MetricModule

    train, metric = splits["train"], GSSFMetric(384, block_size=64)
    texts = {
        text: row
        for text, row in zip(train.keywords + train.names, torch.cat([train.queries, train.gallery]), strict=True)
    }
    first = [*SentenceTransformer(str(_packaged_folder()))] if encode else [lookup(texts)]
    for module in first:
        module.requires_grad_(False)
    model = SentenceTransformer(modules=[*first, MetricModule(metric)], similarity_fn_name="dot", device="cpu")
    pairs = train.relevant.nonzero().tolist()
    rows = {"anchor": [train.keywords[i] for i, _ in pairs], "positive": [train.names[j] for _, j in pairs]}
    curve: Curve = []

    class Looks(TrainerCallback):
        spent = 0.0

        def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            if state.global_step % 45 == 0 or state.global_step == steps:
                now = time.perf_counter()
                curve.append((state.global_step, now - began - self.spent, sorted_ap(metric, splits["validation"])))
                Looks.spent += time.perf_counter() - now

    with tempfile.TemporaryDirectory() as folder:
        arguments = Arguments(
            folder, per_device_train_batch_size=256, max_steps=steps, learning_rate=1e-3, lr_scheduler_type="constant",
            weight_decay=0.0, seed=seed, report_to=[], save_strategy="no", logging_strategy="no", disable_tqdm=True,
            use_cpu=True, router_mapping={"anchor": "query", "positive": "document"},
        )  # fmt: skip
        loss = MultipleNegativesRankingLoss(model, scale=20.0, similarity_fct=lambda a, b: a @ b.T)
        trainer = SentenceTransformerTrainer(model, arguments, Dataset.from_dict(rows), loss=loss, callbacks=[Looks()])
        began = time.perf_counter()
        trainer.train()
    return curve


def lookup(vectors: dict[str, torch.Tensor]) -> Any:
    """A module of sentence-transformers that gives precomputed vectors for texts."""
    from sentence_transformers.base.modules import Module

    class Lookup(Module):
        def __init__(self) -> None:
            super().__init__()
            self.row_of = {text: row for row, text in enumerate(vectors)}
            self.register_buffer("vectors", torch.stack([*vectors.values()]))

        def preprocess(self, inputs: list[str], **rest: Any) -> dict[str, Any]:
            return {"input_ids": torch.tensor([self.row_of[text] for text in inputs])}

        tokenize = preprocess

        def forward(self, features: dict[str, Any], **rest: Any) -> dict[str, Any]:
            return features | {"sentence_embedding": self.vectors[features["input_ids"]]}

        def get_embedding_dimension(self) -> int:
            return int(self.vectors.shape[1])

        def save(self, *args: Any, **rest: Any) -> None:
            """Nothing to keep."""

    return Lookup()


def floor(splits: dict[str, Split], repeat: int = 200) -> float:
    """Seconds of the products of one step, of 226 queries and 230 documents as a batch of 256 pairs has: a median."""
    train, taken = splits["train"], []
    queries, documents = (torch.nn.functional.normalize(rows) for rows in (train.queries[:226], train.gallery[:230]))
    rows, blocks = queries.unflatten(1, (6, 64)).transpose(0, 1), torch.randn(6, 64, 64)
    for _ in range(repeat):
        began = time.perf_counter()
        folded = torch.bmm(rows, blocks).transpose(0, 1).reshape(226, 384)
        back = (folded @ documents.T) @ documents
        torch.bmm(rows.mT, back.unflatten(1, (6, 64)).transpose(0, 1))
        taken.append(time.perf_counter() - began)
    return median(taken)


def reached(curve: Curve, target: float) -> tuple[int, float, float]:
    """The first look at the target, or the last one."""
    return next((look for look in curve if look[2] >= target), curve[-1])


def large(folder: Path, queries: int, documents: int, dim: int = 384) -> None:
    """One structure on memory-mapped float16; every third channel tells, the others are noise in the queries."""
    import numpy as np

    generator, told = np.random.default_rng(0), np.arange(dim) % 3 == 0
    made = np.lib.format.open_memmap(folder / "documents.npy", "w+", np.float16, (documents, dim))
    asked = np.lib.format.open_memmap(folder / "queries.npy", "w+", np.float16, (queries, dim))
    for start in range(0, documents, 50_000):
        made[start : start + 50_000] = generator.standard_normal((50_000, dim), dtype=np.float32)
    answers = generator.integers(0, documents, queries)
    for start in range(0, queries, 10_000):
        noise = generator.standard_normal((10_000, dim), dtype=np.float32)
        near = made[answers[start : start + 10_000]] + 1.5 * noise
        asked[start : start + 10_000] = np.where(told, near, 3 * noise)
    made.flush()
    asked.flush()
    del made, asked
    sides = [np.load(folder / name, mmap_mode="r") for name in ("queries.npy", "documents.npy")]
    pairs = np.stack([np.arange(queries), answers], axis=1)
    options: dict[str, Any] = {"structures": [{"block_size": 64}], "loss": "softmax"}
    began, worked = time.perf_counter(), time.process_time()
    peak = peak_anonymous(lambda: print(fit_metric(*sides, pairs, **options)))
    taken, worked = time.perf_counter() - began, time.process_time() - worked
    print(f"{queries:,} × {documents:,} × {dim}: {taken:.0f} s ({worked:.0f} s of processor), ", end="")
    print(f"{peak:,.0f} MB beyond the inputs")


def main() -> None:
    """Interleaved repetitions, medians, ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--share", type=float, default=1.0, help="of the queries and documents of --large")
    parser.add_argument("--without-trainer", action="store_true", help="leave sentence-transformers out")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(machine())
    if options.large:
        with tempfile.TemporaryDirectory() as folder:
            large(Path(folder), int(100_000 * options.share), int(1_000_000 * options.share))
        return
    splits = load_splits(PACKAGED, 10 if options.quick else 1)
    ours(splits, 0)  # warm
    loops, calls, targets = [], [], []
    products: list[tuple[int, int, float]] = []
    for seed in range(1 if options.quick else options.repeat):
        curve, whole = loop(splits, seed, 3 if options.quick else 20)
        targets.append(max(value for _, _, value in curve) - 0.1)
        loops.append((reached(curve, targets[-1])[1], whole))
        curve, whole = ours(splits, seed)
        step, seconds, value = reached(curve, targets[-1])
        calls.append((seconds, whole))
        best = max(value for _, _, value in curve)
        products.append((step, curve[-1][0], floor(splits)))
        print(f"seed {seed}: target {targets[-1]:.2f}; fit_metric {value:.2f} at step {step}, best {best:.2f}")
        print(f"loop {loops[-1]}, fit_metric {calls[-1]}", flush=True)
    rows = {
        "fit_metric": tuple(map(median, zip(*calls, strict=True))),
        "hand-written loop": tuple(map(median, zip(*loops, strict=True))),
    }
    if not options.without_trainer:
        steps = 20 if options.quick else 450
        curve = sentence_transformers(splits, 0, steps, encode=False)
        step, taken, value = reached(curve, median(targets))
        print(f"sentence-transformers: {value:.2f} at step {step}", flush=True)
        each = sentence_transformers(splits, 0, 10, encode=True)[-1][1] / 10
        rows["sentence-transformers, vectors looked up"] = taken, curve[-1][1]
        rows["sentence-transformers, encoding"] = each * step, each * steps
    steps, all_steps, each = (median(column) for column in zip(*products, strict=True))
    said = f"{steps * each:.2f} s to the target, {all_steps * each:.2f} s whole"
    print(f"products alone: {1000 * each:.2f} ms a step; {said}")
    ours_target, ours_whole = rows["fit_metric"]
    print("| | seconds to the target | fit_metric to the target ÷ it | seconds whole | fit_metric whole ÷ it |")
    print("|---|---:|---:|---:|---:|")
    for name, (target, whole) in rows.items():
        print(f"| {name} | {target:.2f} | {ours_target / target:.3f} | {whole:.2f} | {ours_whole / whole:.3f} |")


if __name__ == "__main__":
    main()
