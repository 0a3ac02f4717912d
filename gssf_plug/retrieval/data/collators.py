"""Rows of a data set to the batches that the models of this room read.

    PairCollator     {image | features, captions, label} -> images, image_ids, texts, text_ids
    LabelCollator    {image | features, label}           -> inputs, labels

Images become {"pixel_values"} by a transform; features, such as those of regions, become {"features",
"attention_mask"}, padded to the longest. Texts become whatever a tokenizer of transformers makes of them. Randomness
comes from Python's global generator, which RetrievalTrainer seeds for every batch.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from gssf_plug.arguments import (
    LARGEST,
    check_function,
    check_text,
    checked_count,
    checked_number,
    described,
    holds_whole_numbers,
    is_dense,
    listed,
)
from gssf_plug.errors import ArgumentError
from gssf_plug.metric.arrays import to_tensor

__all__ = ["LabelCollator", "PairCollator", "ProcessorTransform", "WordAugmentation"]

Transform = Callable[[Image.Image], Tensor]
Row = Mapping[str, Any]


class ProcessorTransform:
    """An image processor of transformers as a transform of one image, such as CLIP's own.

    Args:
        processor: an image processor of transformers, or a processor that has one.
    """

    def __init__(self, processor: Any) -> None:
        found = getattr(processor, "image_processor", processor)
        check_function("processor", found, "Such as CLIPImageProcessor() of transformers.")
        self.processor = found

    def __call__(self, image: Image.Image) -> Float[Tensor, "channels height width"]:
        """The tensor of an image."""
        pixels: Tensor = self.processor(images=[image.convert("RGB")], return_tensors="pt")["pixel_values"][0]
        return pixels


class WordAugmentation:
    """Changes words of a caption while training: VSE∞'s and RCAR's.

    A share of the words is chosen; half of these are masked, a tenth become random tokens, the rest is taken out. All
    tokens of a word go together.

    Args:
        tokenizer: a fast tokenizer with a mask token.
        share: share of the words that are changed, 0 … 1; default 0.2.

    Raises:
        ArgumentError: the share is outside its range, or the tokenizer has no mask token or gives no word numbers.

    References:
        Chen et al., VSE∞, arXiv 2011.04305, its code.
    """

    def __init__(self, tokenizer: Any, *, share: float = 0.2) -> None:
        share = checked_number("share", share, "lie in 0 … 1", "VSE∞ uses 0.2.", lambda number: 0 <= number <= 1)
        fast = getattr(tokenizer, "is_fast", False) is True
        if not fast or tokenizer.mask_token_id is None:
            got = "one without a mask token" if fast else described(tokenizer)
            remedy = "Use a fast tokenizer, and add_special_tokens({'mask_token': '<mask>'}) before the model is built."
            raise ArgumentError("tokenizer", "be a fast tokenizer with a mask token", got, remedy)
        self.mask, self.size, self.share = tokenizer.mask_token_id, len(tokenizer), share

    def __call__(self, tokens: Sequence[int], words: Sequence[int | None]) -> list[int]:
        """The tokens of one text, changed.

        Args:
            tokens: token ids of one text, special tokens included.
            words: number of the word of each token; None for special tokens, which stay.
        """
        if not isinstance(tokens, Sequence) or not isinstance(words, Sequence) or len(tokens) != len(words):
            rule, remedy = "hold one number of a word, or None, per token", "Take both from one encoding."
            raise ArgumentError("words", rule, f"{described(words)} for {described(tokens)}", remedy)
        # one draw for a word: all of its tokens share it. Half are masked, a tenth replaced, the rest left out
        fates = {word: random.random() for word in dict.fromkeys(words) if word is not None}
        changed: list[int] = []
        for token, word in zip(tokens, words, strict=True):
            fate = 1.0 if word is None else fates[word]
            if fate >= self.share:
                changed.append(token)
            elif fate < 0.5 * self.share:
                changed.append(self.mask)
            elif fate < 0.6 * self.share:
                changed.append(random.randrange(self.size))
        return changed


class PairCollator:
    """Batches of images and captions, for TwoTower, DualEncoder and LocalAlignment.

    Args:
        tokenizer: a tokenizer of transformers, whose whole output goes to the text encoder.
        transform: function from an RGB image to a tensor (3, H, W), all of one size; None (default) is for rows with
            features. Of rows with both it takes the images.
        captions: "all" (default) takes every caption of a row; "one" draws one of them, for training.
        max_length: largest number of tokens of a text; None (default) takes the tokenizer's limit, if it has one.
        padding: True (default) pads to the longest text of the batch; "max_length" pads to `max_length`, as SigLIP was
            trained.
        words: `WordAugmentation` that changes captions in training; None (default) takes captions as they are.

    Shape:
        rows {"image" or "features", "captions": texts or one, "label": id} -> {"images", "image_ids" (N,), "texts",
        "text_ids" (M,)}; a text has the id of its row.

    Raises:
        ArgumentError: a row lacks a column or a caption, or there is an image and no transform.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        transform: Transform | None = None,
        captions: Literal["one", "all"] = "all",
        max_length: int | None = None,
        padding: Literal[True, "max_length"] = True,
        words: WordAugmentation | None = None,
    ) -> None:
        check_function("tokenizer", tokenizer, "Give a tokenizer of transformers.")
        check_function("transform", transform, "Give one from image to tensor.", takes=1, optional=True)
        check_function("words", words, "Give WordAugmentation(tokenizer).", takes=2, optional=True)
        if not isinstance(captions, str) or captions not in ("one", "all"):
            raise ArgumentError("captions", "be 'one' or 'all'", repr(captions), "Take 'one' for training.")
        if padding is not True and not (isinstance(padding, str) and padding == "max_length"):
            remedy = "True pads to the longest text of the batch."
            raise ArgumentError("padding", "be True or 'max_length'", repr(padding), remedy)
        if max_length is not None:
            max_length = checked_count("max_length", max_length, "None takes the tokenizer's.", most=LARGEST)
        limit = getattr(tokenizer, "model_max_length", None)
        self.tokenizer, self.transform, self.words = tokenizer, transform, words
        self.captions, self.padding = captions, padding
        self.max_length = max_length if max_length is not None else limit if limit and limit < 100_000 else None

    def __call__(self, rows: Sequence[Row]) -> dict[str, Any]:
        """One batch."""
        _check_rows(rows)
        texts = [self._get_captions(row) for row in rows]
        ids = _ids(rows, "label")
        counts = torch.tensor([len(own) for own in texts])
        return {
            "images": _image_inputs(rows, self.transform),
            "image_ids": ids,
            "texts": self._tokenized([text for own in texts for text in own]),
            "text_ids": ids.repeat_interleave(counts),
        }

    def _get_captions(self, row: Row) -> list[str]:
        captions = _column(row, "captions")
        captions = [captions] if isinstance(captions, str) else list(listed(captions) or ())
        strange = [caption for caption in captions if not isinstance(caption, str)]
        if strange:
            remedy = "Name the column of texts with read_columns(captions=...)."
            raise ArgumentError("captions", "hold texts", described(strange[0]), remedy)
        if not captions:
            raise ArgumentError(
                "captions", "hold at least one text in every row", "none", "Drop images without captions."
            )
        return [random.choice(captions)] if self.captions == "one" else captions

    def _tokenized(self, texts: list[str]) -> dict[str, Tensor]:
        cut = {"truncation": self.max_length is not None, "max_length": self.max_length}
        if self.words is None:
            return dict(self.tokenizer(texts, padding=self.padding, return_tensors="pt", **cut))
        encoded = self.tokenizer(texts, return_attention_mask=False, return_token_type_ids=False, **cut)
        tokens = [self.words(ids, encoded.word_ids(number)) for number, ids in enumerate(encoded["input_ids"])]
        longest = None if self.padding is True else self.max_length  # with both, transformers warns
        padded = self.tokenizer.pad(
            {"input_ids": tokens}, padding=self.padding, max_length=longest, return_tensors="pt"
        )
        return dict(padded)


class LabelCollator:
    """Batches of one modality, for OneTower.

    Args:
        transform: function from an RGB image to a tensor, as in `PairCollator`.
        ids: name of the column that becomes the labels; default "label". For evaluations by row number take "row", with
            `WithRowNumbers`.

    Shape:
        rows {"image" or "features", ids} -> {"inputs", "labels" (N,)}.

    Raises:
        ArgumentError: a row lacks a column, or there is an image and no transform.
    """

    def __init__(self, *, transform: Transform | None = None, ids: str = "label") -> None:
        check_function("transform", transform, "Give one from image to tensor.", takes=1, optional=True)
        check_text("ids", ids, "be the name of a column", "Such as 'label', or 'row'.")
        self.transform = transform
        self.ids = ids

    def __call__(self, rows: Sequence[Row]) -> dict[str, Any]:
        """One batch."""
        _check_rows(rows)
        labels = _ids(rows, self.ids)
        return {"inputs": _image_inputs(rows, self.transform), "labels": labels}


def _check_rows(rows: Any) -> None:
    """At least one row, each a mapping."""
    listing = isinstance(rows, Sequence) and not isinstance(rows, str | bytes)
    if not listing or not rows or not all(isinstance(row, Mapping) for row in rows):
        got = described(rows) if not listing else described(rows[0]) if rows else "none"
        remedy = "A data set gives mappings from columns to values; see read_columns."
        raise ArgumentError("rows", "be a list of at least one mapping", got, remedy)


def _ids(rows: Sequence[Row], name: str) -> Tensor:
    """The ids in a column, which are whole numbers."""
    values = [_column(row, name) for row in rows]
    try:
        ids = torch.tensor(values)
    except (OverflowError, RuntimeError, TypeError, ValueError):
        ids = None
    if ids is None or ids.ndim != 1 or not holds_whole_numbers(ids):
        got = repr(values[0]) if ids is None else described(ids)
        remedy = "Number them: sorted(set(ids)).index(id)."
        raise ArgumentError("rows", f"hold one whole number each in the column '{name}'", got, remedy)
    return ids


def _image_inputs(rows: Sequence[Row], transform: Transform | None) -> dict[str, Tensor]:
    if "features" in rows[0] and (transform is None or "image" not in rows[0]):
        return _padded([to_tensor("features", _column(row, "features")) for row in rows])
    if transform is None:
        got = f"None for rows with the columns {sorted(rows[0])}"
        raise ArgumentError(
            "transform", "be given where rows have no 'features'", got, "Give one from image to tensor."
        )
    pixels = [transform(_column(row, "image")) for row in rows]
    strange = [one for one in pixels if not isinstance(one, Tensor)]
    if strange:
        raise ArgumentError("transform", "make a tensor of an image", described(strange[0]), "Let it end in one.")
    sizes = sorted({tuple(image.shape) for image in pixels})
    if len(sizes) > 1:
        raise ArgumentError("transform", "make tensors of one size", f"{sizes[0]} and {sizes[1]}", "Let it resize.")
    return {"pixel_values": torch.stack(pixels)}


def _padded(features: Sequence[Tensor]) -> dict[str, Tensor]:
    """Vectors (D) to (N, D); regions (R, D) to (N, R, D) with a mask."""
    shapes = {(one.ndim, one.shape[-1]) for one in features if is_dense(one) and one.ndim in (1, 2)}
    if len(shapes) != 1 or not all(is_dense(one) and one.ndim in (1, 2) for one in features):
        got = " and ".join(sorted({described(one) for one in features})[:2])
        rule = "be vectors (D), or regions (R, D), of one width in all rows"
        raise ArgumentError("features", rule, got, "Pool maps first, and project to one width.")
    if features[0].ndim == 1:
        return {"features": torch.stack(list(features))}
    lengths = torch.tensor([len(own) for own in features])
    mask = torch.arange(int(lengths.max())) < lengths[:, None]
    return {"features": torch.nn.utils.rnn.pad_sequence(list(features), batch_first=True), "attention_mask": mask}


def _column(row: Row, name: str) -> Any:
    if name not in row:
        raise ArgumentError("rows", f"have the column '{name}'", sorted(row), "Rename it with read_columns.")
    return row[name]
