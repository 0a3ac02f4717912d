"""Recipes from YAML files, filled into the dataclasses by transformers' HfArgumentParser, with --name value over them.

    base: vse_infinity_f30k_regions_bert      # every key of that recipe, then those below: how a GSSF twin is written
    metric: gssf
    block_size: 16

Every key is checked before anything is read or built: an unknown one is answered with near names, a value of another
type with the key, the type and what came (YAML reads `5e-4` as text and takes any word for a choice).
"""

import os
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import yaml
from transformers import HfArgumentParser

from gssf_plug.errors import ArgumentError, DataError, near_matches
from gssf_plug.retrieval import RetrievalConfig
from recipes.options import HINTS, SECTIONS, Recipe

RECIPES = Path(__file__).resolve().parent


def load_recipe(recipe: str, overrides: Sequence[str] = ()) -> Recipe:
    """A recipe by name or path, with the options of a command line over it.

    Args:
        recipe: name of a file in examples/recipes, or a path to a YAML file.
        overrides: `--name value` …

    Raises:
        ArgumentError: no such recipe; an unknown key or option; a value of another type; a key that must be given.
        DataError: a file that is no YAML mapping.
    """
    path = recipe_path(recipe)
    values = _with_base(path)
    for name, value in values.items():
        check_value(name, value)
    parser = HfArgumentParser(SECTIONS, prog=f"train_retrieval.py {path.stem}", allow_abbrev=False)
    parser.set_defaults(**values)
    *sections, unknown = parser.parse_args_into_dataclasses(
        list(overrides), return_remaining_strings=True, look_for_args_file=False
    )
    for option in unknown:
        raise unknown_key(option.lstrip("-").split("=")[0], option)
    *ours, training = sections
    for name, value in (("dataset", ours[0].dataset), ("data_dir", ours[0].data_dir), ("framework", ours[1].framework)):
        if not value:
            raise ArgumentError(name, "be given", "nothing", f"Write it into the recipe, or pass --{name}.")
    return Recipe(path.stem, *ours, _config(training, path.stem))


def recipe_path(recipe: str) -> Path:
    """The file of a recipe.

    Raises:
        ArgumentError: there is none; offers near names.
    """
    named = RECIPES / f"{Path(recipe).stem}.yaml"
    for path in (Path(recipe), *([named] if os.sep not in recipe else [])):
        if path.is_file():
            return path
    names = [path.stem for path in RECIPES.glob("*.yaml")]
    raise ArgumentError(
        "recipe", "be a YAML file or the name of a recipe", recipe, near_matches(Path(recipe).stem, names)
    )


def check_value(name: str, value: Any) -> None:
    """Raise `ArgumentError` for a key that no section has, or a value that is not of its type."""
    if name not in HINTS:
        raise unknown_key(name, repr(value))
    hint = HINTS[name]
    choices = [choice for part in (hint, *get_args(hint)) if get_origin(part) is Literal for choice in get_args(part)]
    if choices and value not in choices:
        raise ArgumentError(name, f"be one of {choices}", repr(value), near_matches(str(value), choices))
    if not choices and not _is_of(value, hint):
        wanted = hint.__name__ if isinstance(hint, type) and not get_args(hint) else hint
        remedy = "In YAML write 0.0005, or 5.0e-4: '5e-4' is read as text." if isinstance(value, str) else "Correct it."
        raise ArgumentError(name, f"be of type {wanted}", f"{value!r} of type {type(value).__name__}", remedy)


def unknown_key(name: str, got: str) -> ArgumentError:
    """The error for a key that no section has."""
    return ArgumentError(name, "be a key that recipes have", got, near_matches(name, HINTS))


def _is_of(value: Any, hint: Any) -> bool:
    if get_origin(hint) in (Union, types.UnionType):
        return any(_is_of(value, part) for part in get_args(hint))
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if get_origin(hint) is list:
        return isinstance(value, list) and all(_is_of(item, get_args(hint)[0]) for item in value)
    if isinstance(value, bool):
        return hint is bool
    return isinstance(value, (int, float) if hint is float else hint)


class _Once(yaml.SafeLoader):
    """YAML as `safe_load` reads it, but no key twice: there the last one wins in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """A mapping, every key once."""
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for number, (key, _) in enumerate(node.value):
            if isinstance(key, yaml.ScalarNode) and key.value in keys[:number]:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} stands there twice", key.start_mark
                )
        return super().construct_mapping(node, deep)


def _with_base(path: Path, below: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The keys of a recipe over those of its base."""
    if path in below:
        raise DataError(path, "is its own base", "Name another recipe as base.")
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=_Once)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(path, f"is not YAML ({' '.join(str(error).split())})", "Correct the line.") from error
    if not isinstance(values, dict):
        raise DataError(path, f"holds {type(values).__name__}, expected lines `key: value`", "See examples/recipes.")
    base = values.pop("base", None)
    values = {str(key): value for key, value in values.items()}
    if base is None:
        return values
    beside = path.parent / f"{base}.yaml"
    return {**_with_base(beside if beside.is_file() else recipe_path(str(base)), (*below, path)), **values}


def _config(training: Any, name: str) -> RetrievalConfig:
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in vars(training).items()}
    return RetrievalConfig(**{**values, "output_dir": values["output_dir"] or f"outputs/{name}"})
