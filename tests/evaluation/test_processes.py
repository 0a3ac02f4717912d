"""Two processes count their shares and receive what one process finds."""

import pytest
import torch
import torch.multiprocessing

from gssf_plug.evaluation import document_ranking, image_text_recall, instance_recall, reid_ranking
from gssf_plug.metric import topk


def evaluate_all(distributed):
    generator = torch.Generator().manual_seed(3)
    features = torch.randn(50, 8, generator=generator)
    labels = torch.randint(6, (50,), generator=generator)
    cameras = torch.randint(3, (50,), generator=generator)
    owners = torch.randint(20, (50,), generator=generator)
    sides = (features[:20], features[20:], labels[:20], labels[20:], cameras[:20], cameras[20:])
    gallery = torch.randn(90, 8, generator=generator).half().repeat(2, 1)  # every item twice: ties
    documents = features.repeat(2, 1)
    grades = torch.randint(3, (20, 100), generator=generator) * (torch.rand(20, 100, generator=generator) < 0.1)
    grades[:7] = 0  # whole chunks without a relevant document
    return {
        "topk": [
            topk(None, features, gallery[:count], 7, gallery_chunk=9, distributed=distributed) for count in (180, 20, 8)
        ],
        "reid": reid_ranking(*sides, query_chunk=3, distributed=distributed),
        "instance": instance_recall(features, labels, query_chunk=60, distributed=distributed),  # nothing for rank 1
        "documents": document_ranking(features[:20], documents, grades, query_chunk=3, distributed=distributed),
        "one query": document_ranking(features[:1], documents, [{4: 1.0, 9: 2.0}], distributed=distributed),
        "image_text": image_text_recall(
            features[:20], features, owners, image_chunk=6, text_chunk=9, folds=2, distributed=distributed
        ),
    }


def work(rank, store, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    assert torch.distributed.get_world_size() == 2
    torch.save(evaluate_all(distributed=True), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_equal_one(tmp_path):
    torch.multiprocessing.spawn(work, args=(tmp_path / "store", tmp_path), nprocs=2)
    right = evaluate_all(distributed=False)
    for rank in (0, 1):
        got = torch.load(tmp_path / f"{rank}.pt", weights_only=False)
        for one, other in zip(got.pop("topk"), right["topk"], strict=True):  # of 8 items one process has none
            assert torch.equal(one[0], other[0])
            assert torch.equal(one[1], other[1])
        for task in got:
            assert got[task] == pytest.approx(right[task], abs=1e-12), task
