"""Fixtures of the whole suite: seeds, and no shape checks where a test passes what the annotations forbid."""

from collections.abc import Iterator

import pytest
import torch
from jaxtyping import config


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _shape_hook(request: pytest.FixtureRequest) -> Iterator[None]:
    """Bad-input tests want our error, not the hook's."""
    off = request.node.get_closest_marker("bad_input") is not None
    before = config.jaxtyping_disable
    config.update("jaxtyping_disable", off or before)
    yield
    config.update("jaxtyping_disable", before)


@pytest.fixture(autouse=True)
def _fresh_compiler(request: pytest.FixtureRequest) -> Iterator[None]:
    """Each compile test starts without the graphs of the others, else dynamo's recompile limit ends the later ones."""
    yield
    if request.node.get_closest_marker("compile") is not None:
        torch.compiler.reset()
