"""What a retrieval model is made of, as JSON, and the parts again from that JSON.

    None                             null
    a model of transformers          {"transformers": "ResNetModel"}, in a folder of its own, named by its place; with
                                     "add_pooling_layer": false where it was made so, which its own files do not say,
                                     and "adapters" where it is patched (`gssf_plug.attention`), see gssf_plug.adapters
    a GSSFMetric                     {"metric": "gssf-plug/metric"}, likewise
    a part of ours or of torch.nn    {"class": "GPO", "arguments": {"code": 32, "hidden": 32}}
    a sequence of parts              {"class": "Sequential", "children": [["0", …], …]}
    a function of ours               {"function": "mean_pool"}
    the same object once more        {"same_as": "image_tower.encoder"}
    anything else                    {"given": "my_package.MyCNN"}: its weights are kept, and the caller gives it again

Parts of ours keep every constructor argument as an attribute of the same name. Nothing is imported by a name that a
file holds: classes come from the tables below, and from transformers where they are `PreTrainedModel`s.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from inspect import signature
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from torch import Tensor, nn
from transformers import PreTrainedModel

from gssf_plug import features
from gssf_plug.adapters import describe_adapters, restore_adapters
from gssf_plug.errors import ArgumentError, CheckpointError
from gssf_plug.files import inside
from gssf_plug.metric import GSSFMetric
from gssf_plug.retrieval.models import cross_attention, encoders
from gssf_plug.retrieval.models.part_schema import transformers_class
from gssf_plug.retrieval.models.tower import Tower

__all__ = ["Builder", "Describer"]

OWN: dict[str, type] = {
    kind.__name__: kind
    for kind in (
        Tower, features.GPO, features.BNNeck, features.SizeAugmentation, encoders.WordGRU, encoders.ResidualMLP,
        encoders.LastStrideOne, encoders.AnySize, encoders.FrozenNorms, cross_attention.TextToImage,
        cross_attention.ImageToText, cross_attention.LogSumExp,
    )
}  # fmt: skip
FUNCTIONS: dict[str, Callable[..., Any]] = {
    function.__name__: function
    for function in (
        features.mean_pool, features.max_pool, features.cls_pool, features.last_pool, features.mean_max_pool,
        cross_attention.average,
    )
}  # fmt: skip
TORCH: dict[str, tuple[type[nn.Module], tuple[str, ...]]] = {
    kind.__name__: (kind, arguments)
    for kind, arguments in (
        (nn.Linear, ("in_features", "out_features", "bias")),
        (nn.BatchNorm1d, ("num_features", "eps", "momentum", "affine", "track_running_stats")),
        (nn.LayerNorm, ("normalized_shape", "eps", "elementwise_affine", "bias")),
        (nn.Dropout, ("p",)),
        (nn.Flatten, ("start_dim", "end_dim")),
        (nn.Identity, ()),
        (nn.ReLU, ()),
        (nn.GELU, ("approximate",)),
        (nn.Tanh, ()),
    )
}


@dataclass
class Describer:
    """Describes parts; keeps those that are saved in folders of their own, by their place.

    Args:
        folders: filled while describing: transformers models and metrics by their place in the model.
        copies: filled while describing: places of objects that stand at an earlier place, too.
    """

    folders: dict[str, PreTrainedModel | GSSFMetric] = field(default_factory=dict)
    copies: list[str] = field(default_factory=list)
    _seen: dict[int, str] = field(default_factory=dict)

    def part(self, part: Any, place: str) -> Any:
        """JSON of a part that stands at `place`, such as "image_tower.encoder"."""
        if part is None or isinstance(part, bool | int | float | str):
            return part
        if isinstance(part, list | tuple):
            return [self.part(item, f"{place}.{number}") for number, item in enumerate(part)]
        if part in FUNCTIONS.values():
            return {"function": part.__name__}
        if isinstance(part, nn.Module):
            if id(part) in self._seen:
                self.copies.append(place)
                return {"same_as": self._seen[id(part)]}
            self._seen[id(part)] = place
        return self._described(part, place)

    def _described(self, part: Any, place: str) -> dict[str, Any]:
        name = type(part).__name__
        if isinstance(part, PreTrainedModel) and getattr(transformers, name, None) is type(part):
            self.folders[place] = part
            bare = "add_pooling_layer" in signature(type(part)).parameters and getattr(part, "pooler", None) is None
            adapters = describe_adapters(part)
            options = {"add_pooling_layer": False if bare else None, "adapters": adapters or None}
            return {"transformers": name, **{key: value for key, value in options.items() if value is not None}}
        if isinstance(part, GSSFMetric):
            self.folders[place] = part
            return {"metric": GSSFMetric.file_format.kind}
        if type(part) is nn.Sequential:
            children = [[child, self.part(module, f"{place}.{child}")] for child, module in part.named_children()]
            return {"class": "Sequential", "children": children}
        if OWN.get(name) is type(part):
            names = tuple(signature(type(part)).parameters)
            inner = {argument: self.part(getattr(part, argument), f"{place}.{argument}") for argument in names}
            return {"class": name, "arguments": inner}
        if name in TORCH and TORCH[name][0] is type(part):
            inner = {argument: _plain(argument, getattr(part, argument)) for argument in TORCH[name][1]}
            return {"class": name, "arguments": inner}
        if not isinstance(part, nn.Module):
            raise ArgumentError(
                place,
                "be a module, a function of gssf_plug.features, or None, to be saved",
                f"{type(part).__name__} {getattr(part, '__name__', '')}".strip(),
                "Write it as an nn.Module, and give it to from_pretrained(parts=...).",
            )
        return {"given": f"{type(part).__module__}.{type(part).__qualname__}"}

    def kept_here(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of a state dict that no part keeps in a folder of its own."""
        elsewhere = tuple(f"{place}." for place in (*self.folders, *self.copies))
        return {name: tensor for name, tensor in tensors.items() if not name.startswith(elsewhere)}


@dataclass
class Builder:
    """Builds parts from their JSON, which `part_schema.check_parts` has looked at.

    Args:
        folder: folder that holds the folders of the parts.
        given: modules that only the caller can give, by their place.
        asked: filled while building: the places that asked for one.
    """

    folder: Path
    given: Mapping[str, nn.Module]
    asked: set[str] = field(default_factory=set)
    _built: dict[str, Any] = field(default_factory=dict)

    def part(self, saved: Any, place: str) -> Any:
        """The part that stands at `place`, of a description that `check_parts` found right.

        Raises:
            CheckpointError: the part cannot be built; its place is named.
        """
        if isinstance(saved, list):
            return [self.part(item, f"{place}.{number}") for number, item in enumerate(saved)]
        if not isinstance(saved, dict):
            return saved
        self._built[place] = built = self._build(saved, place)
        return built

    def _build(self, saved: dict[str, Any], place: str) -> Any:
        match saved:
            case {"given": name}:
                return self._given(name, place)
            case {"same_as": name}:
                return self._built[name]
            case {"function": name}:
                return FUNCTIONS[name]
            case {"metric": _}:
                return GSSFMetric.from_pretrained(inside(self.folder, place))
            case {"transformers": name}:
                options = {"add_pooling_layer": False} if "add_pooling_layer" in saved else {}
                return self._patched(self._transformers(name, place, options), place, saved.get("adapters", {}))
            case {"class": "Sequential", "children": children}:
                return nn.Sequential(OrderedDict((name, self.part(part, f"{place}.{name}")) for name, part in children))
            case _:
                name = saved["class"]
                return self._constructed(OWN[name] if name in OWN else TORCH[name][0], saved["arguments"], place)

    def _constructed(self, kind: type, arguments: dict[str, Any], place: str) -> Any:
        order = [name for name in signature(kind).parameters if name in arguments]  # a copy comes after what it copies
        values = {argument: self.part(arguments[argument], f"{place}.{argument}") for argument in order}
        try:
            with torch.device("meta"):  # the weights follow; a number in a file shall take no memory
                return kind(**values)
        except (TypeError, ValueError, RuntimeError) as error:
            raise self._odd(place, f"arguments that {kind.__name__} refuses ({error})") from error

    def _given(self, name: str, place: str) -> nn.Module:
        self.asked.add(place)
        if place in self.given:
            return self.given[place]
        raise CheckpointError(
            self.folder,
            f"holds the weights of a part '{place}' of a class that gssf-plug cannot build ({name})",
            f"Build it yourself: from_pretrained(path, parts={{'{place}': module}}).",
        )

    def _transformers(self, name: str, place: str, options: dict[str, Any]) -> PreTrainedModel:
        kind: Any = transformers_class(name, PreTrainedModel)
        path = inside(self.folder, place)
        try:
            loaded: Any = kind.from_pretrained(
                path, output_loading_info=True, local_files_only=True, use_safetensors=True, **options
            )
        except Exception as error:  # whatever transformers makes of files that anybody may have written
            problem = f"cannot be loaded ({type(error).__name__}: {error})"
            raise CheckpointError(path, problem, "Save the model again.") from error
        model, report = loaded
        for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
            if report.get(problem):
                first = sorted(map(str, report[problem]))[0]
                raise CheckpointError(path, f"does not fit {name}: {problem} '{first}'", "Save the model again.")
        return cast(PreTrainedModel, model)

    def _patched(self, model: PreTrainedModel, place: str, adapters: Mapping[str, Any]) -> PreTrainedModel:
        try:
            restore_adapters(model, inside(self.folder, place), adapters)
        except ArgumentError as error:
            problem = f"has an adapter that cannot be put into its '{place}' ({error})"
            remedy = "Load encoder and adapter by themselves, and build the model from these parts."
            raise CheckpointError(self.folder, problem, remedy) from error
        return model

    def _odd(self, place: str, what: str) -> CheckpointError:
        return CheckpointError(
            self.folder, f"has in its configuration, for '{place}', {what}", "It is damaged, or of a newer gssf-plug."
        )


def _plain(argument: str, value: Any) -> Any:
    """An argument of a torch module as JSON; a bias is a question of whether there is one."""
    if argument == "bias":
        return value is not None
    return list(value) if isinstance(value, tuple) else value
