"""Distil a sentence encoder into one a hundred times smaller, and compare objectives: classic ones and those of GSSF.

    python examples/distil_text_encoder.py --workers 2                        # the packaged MiniLM, no network
    python examples/distil_text_encoder.py --teacher sentence-transformers/all-mpnet-base-v2
    python examples/distil_text_encoder.py --quick                            # a smoke test

Teacher: MiniLM, 6 layers, 384 wide. Student: 2 layers, 128 wide, from scratch, with those of the teacher's word pieces
that occur in training, at most 16 in a text. Texts: what functions of the installed Python, torch and numpy say they do
(10,000 sentences); held-out texts come from other files. The teacher runs over the texts once (`precompute`); every run
then reads its features from disk. Equal steps, batches and student for all.

Measured on held-out texts, twice: `plain`, the student's own cosine, and `own`, with what the method trained beside the
student (its metric, or its projector):
  rho     Spearman correlation of a text's similarities to all other texts with the teacher's, mean over texts
  NN@10   how many of a text's ten nearest texts are among the teacher's ten nearest
  mAP     finding what a function does from its name: a task that neither side was trained for
Runs are kept in runs.jsonl of --out: a killed table goes on where it stopped. Recipe (learning rate, weights) chosen on
validation files with `--split validation`.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from data.docstrings import PACKAGES, load_docstrings
from shared.agreement import MEASURES, Score, agreement, average_precisions
from shared.pretrained import PACKAGED, load_text_encoder
from shared.runs import add_options, difference, fill, render
from torch import Tensor, nn
from torch.nn.functional import normalize
from transformers import BertConfig, BertModel

from gssf_plug import GSSFMetric
from gssf_plug.distillation import Distiller, Tap, precompute
from gssf_plug.distillation.losses import (
    CRD,
    MSE,
    PKT,
    RKD,
    SP,
    Contrastive,
    Cosine,
    DistillationLoss,
    Regression,
    Relation,
)
from gssf_plug.features import mean_pool
from gssf_plug.losses import InfoNCE

WIDTH, POOLED = 128, Tap("", pooling=mean_pool)


@dataclass(frozen=True)
class Method:
    """Name, losses (from the widths of student and teacher) and weights, and whether the metric is in it."""

    name: str
    losses: Callable[[int, int], list[DistillationLoss]]
    weights: tuple[float, ...] = ()  # default 1 each
    ours: bool = False

    def options(self, student: int, teacher: int) -> dict[str, Any]:
        """For the Distiller, from the widths of the two."""
        losses = self.losses(student, teacher)
        return {"loss": losses, "weight": list(self.weights) if self.weights else [1.0] * len(losses)}


def methods() -> list[Method]:
    """Rows of the table, classic ones first. Those with "no metric" are ours without it: what they must beat."""
    neutral = lambda width: GSSFMetric(width).requires_grad_(False)  # noqa: E731
    psd = lambda width: GSSFMetric(width, constraint="psd")  # noqa: E731
    precision = lambda width: GSSFMetric(width, constraint="psd", normalize=False)  # noqa: E731
    near, wide = 0.1, 0.2  # temperatures
    return [
        Method("FitNets", lambda s, t: [MSE()], (100.0,)),
        Method("cosine", lambda s, t: [Cosine()]),
        Method("SP", lambda s, t: [SP()], (100.0,)),
        Method("RKD", lambda s, t: [RKD()]),
        Method("PKT", lambda s, t: [PKT()], (1000.0,)),
        Method("CRD", lambda s, t: [CRD()]),
        Method("relation, no metric", lambda s, t: [Relation(neutral(s), temperature=near)]),
        Method(
            "cosine + relation, no metric", lambda s, t: [Cosine(), Relation(neutral(s), temperature=near)], (1.0, 0.1)
        ),
        Method("GSSF relation", lambda s, t: [Relation(psd(s), temperature=near)], ours=True),
        Method("GSSF relation, squared", lambda s, t: [Relation(psd(s))], (10.0,), ours=True),
        Method("GSSF contrastive", lambda s, t: [Contrastive(GSSFMetric(t))], ours=True),
        Method("GSSF regression", lambda s, t: [Regression(precision(t))], ours=True),
        Method(
            "cosine + GSSF relation", lambda s, t: [Cosine(), Relation(psd(s), temperature=near)], (1.0, 0.1), ours=True
        ),
        Method(
            "cosine + GSSF relation, projected",
            lambda s, t: [Cosine(), Relation(psd(t), projected=True, temperature=wide)],
            (1.0, 0.1),
            ours=True,
        ),
    ]


class Data:
    """Train and held-out texts, the cache, and batches."""

    def __init__(self, teacher: str, folder: Path, split: str, limit: int | None = None) -> None:
        self.tokenizer, model = load_text_encoder(teacher)
        self.width = model.config.hidden_size
        packages = PACKAGES if limit is None else ()
        entries = {part: load_docstrings(part, packages)[:limit] for part in ("train", "validation", "test")}
        every = [entry for part in entries.values() for entry in part]
        sentences = sorted({entry.sentence for entry in every}, key=lambda text: (len(text), text))  # little padding
        names = sorted({entry.name for entry in every} - {*sentences})  # the teacher is never asked about these
        texts = [*sentences, *names]
        place = {text: row for row, text in enumerate(texts)}
        rows = [{"text": text} for text in sentences]
        self.cache = precompute(model, [POOLED], rows, folder / "teacher", collate=self.collate)
        known = {entry.sentence for entry in entries["train"]}
        held = [entry for entry in entries[split] if entry.sentence not in known]
        self.train, self.held = (
            torch.tensor([place[entry.sentence] for entry in part]) for part in (entries["train"], held)
        )
        self.pairs = torch.tensor([[place[entry.name], place[entry.sentence]] for entry in entries["train"]])
        self.tokens, self.vocabulary = self.compact(texts)
        self.queries = torch.tensor(sorted({place[entry.name] for entry in held}))
        self.relevant = self.queries[:, None] == torch.tensor([place[entry.name] for entry in held])
        self.cache.watch({"0": POOLED})
        self.teacher = self.cache.features({"teacher_row": torch.arange(len(sentences))}, torch.device("cpu"))[
            "0"
        ].tensor

    def compact(self, texts: list[str]) -> tuple[list[list[int]], int]:
        """Student's ids, and how many: padding 0, unknown 1, then the word pieces of the training texts."""
        pieces = self.tokenizer(texts, truncation=True, max_length=16)["input_ids"]
        seen = {piece for row in self.pairs.flatten().tolist() for piece in pieces[row]}
        known = {piece: 2 + rank for rank, piece in enumerate(sorted(seen))}
        return [[known.get(piece, 1) for piece in row] for row in pieces], 2 + len(known)

    def collate(self, rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """Texts -> the teacher's batch."""
        texts = [row["text"] for row in rows]
        return dict(self.tokenizer(texts, padding=True, truncation=True, max_length=24, return_tensors="pt"))

    def batch(self, rows: Tensor) -> dict[str, Tensor]:
        """The student's batch, with the rows of the teacher's features."""
        ids = nn.utils.rnn.pad_sequence([torch.tensor(self.tokens[row]) for row in rows], batch_first=True)
        return {"input_ids": ids, "attention_mask": (ids > 0).long(), "teacher_row": rows}


def small_student(vocabulary: int) -> BertModel:
    """2 layers, 128 wide, 0.3 M parameters beside the word vectors, from scratch."""
    return BertModel(
        BertConfig(
            vocab_size=vocabulary,
            hidden_size=WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=2 * WIDTH,
            max_position_embeddings=32,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        ),
        add_pooling_layer=False,
    )


def distil(data: Data, steps: int, rate: float, method: Method | None, seed: int) -> dict[str, Any]:
    """Train one student; None trains without a teacher, on pairs of name and sentence."""
    torch.manual_seed(seed)
    student = small_student(data.vocabulary)
    if method is None:
        loss = InfoNCE()
        optimise(nn.ModuleList([student, loss]), lambda: pair_loss(student, loss, data), steps, rate)
        return measure(student, nn.Identity(), None, data)
    distiller = Distiller(student, data.cache, [(POOLED, POOLED)], **method.options(WIDTH, data.width))
    distiller.plan(data.batch(data.train[:8]))
    order = torch.randperm(len(data.train) * (64 * steps // len(data.train) + 1)) % len(data.train)
    batches = iter(order.split(64))
    optimise(distiller, lambda: distiller(data.batch(data.train[next(batches)]))["loss"], steps, rate)
    return measure(student, *own_side(distiller), data)


def pair_loss(student: BertModel, loss: InfoNCE, data: Data) -> Tensor:
    """A name must find its sentence among 32 of the batch: 64 texts, as in the other rows."""
    name, other = data.pairs[torch.randint(len(data.pairs), (32,))].T
    left, right = (normalize(encode(student, data.batch(rows)), dim=-1) for rows in (name, other))
    return loss(left @ right.T, name[:, None] == name[None, :])


def optimise(module: nn.Module, loss: Callable[[], Tensor], steps: int, rate: float) -> None:
    """The loop of every row."""
    optimizer, schedule = optimizer_for(module, rate, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        loss().backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        schedule.step()


def optimizer_for(
    module: nn.Module, rate: float, steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """AdamW with a warm-up of a tenth and a linear decay; nothing is decayed towards zero."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=rate, weight_decay=0.0)
    warm = max(steps // 10, 1)
    ramp = lambda step: min((step + 1) / warm, max(steps - step, 0) / max(steps - warm, 1))  # noqa: E731
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, ramp)


def own_side(module: nn.Module) -> tuple[nn.Module, GSSFMetric | None]:
    """What was trained beside the student: a projector and the metric behind it, or a metric on the student's features.

    A critic between student and teacher (of Contrastive, Regression, CRD) is no metric among students.
    """
    if not isinstance(module, Distiller):
        return nn.Identity(), None
    projector = module.projectors[0]
    for loss in module.losses:
        metric = getattr(loss, "metric", None)
        if isinstance(loss, Relation | SP | PKT | RKD) and metric and any(p.requires_grad for p in metric.parameters()):
            return (projector if loss.same_width else nn.Identity()), metric
    return projector, None


def encode(student: BertModel, batch: dict[str, Tensor]) -> Tensor:
    """Mean-pooled features."""
    mask = batch["attention_mask"]
    return mean_pool(student(input_ids=batch["input_ids"], attention_mask=mask).last_hidden_state, mask)


@torch.no_grad()
def measure(student: BertModel, projector: nn.Module, metric: GSSFMetric | None, data: Data) -> dict[str, Any]:
    """The three measures, plain and own; values per text or name are kept for the paired test."""
    student.eval()
    features = {
        name: torch.cat([encode(student, data.batch(part)) for part in rows.split(512)])
        for name, rows in (("held", data.held), ("queries", data.queries))
    }

    def precision(score: Score) -> Tensor:
        return average_precisions(score(features["queries"], features["held"]), data.relevant)

    return agreement(features["held"], data.teacher[data.held], projector, metric, precision)


def main() -> None:
    """Cache, train what is missing, print the table."""
    options = parse_options()
    data = Data(options.teacher, options.out, options.split, options.limit)
    if options.part is None:
        sizes = f"{len(data.train)} sentences to train on, {len(data.held)} held out"
        print(f"{sizes}, {len(data.queries)} names to find them by", flush=True)
    tabulate(options, "none (name-sentence pairs)", partial(distil, data, options.steps, options.rate))


def tabulate(
    options: argparse.Namespace, none: str, run: Callable[[Method | None, int], dict[str, Any]], main: bool = True
) -> None:
    """Fill the table and print it."""
    rows = {none: None, **{method.name: method for method in methods()}}
    kept = fill(options, list(rows), lambda name, seed: run(rows[name], seed), main)
    if options.part is not None or not main:
        return
    columns = [f"{measure} {kind}" for measure in MEASURES for kind in ("plain", "own")]
    print("\n" + render(kept, columns, list(rows)))
    for column in columns:
        print(difference(kept, column, {method.name for method in methods() if method.ours}))


def parse_options() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", default=PACKAGED, help="Hub id or folder of a text encoder")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--limit", type=int, help="this many sentences of the standard library alone")
    add_options(parser, Path("outputs/distil_text_encoder"))
    options = parser.parse_args()
    if options.quick:
        options.seeds, options.steps, options.split, options.limit = 1, 5, "validation", 100
    return options


if __name__ == "__main__":
    main()
