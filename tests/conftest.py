"""Fixtures of the whole suite: seeds, and no shape checks where a test passes what the annotations forbid."""

import os
from collections.abc import Iterator

IN_TURNS = "PYTEST_XDIST_WORKER" not in os.environ
if not IN_TURNS:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # tests beside one another share the cores, and so do their processes

import jaxtyping  # noqa: E402 — torch reads the variable when it is imported
import pytest  # noqa: E402
import shape_hook  # noqa: E402
import torch  # noqa: E402

jaxtyping.jaxtyped = shape_hook.jaxtyped  # what the hook of `--jaxtyping-packages` decorates with, module by module

if not IN_TURNS:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _shape_hook(request: pytest.FixtureRequest) -> Iterator[None]:
    """Bad-input tests want our error, not the hook's."""
    off = request.node.get_closest_marker("bad_input") is not None
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", off or before)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)


@pytest.fixture(autouse=True)
def _fresh_compiler(request: pytest.FixtureRequest) -> Iterator[None]:
    """Each compile test starts without the graphs of the others, else dynamo's recompile limit ends the later ones."""
    yield
    if request.node.get_closest_marker("compile") is not None:
        torch.compiler.reset()
