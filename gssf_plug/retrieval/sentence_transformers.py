"""The metric as a module of a sentence-transformers model: `encode_query` folds, `encode_document` does not.

    modules = [transformer, pooling, MetricModule(GSSFMetric(384))]
    model = SentenceTransformer(modules=modules, similarity_fn_name="dot")

Trained by SentenceTransformerTrainer, saved and loaded by the library itself (with `trust_remote_code=True`, which it
asks for every class that is not its own). `merged_modules` gives the same model as modules of sentence-transformers
alone: one Dense layer for the queries, which anybody loads without this package.

Needs sentence-transformers (the extra of that name).
"""

from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn

from gssf_plug.arguments import described
from gssf_plug.errors import ArgumentError
from gssf_plug.metric import GSSFMetric
from gssf_plug.metric.options import require_metric

try:
    from sentence_transformers.base.modules import Dense, Module, Normalize, Router
except ImportError as error:
    raise ImportError(
        "gssf_plug.retrieval.sentence_transformers needs sentence-transformers 6.2 or later; "
        "run: pip install 'sentence-transformers>=6.2'"
    ) from error

__all__ = ["MetricModule", "merged_modules"]

TASKS = ("query", "document")
EMBEDDING = "sentence_embedding"
NEEDED = "Give a GSSFMetric of the width of the embeddings."


class MetricModule(Module):
    r"""Last module of a SentenceTransformer: folds query embeddings, only normalises documents.

        query     e ← ê (W⊙U)
        document  e ← ê                so that e_q · e_d = ê_q (W⊙U) ê_dᵀ

    Args:
        metric: its width is that of the embeddings, (batch, dim).

    Raises:
        ArgumentError: `metric` is no metric.

    The model's similarity must be "dot": with "cos" the order of one query's documents is the same, but scores of
    different queries can no longer be compared. `encode` without a task means "document".

    In training each column of the data must say which it is, in `SentenceTransformerTrainingArguments`:
    `router_mapping={"anchor": "query", "positive": "document"}`; without, nothing would reach the metric, so it raises.
    """

    forward_kwargs = {"task"}

    def __init__(self, metric: GSSFMetric) -> None:
        require_metric(metric, NEEDED)
        super().__init__()
        self.metric = metric

    def forward(self, features: dict[str, Any], task: str | None = None, **unused: Any) -> dict[str, Any]:
        """Replace "sentence_embedding", (batch, dim), by the fold or by the normalised embedding.

        Raises:
            ArgumentError: there is no sentence embedding yet; the task has another name than the two, or there is none
                while training.
        """
        if not isinstance(features, Mapping) or EMBEDDING not in features:
            got = ", ".join(map(repr, features)) if isinstance(features, Mapping) else described(features)
            raise ArgumentError("features", f"hold '{EMBEDDING}'", got or "nothing", "Put this module behind pooling.")
        task = features.get("task") if task is None else task
        if task is None and self.training and torch.is_grad_enabled():
            raise ArgumentError(
                "task",
                "be given while training",
                "None",
                'Set router_mapping={"your query column": "query", "your other column": "document"} in the arguments.',
            )
        if task is not None and not (isinstance(task, str) and task in TASKS):
            raise ArgumentError("task", "be 'query' or 'document'", repr(task), "Name each column's side so.")
        side = self.metric.fold if task == "query" else self.metric.gallery
        features[EMBEDDING] = side(features[EMBEDDING])
        return features

    def get_embedding_dimension(self) -> int:
        """Width of the embeddings."""
        return self.metric.dim

    def save(self, output_path: str, *args: Any, safe_serialization: bool = True, **unused: Any) -> None:
        """Write the metric's own files; always safetensors."""
        self.metric.save_pretrained(output_path)

    @classmethod
    def load(
        cls,
        model_name_or_path: str,
        subfolder: str = "",
        token: bool | str | None = None,
        cache_folder: str | None = None,
        revision: str | None = None,
        local_files_only: bool = False,
        init_defaults: dict[str, Any] | None = None,
        **unused: Any,
    ) -> Self:
        """Read what `save` wrote, from a folder or the Hub; the arguments are the library's own.

        Raises:
            CheckpointError: the folder is missing, damaged or of another kind.
        """
        folder = cls.load_dir_path(model_name_or_path, subfolder, token, cache_folder, revision, local_files_only)
        return cls(GSSFMetric.from_pretrained(folder or subfolder))


def merged_modules(metric: GSSFMetric) -> list[nn.Module]:
    """The trained metric as modules of sentence-transformers alone, to put after the encoder's own.

    Args:
        metric: metric of width D, whose folded matrix (D×D) is copied.

    Returns:
        A router that normalises queries (unless `normalize=False`) and sends them through one Dense layer without bias
        or activation, and normalises documents alone. It equals `MetricModule` up to rounding.

    Raises:
        ArgumentError: `metric` is no metric, or its weights are on the meta device.
    """
    require_metric(metric, NEEDED, values=True)
    matrix: Tensor = metric.matrix().detach().T.contiguous()
    fold = Dense(metric.dim, metric.dim, bias=False, activation_function=None, init_weight=matrix)
    norm: list[Module] = [Normalize()] if metric.normalize else []
    return [Router({"query": [*norm, fold], "document": norm}, default_route="document")]
