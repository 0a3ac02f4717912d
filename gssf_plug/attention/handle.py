"""AttentionPatch: the handle of a patched model.

The metrics live in the model, below each attention layer as its child `gssf`; the handle keeps only the weights that
merging replaced. So `AttentionPatch(model)` makes a second handle, also for a deep copy of the model.
"""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from os import PathLike

from torch import nn

from gssf_plug.arguments import check_module, check_text, checked_flag, described
from gssf_plug.attention.callback import AdapterCallback, accepted_by_trainer, forget_files
from gssf_plug.attention.merging.fold import MergeReport
from gssf_plug.attention.merging.merge import fold_for_a_while, merge, switch, unfold, unmerge
from gssf_plug.attention.merging.plan import PatchedLayer, plan_folds
from gssf_plug.attention.query_layer import CHILD, LayerMetric, lost_layers, notice_hooks
from gssf_plug.attention.saving import save_adapter
from gssf_plug.attention.summary import table
from gssf_plug.errors import ArgumentError, near_matches
from gssf_plug.files import CardFacts
from gssf_plug.files.uploads import upload
from gssf_plug.wrappers import plain_path

__all__ = ["AttentionPatch"]

KNOWN, ALL_NAMES = "name an adapter of this model", "patch.adapter_names has them all."


class AttentionPatch:
    """Everything that can be done with a patched model.

    Args:
        model: a patched model, or a copy of one.
        left_alone: reason for each attention module that was not patched, by path, for the summary; default none.

    Raises:
        ArgumentError: the model is not patched. (A merged model is plain again: keep the handle that merged it.)
    """

    def __init__(self, model: nn.Module, left_alone: Mapping[str, str] | None = None) -> None:
        check_module("model", model, "Pass the patched model itself.")
        if left_alone is not None and not isinstance(left_alone, Mapping):
            remedy = "Leave it out, or take it from another handle."
            raise ArgumentError("left_alone", "be None or reasons by path", described(left_alone), remedy)
        self.model = model
        self.left_alone = dict(left_alone or {})
        self.layers = {
            name: PatchedLayer(module, child)
            for name, module in model.named_modules()
            if isinstance(child := module._modules.get(CHILD), LayerMetric)  # wrappers pass `getattr` on
        }
        if not self.layers:
            raise ArgumentError("model", "be patched", f"a plain {type(model).__name__}", "Call patch_attention first.")
        notice_hooks()  # a patched model may come out of a pickle
        self._trainable_before: dict[nn.Parameter, bool] = {}

    @property
    def adapter_names(self) -> tuple[str, ...]:
        """Names of all adapters, in the order in which they came."""
        return tuple(dict.fromkeys(name for layer in self.layers.values() for name in layer.metric_layer.adapters))

    @property
    def active_adapter(self) -> str | None:
        """The adapter that acts."""
        return self._first().active

    @property
    def enabled(self) -> bool:
        """False inside `disabled()` and after `disable()`."""
        return self._first().enabled

    @property
    def merged(self) -> bool:
        """True between `merge` and `unmerge`."""
        return any(layer.fold is not None for layer in self.layers.values())

    @property
    def is_folded(self) -> bool:
        """True inside `folded()`."""
        return any(layer.metric_layer.stand_in is not None for layer in self.layers.values())

    def named_parameters(self, adapter_name: str | None = None) -> Iterator[tuple[str, nn.Parameter]]:
        """Parameters of an adapter (the active one by default), each with its path in the model."""
        name = self._known(adapter_name)
        for path, layer in self.layers.items():
            metric = layer.metric_layer.metric(name)
            if metric is not None:
                prefix = f"{path}.{CHILD}.adapters.{name}".lstrip(".")
                for key, parameter in metric.named_parameters():
                    yield f"{prefix}.{key}", parameter

    def parameters(self, adapter_name: str | None = None) -> Iterator[nn.Parameter]:
        """Parameters of an adapter (the active one by default): what an optimizer needs to train the metric alone."""
        return (parameter for _, parameter in self.named_parameters(adapter_name))

    def freeze_base(self) -> None:
        """Train the metrics alone: everything else stops requiring gradients, until `remove`."""
        own = {id(parameter) for layer in self.layers.values() for parameter in layer.metric_layer.parameters()}
        for parameter in self.model.parameters():
            if id(parameter) not in own:
                self._trainable_before.setdefault(parameter, parameter.requires_grad)
                parameter.requires_grad_(False)

    def set_adapter(self, adapter_name: str) -> None:
        """Let another adapter act; nothing is reloaded.

        The others need no gradient meanwhile; each gets its `requires_grad` flags back when it acts again.
        """
        self._check_unmerged("switched")
        check_text("adapter_name", adapter_name, KNOWN, ALL_NAMES)
        name = self._known(adapter_name)
        for layer in self.layers.values():
            layer.metric_layer.activate(name)

    def delete_adapter(self, adapter_name: str) -> None:
        """Drop an adapter that is not active.

        Raises:
            ArgumentError: the adapter is active, or there is none of that name.
        """
        check_text("adapter_name", adapter_name, KNOWN, ALL_NAMES)
        name = self._known(adapter_name)
        if name == self.active_adapter:
            raise ArgumentError(
                "adapter_name", "not be active", repr(name), "Activate another first, or call remove()."
            )
        for layer in self.layers.values():
            layer.metric_layer.drop(name)

    def enable(self) -> None:
        """Let the active adapter act again."""
        self._switch(dict.fromkeys(self.layers, True))

    def disable(self) -> None:
        """Let the model compute exactly as if it were not patched; `enable` undoes."""
        self._switch(dict.fromkeys(self.layers, False))

    @contextmanager
    def disabled(self) -> Iterator["AttentionPatch"]:
        """The untouched model, exactly, inside the context; afterwards as before, so contexts may nest.

        Also while merged: the replaced weights come back for the time of the context. Flags of parameters and modules
        (`requires_grad`, `training`) are not touched. Weights that were changed while merged are never overwritten:
        that is an error, and they stay as they are.
        """
        before = {name: layer.metric_layer.enabled for name, layer in self.layers.items()}
        self._switch(dict.fromkeys(self.layers, False))
        try:
            yield self
        finally:
            self._switch(before)

    def merge(self, *, partial: bool = False) -> MergeReport:
        """Fold the active adapter into the weights: zero cost, and `model.save_pretrained` writes a plain checkpoint.

        The metrics leave the model (this handle keeps them), the product is made in float32, and every layer is
        planned and checked before any is changed.

        Args:
            partial: True folds the layers that can be folded and leaves the others patched; False (default) refuses
                unless all can.

        Returns:
            A report with one entry for each folded layer: the share of the learned change that the data type of the
            weights kept, and the largest change of a weight.

        Raises:
            ArgumentError: the patch is merged already or disabled, or a layer cannot be folded; the model is untouched.

        Warns:
            UserWarning: rounding to the data type of the weights lost more than a tenth of what a layer had learned.
        """
        self._check_acting("merged")
        return merge(self.model, self.layers, partial=checked_flag("partial", partial))

    def unmerge(self) -> None:
        """Undo `merge`: the replaced weights return bit for bit, and the metrics act again.

        Raises:
            ArgumentError: the patch is not merged; or the merged model was patched or merged again, and what came last
                must go first; or its weights were changed since, and nothing is overwritten.
        """
        if not self.merged:
            raise ArgumentError("patch", "be merged to be unmerged", "an unmerged one", "Call patch.merge() first.")
        unmerge(self.model, self.layers)

    @contextmanager
    def folded(self) -> Iterator["AttentionPatch"]:
        """Compute with folded weights inside the context, as fast as the bare model: for `generate` and evaluation.

        They are made once and stand in for the weights, which stay untouched in the model's parameters, `state_dict`
        and files, and act again afterwards, to the bit. Contexts may nest; `disabled()` works inside.

        Raises:
            ArgumentError: on entering: the patch is merged or disabled, or a layer cannot be folded; the message names
                it with the reason, and nothing has changed. On leaving: weights, metric or folded weights were changed
                inside, so that what was computed since is not what the patched model computes; the model is whole, and
                its parameters keep what they were given.
        """
        if self.is_folded:
            yield self
            return
        self._check_acting("folded")
        fold_for_a_while(self.model, self.layers)
        try:
            yield self
        finally:
            changed = unfold(self.layers)
        if changed is not None:
            raise ArgumentError(
                "patch",
                "be left unchanged inside folded()",
                f"other values at '{changed}' (weights, metric or folded weights)",
                "Train, load and switch adapters outside of the context; the parameters hold what they were given.",
            )

    def remove(self) -> None:
        """Take everything out: the model as it was, with its state-dict keys and its `requires_grad` flags.

        Twice is once. A removed patch has nothing left to merge or to train, and says so.

        Raises:
            ArgumentError: the patch is merged. A merged model holds nothing of the patch but its weights: to keep
                those, drop the handle.
        """
        self._check_unmerged("removed")
        for layer in self.layers.values():
            if getattr(layer.owner, CHILD, None) is layer.metric_layer:  # another handle may have removed it
                layer.metric_layer.detach(layer.owner)
        forget_files(self.model)
        for parameter, flag in self._trainable_before.items():
            parameter.requires_grad_(flag)
        self.layers, self._trainable_before = {}, {}

    def summary(self) -> str:
        """Table of the layers: site, heads, parameters, whether each acts and merges; then what was left alone."""
        self._first(acting=False)
        folds, refused = ({}, {}) if self.merged else plan_folds(self.model, self.layers, once_trained=True)
        return table(self.layers, folds, refused, lost_layers(self.model, self.layers), self.left_alone)

    def callback(self, *, save_base: bool = False, fold_evaluation: bool = True) -> AdapterCallback:
        """The callback for a transformers `Trainer`: checkpoints of the adapter's size that resume to the bit.

        Each checkpoint holds what trains (metrics, a new head) under the model's own names, so that
        `resume_from_checkpoint` and `load_best_model_at_end` bring it back for every type of model, and each adapter
        alone in `checkpoint-N/gssf/NAME`, for `load_attention`. `trainer.save_model(folder)` is as without it.

        Args:
            save_base: True keeps frozen parameters in the checkpoints, too. False (default) leaves them out: resume
                with the same base that was trained on, as with PEFT's adapters.
            fold_evaluation: True (default) evaluates and predicts with folded weights (see `folded`) from the second
                batch on, wherever all layers can be folded.
        """
        return AdapterCallback(self, save_base=save_base, fold_evaluation=fold_evaluation)

    def accepted_by_trainer(self) -> AbstractContextManager[None]:
        """Make transformers' `Trainer` inside this context where the base is quantised.

        Its check asks for PEFT's adapters; the metric is one too, and trains beside frozen quantised weights. Outside
        the context the model says again what it is.
        """
        return accepted_by_trainer(self.model)

    def save_pretrained(
        self,
        path: str | PathLike[str],
        *,
        adapter_name: str | None = None,
        model_card_kwargs: CardFacts | None = None,
    ) -> None:
        """Write one adapter alone: safetensors, JSON and a model card.

        Args:
            path: folder of the adapter, which is created where it is missing.
            adapter_name: name of the adapter to save; None (default) saves the active one.
            model_card_kwargs: facts for the model card that only you know, see `gssf_plug.files.CardFacts`. A card that
                is already in the folder is kept, unless this is given.

        Raises:
            ArgumentError: the path is empty, or there is no adapter of that name.
            CheckpointError: the disk refuses. What was there before is whole.
        """
        name = self._known(adapter_name, acting=False)
        save_adapter(path, self.model, self._queries(), name, model_card_kwargs)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        adapter_name: str | None = None,
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        commit_message: str = "Upload a GSSF attention adapter",
        model_card_kwargs: CardFacts | None = None,
    ) -> str:
        """Save one adapter into a temporary folder and upload it to the Hub; gives the address of the commit.

        `adapter_name` and `model_card_kwargs` are those of `save_pretrained`, the others those of huggingface_hub. One
        of another type raises an ArgumentError before anything is uploaded.
        """
        return upload(
            lambda folder: self.save_pretrained(folder, adapter_name=adapter_name, model_card_kwargs=model_card_kwargs),
            repo_id,
            {"private": private, "token": token, "revision": revision, "commit_message": commit_message},
        )

    def _switch(self, states: Mapping[str, bool]) -> None:
        switch(self.model, self.layers, states)

    def _queries(self) -> dict[str, LayerMetric]:
        return {plain_path(name): layer.metric_layer for name, layer in self.layers.items()}

    def _first(self, *, acting: bool = True) -> LayerMetric:
        """The first layer's metrics; refuses where a tool has replaced what a metric acts in."""
        if not self.layers:
            raise ArgumentError("patch", "be in the model", "a removed one", "Call patch_attention again.")
        lost = lost_layers(self.model, self.layers) if acting else {}
        if lost:
            name, reason = next(iter(lost.items()))
            remedy = "Save the adapter, load it onto the model as it was, and merge it before that tool runs."
            raise ArgumentError("patch", "act in the model", f"'{name}', where it is lost: {reason}", remedy)
        return next(iter(self.layers.values())).metric_layer

    def _check_acting(self, action: str) -> None:
        self._check_unmerged("merged again" if action == "merged" else action)
        if not self.enabled:
            rule = f"be enabled to be {action}"
            raise ArgumentError("patch", rule, "a disabled one", "Call patch.enable() first.")
        if any(getattr(layer.owner, CHILD, None) is not layer.metric_layer for layer in self.layers.values()):
            rule, remedy = f"be in the model to be {action}", "Make a new handle once the patch is back."
            raise ArgumentError("patch", rule, "one that another handle took out", remedy)

    def _check_unmerged(self, action: str) -> None:
        if self.merged:
            raise ArgumentError("patch", f"be unmerged to be {action}", "a merged one", "Call patch.unmerge() first.")
        if self.is_folded:
            raise ArgumentError("patch", f"not be {action} inside folded()", "a folded one", "Leave the context first.")

    def _known(self, adapter_name: str | None, *, acting: bool = True) -> str:
        active = self._first(acting=acting).active
        name = active if adapter_name is None else adapter_name
        if not isinstance(name, str) or name not in self.adapter_names:
            remedy = near_matches(str(name), self.adapter_names)
            raise ArgumentError("adapter_name", KNOWN, repr(name), remedy)
        return name
