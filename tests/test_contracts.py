"""Every extension point has a contract suite in tests/contracts/, and whatever the package offers there inherits it.

A new loss, structure, injected layer, teacher, retrieval model, batch sampler or data set without a test class of its
contract fails here.
"""

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from contracts.batch_sampler import BatchSamplerContract
from contracts.data_set import DataSetContract
from contracts.distillation_loss import DistillationLossContract
from contracts.injected_layer import InjectedLayerContract
from contracts.loss import LossContract
from contracts.metric import DIM, MetricContract
from contracts.retrieval_model import RetrievalModelContract
from contracts.teacher import TeacherContract

import gssf_plug
from gssf_plug import GSSFMetric
from gssf_plug.attention.query_layer import LayerMetric
from gssf_plug.distillation.losses import DistillationLoss
from gssf_plug.losses.row_loss import RowLoss
from gssf_plug.metric.structures import Structure
from gssf_plug.retrieval import RetrievalModel, data

TESTS = Path(__file__).resolve().parent


def modules(room: str) -> list[Any]:
    """The modules of a room, imported."""
    package = importlib.import_module(f"gssf_plug.{room}")
    names = [found.name for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")]
    return [importlib.import_module(name) for name in names]


def kinds(base: type, room: str) -> set[type]:
    """The classes of the package below `base`, as its room gives them, that have none below themselves."""
    importlib.import_module(f"gssf_plug.{room}")
    below = [kind for kind in _all_below(base) if kind.__module__.startswith(f"{gssf_plug.__name__}.")]
    return {kind for kind in below if not any(issubclass(other, kind) and other is not kind for other in below)}


def _all_below(base: type) -> set[type]:
    return {found for kind in base.__subclasses__() for found in (kind, *_all_below(kind))}


def with_methods(room: str, *methods: str) -> set[type]:
    """The classes of a room that have these methods, protocols left out."""
    found = {kind for module in modules(room) for _, kind in inspect.getmembers(module, inspect.isclass)}
    own = {kind for kind in found if kind.__module__.startswith("gssf_plug.") and not getattr(kind, "_is_protocol", 0)}
    return {kind for kind in own if all(callable(getattr(kind, name, None)) for name in methods)}


def data_sets() -> set[str]:
    """The readers of classic data sets, by name."""
    return {name for module in modules("retrieval.data.sets") for name in module.__all__} & set(data.__all__)


class Point(NamedTuple):
    """An extension point: its contract, where its test classes stand, what the package offers, what a class tests."""

    contract: type
    files: tuple[str, ...]
    offered: Callable[[], Iterable[Any]]
    tested: Callable[[Any], Iterable[Any]]


POINTS = [
    Point(
        MetricContract,
        ("metric/test_structures",),
        lambda: kinds(Structure, "metric"),
        lambda suite: map(type, GSSFMetric(DIM, **suite.options).structures.values()),
    ),
    Point(
        LossContract,
        ("losses/test_infonce", "losses/test_hinge", "losses/test_sigmoid", "losses/test_triplet"),
        lambda: kinds(RowLoss, "losses"),
        lambda suite: [type(suite.make())],
    ),
    Point(
        DistillationLossContract,
        tuple(f"distillation/losses/test_{name}" for name in ("gssf", "pointwise", "relational")),
        lambda: kinds(DistillationLoss, "distillation.losses"),
        lambda suite: [type(suite.make())],
    ),
    Point(
        InjectedLayerContract,
        ("attention/test_every_injected_layer",),
        lambda: kinds(LayerMetric, "attention"),
        lambda suite: [suite.kind],
    ),
    Point(
        TeacherContract,
        ("distillation/test_teacher", "distillation/cache/test_teacher_cache"),
        lambda: with_methods("distillation", "watch", "features", "find"),
        lambda suite: [suite.kind],
    ),
    Point(
        RetrievalModelContract,
        tuple(f"retrieval/models/test_{name}" for name in ("contract", "dual_encoder", "local_alignment")),
        lambda: kinds(RetrievalModel, "retrieval.models"),
        lambda suite: [type(suite.make(None))],
    ),
    Point(
        BatchSamplerContract,
        ("retrieval/data/test_every_sampler",),
        lambda: with_methods("retrieval.data", "set_epoch", "__iter__", "__len__"),
        lambda suite: [type(suite.make())],
    ),
    Point(DataSetContract, ("retrieval/data/sets/test_every_set",), data_sets, lambda suite: [suite.name]),
]


def suites(point: Point) -> list[type]:
    """The test classes that inherit a contract."""
    files = [importlib.import_module(name.replace("/", ".")) for name in point.files]
    found = {kind for file in files for _, kind in inspect.getmembers(file, inspect.isclass)}
    return [kind for kind in found if issubclass(kind, point.contract) and kind.__name__.startswith("Test")]


@pytest.mark.parametrize("point", POINTS, ids=lambda point: point.contract.__name__)
def test_whatever_is_offered_inherits_its_contract(point: Point) -> None:
    offered = set(point.offered())
    assert len(offered) > 1
    tested = {kind for suite in suites(point) for kind in point.tested(suite())}
    assert offered <= tested, f"no test class of {point.contract.__name__} for {offered - tested}"


def test_one_without_a_test_class_is_found() -> None:
    class New(RowLoss):
        __module__ = "gssf_plug.losses.new"

    assert New in kinds(RowLoss, "losses")


def test_every_contract_is_a_point() -> None:
    here = {path.stem for path in (TESTS / "contracts").glob("*.py")}
    assert here == {point.contract.__module__.rpartition(".")[2] for point in POINTS}
