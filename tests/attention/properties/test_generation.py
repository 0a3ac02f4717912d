"""generate() on a patched decoder: every cache equals none, every strategy runs, padding does not matter."""

import copy
from types import SimpleNamespace

import pytest
import torch
from attention.patching import perturb
from attention.small_models import IDS, small_llama, small_qwen
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaForCausalLM, Qwen3ForCausalLM

from gssf_plug.attention import AttentionPatch, patch_attention

CACHES = {
    "dynamic": {},
    "static": {"cache_implementation": "static", "disable_compile": True},
    "offloaded": {"cache_implementation": "offloaded"},
}
QUANTISED = {
    "cache_implementation": "quantized",
    "cache_config": {"backend": "quanto", "nbits": 4, "residual_length": 1, "q_group_size": 8},
}


class NoStream:
    """transformers' offloaded cache copies on CUDA streams; on a CPU nothing is copied and nothing waits."""

    def wait_stream(self, other: object) -> None:
        pass

    def __enter__(self) -> None:
        pass

    def __exit__(self, *error: object) -> None:
        pass


@pytest.fixture(autouse=True)
def _no_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    if not torch.cuda.is_available():
        monkeypatch.setattr(torch, "Stream", NoStream)
        monkeypatch.setattr(torch.cuda, "default_stream", lambda device: NoStream())


@pytest.fixture
def _python_unpack(monkeypatch: pytest.MonkeyPatch) -> None:
    """quanto would compile a C++ function at first use, for minutes; this is the same for four bits."""
    from optimum.quanto.library.extensions.cpp import ext

    def unpack(packed: Tensor, bits: int) -> Tensor:
        assert bits == 4
        return torch.cat([packed & 15, packed >> 4])

    monkeypatch.setattr(ext, "_lib", SimpleNamespace(unpack=unpack))


def small_gpt2() -> GPT2LMHeadModel:
    config = GPT2Config(vocab_size=64, n_positions=64, n_embd=32, n_layer=2, n_head=4, initializer_range=0.3)
    return GPT2LMHeadModel(config).eval()


def qwen_decoder() -> Qwen3ForCausalLM:
    return Qwen3ForCausalLM(small_qwen().config).eval()


def patched(make: object, sites: str) -> tuple[nn.Module, AttentionPatch]:
    torch.manual_seed(0)
    model = make()
    model.generation_config.pad_token_id, model.generation_config.eos_token_id = 0, None
    patch = patch_attention(model, block_size=4, sites=sites)
    perturb(patch, 0.5)
    return model, patch


@pytest.fixture(params=["projection", "score"])
def decoder(request: pytest.FixtureRequest) -> tuple[LlamaForCausalLM, AttentionPatch]:
    return patched(small_llama, request.param)


def generate(model: nn.Module, ids: Tensor = IDS, new: int = 10, seed: int = 0, **options: object) -> Tensor:
    torch.manual_seed(seed)
    return model.generate(ids, **{"max_new_tokens": new, "do_sample": False, **options})


def greedy_without_cache(model: nn.Module, ids: Tensor, new: int = 10) -> Tensor:
    """Our own loop: the whole text again for each token."""
    with torch.no_grad():
        for _ in range(new):
            ids = torch.cat([ids, model(ids, use_cache=False).logits[:, -1:].argmax(-1)], 1)
    return ids


@pytest.mark.parametrize("cache", CACHES)
def test_every_cache_equals_none(decoder: tuple[LlamaForCausalLM, AttentionPatch], cache: str) -> None:
    model, patch = decoder
    wanted = greedy_without_cache(model, IDS)
    assert torch.equal(generate(model, **CACHES[cache]), wanted)
    with patch.disabled():
        assert not torch.equal(generate(model), wanted)


@pytest.mark.parametrize(
    ("make", "sites"), [(small_gpt2, "projection"), (small_gpt2, "score"), (qwen_decoder, "score")]
)
def test_other_decoders_with_their_caches(make: object, sites: str) -> None:
    model, _ = patched(make, sites)
    wanted = greedy_without_cache(model, IDS)
    for cache in ("dynamic", "static"):
        assert torch.equal(generate(model, **CACHES[cache]), wanted)


@pytest.mark.usefixtures("_python_unpack")
def test_a_quantised_cache_stays_as_near_as_it_does_for_the_plain_model(
    decoder: tuple[LlamaForCausalLM, AttentionPatch],
) -> None:
    """Four bits are not exact for anyone: the logits stay near those without a cache, as an unpatched model's do."""
    model, patch = decoder

    def error() -> Tensor:
        options = {"max_new_tokens": 6, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
        exact = model.generate(IDS, use_cache=False, **options)
        near = model.generate(IDS, **QUANTISED, **options)
        same = (near.sequences == exact.sequences)[:, 7:].int().cumprod(1).bool()  # until the first other token
        assert same[:, 1].all()
        apart = (torch.stack(near.logits, 1) - torch.stack(exact.logits, 1)).abs().amax(-1)
        return apart[:, 1:][same[:, :-1]].mean() / exact.logits[0].std()

    patched = error()
    with patch.disabled():
        assert 0 < patched < 3 * error() < 0.5


@pytest.mark.usefixtures("_python_unpack")
def test_with_a_quantised_cache_merged_and_patched_write_the_same() -> None:
    model, patch = patched(small_llama, "projection")
    wanted = generate(model, **QUANTISED)
    patch.merge()
    assert torch.equal(generate(model, **QUANTISED), wanted)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"do_sample": True, "temperature": 0.8, "top_k": 20},
        {"num_beams": 3},
        {"num_beams": 2, "do_sample": True},
    ],
    ids=["greedy", "sampled", "beam", "beam sampled"],
)
def test_every_strategy_is_the_same_with_and_without_cache(
    decoder: tuple[LlamaForCausalLM, AttentionPatch], options: dict[str, object]
) -> None:
    model, patch = decoder
    cached = generate(model, **options)
    assert torch.equal(cached, generate(model, use_cache=False, **options))
    assert torch.equal(cached, generate(model, **options))  # the seed decides
    if options.get("do_sample"):
        assert not torch.equal(cached, generate(model, seed=1, **options))
    with patch.disabled():
        assert not torch.equal(generate(model, **options), cached)


def test_merged_generates_the_same() -> None:
    model, patch = patched(small_llama, "projection")
    wanted = generate(model)
    patch.merge()
    assert torch.equal(generate(model), wanted)


@pytest.mark.parametrize("side", ["left", "right"])
def test_unequal_lengths_and_padding(decoder: tuple[LlamaForCausalLM, AttentionPatch], side: str) -> None:
    """A padded batch scores each text as if it were alone; generating takes left padding, as always."""
    model, _ = decoder
    lengths = (3, 7, 5)
    texts = [IDS[row % 2, :length] for row, length in enumerate(lengths)]
    batch, mask = torch.zeros(3, 7, dtype=torch.long), torch.zeros(3, 7, dtype=torch.long)
    for row, text in enumerate(texts):
        place = slice(7 - len(text), 7) if side == "left" else slice(0, len(text))
        batch[row, place], mask[row, place] = text, 1
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    with torch.no_grad():
        together = model(batch, attention_mask=mask, position_ids=positions).logits
        for row, text in enumerate(texts):
            torch.testing.assert_close(
                together[row, mask[row].bool()], model(text[None]).logits[0], atol=2e-5, rtol=1e-4
            )
    if side == "left":
        grown = generate(model, batch, attention_mask=mask)
        for row, text in enumerate(texts):
            assert torch.equal(grown[row, 7 - len(text) :], generate(model, text[None])[0])


@pytest.mark.parametrize("helper", ["plain", "patched"])
def test_assisted_decoding(decoder: tuple[LlamaForCausalLM, AttentionPatch], helper: str) -> None:
    """Whatever helps, the tokens are those of the patched model."""
    model, _ = decoder
    wanted = generate(model, IDS[:1])
    assistant = small_llama() if helper == "plain" else copy.deepcopy(model)
    assistant.generation_config.pad_token_id, assistant.generation_config.eos_token_id = 0, None
    assert torch.equal(generate(model, IDS[:1], assistant_model=assistant), wanted)
    assert torch.equal(generate(model, IDS[:1], prompt_lookup_num_tokens=2), wanted)
