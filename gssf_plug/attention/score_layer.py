"""The metric in the score itself: after rotary embedding and query norm, exactly qᵀAk in the logits.

transformers' attention layers hand query, key and value to a function that their configuration names
(`AttentionInterface`). A patched layer sees its configuration through a `ScoreConfig`, which puts "gssf|" before that
name: "gssf|sdpa" multiplies A into the query and goes on with "sdpa", whatever is set at that moment. Only this layer's
view changes: the model's configuration, its masks, its caches, other models of the class, even those that share the
configuration object, stay as they are. The names are registered together with the mask function of the backend they
stand on, so that a mask made under such a name is the right one, too.
"""

import inspect
from collections.abc import Callable
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from gssf_plug.attention.discovery.layouts import Heads
from gssf_plug.attention.query_layer import CHILD, LayerMetric, QueryMetric
from gssf_plug.errors import ArgumentError
from gssf_plug.metric import GSSFMetric

__all__ = ["PREFIX", "SCORE", "ScoreConfig", "ScoreMetric", "calls_interface", "eager_attention", "show"]

PREFIX = "gssf|"
SCORE = "score"  # stands in files where others have the name of a layout
EAGER = "eager_attention_forward"  # how transformers' modeling files call it; some put a word before it
TAKES_THE_LAYER = ("eager", "sdpa", "flex_attention")  # backends that do not read the name in the layer's configuration

Attention = Callable[..., tuple[Tensor, Tensor | None]]


class ScoreConfig:
    """A layer's view of its configuration: the same in everything but the name of the attention function.

    Args:
        base: the layer's configuration, which it shares with the model.
        eager: the eager attention function of the layer's modeling file, which transformers knows by no name.
    """

    def __init__(self, base: Any, eager: Attention) -> None:
        self.__dict__.update(base=base, eager=eager)

    @property
    def _attn_implementation(self) -> str:
        return _registered(self.base._attn_implementation or "eager")

    def change(self, layer: nn.Module, query: Tensor) -> Tensor:
        """What the attention function gets as the query of `layer`."""
        metric = layer._modules[CHILD]
        assert isinstance(metric, ScoreMetric)
        heads, size = metric.heads.query_heads, metric.heads.head_dim
        if (query.shape[1], query.shape[-1]) != (heads, size):
            rule = f"give the attention function of each layer as many heads as when it was patched, {heads} of {size}"
            got = f"{query.shape[1]} of {query.shape[-1]} in a {type(layer).__name__}"
            raise ArgumentError("model", rule, got, "Remove the patch, and patch the other layers alone (`layers`).")
        return metric.change(query)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "base":  # copying and unpickling ask before there is a base
            raise AttributeError(name)
        return getattr(self.base, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.base, name, value)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)


class ScoreMetric(LayerMetric):
    """The metrics of one attention layer, applied where query and key meet.

    Args:
        heads: numbers and widths of the heads that the attention function is given.
        below: the injected layer that would act at the query of this attention layer, into whose weights a merge folds;
            None where that query is not proven.
        why_not_below: the reason why `below` is None; "" where it is not.
    """

    def __init__(self, heads: Heads, below: QueryMetric | None, why_not_below: str = "") -> None:
        super().__init__(SCORE, heads, None)
        self.below, self.why_not_below = below, why_not_below

    def change(self, query: Float[Tensor, "batch heads tokens size"]) -> Float[Tensor, "batch heads tokens size"]:
        """The query as the attention function is to see it."""
        metric = self.acting()
        return query if metric is None else self.folded(metric, query)

    def folded(
        self, metric: GSSFMetric, query: Float[Tensor, "batch heads tokens size"]
    ) -> Float[Tensor, "batch heads tokens size"]:
        """Each head of `query` times its matrix."""
        # the attention function has (batch, heads, tokens, size); a fold wants the heads of a token side by side
        rows = self.fold(metric, query.transpose(1, 2).flatten(-2))
        return rows.unflatten(-1, (self.heads.query_heads, self.heads.head_dim)).transpose(1, 2)

    def hook(self, owner: nn.Module) -> None:
        """Let `owner` see its configuration through a `ScoreConfig`."""
        eager = eager_attention(owner)
        assert eager is not None  # checked when the layer was found
        show(owner, ScoreConfig(owner.config, eager))

    def unhook(self, owner: nn.Module) -> None:
        """Give `owner` its own configuration back."""
        if isinstance(owner.config, ScoreConfig):
            show(owner, owner.config.base)

    def lost(self, owner: nn.Module) -> str:
        """Whether the view of the configuration is in place."""
        return "" if isinstance(owner.config, ScoreConfig) else "its configuration was replaced"


class _Layer:
    """A layer as a backend should see it that reads the attention's name from the configuration (flash does)."""

    def __init__(self, layer: nn.Module, config: Any) -> None:
        self.layer, self.config = layer, config

    def __getattr__(self, name: str) -> Any:
        return getattr(self.layer, name)


def show(layer: nn.Module, config: Any) -> None:
    """Let `layer` see this configuration."""
    # of this layer alone: all others, of other models too, keep the one that they share
    layer.__dict__["config"] = config


def calls_interface(layer: nn.Module) -> bool:
    """Whether the layer's forward asks transformers' `AttentionInterface` for its attention function."""
    # names in the compiled code, not its text: sources need not be there
    code = getattr(inspect.unwrap(type(layer).forward), "__code__", None)
    configured = hasattr(getattr(layer, "config", None), "_attn_implementation")
    return configured and code is not None and "ALL_ATTENTION_FUNCTIONS" in code.co_names


def eager_attention(layer: nn.Module) -> Attention | None:
    """The eager function that the layer's own modeling file gives to the interface; None where there is none."""
    forward = inspect.unwrap(type(layer).forward)
    # a function of the module in which the class was written, so its globals, not the class, know it
    names = [name for name in forward.__code__.co_names if name.endswith(EAGER)]
    return forward.__globals__.get(names[0]) if names else None


def _registered(backend: str) -> str:
    """The name of the backend with the metric before it, known to transformers, with the backend's mask."""
    name = PREFIX + backend
    if name not in AttentionInterface._global_mapping:
        AttentionInterface.register(name, _before(backend))
        if backend in ALL_MASK_ATTENTION_FUNCTIONS:
            AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS[backend])
    return name


def _before(backend: str) -> Attention:
    """The attention function that changes the query of a patched layer and goes on with `backend`."""

    def attention(
        layer: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, *rest: Any, **options: Any
    ) -> tuple[Tensor, Tensor | None]:
        config: Any = layer.config
        seen: Any = layer
        if isinstance(config, ScoreConfig):
            query, eager = config.change(layer, query), config.eager
            seen = layer if backend in TAKES_THE_LAYER else _Layer(layer, config.base)
        else:
            eager = eager_attention(layer)
        return ALL_ATTENTION_FUNCTIONS.get_interface(backend, eager)(
            seen, query, key, value, attention_mask, *rest, **options
        )

    return attention
