"""Where the metrics of a model go: the children that its attention layers have, or new ones for their proven places."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import nn

from gssf_plug.attention.discovery import discover
from gssf_plug.attention.layer_metric import CHILD, LayerMetric
from gssf_plug.attention.query import QueryMetric
from gssf_plug.attention.score_sites import find_scores
from gssf_plug.attention.scores import ScoreMetric
from gssf_plug.errors import ArgumentError

__all__ = ["Places", "QueryNorm", "Sites", "find_places"]

Sites = Literal["projection", "score"]
QueryNorm = Literal["after", "before"]


@dataclass(frozen=True)
class Places:
    """What was found, by path of the attention layer.

    Args:
        metrics: the layers that take a metric; each with its child, not attached yet where it is new.
        refused: layers that ran and whose place was not proven, and why: such a model is not patched.
        out_of_reach: layers that no example ran, or whose score cannot be reached, and why; they can be left out.
        left_alone: layers that need no metric of their own, and why.
    """

    metrics: dict[str, LayerMetric]
    refused: dict[str, str] = field(default_factory=dict)
    out_of_reach: dict[str, str] = field(default_factory=dict)
    left_alone: dict[str, str] = field(default_factory=dict)

    def why_not(self) -> dict[str, str]:
        """All layers without a metric, and why."""
        return self.refused | self.out_of_reach | self.left_alone


def find_places(
    model: nn.Module,
    owners: Mapping[str, nn.Module],
    sites: Sites,
    query_norm: QueryNorm,
    example_inputs: Mapping[str, Any] | None,
) -> Places:
    """The places of `owners`; nothing is attached.

    Raises:
        ArgumentError: the model holds adapters at another site.
    """
    children = {name: getattr(owner, CHILD, None) for name, owner in owners.items()}
    here: dict[str, LayerMetric] = {n: child for n, child in children.items() if isinstance(child, LayerMetric)}
    for name, child in here.items():
        if isinstance(child, ScoreMetric) != (sites == "score"):
            other = "projection" if sites == "score" else "score"
            raise ArgumentError(
                "sites",
                "be the same for all adapters of a model",
                f"{sites!r}, while '{name}' is patched at its {other}",
                f"Use sites={other!r}, or remove that patch first.",
            )
    fresh = {name: owner for name, owner in owners.items() if name not in here}
    if sites == "score":
        scores, out_of_reach = find_scores(model, fresh, example_inputs)
        return Places(here | scores, out_of_reach=out_of_reach)
    found = discover(model, fresh, after_norm=query_norm == "after", example_inputs=example_inputs)
    queries = {name: QueryMetric(candidate) for name, candidate in found.proven.items()}
    return Places(here | queries, found.refused, found.out_of_reach, found.left_alone)
