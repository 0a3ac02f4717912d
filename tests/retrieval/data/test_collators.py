"""Rows to batches: padding, ids, captions, augmentation, and what is refused."""

import random
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import CLIPImageProcessorPil, PreTrainedTokenizerFast

from gssf_plug.errors import ArgumentError
from gssf_plug.retrieval.data.collators import LabelCollator, PairCollator, ProcessorTransform, WordAugmentation
from gssf_plug.retrieval.data.images import image_tensor

WORDS = ["<pad>", "<unk>", "<mask>", *"abcdefgh"]


def tokenizer(**options):
    words = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"pad_token": "<pad>", "unk_token": "<unk>", "mask_token": "<mask>", **options}
    return PreTrainedTokenizerFast(tokenizer_object=words, **special)


def rows(regions=(3, 5)):
    return [
        {"features": np.full((count, 4), count, dtype=np.float32), "captions": ["a b c", "d"], "label": 10 * count}
        for count in regions
    ]


def test_regions_and_all_captions():
    batch = PairCollator(tokenizer())(rows())
    assert batch["image_ids"].tolist() == [30, 50]
    assert batch["text_ids"].tolist() == [30, 30, 50, 50]
    assert batch["images"]["features"].shape == (2, 5, 4)
    assert batch["images"]["attention_mask"].sum(1).tolist() == [3, 5]
    assert batch["images"]["features"][0, 3:].eq(0).all()
    assert batch["texts"]["input_ids"].tolist()[:2] == [[3, 4, 5], [6, 0, 0]]
    assert batch["texts"]["attention_mask"].tolist()[1] == [1, 0, 0]


def test_one_caption_is_drawn_and_a_text_alone_is_one_caption():
    collate = PairCollator(tokenizer(), captions="one", max_length=2)
    seen = Counter(tuple(collate(rows((3,)))["texts"]["input_ids"][0].tolist()) for _ in range(60))
    assert set(seen) == {(3, 4), (6,)}
    assert min(seen.values()) > 10
    single = [{**row, "captions": "h"} for row in rows()]
    assert PairCollator(tokenizer())(single)["texts"]["input_ids"].tolist() == [[10], [10]]


def test_padding_to_the_tokenizers_limit():
    collate = PairCollator(tokenizer(model_max_length=7), padding="max_length")
    assert collate.max_length == 7
    assert collate(rows())["texts"]["input_ids"].shape == (4, 7)


def test_images_and_vectors():
    picture = Image.new("RGB", (6, 4), (255, 0, 0))
    batch = LabelCollator(transform=lambda image: image_tensor(image, 8).float(), ids="row")(
        [{"image": picture, "row": 4}]
    )
    assert batch["inputs"]["pixel_values"].shape == (1, 3, 8, 8)
    assert batch["labels"].tolist() == [4]
    vectors = LabelCollator()([{"features": torch.ones(5), "label": 1}] * 2)["inputs"]
    assert vectors["features"].shape == (2, 5)
    assert "attention_mask" not in vectors
    own = ProcessorTransform(CLIPImageProcessorPil(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8}))
    assert own(picture).shape == (3, 8, 8)


def test_word_augmentation_keeps_the_published_shares():
    random.seed(0)
    words = WordAugmentation(tokenizer(), share=0.2)
    tokens, numbers = [99, *[7] * 40_000, 98], [None, *range(40_000), None]
    changed = words(tokens, numbers)
    assert (changed[0], changed[-1]) == (99, 98)
    counts = Counter(changed[1:-1])
    assert counts[2] / 40_000 == pytest.approx(0.1 + 0.02 / 11, abs=0.005)
    assert len(changed) / 40_000 == pytest.approx(0.92, abs=0.005)
    assert counts[9] / 40_000 == pytest.approx(0.02 / 11, abs=0.001)
    together = [words([5, 6, 7], [0, 0, 0]) for _ in range(300)]
    assert all(len(one) in (0, 3) for one in together)
    assert [2, 2, 2] in together
    collate = PairCollator(tokenizer(), words=WordAugmentation(tokenizer(), share=1.0))
    batch = collate([{**row, "captions": ["a b c d e f g h"] * 4} for row in rows()])["texts"]
    assert batch["attention_mask"].sum(1).max() < 8
    assert batch["input_ids"].eq(2).any()


@pytest.mark.bad_input
def test_bad_rows_are_named():
    with pytest.raises(ArgumentError, match=r"`rows` must have the column 'label', but got \['captions', 'features'\]"):
        PairCollator(tokenizer())([{"features": np.ones((2, 3)), "captions": ["a"]}])
    with pytest.raises(ArgumentError, match="`captions` must hold at least one text in every row, but got none"):
        PairCollator(tokenizer())([{"features": np.ones((2, 3)), "captions": [], "label": 1}])
    with pytest.raises(
        ArgumentError, match=r"`transform` must be given where rows have no 'features'.*\['image', 'label'\]"
    ):
        LabelCollator()([{"image": None, "label": 1}])
    with pytest.raises(
        ArgumentError, match=r"`transform` must make tensors of one size, but got \(3, 1, 1\) and \(3, 2, 2\)"
    ):
        LabelCollator(transform=lambda size: torch.ones(3, size, size))([{"image": s, "label": 1} for s in (1, 2)])
    with pytest.raises(ArgumentError, match="`captions` must be 'one' or 'all', but got 'first'"):
        PairCollator(tokenizer(), captions="first")
    with pytest.raises(
        ArgumentError, match="`tokenizer` must be a fast tokenizer with a mask token, but got one without"
    ):
        WordAugmentation(tokenizer(mask_token=None))
    with pytest.raises(ArgumentError, match="`share` must lie in 0 … 1, but got 2"):
        WordAugmentation(tokenizer(), share=2)
