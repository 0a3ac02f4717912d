"""Tensors in the shapes and ranges that a configuration asks for, the same each time."""

from types import SimpleNamespace

import torch
from torch import nn

from gssf_plug.attention.discovery.dummy_tensors import TOKENS, DummyTensors


class Configured(nn.Module):
    """A module of bfloat16 with a configuration of these numbers."""

    def __init__(self, **numbers: object) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 3, dtype=torch.bfloat16)
        self.config = SimpleNamespace(**numbers)


def shapes(tensors: object) -> list[tuple[int, ...]]:
    return [tuple(tensor.shape) for tensor in tensors]


def test_token_ids_are_words_and_no_special_ones() -> None:
    dummies = DummyTensors(Configured(vocab_size=12, pad_token_id=0, eos_token_id=7, image_token_index=3))
    drawn = torch.cat([dummies.ids() for _ in range(50)])
    assert drawn.shape == (50, TOKENS)
    assert set(drawn.unique().tolist()) == set(range(12)) - {0, 7, 3}


def test_a_vocabulary_that_the_embeddings_do_not_have_is_not_believed() -> None:
    module = Configured(vocab_size=1000)
    module.get_input_embeddings = lambda: nn.Embedding(5, 2)
    assert int(DummyTensors(module).ids().max()) < 5


def test_values_have_the_modules_dtype_and_are_the_same_each_time() -> None:
    module = Configured(hidden_size=8)
    one, other = DummyTensors(module), DummyTensors(module)
    assert torch.equal(one.real(2, 3), other.real(2, 3))
    assert one.real(1).dtype == torch.bfloat16


def test_widths_are_those_that_are_named_then_that_of_the_first_parameter() -> None:
    assert list(DummyTensors(Configured(d_model=8, hidden_size=4)).widths()) == [4, 8, 6]
    assert shapes(DummyTensors(Configured(hidden_size=4)).embeddings("x")) == [(1, TOKENS, 4), (1, TOKENS, 6)]


def test_images_then_videos() -> None:
    found = shapes(DummyTensors(Configured(num_channels=1, image_size=(8, 4), num_frames=3)).pixels())
    assert found[:3] == [(1, 1, 8, 4), (1, 3, 1, 8, 4), (1, 1, 3, 8, 4)]
    assert found[3] == (1, 1, 224, 224)


def test_sounds_have_their_bands_first_or_last() -> None:
    found = shapes(DummyTensors(Configured(num_mel_bins=5, max_source_positions=7)).sounds("input_features"))
    assert found[0] == (1, 5, 14)
    assert (1, 64, 5) in found
    assert shapes(DummyTensors(Configured()).sounds("input_values"))[0] == (1, 4000)


def test_numbers_are_looked_for_in_parts_of_a_configuration_too() -> None:
    text = SimpleNamespace(hidden_size=16, to_dict=dict)
    dummies = DummyTensors(Configured(text_config=text, flag=True))
    assert dummies.number("hidden_size") == 16
    assert dummies.number("flag", "nothing") is None  # True is no number


def test_variants_hold_what_the_forward_names() -> None:
    dummies = DummyTensors(Configured(vocab_size=12, hidden_size=4, image_size=8))
    first = next(dummies.variants(["input_ids", "attention_mask", "pixel_values"], ["input_ids"]))
    assert set(first) == {"input_ids", "attention_mask", "pixel_values"}
    alone = next(dummies.variants(["inputs_embeds"], ["inputs_embeds"]))
    assert list(alone) == ["inputs_embeds"]
    decoder = next(dummies.variants(["input_ids", "decoder_input_ids"], ["input_ids"]))
    assert decoder["decoder_input_ids"].shape == (1, TOKENS - 2)


def test_masks_hide_nothing_in_either_convention() -> None:
    dummies = DummyTensors(Configured())
    masks = [made["mask"] for made in dummies.masks(["mask"], {"x": torch.randn(2, 5, 7)})]
    assert [tuple(mask.shape) for mask in masks[::3]] == [(2, 5), (2, 7), (1, 2 * TOKENS)]
    assert [mask.dtype for mask in masks[:3]] == [torch.long, torch.bool, torch.bool]
    assert [bool(mask.any()) for mask in masks[:3]] == [True, False, True]
    assert list(dummies.masks(["mask"], {"n": 3})) == []
