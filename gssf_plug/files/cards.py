"""The model card of what we publish: front matter that the Hub reads, then what it is, its data, measures and licence.

A card says what its author said, and says so where the author said nothing: no licence is put on anybody's weights.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from huggingface_hub import EvalResult, ModelCardData
from huggingface_hub.utils import HFValidationError, validate_repo_id

from gssf_plug.arguments import check_text, described, listed
from gssf_plug.errors import ArgumentError, near_matches

__all__ = ["CardFacts", "is_hub_id", "render_card"]

TASK = "feature-extraction"
UNSAID = "Not stated by whoever saved this."
TEXTS = ("data", "evaluated_on", "license", "notes")
HUB_IDS = ("datasets", "base_model")
LISTS = (*HUB_IDS, "language")


class CardFacts(TypedDict, total=False):
    """What only the author of a model knows: the keys of `model_card_kwargs` in every `save_pretrained`. All optional.

    Attributes:
        data: what it was trained on, in words (Markdown).
        measures: values by name, such as {"mAP": 45.6}; how they were measured belongs into `evaluated_on`.
        evaluated_on: name of the data that `measures` are of.
        license: the licence of these weights, as the Hub spells it, such as "apache-2.0".
        datasets: Hub ids of the training data.
        base_model: Hub id of the model that it belongs to; with several, a list.
        language: ISO 639 codes.
        notes: limits, intended use, whatever a reader should know (Markdown).
    """

    data: str
    measures: Mapping[str, float]
    evaluated_on: str
    license: str
    datasets: Sequence[str]
    base_model: str | Sequence[str]
    language: str | Sequence[str]
    notes: str


def render_card(
    title: str,
    about: str,
    usage: str,
    tags: Sequence[str],
    facts: CardFacts | None = None,
    *,
    base_model: str | None = None,
) -> str:
    """A model card as Markdown.

    Args:
        title: heading of the card.
        about: one or a few sentences that say what is in the folder.
        usage: Python code that loads it.
        tags: words that the Hub's search finds it by.
        facts: what only the author can say, see `CardFacts`.
        base_model: Hub id of the model that it belongs to, where the facts name none.

    Raises:
        ArgumentError: a fact is unknown or not of its type, a measure is no finite number, or the Hub would refuse an
            id.
    """
    facts = facts if facts is not None else {}
    _check(facts)
    facts = facts if base_model is None else {"base_model": base_model, **facts}
    measures = facts.get("measures") or {}
    rows = "\n".join(f"| {name} | {value:g} |" for name, value in measures.items())
    of = f" on {facts['evaluated_on']}" if measures and "evaluated_on" in facts else ""
    sections = {
        "Data": facts.get("data", UNSAID),
        f"Measures{of}": f"| measure | value |\n|---|---:|\n{rows}" if measures else UNSAID,
        "How to load": f"```python\n{usage}\n```",
        "Licence": facts.get("license", UNSAID),
        "Notes": facts.get("notes", ""),
    }
    body = "\n\n".join(f"## {heading}\n\n{text}" for heading, text in sections.items() if text)
    return f"---\n{_front_matter(title, tags, facts).to_yaml()}\n---\n\n# {title}\n\n{about}\n\n{body}\n"


def is_hub_id(name: Any) -> bool:
    """Whether the Hub would take `name` as the id of a repository."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return isinstance(name, str)


def _front_matter(title: str, tags: Sequence[str], facts: CardFacts) -> ModelCardData:
    """With measures and the name of their data, the model index that the Hub shows as results."""
    name = facts.get("evaluated_on")
    slug = re.sub(r"[^a-z0-9]+", "-", (name or "").lower()).strip("-")
    results = [
        EvalResult(TASK, dataset_type=slug, dataset_name=name, metric_type=measure, metric_value=float(value))
        for measure, value in (facts.get("measures") or {}).items()
        if name
    ]
    return ModelCardData(
        library_name="gssf-plug",
        license=facts.get("license"),
        tags=list(tags),
        datasets=_listed(facts.get("datasets")),
        base_model=_listed(facts.get("base_model")),
        language=_listed(facts.get("language")),
        model_name=title if results else None,
        eval_results=results or None,
    )


def _listed(value: str | Sequence[str] | None) -> str | list[str] | None:
    return value if value is None or isinstance(value, str) else list(value)


def _check(facts: Mapping[str, Any]) -> None:
    known = CardFacts.__annotations__
    if not isinstance(facts, Mapping):
        raise ArgumentError("model_card_kwargs", "hold facts by name", described(facts), 'Such as {"license": "mit"}.')
    for name in facts:
        if name not in known:
            raise ArgumentError(
                "model_card_kwargs", f"hold only {sorted(known)}", repr(name), near_matches(str(name), known)
            )
    given = {key: value for key, value in facts.items() if value is not None}
    for key in filter(TEXTS.__contains__, given):
        check_text(key, given[key], "be a text", "Write it in words.")
    for key in filter(LISTS.__contains__, given):
        _check_texts(key, given[key])
    _check_measures(given.get("measures", {}))
    for key in filter(HUB_IDS.__contains__, given):
        repos = _listed(given[key]) or []
        for repo in [repos] if isinstance(repos, str) else repos:
            if not is_hub_id(repo):
                remedy = "Give Hub ids such as 'user/name'; describe anything else in `data` or `notes`."
                raise ArgumentError(key, "hold ids of the Hugging Face Hub", repr(repo), remedy)


def _check_measures(measures: object) -> None:
    if not isinstance(measures, Mapping):
        raise ArgumentError("measures", "hold numbers by name", described(measures), 'Such as {"mAP": 45.6}.')
    for name, value in measures.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ArgumentError("measures", "hold finite numbers", f"{name}={value!r}", "Convert it with float(value).")


def _check_texts(key: str, value: object) -> None:
    texts = (value,) if isinstance(value, str) else listed(value) if isinstance(value, Sequence) else None
    if texts is None or not all(isinstance(text, str) for text in texts):
        raise ArgumentError(key, "be a text or a list of texts", described(value), "Write each as the Hub spells it.")
