"""What a recipe may say, as typed dataclasses: data, model, metric, loss, this call, and RetrievalConfig's fields."""

import dataclasses
import re
from dataclasses import dataclass, field, make_dataclass
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

from gssf_plug.retrieval import RetrievalConfig


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
    split_classes: float | None = _option(
        None, "image_folder without splits: share of the classes that is held out as test_split, such as 0.3"
    )
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
    """RetrievalConfig's fields as the parser takes them, lists for tuples and text for paths, with its descriptions."""
    hints, columns = get_type_hints(RetrievalConfig), []
    told = dict(re.findall(r"^ {8}(\w+): (.+?)(?=^ {8}\w+: |\n\n|\Z)", RetrievalConfig.__doc__ or "", re.M | re.S))
    for config in dataclasses.fields(RetrievalConfig):
        hint, help_text = hints[config.name], {"help": " ".join(told[config.name].split()).replace("%", "%%")}
        if get_origin(hint) is tuple:
            default = list(config.default)
            option = field(default_factory=default.copy, metadata=help_text)
            columns.append((config.name, list[get_args(hint)[0]], option))
        elif config.name == "output_dir":
            columns.append((config.name, str, _option("", "folder of the run; default outputs/<recipe>")))
        else:
            columns.append((config.name, hint, field(default=config.default, metadata=help_text)))
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
