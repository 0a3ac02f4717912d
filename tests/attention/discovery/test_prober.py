"""A module that ran and did not prove refuses the model; what did not run, or needs no metric, is left alone."""

import pytest
import torch
from attention.patching import perturb
from attention.small_models import PlainAttention
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertModel,
    Gemma3Config,
    Gemma3ForSequenceClassification,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
)

from gssf_plug.attention import patch_attention
from gssf_plug.attention.discovery.attention_module import attention_modules
from gssf_plug.errors import ArgumentError


class DistanceAttention(PlainAttention):
    """No dot product: with a query of zero the keys' lengths still matter."""

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        return -torch.cdist(q, k)


class SharedAttention(PlainAttention):
    """One projection is key and value: what `kv_proj` gives is compared and mixed."""

    def __init__(self) -> None:
        super().__init__()
        self.q_b_proj, self.kv_norm = nn.Linear(8, 8), nn.LayerNorm(8)

    def forward(self, x: Tensor) -> Tensor:
        q, k = (f(x).unflatten(-1, (2, 4)).transpose(1, 2) for f in (self.q_b_proj, self.kv_norm))
        return (self.scores(q, k).softmax(-1) @ k).transpose(1, 2).flatten(-2)


class SharedDistanceAttention(SharedAttention):
    """Key and value are one, and the score is no dot product."""

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        return -torch.cdist(q, k)


class OuterAttention(nn.Module):
    """Its `q_proj` and `k_proj` feed an attention module inside it."""

    num_heads = 2

    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.k_proj = nn.Linear(8, 8), nn.Linear(8, 8)
        self.inner = nn.MultiheadAttention(8, 2, batch_first=True)
        nn.init.normal_(self.inner.in_proj_bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(self.q_proj(x), self.k_proj(x), x, need_weights=False)[0]


def pair(second: nn.Module) -> nn.Sequential:
    return nn.Sequential(PlainAttention(), second)


X = {"input": torch.randn(2, 5, 8)}


def test_one_unproven_layer_refuses_the_whole_model() -> None:
    model = pair(DistanceAttention())
    keys = set(model.state_dict())
    with pytest.raises(ArgumentError, match=r"'1', where no layout was proven .tried: q_proj, 2 heads of 4: with the"):
        patch_attention(model, block_size=2, example_inputs=X)
    assert set(model.state_dict()) == keys
    assert not any(module._forward_hooks for module in model.modules())


def test_layers_is_the_explicit_choice() -> None:
    patch = patch_attention(pair(DistanceAttention()), block_size=2, layers=["0"], example_inputs=X)
    assert list(patch.layers) == ["0"]
    assert patch.left_alone == {"1": "not among `layers`"}


class Twofold(nn.Module):
    """The second branch runs only when asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.always, self.sometimes = PlainAttention(), PlainAttention()

    def forward(self, input: Tensor, both: bool = False) -> Tensor:
        return self.always(input) + (self.sometimes(input) if both else 0)


def test_a_part_that_no_example_reaches_is_left_alone_and_said(caplog: pytest.LogCaptureFixture) -> None:
    patch = patch_attention(Twofold(), block_size=2, example_inputs=X)
    assert list(patch.layers) == ["always"]
    assert "no example reached it; pass example_inputs=" in patch.left_alone["sometimes"]
    assert "leaves modules alone (1), such as 'sometimes': no example reached it" in caplog.text
    assert "sometimes" in patch.summary()
    with pytest.raises(ArgumentError, match="'sometimes', where no example reached it"):
        patch_attention(Twofold(), block_size=2, example_inputs=X, layers=["always", "sometimes"])
    with pytest.raises(ArgumentError, match="'sometimes', where no example reached it"):
        patch_attention(Twofold(), block_size=2, example_inputs=X, layers=["sometimes"])
    assert len(patch_attention(Twofold(), block_size=2, example_inputs=X | {"both": True}).layers) == 2
    assert len(patch_attention(Twofold(), block_size=2).layers) == 2  # run alone


class Wasteful(nn.Module):
    """Runs three layers and takes what the second gave: a backbone with a feature layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(PlainAttention() for _ in range(3))

    def forward(self, input: Tensor) -> Tensor:
        seen = [input]
        for layer in self.layers:
            seen.append(layer(seen[-1]))
        return seen[2]


@pytest.mark.parametrize("inference", [True, False])
def test_a_layer_that_the_outputs_do_not_depend_on_is_left_alone(
    caplog: pytest.LogCaptureFixture, inference: bool
) -> None:
    model = Wasteful()
    with torch.inference_mode(inference):
        patch = patch_attention(model, block_size=2, example_inputs={"input": X["input"].clone()})
    reason = "the model runs it, but no gradient of the model's outputs reaches it"
    assert list(patch.layers) == ["layers.0", "layers.1"]
    assert patch.left_alone == {"layers.2": reason}
    assert f"leaves modules alone (1), such as 'layers.2': {reason}" in caplog.text
    model(**X).sum().backward()
    assert all(parameter.grad is not None for parameter in patch.parameters())
    patch.remove()
    with pytest.raises(ArgumentError, match="`layers` must name attention that can learn, but got 'layers.2', where"):
        patch_attention(model, block_size=2, layers=["layers.2"], example_inputs=X)
    assert not any(module._forward_hooks for module in model.modules())


class Undifferentiated(Wasteful):
    """Runs without gradients whatever is asked: nothing can be said of its layers."""

    @torch.no_grad()
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input)


def test_a_model_without_any_gradient_is_patched_whole() -> None:
    assert len(patch_attention(Undifferentiated(), block_size=2, example_inputs=X).layers) == 3


class Gated(PlainAttention):
    """Its gate is shut before training, as in Flamingo: nothing that happens inside can be seen outside."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tanh(self.gate) * super().forward(x)


class Zeros(PlainAttention):
    """What transformers' MRA gives where its kernel is missing."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 0


def test_a_gate_of_zero_is_opened_for_the_probe_alone() -> None:
    model = nn.Sequential(PlainAttention(), Gated())
    patch = patch_attention(model, block_size=2, example_inputs=X)
    assert list(patch.layers) == ["0", "1"]
    assert model[1].gate.item() == 0.0
    assert "gate" not in vars(model[1])


def test_what_shows_nothing_is_refused_with_what_it_may_be() -> None:
    with pytest.raises(ArgumentError, match="its output is zero whatever goes in, as where a kernel is missing"):
        patch_attention(pair(Zeros()), block_size=2, example_inputs=X)
    with pytest.raises(ArgumentError, match=r"\(nor would it with a single key, or behind a gate of zero\)"):
        patch_attention(pair(PlainAttention()), block_size=2, example_inputs={"input": torch.randn(2, 1, 8)})


def test_the_attention_inside_is_the_one_to_patch() -> None:
    model = nn.Sequential(OuterAttention())
    patch = patch_attention(model, block_size=2, example_inputs=X)
    assert list(patch.layers) == ["0.inner"]
    assert patch.left_alone == {"0": "its attention is that of '0.inner' inside it, which is patched"}


def test_a_key_that_is_the_value_is_proven_and_a_false_one_is_not() -> None:
    patch = patch_attention(nn.Sequential(SharedAttention()), block_size=2, example_inputs=X)
    assert patch.layers["0"].metric_layer.layout == "q_b_proj, kv_norm also the value"
    with pytest.raises(ArgumentError, match="also the value, 2 heads of 4: with the query at zero"):
        patch_attention(nn.Sequential(SharedDistanceAttention()), block_size=2, example_inputs=X)


class Waiting(PlainAttention):
    """Attends to a context, and does nothing without one (Evolla's adapters)."""

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        return x if context is None else super().forward(x)


def test_attention_that_the_example_gives_nothing_to_attend_to() -> None:
    with pytest.raises(ArgumentError, match="'q_proj' was not called, as where the example lacks what this layer att"):
        patch_attention(pair(Waiting()), block_size=2, example_inputs=X)


class TwoTowers(nn.Module):
    """Its last projections have names that Grounding DINO gives to a query and a key (BLIP has them, too)."""

    def __init__(self) -> None:
        super().__init__()
        self.vision, self.text = PlainAttention(), PlainAttention()
        self.vision_proj, self.text_proj = nn.Linear(8, 4), nn.Linear(8, 4)

    def forward(self, input: Tensor) -> Tensor:
        return self.vision_proj(self.vision(input)) @ self.text_proj(self.text(input)).mT


def test_two_towers_are_no_attention() -> None:
    assert list(patch_attention(TwoTowers(), block_size=2, example_inputs=X).layers) == ["vision", "text"]


class Interrupting(nn.Module):
    def forward(self, input: Tensor) -> Tensor:
        raise KeyboardInterrupt


def test_an_interrupted_probe_leaves_nothing_behind() -> None:
    model = nn.Sequential(PlainAttention(), Interrupting()).train()
    state = torch.get_rng_state()
    with pytest.raises(KeyboardInterrupt):
        patch_attention(model, block_size=2, layers=["0"], example_inputs=X)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(module.training for module in model.modules())
    assert torch.equal(torch.get_rng_state(), state)


class InterruptedOnce(nn.Module):
    """nn.MultiheadAttention hands its weight to a function: patched, the weight is shadowed while the layer runs."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.interrupt = nn.MultiheadAttention(8, 2, batch_first=True), False

    def forward(self, input: Tensor) -> Tensor:
        if self.interrupt:
            self.attention.out_proj.register_parameter("bias", Raising())
        return self.attention(input, input, input, need_weights=False)[0]


class Raising(nn.Parameter):
    @classmethod
    def __torch_function__(cls, *arguments: object, **options: object) -> object:
        raise KeyboardInterrupt


def test_an_interrupted_forward_leaves_no_shadow_once_removed() -> None:
    model = InterruptedOnce()
    patch = patch_attention(model, block_size=2, example_inputs=X)
    perturb(patch)
    model.interrupt = True
    with pytest.raises(KeyboardInterrupt):
        model(**X)
    patch.remove()
    assert isinstance(model.attention.in_proj_weight, nn.Parameter)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_half_precision_and_training_mode_and_inference_mode(dtype: torch.dtype) -> None:
    config = BertConfig(vocab_size=50, hidden_size=48, num_hidden_layers=3, num_attention_heads=6, intermediate_size=20)
    model = BertModel(config).to(dtype).train()
    with torch.inference_mode():
        patch = patch_attention(model, block_size=2)
    assert len(patch.layers) == len(attention_modules(model)) == 3
    assert model.training
    ids = torch.randint(50, (2, 7))
    model(ids).last_hidden_state.float().square().mean().backward()  # parameters made in inference mode must train
    assert all(parameter.grad is not None for parameter in patch.parameters())


def test_a_head_of_a_tower_that_the_whole_model_does_not_use_is_left_alone() -> None:
    """SigLIP pools with attention; PaliGemma takes what comes before. Only a run with an image shows it."""
    text = {
        "model_type": "gemma", "vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 8, "intermediate_size": 40,
    }  # fmt: skip
    vision = {
        "model_type": "siglip_vision_model", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4,
        "intermediate_size": 40, "image_size": 8, "patch_size": 2,
    }  # fmt: skip
    config = PaliGemmaConfig(
        text_config=text, vision_config=vision, image_token_index=10, projection_dim=32, hidden_size=32
    )
    patch = patch_attention(PaliGemmaForConditionalGeneration(config), block_size=2)
    assert len(patch.layers) == 2
    assert "no gradient of the model's outputs reaches it" in patch.left_alone["model.vision_tower.head.attention"]


class SharedProjection(nn.Module):
    """Two layers with one projection of the query between them, as tied layers have."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(PlainAttention() for _ in range(2))
        self.layers[1].q_proj = self.layers[0].q_proj

    def forward(self, input: Tensor) -> Tensor:
        for layer in self.layers:
            input = input + layer(input)
        return input


def test_a_projection_that_another_layer_uses_is_not_changed_behind_its_back() -> None:
    model = SharedProjection()
    before, keys = model(**X), set(model.state_dict())
    with pytest.raises(
        ArgumentError, match="must name all attention modules that share a query projection.*'layers.0'"
    ):
        patch_attention(model, block_size=2, layers=[1], example_inputs=X)
    assert set(model.state_dict()) == keys
    patch = patch_attention(model, block_size=2, layers=[0, 1], example_inputs=X)
    assert patch.left_alone == {"layers.1": "its projection belongs to 'layers.0', which is patched"}
    assert torch.equal(model(**X), before)
    perturb(patch)
    assert not torch.allclose(model(**X), before, atol=1e-3)


def test_a_task_head_shows_its_base_model_an_image() -> None:
    """Gemma 3 throws away what the pooling head of its vision tower makes; text alone does not show that."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 40}
    vision = sizes | {"image_size": 16, "patch_size": 4}
    text = sizes | {"vocab_size": 99, "num_key_value_heads": 4, "head_dim": 8}
    config = Gemma3Config(
        text_config=text, vision_config=vision, mm_tokens_per_image=4, image_token_id=90, num_labels=2
    )
    patch = patch_attention(Gemma3ForSequenceClassification(config), block_size=2)
    reason = "the model runs it, but no gradient of the model's outputs reaches it"
    assert patch.left_alone == {"model.vision_tower.head.attention": reason}
    assert len(patch.layers) == 2
