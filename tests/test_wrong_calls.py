"""Wrong calls, generated from the signatures of the public functions: they end in the library's own errors.

Each parameter in turn is replaced by every value of a list of things that people hand over by mistake, and by what
mistakes make of the right one (`wrong_calls.values`); all others stay right, and of some calls two are wrong. A call
may end in a `GSSFError`, or in a right result where the value is one that the parameter takes. Fewer than 1 % may end
in an error from deep inside; none may hang, return NaN, a wrong shape, or take in silence what its annotation rules
out.
"""

import collections
import importlib
import inspect
import warnings
from pathlib import Path
from typing import Any

import pytest
from torch import nn
from wrong_calls.attention import ATTENTION
from wrong_calls.distillation import DISTILLATION
from wrong_calls.door import outcome, wrong_calls
from wrong_calls.evaluation import EVALUATION
from wrong_calls.features import FEATURES
from wrong_calls.frameworks import FRAMEWORKS, fold_query, index_embedding, normalize_documents
from wrong_calls.losses import LOSSES, weighted_sum
from wrong_calls.metric import METRIC
from wrong_calls.models import MODELS
from wrong_calls.reading import READING
from wrong_calls.retrieval import RETRIEVAL
from wrong_calls.taps import TAPS

from gssf_plug.losses import WeightedSum
from gssf_plug.retrieval.embedders.haystack import FoldQuery, NormalizeDocuments
from gssf_plug.retrieval.embedders.llama_index import MetricEmbedding

AT_MOST = 0.01  # of the calls may end in an error from deep inside

ROOMS = {
    "features": FEATURES,
    "reading": READING,
    "models": MODELS,
    "metric": METRIC,
    "losses": LOSSES,
    "evaluation": EVALUATION,
    "retrieval": RETRIEVAL,
    "distillation": [*DISTILLATION, *TAPS],
    "attention": ATTENTION,
    "frameworks": FRAMEWORKS,
}


SWEPT = (
    "metric", "metric.stores", "evaluation", "losses", "features", "retrieval", "retrieval.data", "retrieval.models",
    "distillation", "distillation.losses", "attention", "attention.layouts", "losses.pml",
    "retrieval.sentence_transformers", "retrieval.embedders.haystack", "retrieval.embedders.langchain",
    "retrieval.embedders.llama_index",
)  # fmt: skip
STANDS_FOR = {  # doors that call a public name in another way
    weighted_sum: WeightedSum,
    fold_query: FoldQuery,
    normalize_documents: NormalizeDocuments,
    index_embedding: MetricEmbedding,
}
NO_DOOR = {
    "metric.Neighbours": "a NamedTuple that topk returns",
    "metric.PreparedGallery": "what prepare_gallery returns; users do not build it",
    "metric.StoreReport": "what check_store returns; its method `scores` has a door",
    "metric.Term": "a type",
    "metric.stores.StoreReport": "what check_store returns; its method `scores` has a door",
    "losses.EmbeddingLoss": "a base class; what inherits it has doors",
    "losses.FeatureLoss": "the older name of EmbeddingLoss",
    "features.Pooling": "a type",
    "retrieval.Embedding": "a NamedTuple that models return; who reads one checks it, which has a door",
    "retrieval.FitResult": "what fit_metric returns",
    "retrieval.FitRow": "a row of what fit_metric returns",
    "retrieval.Fragments": "a pair that models return; who reads one checks it, which has a door",
    "retrieval.ImageTextModel": "a base class; what inherits it has doors",
    "retrieval.NotFiniteError": "an error",
    "retrieval.Progress": "what training returns",
    "retrieval.RetrievalModel": "a base class; what inherits it has doors",
    "retrieval.models.Embedding": "see retrieval.Embedding",
    "retrieval.models.Fragments": "see retrieval.Fragments",
    "retrieval.models.ImageTextModel": "a base class; what inherits it has doors",
    "retrieval.models.RetrievalModel": "a base class; what inherits it has doors",
    "attention.MergeReport": "what merge returns; users do not build it",
    "attention.layouts.Heads": "what the search of a model's attention fills in",
    "attention.layouts.head_counts": "asked by the search of a model's attention",
    "attention.layouts.known": "takes nothing",
    "attention.layouts.query_norms": "asked by the search of a model's attention",
    "attention.layouts.resolve": "asked by the search of a model's attention",
    "attention.layouts.setting": "asked by the search of a model's attention",
    "distillation.Feature": "a NamedTuple that taps return",
    "distillation.losses.DistillationLoss": "a base class; what inherits it has doors",
    "distillation.losses.FeatureLoss": "the older name of DistillationLoss",
}
NO_FORWARD = {
    "BNNeck": "torch's own BatchNorm1d",
    "AnySize": "the caller's own encoder answers",
    "FrozenNorms": "the caller's own encoder answers",
    "LastStrideOne": "the caller's own encoder answers",
    "Tower": "the caller's own encoder answers; its poolings have doors",
    "DualEncoder": "inherited, as TwoTower's, which has a door",
    "LocalAlignment": "inherited, as TwoTower's, which has a door; its `score` has one, too",
    "Distiller": "called inside a function that plans first, which has a door",
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


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Doors make their folders where they are called, and a word may be taken for one."""
    monkeypatch.chdir(tmp_path)


@pytest.mark.bad_input
@pytest.mark.parametrize("room", ROOMS)
def test_wrong_calls_are_refused_by_name(room: str) -> None:
    ends: dict[str, list[str]] = collections.defaultdict(list)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # few items tie, and say so
        for call in wrong_calls(ROOMS[room]):
            end, detail = outcome(call)
            ends[end].append(f"{call} {detail}")
    count = sum(len(calls) for end, calls in ends.items() if end != "impossible")
    assert not ends["hangs"], "\n".join(ends["hangs"])
    assert not ends["silent"], "\n".join(ends["silent"])
    assert len(ends["foreign"]) < AT_MOST * count, "\n".join([f"{len(ends['foreign'])} of {count}", *ends["foreign"]])
    assert len(ends["refused"]) > count / 2  # they are wrong calls


def test_there_are_many_of_them() -> None:
    assert sum(1 for doors in ROOMS.values() for _ in wrong_calls(doors)) >= 20_000


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
        if module and value not in forwarded and value.__name__ not in NO_FORWARD:
            missing.append(f"{name}.forward is not called")
    assert not missing, "\n".join(missing)


def test_what_has_no_door_is_public_and_has_none() -> None:
    called, forwarded = _called()
    public = _public()
    assert set(NO_DOOR) <= set(public)
    assert not [name for name in NO_DOOR if any(public[name] is call for call in (*called, *forwarded))]
    assert set(NO_FORWARD) <= {getattr(value, "__name__", "") for value in public.values()}
    assert not [value for value in forwarded if value.__name__ in NO_FORWARD]


def test_no_parameter_is_left_out_in_silence() -> None:
    wrong = []
    for door in (door for doors in ROOMS.values() for door in doors):
        parameters, given = set(inspect.signature(door.call).parameters), set(door.arguments())
        name = getattr(door.call, "__qualname__", repr(door.call))
        wrong += [f"{name}({one}) is left out" for one in parameters - given - set(door.left_out)]
        wrong += [f"{name}({one}) is given, and said to be left out" for one in set(door.left_out) & given]
        wrong += [f"{name} has no {one}" for one in (given | set(door.left_out)) - parameters]
    assert not wrong, "\n".join(wrong)
