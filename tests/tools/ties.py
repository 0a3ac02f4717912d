"""What tools that rank do with equal scores, missing queries and queries without a relevant document, as a table.

pip install --target PEERS ranx ir-measures pytrec-eval-terrier torchmetrics mteb
PYTHONPATH=PEERS python tests/tools/ties.py

Every tool gets the same features, or their scores in float64 (equal documents have equal scores), and gives a mean
average precision. A tool whose package is missing is named on stderr and left out.
"""

import importlib.metadata
import sys
import warnings
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace

import numpy as np
import torch

from gssf_plug.evaluation import document_ranking, image_text_recall, instance_recall, reid_ranking

Run = dict[str, dict[str, float]]
Judgements = dict[str, dict[str, int]]


@dataclass(frozen=True)
class Task:
    """Unit rows and labels; a document is relevant where its label is the query's."""

    queries: np.ndarray
    documents: np.ndarray
    query_labels: np.ndarray
    document_labels: np.ndarray

    @property
    def scores(self) -> np.ndarray:
        # summed pair by pair: a matrix product may round the columns of two equal documents differently
        return (self.queries[:, None] * self.documents).sum(-1)

    @property
    def relevant(self) -> np.ndarray:
        return self.query_labels[:, None] == self.document_labels

    def run(self, without: Collection[int] = ()) -> Run:
        """Scores as TREC tools take them; names sort as the documents are stored."""
        return {
            f"q{query:03}": {f"d{document:03}": float(score) for document, score in enumerate(row)}
            for query, row in enumerate(self.scores)
            if query not in without
        }

    def judgements(self, without: Collection[int] = ()) -> Judgements:
        return {
            f"q{query:03}": {f"d{document:03}": int(hit) for document, hit in enumerate(row)}
            for query, row in enumerate(self.relevant)
            if query not in without
        }


@dataclass(frozen=True)
class Tool:
    """`mean` gives a task's mAP in 0 … 1, `of_run` the same from TREC's two mappings; either may be left out.

    `one` marks a measure that tells a rank of one query's one relevant document and no mAP.
    """

    name: str
    package: str
    mean: Callable[[Task], float] | None = None
    of_run: Callable[[Judgements, Run], float] | None = None
    one: bool = False

    def __call__(self, task: Task) -> float:
        if self.mean is not None:
            return self.mean(task)
        assert self.of_run is not None
        return self.of_run(task.judgements(), task.run())


# the tools


def ours_documents(task: Task) -> float:
    return document_ranking(task.queries, task.documents, task.relevant)["mAP"] / 100


def ours_identities(task: Task) -> float:
    cameras = np.zeros(len(task.queries), dtype=int), np.ones(len(task.documents), dtype=int)
    return (
        reid_ranking(task.queries, task.documents, task.query_labels, task.document_labels, *cameras, ranks=(1,))["mAP"]
        / 100
    )


def ours_instances(task: Task) -> float:
    places = range(1, len(task.documents) + 1)
    found = instance_recall(
        task.queries, task.query_labels, gallery=task.documents, gallery_labels=task.document_labels, ks=places
    )
    return 1 / next(k for k in places if found[f"R@{k}"] == 100)


def ours_images(task: Task) -> float:
    # every document is the caption of one image: the query's, or another that looks the same
    images = task.queries.repeat(len(task.documents), axis=0)
    owners = np.roll(np.arange(len(images)), int(task.relevant[0].argmax()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # says that the positives are tied
        return 1 / image_text_recall(images, task.documents, owners)["i2t_median_rank"]


def ranx(comparable: bool) -> Callable[[Judgements, Run], float]:
    def measure(judgements: Judgements, run: Run) -> float:
        from ranx import Qrels, evaluate
        from ranx import Run as Ranking

        return float(evaluate(Qrels(judgements), Ranking(run), "map", make_comparable=comparable))

    return measure


def ir_measures(judgements: Judgements, run: Run) -> float:
    import ir_measures

    return ir_measures.calc_aggregate([ir_measures.AP], judgements, run)[ir_measures.AP]


def pytrec_eval(judgements: Judgements, run: Run) -> float:
    import pytrec_eval

    found = pytrec_eval.RelevanceEvaluator(judgements, {"map"}).evaluate(run)
    return float(np.mean([measures["map"] for measures in found.values()]))


def mteb(measure: str) -> Callable[[Judgements, Run], float]:
    def mean(judgements: Judgements, run: Run) -> float:
        from mteb._evaluators.retrieval_metrics import calculate_retrieval_scores

        places = max(map(len, run.values()))
        found = calculate_retrieval_scores(run, judgements, [places])
        return next(iter(getattr(found, measure).values()))

    return mean


def torchmetrics(task: Task) -> float:
    from torchmetrics.retrieval import RetrievalMAP

    numbers = torch.arange(len(task.queries))[:, None].expand(task.scores.shape)
    scores, relevant = torch.from_numpy(task.scores), torch.from_numpy(task.relevant)
    return RetrievalMAP()(scores, relevant, indexes=numbers).item()


def average_precision(task: Task) -> float:
    from sklearn.metrics import average_precision_score

    return float(
        np.mean([average_precision_score(hits, row) for hits, row in zip(task.relevant, task.scores, strict=True)])
    )


def label_ranking(task: Task) -> float:
    from sklearn.metrics import label_ranking_average_precision_score

    return label_ranking_average_precision_score(task.relevant, task.scores)


def discounted_gain(task: Task) -> float:
    from sklearn.metrics import ndcg_score

    # the rank at which one relevant document has this nDCG, 1 / log2(rank + 1)
    return 1 / (2 ** (1 / ndcg_score(task.relevant, task.scores)) - 1)


def sentence_transformers(task: Task) -> float:
    from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator

    places = [len(task.documents)]
    evaluator = InformationRetrievalEvaluator(
        {query: "" for query in task.run()},
        {document: "" for document in task.run()["q000"]},
        {query: {name for name, grade in own.items() if grade} for query, own in task.judgements().items()},
        **{f"{measure}_at_k": places for measure in ("accuracy", "precision_recall", "ndcg", "mrr", "map")},
        score_functions={"dot": lambda x, y: (x[:, None] * y).sum(-1)},
        write_csv=False,
    )
    kept = [int(name[1:]) for name in evaluator.queries_ids]
    evaluator.embed_inputs = lambda *_, **__: torch.from_numpy(task.queries[kept])
    found = evaluator.compute_all_metrics(None, corpus_embeddings=torch.from_numpy(task.documents))
    return float(found["dot"]["map@k"][places[0]])


def metric_learning(task: Task) -> float:
    from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator

    calculator = AccuracyCalculator(include=("mean_average_precision",), k=None, device=torch.device("cpu"))
    sides = task.queries, task.query_labels, task.documents, task.document_labels
    found = calculator.get_accuracy(*(torch.from_numpy(side) for side in sides), ref_includes_query=False)
    return found["mean_average_precision"]


TOOLS = (
    Tool("`document_ranking`", "gssf-plug", ours_documents),
    Tool("`reid_ranking`", "gssf-plug", ours_identities),
    Tool("`instance_recall`", "gssf-plug", ours_instances, one=True),
    Tool("`image_text_recall`", "gssf-plug", ours_images, one=True),
    Tool("`average_precision_score`", "scikit-learn", average_precision),
    Tool("`label_ranking_average_precision_score`", "scikit-learn", label_ranking),
    Tool("`ndcg_score`", "scikit-learn", discounted_gain, one=True),
    Tool("`InformationRetrievalEvaluator`", "sentence-transformers", sentence_transformers),
    Tool("`AccuracyCalculator(k=None)`", "pytorch-metric-learning", metric_learning),
    Tool("`evaluate`", "ranx", of_run=ranx(False)),
    Tool("`evaluate(make_comparable=True)`", "ranx", of_run=ranx(True)),
    Tool("`calc_aggregate`", "ir-measures", of_run=ir_measures),
    Tool("`RelevanceEvaluator`", "pytrec-eval-terrier", of_run=pytrec_eval),
    Tool("`RetrievalMAP`", "torchmetrics", torchmetrics),
    Tool("MAP", "mteb", of_run=mteb("map")),
    Tool("MRR", "mteb", of_run=mteb("mrr"), one=True),
)

# the tasks


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.sqrt((rows * rows).sum(-1, keepdims=True))


def distinct(seed: int = 0) -> Task:
    """30 queries and 50 documents of 10 labels, all scores distinct; queries lie a little nearer to their own."""
    drawn = np.random.default_rng(seed)
    document_labels, query_labels = np.arange(50) % 10, np.arange(30) % 10
    centres = drawn.standard_normal((10, 16))
    rows = [
        unit(0.4 * centres[labels] + drawn.standard_normal((len(labels), 16)))
        for labels in (query_labels, document_labels)
    ]
    return Task(*rows, query_labels, document_labels)


def half_doubled(task: Task) -> Task:
    """The second half of the documents are copies of the first under other labels."""
    copies = task.documents[: len(task.documents) // 2]
    return replace(task, documents=np.concatenate([copies, copies]))


def not_positive(task: Task) -> Task:
    """The same order of all documents with scores (x - 1) / 2."""
    sides = (
        np.append(rows, np.full((len(rows), 1), end), 1) for rows, end in ((task.queries, 1), (task.documents, -1))
    )
    return replace(task, **dict(zip(("queries", "documents"), (side / np.sqrt(2) for side in sides), strict=True)))


def all_equal(count: int, place: int) -> Task:
    return Task(np.eye(1, 4), np.eye(1, 4).repeat(count, axis=0), np.zeros(1, int), 1 - np.eye(count, dtype=int)[place])


def nearly_equal(place: int) -> Task:
    """The relevant one of two documents has the score 1, the other 1 - 1e-8."""
    documents = unit(np.array([[1.0, 0.0], [1.0, np.sqrt(2e-8)]]))[[place, 1 - place]]
    return Task(np.eye(1, 2), documents, np.zeros(1, int), np.array([place, 1 - place]))


def two_queries(second_label: int) -> Task:
    """The first query finds its document second, AP 0.5; the second finds its first, if one has its label."""
    return Task(np.eye(2)[[0, 0]], unit(np.array([[1.0, 0.0], [1.0, 1.0]])), np.array([1, second_label]), np.arange(2))


# the table

UNLABELLED = 7
MEANS = {0.5: "left out", 0.25: "0", 0.75: "1"}


def attempt(measure: Callable[[], float]) -> float | str:
    try:
        return measure()
    except Exception as error:  # which error a tool raises is a cell of the table
        return type(error).__name__


def rank(tool: Tool, task: Task) -> str:
    found = attempt(lambda: 1 / tool(task))
    return found if isinstance(found, str) else f"{found:.3g}"


def second_query(measure: Callable[[], float]) -> str:
    found = attempt(measure)
    return found if isinstance(found, str) else MEANS.get(round(found, 6), f"{found:.3f}")


def ties(tool: Tool) -> list[str]:
    plain = distinct()
    tasks = plain, not_positive(plain), half_doubled(plain)
    means = ["–" if tool.one else attempt(lambda task=task: tool(task)) for task in tasks]
    return [
        *(mean if isinstance(mean, str) else f"{100 * mean:.2f}" for mean in means),
        " ".join(rank(tool, all_equal(4, place)) for place in range(4)),
        " ".join(rank(tool, all_equal(40, place)) for place in (0, 1, 38, 39)),
        " ".join(rank(tool, nearly_equal(place)) for place in (0, 1)),
    ]


def gaps(tool: Tool) -> list[str]:
    unlabelled, judged = two_queries(UNLABELLED), two_queries(0)
    found = [second_query(lambda: tool(unlabelled)), "–", "–"]
    if (of_run := tool.of_run) is not None:
        found[1] = second_query(lambda: of_run(judged.judgements(), judged.run([1])))
        found[2] = second_query(lambda: of_run(judged.judgements([1]), judged.run()))
    return found


TIES = (
    "tool",
    "mAP, distinct scores",
    "the same, scores ≤ 0",
    "mAP, documents doubled",
    "rank, stored 1st 2nd 3rd 4th of 4 equal",
    "1st 2nd 39th 40th of 40 equal",
    "better by 1e-8, stored 1st 2nd",
)
GAPS = ("tool", "query without a relevant document", "query not in the run", "query not judged")


def table(header: tuple[str, ...], tools: Iterable[Tool], row: Callable[[Tool], list[str]]) -> None:
    print(f"| {' | '.join(header)} |", f"|{'---|' * len(header)}", sep="\n")
    for tool in tools:
        version = importlib.metadata.version(tool.package)
        print(f"| {tool.name}, {tool.package} {version} | {' | '.join(row(tool))} |", flush=True)
    print()


def installed(package: str) -> bool:
    try:
        return bool(importlib.metadata.version(package))
    except importlib.metadata.PackageNotFoundError:
        print(f"{package} is not installed", file=sys.stderr)
        return False


def main() -> None:
    warnings.simplefilter("ignore")
    present = {package for package in dict.fromkeys(tool.package for tool in TOOLS) if installed(package)}
    tools = [tool for tool in TOOLS if tool.package in present]
    table(TIES, tools, ties)
    table(GAPS, (tool for tool in tools if not tool.one), gaps)


if __name__ == "__main__":
    main()
