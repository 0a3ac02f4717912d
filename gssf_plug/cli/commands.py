"""What each command does: its options in, the text to print out."""

import argparse
from typing import Any, NamedTuple

import numpy as np

from gssf_plug.cli.embeddings import TextEncoder, read_vectors
from gssf_plug.cli.tables import read_columns, read_indices, read_texts
from gssf_plug.errors import ArgumentError, CheckpointError, DataError
from gssf_plug.evaluation import document_ranking
from gssf_plug.figures import make_figure
from gssf_plug.files import locate
from gssf_plug.metric import GSSFMetric
from gssf_plug.retrieval import fit_metric

__all__ = ["evaluate", "fit", "info"]


class _Data(NamedTuple):
    """Two sides and the pairs between them."""

    queries: np.ndarray
    documents: np.ndarray
    pairs: np.ndarray


def fit(options: argparse.Namespace) -> str:
    """Fit, save, and tell the table. Nothing is written before the fit is done."""
    for path in filter(None, (options.report, options.plot)):
        if path.is_dir() or not path.parent.is_dir():
            raise DataError(path, "is a folder" if path.is_dir() else "lies in no folder", "Name a file in a folder.")
    if options.plot:
        kinds = make_figure(1, 1).canvas.get_supported_filetypes()
        if options.plot.suffix[1:].lower() not in kinds:
            raise DataError(options.plot, f"is none of {', '.join(sorted(kinds))}", "Such as fit.png.")
    if options.out.exists() and not options.out.is_dir():
        raise CheckpointError(options.out, "is a file", "Give the folder that the metric is saved in.")
    data = _read(options)
    result = fit_metric(
        *data,
        validation=options.validation,
        measure=options.measure,
        structures=options.structures or "auto",
        loss=options.loss,
        patience=options.patience,
        max_epochs=options.max_epochs,
        batch_size=options.batch_size,
        seed=options.seed,
        progress=not options.no_progress,
        device=options.device,
    )
    row = next(row for row in result.table if row.name == result.taken)
    facts: Any = {"measures": {result.measure: row.value}, "evaluated_on": "validation queries", "notes": str(result)}
    result.metric.save_pretrained(options.out, model_card_kwargs=facts)
    if options.report:
        options.report.write_text(f"{result}\n", encoding="utf-8")
    if options.plot:
        result.plot().savefig(options.plot)
    return f"{result}\n\nSaved in {options.out}: GSSFMetric.from_pretrained({str(options.out)!r})."


def evaluate(options: argparse.Namespace) -> str:
    """Every measure of `document_ranking`, of cosine and of the metric."""
    metric = GSSFMetric.from_pretrained(options.metric)
    data = _read(options)
    found = {name: document_ranking(*data, each, options.ks) for name, each in (("cosine", None), ("metric", metric))}
    lines = ["| measure | cosine | metric |", "|---|---:|---:|"]
    lines += [f"| {key} | {value:.2f} | {found['metric'][key]:.2f} |" for key, value in found["cosine"].items()]
    return "\n".join(lines)


def info(options: argparse.Namespace) -> str:
    """Structure, size and distance from cosine of a saved metric."""
    metric = GSSFMetric.from_pretrained(options.metric)
    blocks, folder = metric.blocks().detach(), locate(options.metric, GSSFMetric.file_format)
    sizes = {path.name: path.stat().st_size for path in sorted(folder.iterdir()) if path.is_file()}
    facts = {
        "width": metric.dim,
        "terms": " + ".join(metric.terms) or "adjacency",
        "blocks": f"{len(blocks)} of {blocks.shape[-1]}×{blocks.shape[-1]}",
        "parameters": f"{sum(parameter.numel() for parameter in metric.parameters()):,}",
        "constraint": metric.constraint or "none",
        "normalises": "yes" if metric.normalize else "no",
        "distance from cosine": f"{metric.deviation().detach().norm().item():.4g} (Frobenius norm of W⊙U − I)",
        "files": ", ".join(f"{name} {size:,} B" for name, size in sizes.items()),
    }
    return "\n".join(f"{name:<22}{value}" for name, value in facts.items())


def _read(options: argparse.Namespace) -> _Data:
    return _embedded(options) if options.encoder else _stored(options)


def _stored(options: argparse.Namespace) -> _Data:
    for name in ("queries", "documents"):
        if getattr(options, name) is None:
            remedy = "Or give --encoder, which embeds the texts of the pairs."
            raise ArgumentError(f"--{name}", "name a .npy file of vectors", "nothing", remedy)
    queries, documents = read_vectors(options.queries), read_vectors(options.documents)
    pairs = read_indices(options.pairs, options.columns, (len(queries), len(documents)))
    return _Data(queries, documents, np.array(pairs))


def _embedded(options: argparse.Namespace) -> _Data:
    """Different texts of each side, in the order in which they come; a table of documents adds to the pairs'."""
    if options.queries is not None:
        remedy = "The queries are the texts of the pairs."
        raise ArgumentError("--queries", "not be given with --encoder", options.queries, remedy)
    pairs = read_texts(options.pairs, options.columns)
    queries = {text: row for row, text in enumerate(dict.fromkeys(query for query, _ in pairs))}
    texts = [document for _, document in pairs]
    if options.documents is not None:
        name = options.columns[1] if options.columns else "document"
        rows = read_columns(options.documents, [name], given=options.columns is not None)
        for place, (text,) in rows:
            if not isinstance(text, str) or not text.strip():
                problem = f"holds {text!r} in {place}, column '{name}', where a text must stand"
                raise DataError(options.documents, problem, "Complete the row, or remove it.")
            texts.append(text)
    documents = {text: row for row, text in enumerate(dict.fromkeys(texts))}
    encoder = TextEncoder(options.encoder, options.cache, progress=not options.no_progress)
    sides = encoder.embed([*queries], "query"), encoder.embed([*documents], "document")
    return _Data(*sides, np.array([(queries[query], documents[document]) for query, document in pairs]))
