"""What holds in the whole suite: seeds, no shape checks where a test passes what the annotations forbid, slow tests."""

import gc
import os
import resource
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

IN_TURNS = "PYTEST_XDIST_WORKER" not in os.environ
if not IN_TURNS:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # tests beside one another share the cores, and so do their processes

import jaxtyping  # noqa: E402 — torch reads the variable when it is imported
import pytest  # noqa: E402
import shape_hook  # noqa: E402
import torch  # noqa: E402
from tools import slow  # noqa: E402

jaxtyping.jaxtyped = shape_hook.jaxtyped  # what the hook of `--jaxtyping-packages` decorates with, module by module

if not IN_TURNS:
    torch.set_num_threads(1)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seconds", type=Path, help="write the seconds of every test into this file: tests/tools/slow.py")


def pytest_configure(config: pytest.Config) -> None:
    path = config.getoption("--seconds")
    if path is not None and IN_TURNS:  # here reports of all processes arrive
        config.pluginmanager.register(slow.Stopwatch(path))


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """What collection makes stays: the garbage collector does not look for garbage in it, neither now nor later."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()  # a million objects of torch and transformers, looked through at every full collection otherwise
        gc.enable()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark what is slow, before `-m` chooses; processes that share the suite begin with the longest files."""
    listed = slow.read_list()
    asked_by_name = any("::" in argument for argument in config.args)
    config.stash[slow.COLLECTED] = [] if asked_by_name else [item.nodeid for item in items]
    for item in items:
        if slow.function_of(item.nodeid) in listed:
            item.add_marker("slow")
    if not IN_TURNS:
        slow.longest_file_first(items, listed)


@pytest.fixture(autouse=True, scope="module")
def _own_accelerator_state() -> None:
    """Accelerate keeps one state for the process: a file's precision would be that of whichever file comes next."""
    if state := sys.modules.get("accelerate.state"):
        state.AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(autouse=True, scope="module")
def _kept_out_of_later_collections() -> Iterator[None]:
    """What a file leaves, such as the caches of a compiler, is no garbage of the next, whose Trainers look for some."""
    yield
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="module")
def _own_garbage() -> Iterator[None]:
    """What a file leaves open in a cycle is reported as its own.

    The collector runs where most objects are made, so tests that compile were blamed for files of others.
    """
    yield
    gc.collect()


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.default_generator.manual_seed(0)  # `torch.manual_seed` also writes a stack trace for each kind of device


@pytest.fixture(autouse=True)
def _shape_hook(request: pytest.FixtureRequest) -> Iterator[None]:
    """Bad-input tests want our error, not the hook's; what is compiled must be the library's code alone."""
    off = any(request.node.get_closest_marker(name) is not None for name in ("bad_input", "compile"))
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


@pytest.fixture
def two_threads() -> Iterator[None]:
    """Two of torch's threads, as a machine of two cores has them."""
    usual = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(usual)


@pytest.fixture
def little_memory() -> Iterator[None]:
    """Two GiB beyond what is mapped now: allocating for a number in a file fails, and not by a CheckpointError."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (mapped + 2 * 2**30, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.fixture
def no_hang() -> Iterator[None]:
    """An alarm that ends what does not end."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(300)
    yield
    signal.alarm(0)
