"""The model, the loss and the collate functions of a recipe: the library's parts, put together as published."""

import logging
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import AutoModel, AutoTokenizer

from gssf_plug import GSSFMetric
from gssf_plug.errors import ArgumentError
from gssf_plug.features import (
    GPO,
    BNNeck,
    SizeAugmentation,
    cls_pool,
    feature_tensor,
    last_pool,
    mean_max_pool,
    mean_pool,
)
from gssf_plug.losses import BatchHardTriplet, Hinge, IdentityLoss, InfoNCE, Sigmoid, WeightedSum
from gssf_plug.retrieval import (
    AnySize,
    DualEncoder,
    FrozenNorms,
    ImageToText,
    LabelCollator,
    LastStrideOne,
    LocalAlignment,
    LogSumExp,
    NeckLoss,
    OneTower,
    PairCollator,
    ResidualMLP,
    RetrievalModel,
    TextToImage,
    Tower,
    TwoTower,
    WordAugmentation,
    WordGRU,
    average,
)
from gssf_plug.retrieval.data.source_files import existing_folder
from gssf_plug.retrieval.data.vocabulary import scan_tokenizer, word_tokenizer
from recipes.data import RecipeData, transform_of
from recipes.options import DataOptions, MetricOptions, ModelOptions, Recipe

logger = logging.getLogger(__name__)


class Parts(NamedTuple):
    """What RetrievalTrainer is given."""

    model: RetrievalModel
    loss: nn.Module
    collate: Callable[[list[Any]], dict[str, Any]]
    eval_collate: Callable[[list[Any]], dict[str, Any]]


def build_parts(recipe: Recipe, data: RecipeData, steps_per_epoch: int) -> Parts:
    """Seeded by the recipe's seed: a twin starts from the same encoders."""
    torch.manual_seed(recipe.training.seed)
    build = {"vse": _vse, "scan": _scan, "dual_encoder": _dual_encoder, "bot": _bot, "proxy_anchor": _proxy_anchor}
    return build[str(recipe.model.framework)](recipe, data, steps_per_epoch)


def metric_of(options: MetricOptions, dim: int, *, symmetric: bool = False) -> GSSFMetric | None:
    """The metric of a recipe; None is cosine."""
    if options.metric == "cosine":
        return None
    terms = ("diagonal", "block_diagonal") if options.terms == "both" else (options.terms,)
    return GSSFMetric(dim, terms=terms, block_size=options.block_size, constraint="symmetric" if symmetric else None)


def _vse(recipe: Recipe, data: RecipeData, steps_per_epoch: int) -> Parts:
    """VSE++ and VSE∞: a tower each, hinge with hardest negatives."""
    options, dim = recipe.model, recipe.model.embed_dim
    tokenizer = _tokenizer(options, data)
    image, text = _image_tower(recipe), _text_tower(options, tokenizer)
    model = TwoTower(image, text, metric_of(recipe.metric, dim), processors={"tokenizer": tokenizer})
    return Parts(model, _hinge(recipe, steps_per_epoch), *_pair_collators(recipe, tokenizer))


def _scan(recipe: Recipe, data: RecipeData, steps_per_epoch: int) -> Parts:
    """SCAN: words and regions aligned; the metric in their similarity, a second one in the attention where asked."""
    options, dim = recipe.model, recipe.model.embed_dim
    tokenizer = _tokenizer(options, data)
    aggregate = average if options.aggregate == "average" else LogSumExp(options.sharpness)
    ways = {
        "t2i": [TextToImage(temperature=options.t2i_temperature, aggregate=aggregate)],
        "i2t": [ImageToText(temperature=options.i2t_temperature, aggregate=aggregate)],
    }
    model = LocalAlignment(
        Tower(None, token_projection=nn.Linear(recipe.data.region_width, dim)),
        _text_tower(options, tokenizer),
        metric=metric_of(recipe.metric, dim),
        attention_metric=metric_of(recipe.metric, dim) if recipe.metric.attention_metric else None,
        alignments=ways.get(options.alignment) or [*ways["t2i"], *ways["i2t"]],
        processors={"tokenizer": tokenizer},
    )
    return Parts(model, _hinge(recipe, steps_per_epoch), *_pair_collators(recipe, tokenizer))


def _dual_encoder(recipe: Recipe, data: RecipeData, steps_per_epoch: int) -> Parts:
    """A CLIP-style model as it is, its own scale and bias in the loss."""
    encoder = _pretrained("image_model", recipe.model.image_model)
    tokenizer = _pretrained("image_model", recipe.model.image_model, AutoTokenizer)
    width = getattr(encoder.config, "projection_dim", None) or encoder.config.text_config.hidden_size
    model = DualEncoder(encoder, metric_of(recipe.metric, width), processors={"tokenizer": tokenizer})
    sigmoid = getattr(encoder, "logit_bias", None) is not None
    loss = Sigmoid() if sigmoid else InfoNCE(scale=1.0, learned_scale=False)
    padding: Any = "max_length" if sigmoid else True  # SigLIP was trained so
    return Parts(model, loss, *_pair_collators(recipe, tokenizer, padding))


def _bot(recipe: Recipe, data: RecipeData, steps_per_epoch: int) -> Parts:
    """Bag of tricks. With cosine as published: triplets on distances before the neck. A metric is trained after it."""
    encoder, identities = _pretrained("image_model", recipe.model.image_model), max(data.labels) + 1
    image = AnySize(encoder) if recipe.model.vit else _fine_map(encoder)
    width = image_width(image, recipe.data)
    tower = Tower(image, pooling=cls_pool) if recipe.model.vit else Tower(image)
    model = OneTower(tower, metric_of(recipe.metric, width, symmetric=True), neck=BNNeck(width))
    identity = IdentityLoss(width, identities, smoothing=recipe.loss.smoothing)
    triplet = BatchHardTriplet(margin=recipe.loss.margin, learned_scale=recipe.metric.learned_scale)
    if recipe.metric.metric == "cosine" and not recipe.metric.learned_scale:
        loss = NeckLoss(model.neck, before=triplet, after=identity)
    else:
        loss = NeckLoss(model.neck, after=WeightedSum(identity, triplet))
    return Parts(model, loss, *_label_collators(recipe))


def _proxy_anchor(recipe: Recipe, data: RecipeData, steps_per_epoch: int) -> Parts:
    """Proxy-Anchor: mean plus maximum of the last map, a proxy for each class."""
    from pytorch_metric_learning.distances import CosineSimilarity
    from pytorch_metric_learning.losses import ProxyAnchorLoss

    from gssf_plug.losses.pml import GSSFDistance, MetricLearningLoss

    encoder, dim = _pretrained("image_model", recipe.model.image_model), recipe.model.embed_dim
    metric = metric_of(recipe.metric, dim, symmetric=True)
    image = FrozenNorms(encoder) if recipe.model.frozen_norms else encoder
    tower = Tower(image, pooling=mean_max_pool, projection=nn.Linear(image_width(image, recipe.data), dim))
    distance = CosineSimilarity() if metric is None else GSSFDistance(metric)
    classes, margin, alpha = max(data.labels) + 1, recipe.loss.margin, recipe.loss.alpha
    proxies = ProxyAnchorLoss(classes, dim, margin=margin, alpha=alpha, distance=distance)
    return Parts(OneTower(tower, metric), MetricLearningLoss(proxies), *_label_collators(recipe))


def _image_tower(recipe: Recipe) -> Tower:
    options = recipe.model
    pooling = SizeAugmentation(_pooling(options.pooling), share=options.size_augmentation)
    encoder = None if options.image_model is None else _pretrained("image_model", options.image_model)
    width = recipe.data.region_width if encoder is None else image_width(encoder, recipe.data)
    mlp = options.projection == "residual_mlp"
    projection = ResidualMLP(width, options.embed_dim) if mlp else nn.Linear(width, options.embed_dim)
    return Tower(encoder, token_projection=projection, pooling=pooling)


def _text_tower(options: ModelOptions, tokenizer: Any) -> Tower:
    if options.text_model is not None:
        encoder = _pretrained("text_model", options.text_model)
        projection = nn.Linear(encoder.config.hidden_size, options.embed_dim)
        return Tower(encoder, token_projection=projection, pooling=_pooling(options.pooling))
    words = WordGRU(
        len(tokenizer), options.embed_dim, bidirectional=options.bidirectional, dropout=options.word_dropout
    )
    return Tower(words, pooling=last_pool if options.pooling == "last" else _pooling(options.pooling))


def _pooling(name: str) -> Any:
    return GPO() if name == "gpo" else mean_pool


def _tokenizer(options: ModelOptions, data: RecipeData) -> Any:
    if options.text_model is not None:
        return _pretrained("text_model", options.text_model, AutoTokenizer)
    if options.vocabulary is not None:
        return scan_tokenizer(options.vocabulary)
    return word_tokenizer(data.captions, least=options.least_words)


def _hinge(recipe: Recipe, steps_per_epoch: int) -> Hinge:
    return Hinge(
        margin=recipe.loss.margin,
        warmup_steps=recipe.loss.hinge_warmup_epochs * steps_per_epoch,
        learned_scale=recipe.metric.learned_scale,
    )


def _pair_collators(recipe: Recipe, tokenizer: Any, padding: Any = True) -> tuple[PairCollator, PairCollator]:
    framework, longest = str(recipe.model.framework), recipe.model.max_words
    share = recipe.model.word_augmentation
    words = WordAugmentation(tokenizer, share=share) if share else None
    train, evaluation = (transform_of(recipe.data, framework, train=train) for train in (True, False))
    return (
        PairCollator(tokenizer, transform=train, captions="one", max_length=longest, padding=padding, words=words),
        PairCollator(tokenizer, transform=evaluation, captions="all", max_length=longest, padding=padding),
    )


def _label_collators(recipe: Recipe) -> tuple[LabelCollator, LabelCollator]:
    framework = str(recipe.model.framework)
    train, evaluation = (transform_of(recipe.data, framework, train=train) for train in (True, False))
    return LabelCollator(transform=train), LabelCollator(transform=evaluation, ids="row")


def _pretrained(argument: str, name: str | None, kind: Any = AutoModel) -> Any:
    """A model or tokenizer by hub id or folder.

    Raises:
        ArgumentError: none named, or one that is neither a folder nor can be had from the hub.
        DataError: a path that is no folder; offers near names.
    """
    if name is None:
        raise ArgumentError(argument, "be named for this framework", None, "Give a hub id or a folder.")
    if name.startswith((".", "/", "~")):
        name = str(existing_folder(name))
    try:
        return kind.from_pretrained(name)
    except OSError as error:
        rule = "be a folder, or the id of a model that the hub has and that can be reached"
        reason = str(error).strip().split("\n")[0]
        raise ArgumentError(argument, rule, repr(name), f"The hub says: {reason}") from error


def _fine_map(encoder: nn.Module) -> nn.Module:
    """A CNN with the published last stride of 1; one without stages, such as MobileNetV2, as it is."""
    try:
        return LastStrideOne(encoder)
    except ArgumentError:
        logger.warning("%s has no last stage with a stride: it keeps its resolution", type(encoder).__name__)
        return encoder


@torch.no_grad()
def image_width(encoder: nn.Module, data: DataOptions) -> int:
    """Channels of what a tower reads from an image encoder, seen by one forward pass of a black picture.

    Raises:
        ArgumentError: it takes no pictures, or none of the recipe's size.
    """
    whole = getattr(encoder, "encoder", None)
    config = getattr(encoder, "config", None) or getattr(whole, "config", None)
    picture = torch.zeros(1, getattr(config, "num_channels", 3), data.image_height, data.image_width)
    training = encoder.training
    try:
        features = feature_tensor(encoder.eval()(pixel_values=picture))
    except (TypeError, ValueError, RuntimeError) as error:
        rule = f"encode pictures of {data.image_height}×{data.image_width} pixels"
        reason = str(error).strip().split("\n")[0]
        remedy = "Name an image encoder, with --image_height and --image_width that it takes (--vit true for bot)."
        raise ArgumentError(
            "image_model", rule, f"{type(whole or encoder).__name__}, which says: {reason}", remedy
        ) from error
    finally:
        encoder.train(training)
    return features.shape[1] if features.ndim in (2, 4) else features.shape[-1]
