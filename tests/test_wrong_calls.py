"""Wrong calls, generated from the signatures of the public functions: they end in the library's own errors.

Each parameter in turn is replaced by every value of a list of things that people hand over by mistake; all others stay
right. A call may end in a `GSSFError`, or in a right result where the value is one that the parameter takes. Fewer than
2 % may end in an error from deep inside; none may hang, return NaN, a wrong shape, or take in silence what its
annotation rules out.
"""

import collections
import dataclasses
import functools
import importlib
import inspect
import signal
import types
import typing
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from gssf_plug.attention import patch_attention
from gssf_plug.distillation import Distiller
from gssf_plug.distillation.losses import (
    CKA,
    CRD,
    MGD,
    MSE,
    PKT,
    RKD,
    SP,
    VID,
    AttentionTransfer,
    Contrastive,
    Cosine,
    LogitKL,
    Regression,
    Relation,
)
from gssf_plug.errors import GSSFError
from gssf_plug.evaluation import (
    KReciprocal,
    document_ranking,
    image_text_recall,
    image_text_recall_of_scores,
    instance_recall,
    reid_ranking,
)
from gssf_plug.losses import (
    BatchHardTriplet,
    Hinge,
    IdentityLoss,
    InfoNCE,
    SemiHardTriplet,
    Sigmoid,
    WeightedSum,
    relevance_by_id,
)
from gssf_plug.metric import (
    GSSFMetric,
    block_contributions,
    check_store,
    group_channels,
    normalize_rows,
    prepare_gallery,
    topk,
)
from gssf_plug.retrieval import RetrievalConfig, fit_metric

SECONDS = 20  # after which a call counts as hanging
AT_MOST = 0.02  # of the calls may end in an error from deep inside


class Value(NamedTuple):
    """Something that is handed over: made anew for each call.

    `kind` names the type that the annotation must hold for a call to succeed with it; None leaves that open, since the
    value is right for some parameters.
    """

    name: str
    make: Callable[[], Any]
    kind: type | None = None


def _objects(*values: Any) -> np.ndarray:
    made = np.empty(len(values), dtype=object)
    made[:] = values
    return made


VALUES = [
    Value("None", lambda: None, type(None)),
    Value("a word", lambda: "no such word", str),
    Value("a number as text", lambda: "4", str),
    Value("bytes", lambda: b"4", bytes),
    Value("an object", object, object),
    Value("a class", lambda: GSSFMetric, object),
    Value("a complex number", lambda: 1j, complex),
    Value("True", lambda: True, bool),
    Value("NaN", lambda: float("nan"), object),
    Value("infinity", lambda: float("inf"), object),
    Value("-infinity", lambda: float("-inf"), object),
    Value("-1", lambda: -1),
    Value("0", lambda: 0),
    Value("1.5", lambda: 1.5, float),
    Value("2**70", lambda: 2**70),
    Value("numpy integer", lambda: np.int64(2)),
    Value("[]", list),
    Value("[1]", lambda: [1]),
    Value("[[1.0], [2.0, 3.0]]", lambda: [[1.0], [2.0, 3.0]]),
    Value("['a', 'b']", lambda: ["a", "b"]),
    Value("(NaN, NaN)", lambda: (float("nan"), float("nan"))),
    Value("(None, None)", lambda: (None, None)),
    Value("{}", dict),
    Value("{'a': 1}", lambda: {"a": 1}),
    Value("{'a', 1}", lambda: {"a", 1}),
    Value("a function", lambda: len),
    Value("a dtype", lambda: torch.int64),
    Value("a layer", lambda: nn.Linear(2, 2)),
    Value("no dimension", lambda: torch.tensor(1.0)),
    Value("1-D", lambda: torch.zeros(8)),
    Value("3-D", lambda: torch.zeros(2, 6, 8)),
    Value("no rows", lambda: torch.zeros(0, 8)),
    Value("no columns", lambda: torch.zeros(6, 0)),
    Value("no scores", lambda: torch.zeros(0, 0)),
    Value("another width", lambda: torch.zeros(6, 5)),
    Value("NaN matrix", lambda: torch.full((6, 8), float("nan")), Tensor),
    Value("infinite matrix", lambda: torch.full((6, 8), float("inf")), Tensor),
    Value("complex matrix", lambda: torch.zeros(6, 8, dtype=torch.complex64), complex),
    Value("meta matrix", lambda: torch.empty(6, 8, device="meta"), object),
    Value("meta labels", lambda: torch.empty(6, dtype=torch.long, device="meta"), object),
    Value("sparse matrix", lambda: torch.eye(6, 8).to_sparse()),
    Value("whole matrix", lambda: torch.ones(6, 8, dtype=torch.long)),
    Value("boolean matrix", lambda: torch.ones(6, 8, dtype=torch.bool)),
    Value("half matrix", lambda: torch.ones(6, 8, dtype=torch.float16)),
    Value("negative labels", lambda: torch.full((6,), -5)),
    Value("labels of float", lambda: torch.full((6,), 0.5)),
    Value("array of objects", lambda: _objects(1, "a", None, 2.0, [], {})),
    Value("array of texts", lambda: np.array([["a"] * 8] * 6)),
    Value("array of dates", lambda: np.zeros((6, 8), dtype="datetime64[s]")),
    Value("list of objects", lambda: [[object()] * 8] * 6),
]


class Door(NamedTuple):
    """A public function with one right call: `arguments` makes it; `shape` is that of its result, where it has one."""

    call: Callable[..., Any]
    arguments: Callable[[], dict[str, Any]]
    shape: Callable[[dict[str, Any]], tuple[int, ...]] | None = None
    nan_passes: bool = False  # as documented: what was NaN before stays NaN
    check: Callable[[Any], None] | None = None
    right: tuple[tuple[str, str], ...] = ()  # parameters with values that are right, and would take long
    left_out: tuple[str, ...] = ()  # parameters that `arguments` leaves out, each with a reason beside it


def features(rows: int = 6, width: int = 8) -> Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(rows))


def metric() -> GSSFMetric:
    return GSSFMetric(8, block_size=4)


def _scores() -> dict[str, Any]:
    return {"scores": features(6, 6), "relevance": torch.eye(6).bool(), "exclude": torch.zeros(6, 6).bool()}


def _labelled() -> dict[str, Any]:
    return {"features": features(), "labels": torch.arange(6) % 3, "score": metric()}


def weighted_sum(losses: tuple[nn.Module, ...], weights: Sequence[float] | None) -> WeightedSum:
    return WeightedSum(*losses, weights=weights) if isinstance(losses, tuple | list) else WeightedSum(losses)


def _rows(*names: str) -> Callable[[dict[str, Any]], tuple[int, ...]]:
    """(N, M): as many as the last dimensions but one of these arguments, behind what is broadcast."""
    return lambda given: (
        *np.broadcast_shapes(*(np.shape(given[name])[:-2] for name in names)),
        *(np.shape(given[name])[-2] for name in names),
    )


def _pairs(*names: str) -> Callable[[dict[str, Any]], tuple[int, ...]]:
    return lambda given: np.broadcast_shapes(*(np.shape(given[name])[:-1] for name in names))


def _search(folded: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """What a store that holds `_items()` answers."""
    numbers = folded @ metric().gallery(_items()).detach().numpy().T
    ids = np.argsort(-numbers, axis=1)[:, :k]
    return np.take_along_axis(numbers, ids, 1), ids


def _items() -> Tensor:
    return features(4)


METRIC = [
    Door(
        GSSFMetric,
        lambda: {
            "dim": 8, "terms": ("diagonal", "block_diagonal"), "block_size": 4, "normalize": True, "constraint": None,
            "grouping": torch.arange(8), "adjacency": None,
        },
        check=lambda made: made(features(), features()),
    ),
    Door(
        metric().forward, lambda: {"queries": features(), "gallery": features(4)}, _rows("queries", "gallery"), True
    ),
    Door(metric().pairwise, lambda: {"x": features(), "y": features()}, _pairs("x", "y"), True),
    Door(metric().fold, lambda: {"queries": features()}, lambda given: np.shape(given["queries"]), True),
    Door(metric().gallery, lambda: {"items": features()}, lambda given: np.shape(given["items"]), True),
    Door(metric().prune, lambda: {"threshold": 0.1}),
    Door(normalize_rows, lambda: {"x": features()}, lambda given: np.shape(given["x"]), True),
    Door(
        block_contributions,
        lambda: {"metric": metric(), "queries": features(), "items": features()},
        lambda given: (*_pairs("queries", "items")(given), 2),
        True,
    ),
    Door(
        group_channels, lambda: {"x": features(), "y": features(), "block_size": 4, "swaps": 3}, lambda given: (8,)
    ),
    Door(prepare_gallery, lambda: {"features": features(), "normalize": True, "rounded": None}),
    Door(
        topk,
        lambda: {
            "metric": metric(), "queries": features(), "gallery": features(4), "k": 2, "exclude": None,
            "query_chunk": 4, "gallery_chunk": 3, "distributed": False, "forbidden": None,
        },
        check=lambda found: _check_neighbours(found),
    ),
    Door(
        check_store,
        lambda: {"search": _search, "metric": metric(), "queries": features(), "gallery": _items(), "k": 2},
    ),
    Door(
        check_store(_search, metric(), features(), _items(), 2).scores,
        lambda: {"numbers": torch.ones(6, 2), "folded": features(), "item_lengths": torch.ones(6, 2)},
        lambda given: np.shape(given["numbers"]),
        True,
    ),
]  # fmt: skip


def _check_neighbours(found: Any) -> None:
    assert found.scores.shape == found.indices.shape
    assert found.indices.ndim == 2


LOSSES = [
    # `forbidden` is the older name of `exclude`: all losses read both by one function, so one loss below stands for all
    *(Door(loss().forward, _scores, lambda given: (), True, left_out=("forbidden",)) for loss in (
        Hinge, lambda: Hinge(warmup_steps=2**60), InfoNCE, Sigmoid, BatchHardTriplet, SemiHardTriplet,
    )),
    Door(
        InfoNCE().forward, lambda: {**_scores(), "exclude": None, "forbidden": torch.zeros(6, 6).bool()},
        lambda given: (), True,
    ),
    Door(
        Hinge, lambda: {"margin": 0.2, "warmup_steps": 1, "learned_scale": True, "scale_range": (0.1, 10.0)},
        check=lambda loss: loss(**_scores()),
    ),
    Door(
        InfoNCE, lambda: {"scale": 2.0, "scale_range": (1.0, 100.0), "learned_scale": True},
        check=lambda loss: loss(**_scores()),
    ),
    Door(Sigmoid, lambda: {"learned": True, "scale_range": (1.0, 100.0)}, check=lambda loss: loss(**_scores())),
    *(Door(loss, lambda: {"margin": 0.2, "learned_scale": True}, check=lambda loss: loss(**_scores())) for loss in (
        BatchHardTriplet, SemiHardTriplet,
    )),
    Door(
        IdentityLoss, lambda: {"dim": 8, "identities": 3, "smoothing": 0.1},
    ),
    Door(
        functools.partial(IdentityLoss(8, 3).forward, score=None),
        lambda: {"features": features(), "labels": torch.arange(6) % 3},
        lambda given: (),
        True,
        left_out=("score",),  # which it does not read
    ),
    Door(
        WeightedSum(IdentityLoss(8, 3), BatchHardTriplet(), weights=[1.0, 0.5]).forward, _labelled, lambda given: (),
        True,
    ),
    Door(weighted_sum, lambda: {"losses": (Hinge(), InfoNCE()), "weights": [1.0, 0.5]}),
    Door(
        relevance_by_id, lambda: {"query_ids": torch.arange(6), "gallery_ids": torch.arange(4)},
        lambda given: (len(given["query_ids"]), len(given["gallery_ids"])),
    ),
]  # fmt: skip

EVALUATION = [
    Door(
        instance_recall,
        lambda: {
            "features": features(), "labels": [0, 1, 2, 0, 1, 2], "metric": metric(), "ks": (1, 2),
            "gallery": features(), "gallery_labels": [0, 1, 2, 0, 1, 2], "query_chunk": 4, "distributed": False,
        },
    ),
    Door(
        reid_ranking,
        lambda: {
            "query": features(), "gallery": features(), "query_ids": torch.arange(6), "gallery_ids": torch.arange(6),
            "query_cams": torch.zeros(6).long(), "gallery_cams": torch.ones(6).long(), "metric": metric(),
            "ranks": (1, 5), "rerank": KReciprocal(k1=3, k2=2), "query_chunk": 4, "distributed": False,
        },
    ),
    Door(
        image_text_recall,
        lambda: {
            "image_features": features(), "text_features": features(), "image_of_text": torch.arange(6),
            "metric": metric(), "folds": 2, "image_chunk": 4, "text_chunk": 4, "distributed": False,
        },
    ),
    Door(
        image_text_recall_of_scores,
        lambda: {"scores": features(6, 6), "image_of_text": torch.arange(6), "folds": 2},
    ),
    Door(
        document_ranking,
        lambda: {
            "queries": features(), "documents": features(), "relevant": [[0], [1], [2], [3], [4], [5]],
            "metric": metric(), "ks": (1, 3), "query_chunk": 4, "distributed": False,
        },
    ),
    Door(KReciprocal, lambda: {"k1": 3, "k2": 2, "weight": 0.3}),
    Door(
        KReciprocal(k1=3, k2=2), lambda: {"query": features(), "gallery": features(), "metric": metric()},
        _rows("query", "gallery"),
    ),
]  # fmt: skip


def _config() -> dict[str, Any]:
    given = {field.name: field.default for field in dataclasses.fields(RetrievalConfig)}
    return {**given, "output_dir": "run"}


RETRIEVAL = [
    Door(RetrievalConfig, _config),
    Door(
        fit_metric,
        lambda: {
            "queries": features(), "documents": features(5), "pairs": [[0], [1], [2], [3], [4], [0]], "ignored": None,
            "validation": 0.5, "test": None, "measure": "mAP", "structures": [{"terms": ("diagonal",)}],
            "loss": "softmax", "constraint": None, "patience": 1, "max_epochs": 1, "batch_size": 4, "seed": 0,
            "progress": False, "device": None,
        },
        right=(("max_epochs", "None"), ("max_epochs", "2**70")),
    ),
]  # fmt: skip


def _models() -> dict[str, Any]:
    return {
        "student": nn.Sequential(nn.Linear(8, 6)), "teacher": nn.Sequential(nn.Linear(8, 8)), "pairs": {"0": "0"},
        "loss": "mse", "weight": 1.0, "projector": "auto", "task_weight": 0.0, "student_inputs": None,
        "teacher_inputs": None, "teacher_dtype": None, "teacher_device": None,
    }  # fmt: skip


def tokens() -> Tensor:
    return torch.randn(6, 3, 8, generator=torch.Generator().manual_seed(0))


def precision() -> GSSFMetric:
    return GSSFMetric(8, block_size=4, constraint="psd", normalize=False)


DISTILLATION = [
    Door(Distiller, _models, check=lambda made: (made.plan(features()), made(features()))),
    *(Door(loss, lambda: {"metric": metric()}) for loss in (SP, PKT)),
    Door(RKD, lambda: {"metric": metric(), "distance_weight": 25.0, "angle_weight": 50.0}),
    Door(CRD, lambda: {"metric": metric(), "temperature": 0.07}),
    Door(LogitKL, lambda: {"temperature": 4.0}),
    Door(MGD, lambda: {"dim": 8, "share": 0.15}),
    Door(VID, lambda: {"dim": 8, "initial_variance": 5.0}),
    Door(Contrastive, lambda: {"metric": metric(), "scale": 14.0}),
    Door(Regression, lambda: {"metric": precision()}),
    Door(Relation, lambda: {"metric": metric(), "projected": False, "temperature": 0.1}),
    *(
        Door(
            loss.forward,
            lambda: {"student": tokens(), "teacher": tokens(), "mask": torch.ones(6, 3).long()},
            lambda given: (),
            True,
        )
        for loss in (
            AttentionTransfer(), CKA(), CRD(), CRD(metric()), Contrastive(metric()), Cosine(), LogitKL(), MGD(8), MSE(),
            PKT(), RKD(), Regression(precision()), Relation(metric()), SP(), VID(8),
        )
    ),
]  # fmt: skip


def _attention() -> dict[str, Any]:
    torch.manual_seed(0)
    sizes = {"vocab_size": 16, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = BertModel(BertConfig(intermediate_size=8, max_position_embeddings=16, **sizes)).eval()
    return {
        "model": model, "terms": ("diagonal",), "block_size": 4, "layers": None, "per_head": True,
        "sites": "projection", "query_norm": "after", "dtype": None, "adapter_name": "default", "example_inputs": None,
    }  # fmt: skip


ATTENTION = [Door(patch_attention, _attention)]

ROOMS = {
    "metric": METRIC,
    "losses": LOSSES,
    "evaluation": EVALUATION,
    "retrieval": RETRIEVAL,
    "distillation": DISTILLATION,
    "attention": ATTENTION,
}


SWEPT = ("metric", "metric.stores", "evaluation", "losses", "distillation.losses")
STANDS_FOR = {weighted_sum: WeightedSum}  # doors that call a public name in another way
NO_DOOR = {
    "metric.Neighbours": "a NamedTuple that topk returns",
    "metric.PreparedGallery": "what prepare_gallery returns; users do not build it",
    "metric.StoreReport": "what check_store returns; its method `scores` has a door",
    "metric.Term": "a type",
    "metric.stores.StoreReport": "what check_store returns; its method `scores` has a door",
    "losses.EmbeddingLoss": "a base class; what inherits it has doors",
    "losses.FeatureLoss": "the older name of EmbeddingLoss",
    "distillation.losses.DistillationLoss": "a base class; what inherits it has doors",
    "distillation.losses.FeatureLoss": "the older name of DistillationLoss",
}


def _public() -> dict[str, Any]:
    """The public callables of the rooms that are swept, by room and name."""
    rooms = {room: importlib.import_module(f"gssf_plug.{room}") for room in SWEPT}
    named = {f"{room}.{name}": getattr(module, name) for room, module in rooms.items() for name in module.__all__}
    return {name: value for name, value in named.items() if callable(value)}


def _called() -> tuple[list[Any], list[type]]:
    """What the doors call: functions and classes themselves, and the classes whose objects are called."""
    calls = [getattr(door.call, "func", door.call) for doors in ROOMS.values() for door in doors]
    forwards = [call for call in calls if getattr(call, "__name__", "") == "forward"]
    return [STANDS_FOR.get(call, call) for call in calls if inspect.isroutine(call) or inspect.isclass(call)], [
        type(forward.__self__) for forward in forwards
    ]


class Hanging(BaseException):
    """The time of a call is over."""


def _over(*_: object) -> None:
    raise Hanging


@pytest.fixture(autouse=True)
def _no_waiting() -> Iterator[None]:
    before = signal.signal(signal.SIGALRM, _over)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def wrong_calls(room: str) -> Iterator[tuple[Door, str, Value]]:
    """Every parameter of every door, with every value."""
    for door in ROOMS[room]:
        for parameter in inspect.signature(door.call).parameters:
            if parameter in door.arguments():
                wrong = (value for value in VALUES if (parameter, value.name) not in door.right)
                yield from ((door, parameter, value) for value in wrong)


def _may_be(annotation: Any, kind: type) -> bool:
    """Whether an annotation holds this type; `Any` holds all of them."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return any(_may_be(part, kind) for part in typing.get_args(annotation))
    return annotation in (Any, kind) or (annotation is None and kind is type(None))


def _holds_nan(result: Any) -> bool:
    if isinstance(result, float):
        return result != result
    if isinstance(result, Tensor):
        return result.is_floating_point() and not result.is_meta and bool(result.isnan().any())
    if isinstance(result, np.ndarray):
        return result.dtype.kind == "f" and bool(np.isnan(result).any())
    if isinstance(result, nn.Module):
        return any(_holds_nan(value.detach()) for value in result.state_dict().values())
    if isinstance(result, Mapping):
        return any(map(_holds_nan, result.values()))
    return isinstance(result, tuple | list) and any(map(_holds_nan, result))


def _outcome(door: Door, parameter: str, value: Value) -> tuple[str, str]:
    """How a call ends, "refused", "right", "foreign", "silent" or "hangs", and the detail of it."""
    given = {**door.arguments(), parameter: value.make()}
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        result = door.call(**given)
        if door.check is not None:
            door.check(result)
    except GSSFError:
        return "refused", ""
    except Hanging:
        return "hangs", ""
    except Exception as error:
        return "foreign", f"{type(error).__name__}: {error}"[:140]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    annotation = inspect.signature(door.call).parameters[parameter].annotation
    if (
        value.kind is not None
        and not _may_be(annotation, value.kind)
        and not (door.nan_passes and "matrix" in value.name)
    ):
        return "silent", "taken, which its annotation rules out"
    if _holds_nan(result) and not (door.nan_passes and value.name in ("NaN matrix", "infinite matrix")):
        return "silent", "NaN"
    if door.shape is not None and tuple(result.shape) != tuple(door.shape(given)):
        return "silent", f"shape {tuple(result.shape)}"
    return "right", ""


@pytest.mark.bad_input
@pytest.mark.parametrize("room", ROOMS)
def test_wrong_calls_are_refused_by_name(room: str) -> None:
    ends: dict[str, list[str]] = collections.defaultdict(list)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # few items tie, and say so
        for door, parameter, value in wrong_calls(room):
            end, detail = _outcome(door, parameter, value)
            name = getattr(door.call, "__qualname__", type(door.call).__name__)
            ends[end].append(f"{name}({parameter}={value.name}) {detail}")
    count = sum(map(len, ends.values()))
    assert not ends["hangs"], "\n".join(ends["hangs"])
    assert not ends["silent"], "\n".join(ends["silent"])
    assert len(ends["foreign"]) < AT_MOST * count, "\n".join([f"{len(ends['foreign'])} of {count}", *ends["foreign"]])
    assert len(ends["refused"]) > count / 2  # they are wrong calls


def test_there_are_many_of_them() -> None:
    assert sum(1 for room in ROOMS for _ in wrong_calls(room)) >= 1_500


def test_every_public_callable_has_a_door() -> None:
    called, forwarded = _called()
    missing = []
    for name, value in _public().items():
        if name in NO_DOOR:
            continue
        module = inspect.isclass(value) and issubclass(value, nn.Module)
        builds = not (module and value.__init__ is nn.Module.__init__)  # or its constructor takes nothing
        if builds and not any(value is call for call in called):
            missing.append(f"{name} is not called")
        if module and value not in forwarded:
            missing.append(f"{name}.forward is not called")
    assert not missing, "\n".join(missing)


def test_what_has_no_door_is_public_and_has_none() -> None:
    called, forwarded = _called()
    public = _public()
    assert set(NO_DOOR) <= set(public)
    assert not [name for name in NO_DOOR if any(public[name] is call for call in (*called, *forwarded))]


def test_no_parameter_is_left_out_in_silence() -> None:
    wrong = []
    for door in (door for doors in ROOMS.values() for door in doors):
        parameters, given = set(inspect.signature(door.call).parameters), set(door.arguments())
        name = getattr(door.call, "__qualname__", repr(door.call))
        wrong += [f"{name}({one}) is left out" for one in parameters - given - set(door.left_out)]
        wrong += [f"{name}({one}) is given, and said to be left out" for one in set(door.left_out) & given]
        wrong += [f"{name} has no {one}" for one in (given | set(door.left_out)) - parameters]
    assert not wrong, "\n".join(wrong)
