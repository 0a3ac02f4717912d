"""What a recipe may say: typed dataclasses, filled from YAML and --name value by transformers' HfArgumentParser.

    base: vse_infinity_f30k_regions_bert      # every key of that recipe, then those below: how a GSSF twin is written
    metric: gssf
    block_size: 16

Every key is checked before anything is read or built: an unknown one is answered with near names, a value of another
type with the key, the type and what came (YAML reads `5e-4` as text and takes any word for a choice).
"""

import dataclasses
import os
import types
from collections.abc import Sequence
from dataclasses import dataclass, field, make_dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

import yaml
from transformers import HfArgumentParser

from gssf_plug.errors import ArgumentError, DataError, near_matches
from gssf_plug.retrieval import RetrievalConfig

RECIPES = Path(__file__).resolve().parent / "recipes"


def _option(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class DataOptions:
    """Which data set, where, and how its images become tensors."""

    dataset: Literal[
        "flickr30k", "coco", "region_features", "market1501", "msmt17", "cuhk03", "cub200", "cars196",
        "online_products", "in_shop", "image_folder", "columns",
    ] | None = _option(None, "layout; see docs/datasets.md")  # fmt: skip
    data_dir: str = _option("", "folder of the data set; for columns also a file or a hub id")
    train_split: str = _option("train", "split to train on")
    validation_split: str | None = _option(None, "split by which the best weights are chosen; none: the last are kept")
    test_split: str | None = _option("test", "split that is measured once, at the end (one tower: query and gallery)")
    folds: int | None = _option(None, "also the mean over so many equal parts of the test images (COCO 1K: 5)")
    restval: bool = _option(True, "COCO: train on restval, too")
    boxes: Literal["detected", "labeled"] = _option("detected", "CUHK03: which boxes")
    image_column: str | None = _option(None, "columns: of images")
    features_column: str | None = _option(None, "columns: of features")
    captions_column: str | None = _option(None, "columns: of captions")
    label_column: str | None = _option(None, "columns: of labels")
    camera_column: str | None = _option(None, "columns: of cameras")
    region_width: int = _option(2048, "width that region features must have")
    image_height: int = _option(224, "height of the tensors")
    image_width: int = _option(224, "width of the tensors")
    resize: int = _option(256, "shorter side before the middle is cut out in evaluation")
    smallest_area: float = _option(0.08, "smallest share of an image that is cut out in training")
    flip: float = _option(0.5, "probability of a mirrored image in training")
    erase: float = _option(0.5, "re-identification: probability of an erased rectangle in training")
    statistics: Literal["imagenet", "clip", "half"] = _option(
        "imagenet", "mean and deviation that images are brought to"
    )


@dataclass(frozen=True)
class ModelOptions:
    """Framework and encoders."""

    framework: Literal["vse", "scan", "dual_encoder", "bot", "proxy_anchor"] | None = _option(
        None, "see docs/recipes.md"
    )
    image_model: str | None = _option(None, "hub id or folder of the image encoder; none: region features")
    text_model: str | None = _option(None, "hub id or folder of the text encoder; none: words and a GRU")
    vocabulary: str | None = _option(None, "SCAN's vocabulary JSON; none: words of the training captions")
    least_words: int = _option(4, "how often a word must occur in the training captions")
    embed_dim: int = _option(1024, "width of the joint space")
    projection: Literal["linear", "residual_mlp"] = _option(
        "linear", "of regions, grids and words into the joint space"
    )
    pooling: Literal["mean", "gpo", "last"] = _option("mean", "of tokens; last: a GRU's last state, and mean of images")
    bidirectional: bool = _option(True, "GRU in both directions")
    word_dropout: float = _option(0.0, "on word embeddings")
    size_augmentation: float = _option(0.0, "share of regions or grids dropped in training")
    word_augmentation: float = _option(0.0, "share of words masked, replaced or dropped in training")
    max_words: int = _option(64, "tokens of a caption")
    alignment: Literal["t2i", "i2t", "both"] = _option("t2i", "SCAN: words attend to regions, or regions to words")
    aggregate: Literal["average", "logsumexp"] = _option("average", "SCAN: over the fragments that attend")
    t2i_temperature: float = _option(9.0, "SCAN: of the softmax over regions")
    i2t_temperature: float = _option(4.0, "SCAN: of the softmax over words")
    sharpness: float = _option(6.0, "SCAN: of logsumexp")
    frozen_norms: bool = _option(True, "Proxy-Anchor: batch normalisation of the encoder stays as it is")
    vit: bool = _option(False, "re-identification: the image encoder is a ViT, not a CNN")


@dataclass(frozen=True)
class MetricOptions:
    """The similarity: what a GSSF twin changes."""

    metric: Literal["cosine", "gssf"] = _option("cosine", "similarity")
    terms: Literal["both", "diagonal", "block_diagonal"] = _option("both", "of gssf")
    block_size: int = _option(16, "of gssf")
    attention_metric: bool = _option(False, "SCAN: a second metric in the attention logits")
    learned_scale: bool = _option(False, "multiply the scores of a margin loss by a learned factor: the fair cosine")


@dataclass(frozen=True)
class LossOptions:
    """Loss and batches."""

    margin: float = _option(0.2, "of hinge, triplets and Proxy-Anchor")
    hinge_warmup_epochs: int = _option(0, "epochs that sum over all negatives before the hardest alone counts")
    smoothing: float = _option(0.1, "re-identification: of the classified identities")
    alpha: float = _option(32.0, "Proxy-Anchor: scale")
    images_per_identity: int = _option(0, "one tower: images of each identity in a batch; 0: random batches")


@dataclass(frozen=True)
class RunOptions:
    """What this call does."""

    train: bool = _option(True, "false measures the untrained model")
    resume: bool = _option(False, "go on with the run in output_dir")
    dry_run: bool = _option(False, "print the plan and stop")


def _training_options() -> type:
    """RetrievalConfig's fields as the parser takes them: lists for tuples, text for paths."""
    hints, columns = get_type_hints(RetrievalConfig), []
    for config in dataclasses.fields(RetrievalConfig):
        if get_origin(hints[config.name]) is tuple:
            default = list(config.default)
            columns.append((config.name, list[get_args(hints[config.name])[0]], field(default_factory=default.copy)))
        elif config.name == "output_dir":
            columns.append((config.name, str, _option("", "folder of the run; default outputs/<recipe>")))
        else:
            columns.append((config.name, hints[config.name], field(default=config.default)))
    return make_dataclass("TrainingOptions", columns, frozen=True)


TrainingOptions = _training_options()
SECTIONS = (DataOptions, ModelOptions, MetricOptions, LossOptions, RunOptions, TrainingOptions)
HINTS = {name: hint for section in SECTIONS for name, hint in get_type_hints(section).items()}


class Recipe(NamedTuple):
    """A recipe as it will be run."""

    name: str
    data: DataOptions
    model: ModelOptions
    metric: MetricOptions
    loss: LossOptions
    run: RunOptions
    training: RetrievalConfig


def load_recipe(recipe: str, overrides: Sequence[str] = ()) -> Recipe:
    """A recipe by name or path, with the options of a command line over it.

    Args:
        recipe: name of a file in examples/recipes, or a path to a YAML file.
        overrides: `--name value` …

    Raises:
        ArgumentError: no such recipe; an unknown key or option; a value of another type; a key that must be given.
        DataError: a file that is no YAML mapping.
    """
    path = recipe_path(recipe)
    values = _with_base(path)
    for name, value in values.items():
        check_value(name, value)
    parser = HfArgumentParser(SECTIONS, prog=f"train_retrieval.py {path.stem}", allow_abbrev=False)
    parser.set_defaults(**values)
    *sections, unknown = parser.parse_args_into_dataclasses(
        list(overrides), return_remaining_strings=True, look_for_args_file=False
    )
    for option in unknown:
        raise unknown_key(option.lstrip("-").split("=")[0], option)
    *ours, training = sections
    for name, value in (("dataset", ours[0].dataset), ("data_dir", ours[0].data_dir), ("framework", ours[1].framework)):
        if not value:
            raise ArgumentError(name, "be given", "nothing", f"Write it into the recipe, or pass --{name}.")
    return Recipe(path.stem, *ours, _config(training, path.stem))


def recipe_path(recipe: str) -> Path:
    """The file of a recipe.

    Raises:
        ArgumentError: there is none; offers near names.
    """
    named = RECIPES / f"{Path(recipe).stem}.yaml"
    for path in (Path(recipe), *([named] if os.sep not in recipe else [])):
        if path.is_file():
            return path
    names = [path.stem for path in RECIPES.glob("*.yaml")]
    raise ArgumentError(
        "recipe", "be a YAML file or the name of a recipe", recipe, near_matches(Path(recipe).stem, names)
    )


def check_value(name: str, value: Any) -> None:
    """Raise `ArgumentError` for a key that no section has, or a value that is not of its type."""
    if name not in HINTS:
        raise unknown_key(name, repr(value))
    hint = HINTS[name]
    choices = [choice for part in (hint, *get_args(hint)) if get_origin(part) is Literal for choice in get_args(part)]
    if choices and value not in choices:
        raise ArgumentError(name, f"be one of {choices}", repr(value), near_matches(str(value), choices))
    if not choices and not _is_of(value, hint):
        wanted = hint.__name__ if isinstance(hint, type) and not get_args(hint) else hint
        remedy = "In YAML write 0.0005, or 5.0e-4: '5e-4' is read as text." if isinstance(value, str) else "Correct it."
        raise ArgumentError(name, f"be of type {wanted}", f"{value!r} of type {type(value).__name__}", remedy)


def unknown_key(name: str, got: str) -> ArgumentError:
    """The error for a key that no section has."""
    return ArgumentError(name, "be a key that recipes have", got, near_matches(name, HINTS))


def _is_of(value: Any, hint: Any) -> bool:
    if get_origin(hint) in (Union, types.UnionType):
        return any(_is_of(value, part) for part in get_args(hint))
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if get_origin(hint) is list:
        return isinstance(value, list) and all(_is_of(item, get_args(hint)[0]) for item in value)
    if isinstance(value, bool):
        return hint is bool
    return isinstance(value, (int, float) if hint is float else hint)


def _with_base(path: Path, below: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The keys of a recipe over those of its base."""
    if path in below:
        raise DataError(path, "is its own base", "Name another recipe as base.")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise DataError(path, f"is not YAML ({' '.join(str(error).split())})", "Correct the line.") from error
    if not isinstance(values, dict):
        raise DataError(path, f"holds {type(values).__name__}, expected lines `key: value`", "See examples/recipes.")
    base = values.pop("base", None)
    if base is None:
        return values
    beside = path.parent / f"{base}.yaml"
    return {**_with_base(beside if beside.is_file() else recipe_path(str(base)), (*below, path)), **values}


def _config(training: Any, name: str) -> RetrievalConfig:
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in vars(training).items()}
    return RetrievalConfig(**{**values, "output_dir": values["output_dir"] or f"outputs/{name}"})
