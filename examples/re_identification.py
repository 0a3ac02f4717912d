"""Re-identification from scratch: which emoji is it, when another vendor drew it?

    python examples/re_identification.py             # under ten minutes on two quiet cores, no network
    python examples/re_identification.py --quick     # half a minute: shows that it runs, learns next to nothing

Identity = emoji, camera = vendor (fluent and fluent-flat are one camera). A small CNN with BNNeck is trained from
scratch on 32×32 pixels with the losses of "bag of tricks": classification of the training identities with label
smoothing, and a triplet loss with the hardest pairs of each 32×3 batch, on the metric's scores. Every row has the same
data, batches, start and recipe; a margin rewards whoever can scale its scores, so the baseline to look at is cosine
with a learned scale. The epoch is chosen by mAP on validation emoji. Test emoji were never trained on and are measured
once, by the protocol of Market-1501: each drawing asks, all drawings are the gallery, those of the same emoji by the
same camera are taken out. The last two rows re-rank with k-reciprocal neighbours, a protocol of its own.

Writes into --output: one folder per run, results.json, table.md, ranked.png, cmc.png. --resume goes on after a stop.
"""

import argparse
from typing import Any

import torch
from shared.emoji_drawings import (
    SHOWN,
    WIDTH,
    Drawings,
    Variant,
    build_model,
    folder_name,
    make_trainer,
    metric_parameters,
    options_parser,
    parse_options,
    render,
    run_all,
    variants,
)
from shared.resumable import resumable
from torch import Tensor

from gssf_plug import GSSFMetric
from gssf_plug.evaluation import KReciprocal, reid_ranking
from gssf_plug.losses import BatchHardTriplet, IdentityLoss, WeightedSum
from gssf_plug.retrieval import Embedding, RetrievalTrainer
from gssf_plug.retrieval.evaluation import Evaluation
from gssf_plug.retrieval.plots import plot_curves, plot_retrieved

MEASURES = ("mAP", "R@1", "R@5", "R@10", "mINP")
RERANKED = "{}, re-ranked"


def ranking_of(split: Drawings, **options: Any) -> Evaluation:
    """An evaluation: every drawing asks all drawings; ids of the embedding are rows of the split."""

    def evaluation(embedding: Embedding, metric: GSSFMetric | None) -> dict[str, float]:
        rows = embedding.query_ids
        x, ids, cameras = embedding.queries, split.labels[rows], split.cameras[rows]
        return reid_ranking(x, x, ids, ids, cameras, cameras, metric=metric, **options)

    return evaluation


def trainer_of(variant: Variant, seed: int, data: dict[str, Drawings], options: argparse.Namespace) -> RetrievalTrainer:
    """ID loss and batch-hard triplet loss on one small CNN."""
    triplet = BatchHardTriplet(margin=0.3, learned_scale=variant.learned_scale)
    model = build_model(variant.metric(), seed)
    loss = WeightedSum(IdentityLoss(WIDTH, data["train"].classes), triplet)
    folder = options.output / folder_name(variant, seed)
    return make_trainer(folder, seed, options.epochs, data, model, loss, ranking_of, best="mAP")


def run(variant: Variant, seed: int, data: dict[str, Drawings], options: argparse.Namespace) -> dict[str, float]:
    """Train, choose the epoch on validation, measure on test once."""
    trainer = trainer_of(variant, seed, data, options)
    trainer.train(resume=True)
    trainer.load_best()
    measured = trainer.evaluate(data["test"], evaluation=ranking_of(data["test"]))
    neighbours = KReciprocal(k1=6, k2=3)  # at most four other cameras: shorter lists than the usual 20 and 6
    reranked = trainer.evaluate(data["test"], evaluation=ranking_of(data["test"], rerank=neighbours))
    again = {f"reranked {name}": value for name, value in reranked.items()}
    return {**measured, **again, "parameters": metric_parameters(trainer.model)}


def with_reranking(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of their own for the re-ranked results of cosine and of the variant shown."""
    again = [
        {**result, "variant": RERANKED.format(result["variant"]), **{m: result[f"reranked {m}"] for m in MEASURES}}
        for result in results
        if result["variant"] in ("cosine", SHOWN)
    ]
    return [*results, *sorted(again, key=lambda result: result["variant"])]


def draw(data: dict[str, Drawings], options: argparse.Namespace) -> None:
    """ranked.png: what cosine and the variant shown find for the same queries. cmc.png: CMC of every row, seed 0."""
    test, curves = data["test"], {}
    rows = torch.linspace(0, len(data["test"]) - 1, 8).long()
    ranked: dict[str, Tensor] = {name: rows for name in ("cosine", SHOWN)}
    for variant in variants():
        trainer = trainer_of(variant, 0, data, options)
        trainer.load_best()
        measured = trainer.evaluate(test, evaluation=ranking_of(test, ranks=range(1, 21)))
        curves[variant.name] = [measured[f"R@{k}"] for k in range(1, 21)]
        if variant.name in ranked:
            embedding = trainer.embed(test)
            scores = trainer.model.score(embedding.queries, embedding.queries)
            ranked[variant.name] = best_of_other_cameras(scores[rows], test, rows)
    plot_curves(curves, title="CMC on emoji never trained on (seed 0)", x="rank", y="queries with a hit, %").savefig(
        options.output / "cmc.png", dpi=110
    )
    found = torch.cat(list(ranked.values()), dim=1)
    plot_retrieved(
        [test.images[row] for row in rows],
        [[test.images[item] for item in items] for items in found],
        test.labels[found] == test.labels[rows][:, None],
        systems=tuple(ranked),
        title="The five nearest drawings by other cameras, of emoji never trained on; right ones framed",
    ).savefig(options.output / "ranked.png", dpi=160)


def best_of_other_cameras(scores: Tensor, test: Drawings, rows: Tensor, k: int = 5) -> Tensor:
    """The k best for some rows, without the same emoji by the same camera."""
    hidden = (test.labels[rows][:, None] == test.labels) & (test.cameras[rows][:, None] == test.cameras)
    return scores.masked_fill(hidden, float("-inf")).topk(k).indices


def main() -> None:
    """Read, train, print the table, draw."""
    options = parse_options(options_parser(__doc__ or "", "re_identification", epochs=10))
    with resumable(options.output, options.resume):
        data = {split: Drawings(split, options.every) for split in ("train", "validation", "test")}
        print({name: f"{len(split)} drawings of {split.classes} emoji" for name, split in data.items()})
        results = run_all(
            options.output, variants(), options.seeds, lambda variant, seed: run(variant, seed, data, options)
        )
        table = render(with_reranking(results), MEASURES)
        (options.output / "table.md").write_text(table)
        print("\n" + table)
        draw(data, options)
    print(f"Pictures: {options.output / 'ranked.png'}, {options.output / 'cmc.png'}")


if __name__ == "__main__":
    main()
