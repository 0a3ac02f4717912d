"""`gssf-plug`: fit a metric to vectors or texts, measure it, look at it.

    gssf-plug fit pairs.csv --queries q.npy --documents d.npy --out metric
    gssf-plug fit texts.csv --encoder sentence-transformers/all-MiniLM-L6-v2 --out metric
    gssf-plug evaluate metric pairs.csv --queries q.npy --documents d.npy
    gssf-plug info metric

Tables of pairs are CSV, JSONL or parquet: a query and a document in each row, as row numbers from 0, or as texts with
--encoder. What is wrong with the input is said in one line, with row and column, and nothing is written then.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gssf_plug.cli.embeddings import default_cache
from gssf_plug.errors import GSSFError

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        The exit status: 0, 1 for input that cannot be used (said on stderr), 2 for a wrong command line, 130 for
        Ctrl-C before there was anything to keep.
    """
    options = _parser().parse_args(arguments)
    from gssf_plug.cli import commands  # after parsing: --help should not wait for torch

    try:
        print(getattr(commands, options.command)(options))  # noqa: T201 - a command line prints
    except (GSSFError, ModuleNotFoundError, OSError) as error:  # a full or read-only disk says so itself
        print(f"gssf-plug {options.command}: {error}", file=sys.stderr)  # noqa: T201
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="gssf-plug", description=__doc__, formatter_class=raw)
    commands = parser.add_subparsers(dest="command", required=True)
    fit = commands.add_parser("fit", help="fit a metric to pairs and save it")
    _add_data(fit)
    fit.add_argument("--out", type=Path, required=True, help="folder that the metric is saved in")
    fit.add_argument("--report", type=Path, help="also write the table into this file (Markdown)")
    fit.add_argument("--plot", type=Path, help="also draw the table into this file (needs matplotlib)")
    fit.add_argument("--validation", type=float, default=0.2, help="share of the queries; default 0.2")
    fit.add_argument("--measure", default="mAP", help="what decides, a key of document_ranking; default mAP")
    fit.add_argument("--loss", choices=("softmax", "hinge"), help="default: both are tried")
    fit.add_argument("--structures", type=_structure, nargs="+", metavar="STRUCTURE", help=STRUCTURES)
    fit.add_argument("--patience", type=int, default=2)
    fit.add_argument("--max-epochs", type=int)
    fit.add_argument("--batch-size", type=int, default=256)
    fit.add_argument("--seed", type=int, default=0)
    fit.add_argument("--device", help="such as cuda; default: the CPU")
    evaluate = commands.add_parser("evaluate", help="measure cosine and a saved metric on pairs")
    evaluate.add_argument("metric", type=Path, help="folder of the metric")
    _add_data(evaluate)
    evaluate.add_argument("--ks", type=int, nargs="+", default=[1, 10], help="places of accuracy, precision and recall")
    info = commands.add_parser("info", help="what a saved metric is")
    info.add_argument("metric", type=Path, help="folder of the metric")
    return parser


STRUCTURES = "diagonal, dense, or the side of blocks such as 64; default: all that suit the width"


def _add_data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("pairs", type=Path, help="table of pairs: .csv, .tsv, .jsonl or .parquet")
    parser.add_argument("--queries", type=Path, help="vectors of the queries, .npy (rows, width)")
    parser.add_argument(
        "--documents", type=Path, help="vectors of the documents, .npy; with --encoder a table of texts"
    )
    parser.add_argument("--encoder", help="sentence-transformers model that embeds the texts of the pairs")
    parser.add_argument("--columns", nargs=2, metavar=("QUERY", "DOCUMENT"), help="names of the two columns")
    parser.add_argument("--cache", type=Path, default=default_cache(), help="where embedded texts are kept")
    parser.add_argument("--no-progress", action="store_true", help="no progress bar")


def _structure(word: str) -> dict[str, Any]:
    if word in ("diagonal", "dense"):
        return {"terms": (word,)}
    if word.isdecimal() and int(word) > 0:
        return {"terms": ("block_diagonal",), "block_size": int(word)}
    raise argparse.ArgumentTypeError(f"{word!r} is neither diagonal, nor dense, nor the side of blocks")
