"""A pytest plugin for transformers' own tests: every model is patched as soon as it is built or loaded.

A fresh patch is neutral, so no test may turn out differently. `--bare` patches nothing; `--outcomes FILE`
writes how each test turned out, and how many models were patched or refused.
"""

import functools
import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from gssf_plug.attention import patch_attention
from gssf_plug.errors import GSSFError

BUILDING = threading.local()  # how many models are under construction around one another
MODELS: Counter[str] = Counter()
OUTCOMES: dict[str, str] = {}
REASONS: dict[str, str] = {}  # why a test failed
SECONDS: Counter[str] = Counter()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--bare", action="store_true", help="patch nothing")
    parser.addoption("--outcomes", type=Path, help="JSON of every test's outcome")


def pytest_collection_finish(session: pytest.Session) -> None:
    """By now the tests have imported the models they build."""
    if session.config.getoption("--bare"):
        return
    for kind in every_subclass(PreTrainedModel):
        if "__init__" in vars(kind):
            kind.__init__ = patched_afterwards(kind.__init__, lambda arguments, made: arguments[0])
    load = PreTrainedModel.from_pretrained.__func__
    loaded = patched_afterwards(load, lambda arguments, made: made[0] if isinstance(made, tuple) else made)
    PreTrainedModel.from_pretrained = classmethod(loaded)


def every_subclass(kind: type) -> Iterator[type]:
    for own in kind.__subclasses__():
        yield own
        yield from every_subclass(own)


def patched_afterwards(build: Callable[..., Any], model_of: Callable[[tuple, Any], object]) -> Callable[..., Any]:
    """`build`, after which the outermost model is patched: its parts have been by then, with it."""

    @functools.wraps(build)
    def built(*arguments: Any, **options: Any) -> Any:
        depth = getattr(BUILDING, "depth", 0)
        BUILDING.depth = depth + 1
        try:
            made = build(*arguments, **options)
        finally:
            BUILDING.depth = depth
        if depth == 0:
            patch(model_of(arguments, made))
        return made

    return built


def patch(model: object) -> None:
    """Patch it where it can be; a model without weights is patched when they are there, by whoever loads it."""
    if not isinstance(model, PreTrainedModel) or any(parameter.is_meta for parameter in model.parameters()):
        return
    BUILDING.depth = 1  # the probe may build models of its own
    try:
        with torch.random.fork_rng():
            patch_attention(model, block_size=2)
        MODELS["patched"] += 1
    except GSSFError as refusal:
        MODELS[f"{type(model).__name__} refused: {str(refusal)[:120]}"] += 1
    finally:
        BUILDING.depth = 0


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """A test is what its worst phase was, and its worst subtest."""
    SECONDS[report.nodeid] += report.duration
    counts = report.when == "call" or report.outcome != "passed"
    if counts and OUTCOMES.get(report.nodeid) != "failed":
        OUTCOMES[report.nodeid] = report.outcome
        if report.outcome == "failed":
            crash = getattr(report.longrepr, "reprcrash", None)
            REASONS[report.nodeid] = " ".join(str(crash.message if crash else report.longrepr).split())[:300]


def pytest_sessionfinish(session: pytest.Session) -> None:
    if path := session.config.getoption("--outcomes"):
        found = {"models": MODELS, "outcomes": OUTCOMES, "reasons": REASONS, "seconds": SECONDS}
        path.write_text(json.dumps(found), encoding="utf-8")
