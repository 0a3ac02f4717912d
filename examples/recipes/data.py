"""The data set of a recipe: rows to train on, and what is measured on validation and test rows."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch.utils.data import ConcatDataset

from gssf_plug import GSSFMetric
from gssf_plug.errors import ArgumentError
from gssf_plug.retrieval import (
    Embedding,
    RetrievalModel,
    WithRowNumbers,
    alignment_measures,
    image_text_measures,
    instance_measures,
    reid_measures,
)
from gssf_plug.retrieval import data as sets
from gssf_plug.retrieval.data.columns import CaptionPairs
from gssf_plug.retrieval.data.transforms import CLIP, HALF, IMAGENET, CropTransform, PedestrianTransform
from gssf_plug.retrieval.evaluation import Evaluation
from recipes.options import DataOptions, Recipe

IMAGE_TEXT = ("vse", "scan", "dual_encoder")
KS = {"online_products": (1, 10, 100, 1000), "in_shop": (1, 10, 20, 30, 40, 50)}
STATISTICS = {"imagenet": IMAGENET, "clip": CLIP, "half": HALF}
SPLITS: Mapping[str, Callable[..., Any]] = {
    name: getattr(sets, name)
    for name in (
        "flickr30k", "region_features", "market1501", "msmt17", "cub200", "cars196", "online_products", "in_shop",
    )
}  # fmt: skip


class Measured(NamedTuple):
    """Rows, the evaluation of a model on them, and how many there are, in words."""

    rows: Any
    evaluation: Callable[[RetrievalModel], Evaluation]
    count: str


class RecipeData(NamedTuple):
    """All rows of a recipe."""

    train: Any
    captions: list[str]
    labels: list[int]
    count: str
    validation: Measured | None
    test: Measured | None


def load_data(recipe: Recipe) -> RecipeData:
    """Open the splits that a recipe names; reads annotations, no image.

    Raises:
        ArgumentError: columns that the framework needs and the set lacks, or features of another width.
        DataError: a missing or damaged part.
    """
    options = recipe.data
    rows = open_split(options, first_split(recipe))
    if recipe.model.framework not in IMAGE_TEXT:
        labels = sets.column(rows, "label")
        validation, test = (_of_labels(options, split) for split in (options.validation_split, options.test_split))
        count = f"{len(rows):,} images of {len(set(labels)):,} classes"
        return RecipeData(rows, [], labels, count, validation, test)
    pairs = CaptionPairs(rows)
    texts = [text for captions in sets.column(rows, "captions") for text in captions]
    validation = _of_captions(recipe, options.validation_split, folds=None)
    test = _of_captions(recipe, options.test_split, folds=options.folds)
    count = f"{len(pairs):,} pairs of {len(rows):,} images"
    return RecipeData(pairs, texts, [], count, validation, test)


def first_split(recipe: Recipe) -> str:
    """The split to train on; the test split where nothing is trained, so that no more need be on disk."""
    zero_shot = recipe.model.framework == "dual_encoder" and not recipe.run.train
    return recipe.data.test_split if zero_shot and recipe.data.test_split else recipe.data.train_split


def open_split(options: DataOptions, split: str) -> Any:
    """One split of the data set, as its loader gives it."""
    if options.dataset == "coco":
        rows = sets.coco(options.data_dir, split, restval=options.restval)
    elif options.dataset == "cuhk03":
        rows = sets.cuhk03(options.data_dir, split, boxes=options.boxes)
    elif options.dataset == "image_folder" and options.split_classes is not None:
        train, held = sets.image_folder(options.data_dir, split_classes=options.split_classes)
        sides = {options.train_split: train, options.test_split: held}
        if split not in sides:
            rule = "be left out where split_classes makes a training and a test split"
            raise ArgumentError("validation_split", rule, repr(split), "The last weights are measured.")
        rows = sides[split]
    elif options.dataset == "image_folder":
        rows = sets.image_folder(options.data_dir, split)
    elif options.dataset == "columns":
        names = ("image", "features", "captions", "label", "camera")
        rows = sets.read_columns(
            options.data_dir, split, **{name: getattr(options, f"{name}_column") for name in names}
        )
    else:
        rows = SPLITS[options.dataset](options.data_dir, split)
    if "features" in rows.column_names:
        _check_width(options, rows)
    return rows


def transform_of(options: DataOptions, framework: str, *, train: bool) -> Any:
    """PIL image to tensor, for training or evaluation."""
    size, statistics = (options.image_height, options.image_width), STATISTICS[options.statistics]
    if framework == "bot":
        return PedestrianTransform(
            train=train, size=size, flip=options.flip, erase=options.erase, statistics=statistics
        )
    if size[0] != size[1]:
        raise ArgumentError(
            "image_width", f"equal image_height={size[0]} here", size[1], "Only bot takes other shapes."
        )
    return CropTransform(
        train=train,
        size=size[0],
        resize=max(options.resize, size[0]),
        area=(options.smallest_area, 1.0),
        flip=options.flip,
        statistics=statistics,
    )


def _of_captions(recipe: Recipe, split: str | None, *, folds: int | None) -> Measured | None:
    if split is None:
        return None
    rows = open_split(recipe.data, split)
    captions = sum(map(len, sets.column(rows, "captions")))
    evaluation = partial(_recall, fragments=recipe.model.framework == "scan", folds=folds)
    return Measured(rows, evaluation, f"{len(rows):,} images, {captions:,} captions")


def _recall(model: RetrievalModel, *, fragments: bool, folds: int | None) -> Evaluation:
    """Measures of all rows and, where folds are asked for, the mean over them."""

    def evaluation(embedding: Embedding, metric: GSSFMetric | None) -> dict[str, float]:
        measures = {}
        for parts in {None, folds}:
            ranked = alignment_measures(model, folds=parts) if fragments else partial(image_text_measures, folds=parts)
            prefix = "" if parts is None else f"{parts}-fold "
            measures.update({f"{prefix}{name}": value for name, value in ranked(embedding, metric).items()})
        return measures

    return evaluation


def _of_labels(options: DataOptions, split: str | None) -> Measured | None:
    """Query and gallery where the set has them, else every image asks for the others."""
    if split is None:
        return None
    if options.dataset in ("market1501", "msmt17", "cuhk03", "in_shop"):
        if split != "test":
            rule = f"be test, the only split of {options.dataset} with queries and a gallery"
            raise ArgumentError("validation_split", rule, repr(split), "Leave it out: the last weights are measured.")
        query, gallery = (open_split(options, side) for side in ("query", "gallery"))
        asks = torch.arange(len(query) + len(gallery)) < len(query)
        labels = torch.tensor(sets.column(query, "label") + sets.column(gallery, "label"))
        count = f"{len(query):,} queries, {len(gallery):,} in the gallery"
        rows = WithRowNumbers(ConcatDataset([query, gallery]))
        if options.dataset == "in_shop":
            return Measured(rows, _whatever_model(instance_measures(labels, is_query=asks, ks=KS["in_shop"])), count)
        cameras = torch.tensor(sets.column(query, "camera") + sets.column(gallery, "camera"))
        return Measured(rows, _whatever_model(reid_measures(labels, cameras, is_query=asks)), count)
    held = open_split(options, split)
    labels = torch.tensor(sets.column(held, "label"))
    if "camera" in held.column_names:
        cameras = torch.tensor(sets.column(held, "camera"))
        return Measured(WithRowNumbers(held), _whatever_model(reid_measures(labels, cameras)), f"{len(held):,} images")
    ks = KS.get(options.dataset or "", (1, 2, 4, 8))
    return Measured(WithRowNumbers(held), _whatever_model(instance_measures(labels, ks=ks)), f"{len(held):,} images")


def _whatever_model(evaluation: Evaluation) -> Callable[[RetrievalModel], Evaluation]:
    return lambda model: evaluation


def _check_width(options: DataOptions, rows: Any) -> None:
    width = rows[0]["features"].shape[-1]
    if width != options.region_width:
        where = f"the features in '{options.data_dir}' are {width} wide"
        rule = "be the width of the features that the encoder is built for"
        raise ArgumentError(
            "region_width", rule, f"{options.region_width}, where {where}", f"Pass --region_width {width}."
        )
