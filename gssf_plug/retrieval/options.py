"""What the trainer and its evaluations are given, checked before anything is trained or encoded."""

from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from gssf_plug.arguments import check_function, check_module, described, holds_floats, holds_whole_numbers, is_dense
from gssf_plug.errors import ArgumentError
from gssf_plug.metric.arrays import to_tensor
from gssf_plug.retrieval.data.feeds import check_map_style
from gssf_plug.retrieval.models.embedding import Embedding, Fragments
from gssf_plug.retrieval.models.two_tower import RetrievalModel
from gssf_plug.retrieval.training.config import RetrievalConfig

__all__ = ["check_embedding", "check_parts", "check_relevant", "checked_choice", "checked_column"]


def check_parts(
    model: object,
    loss: object,
    config: object,
    collate: object,
    eval_collate: object,
    evaluation: object,
    evaluated: tuple[object, object],
) -> None:
    """The parts of a trainer but for its training data; `evaluated` are `eval_data` and `eval_gallery`.

    Raises:
        ArgumentError: a part is something else.
    """
    remedy = "Such as TwoTower, OneTower, DualEncoder or LocalAlignment."
    if not isinstance(model, RetrievalModel):
        raise ArgumentError("model", "be a RetrievalModel", described(model), remedy)
    check_module("loss", loss, "Such as InfoNCE().")
    for name, part in (("model", model), ("loss", loss)):
        if any(one.is_meta for one in part.parameters()):  # type: ignore[attr-defined]
            raise ArgumentError(name, "hold values", "weights on the meta device", "Load them first.")
    if not isinstance(config, RetrievalConfig):
        remedy = "Build one: RetrievalConfig(output_dir=...)."
        raise ArgumentError("config", "be a RetrievalConfig", described(config), remedy)
    remedy = "See the description in RetrievalTrainer."
    check_function("collate", collate, remedy, takes=1)
    check_function("eval_collate", eval_collate, remedy, takes=1, optional=True)
    check_function("evaluation", evaluation, remedy, takes=2, optional=True)
    for name, rows in zip(("eval_data", "eval_gallery"), evaluated, strict=True):
        check_map_style(name, rows)


def check_embedding(embedding: object) -> None:
    """What a trainer hands to an evaluation.

    Raises:
        ArgumentError: the value is no `Embedding`, has no queries, or its ids are not one for each row.
    """
    if not isinstance(embedding, Embedding):
        remedy = "RetrievalTrainer.embed makes one."
        raise ArgumentError("embedding", "be an Embedding", described(embedding), remedy)
    for name, side, ids in (
        ("query_ids", embedding.queries, embedding.query_ids),
        ("gallery_ids", embedding.gallery, embedding.gallery_ids),
    ):
        if not isinstance(side, Fragments) and not (holds_floats(side) and side.ndim == 2):
            rule, remedy = "be floating-point rows N×D, or Fragments", "RetrievalTrainer.embed makes them."
            raise ArgumentError("queries" if name == "query_ids" else "gallery", rule, described(side), remedy)
        # torch neither sorts nor compares unsigned numbers of more than 8 bits
        signed = holds_whole_numbers(ids) and ids.dtype in (torch.long, torch.int32, torch.int16, torch.int8)
        if not signed or ids.ndim != 1 or len(ids) != len(side) or not len(ids):
            rule = f"hold one signed whole number per row ({len(side)}), of which there is at least one"
            raise ArgumentError(name, rule, described(ids), "Give the ids in the order of the rows.")


def checked_column(name: str, values: Any, rows: int | None = None) -> Int[Tensor, " rows"]:
    """One whole number for each row, as a tensor on the CPU.

    Raises:
        ArgumentError: the values are none, or not so many.
    """
    column = to_tensor(name, values)
    if not holds_whole_numbers(column) or column.ndim != 1 or (rows is not None and len(column) != rows):
        rule = "hold one whole number per row" + ("" if rows is None else f" ({rows})")
        raise ArgumentError(name, rule, described(column), "Number them, in the order of the rows.")
    return column.cpu()


def checked_choice(is_query: Any, rows: int) -> Bool[Tensor, " rows"] | None:
    """None, or one truth value for each row, on the CPU.

    Raises:
        ArgumentError: the values are none, or not so many.
    """
    if is_query is None:
        return None
    choice = to_tensor("is_query", is_query)
    if not is_dense(choice) or choice.dtype != torch.bool or choice.shape != (rows,):
        rule, remedy = f"be None or hold one truth value per row ({rows})", "Convert it with .bool()."
        raise ArgumentError("is_query", rule, described(choice), remedy)
    return choice.cpu()


def check_relevant(relevant: object) -> None:
    """None, or pairs of ids.

    Raises:
        ArgumentError: the value is something else.
    """
    if relevant is not None and not (holds_whole_numbers(relevant) and relevant.ndim == 2 and relevant.shape[1] == 2):
        rule, remedy = "be None or whole numbers (P, 2): ids of queries and documents", "Build it with torch.tensor."
        raise ArgumentError("relevant", rule, described(relevant), remedy)
