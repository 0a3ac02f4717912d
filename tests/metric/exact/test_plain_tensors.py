"""Exact functions inside autocast, on tensor subclasses and on tensors with gradients give what they give outside."""

import pytest
import torch
from torch._dynamo.exc import Unsupported
from torch._dynamo.testing import CompileCounter

from gssf_plug.evaluation import KReciprocal, document_ranking, image_text_recall, instance_recall, reid_ranking
from gssf_plug.metric import prepare_gallery, topk
from gssf_plug.metric.exact.plain_tensors import on_plain_tensors


class Own(torch.Tensor):
    """A subclass that adds nothing, as torchvision's images and boxes are to most operations."""


def everything(features, labels, cameras):
    """All that ranks, of enough items that every road is taken: half precision, whole numbers, sampled products."""
    queries, prepared = features[:80], prepare_gallery(features)
    sides = features[:80], features[80:], labels[:80], labels[80:], cameras[:80], cameras[80:]
    hidden = labels[:80, None] == labels
    return {
        "topk": [tuple(topk(None, queries, features, k, exclude=hidden)) for k in (1, 900)],
        "a few": [tuple(topk(None, features[:count], prepared, 5)) for count in (1, 2, 3)],
        "instance": instance_recall(features, labels),
        "reid": reid_ranking(*sides),
        "reranked": reid_ranking(*sides, rerank=KReciprocal(k1=5, k2=2)),
        "image-text": image_text_recall(features[:80], features, labels),
        "documents": document_ranking(queries, features, hidden.long()),
    }


def given():
    torch.manual_seed(0)
    return torch.randn(1000, 8, dtype=torch.float32).round(), torch.arange(1000) % 80, torch.randint(3, (1000,))


@pytest.fixture(scope="module")
def right():
    with pytest.warns(UserWarning, match="tied"):
        return everything(*given())


def assert_right(found, right):
    for task in right:
        if isinstance(right[task], dict):
            assert found[task] == right[task], task
        else:
            for one, other in zip(found[task], right[task], strict=True):
                assert all(map(torch.equal, one, other)), task


@pytest.mark.filterwarnings("ignore:The positive is tied")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_inside_autocast(dtype, right):
    with torch.autocast("cpu", dtype=dtype):
        found = everything(*given())
        assert torch.is_autocast_enabled("cpu")
    assert_right(found, right)


@pytest.mark.filterwarnings("ignore:The positive is tied")
@pytest.mark.parametrize("made", [lambda x: x.as_subclass(Own), lambda x: torch.nn.Parameter(x, x.is_floating_point())])
def test_subclasses_and_parameters(made, right):
    found = everything(*map(made, given()))
    assert type(found["topk"][0][0]) is torch.Tensor
    assert_right(found, right)


@pytest.mark.filterwarnings("ignore:The positive is tied")
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_where_denormals_are_flushed_or_the_default_dtype_is_another(dtype, right):
    assert torch.set_flush_denormal(True)
    torch.set_default_dtype(dtype)
    try:
        found = everything(*given())
    finally:
        torch.set_flush_denormal(False)
        torch.set_default_dtype(torch.float32)
    assert_right(found, right)


@pytest.mark.filterwarnings("ignore:The positive is tied")
def test_where_the_default_device_is_another(right):
    everywhere = given()
    with torch.device("meta"):  # as `torch.set_default_device("cuda")` does for features on a CPU
        found = everything(*everywhere)
    assert_right(found, right)


def test_functions_of_the_user_find_what_they_find_outside():
    features, labels, devices = torch.randn(20, 4), torch.arange(20) % 5, []

    def note(result):
        devices.append(torch.empty(0).device.type)
        return result

    with torch.device("meta"):
        topk(None, features, features, 20, exclude=lambda rows, items: note(rows[:, None] == items))
        sides = features[:5], features[5:], labels[:5], labels[5:], labels[:5] * 0, labels[5:]
        reid_ranking(*sides, rerank=lambda query, gallery, metric: note(query @ gallery.T))
    assert set(devices) == {"meta"}
    assert len(devices) > 1


def test_is_seen_through():
    @on_plain_tensors
    def named(x: int) -> bool:
        """Says so."""
        return torch.is_grad_enabled()

    assert (named.__name__, named.__doc__, named(1), torch.is_grad_enabled()) == ("named", "Says so.", False, True)


def evaluated(features, labels):
    """An evaluation step: graphs before, between and after what ranks."""
    queries = features * 2
    found = topk(None, queries, prepare_gallery(features), k=3, exclude=lambda rows, items: rows[:, None] == items)
    sides = queries[:30], features[30:], labels[:30], labels[30:], labels[:30] * 0, labels[30:] * 0 + 1
    measures = instance_recall(queries, labels), reid_ranking(*sides, rerank=KReciprocal(k1=5, k2=2))
    return found.scores, found.indices, measures, (queries @ features.T).sum()


@pytest.mark.compile
def test_compiled_steps_rank_as_others():
    features, labels, graphs = torch.randn(90, 8), torch.arange(90) % 9, CompileCounter()
    compiled = torch.compile(evaluated, backend=graphs)
    for given in (features, features[:60]):
        scores, indices, measures, total = compiled(given, labels[: len(given)])
        right = evaluated(given, labels[: len(given)])
        assert torch.equal(scores, right[0])
        assert torch.equal(indices, right[1])
        assert measures == right[2]
        torch.testing.assert_close(total, right[3])
    assert torch.equal(torch.compile(topk, backend=graphs)(None, features, features, 2).indices[:, 0], torch.arange(90))
    before = graphs.frame_count
    compiled(features, labels)
    assert graphs.frame_count == before  # what ranks leaves no graphs of its own


@pytest.mark.compile
def test_a_whole_graph_is_refused_by_the_reason():
    features = torch.randn(9, 8)
    with pytest.raises(Unsupported, match="torch.compiler.disable.*exact search and ranking"):
        torch.compile(lambda x: topk(None, x, features, 3).scores, fullgraph=True)(features)
