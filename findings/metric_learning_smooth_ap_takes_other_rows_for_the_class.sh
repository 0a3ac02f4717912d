#!/usr/bin/env bash
# Found: pytorch-metric-learning's SmoothAPLoss takes other rows for an item's class unless a batch has as many classes as items of each. It
# divides the batch's size by the number of classes, which gives the items of a class, and takes that for the number of classes: 8 classes
# of 4 are cut into 4 groups of 8, two classes in each, and 4 classes of 8 into 8 groups of 4. Perfect embeddings get a loss of 0.33 to
# 0.82 in place of 0. The groups are rows that lie side by side, whatever their labels: in another order perfect ones of 8 classes of 8
# get 0.81. It refuses uneven classes and advises MPerClassSampler(m, batch_size), and a note in its code says that neither the
# number of classes nor their order matters. Trained by that sampler, 16 classes of 2 learn next to nothing (nearest neighbours of the same
# class 11 to 16 %, where the paper's formula reaches 98), 8 of 4 reach 98 %, the loss stays at 0.32; rows in another order learn nothing.
# Why it matters: random embeddings get a believable value and nothing warns, so one blames the loss or the learning rate: a
# comparison of losses finds it poor, or good in the one square setting. Use batches of n classes of n items, classes in a row.
# The documentation of the next major version promises any order and uneven classes. Seen with pytorch-metric-learning 2.9.0, torch 2.13.0.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "torch==2.13.*" "pytorch-metric-learning==2.9.0" "numpy<3" 2>/dev/null
cd "$folder"
venv/bin/python - 2> said <<'PY' || { tail -20 said; exit 1; }
from importlib.metadata import version

import torch
from pytorch_metric_learning.losses import SmoothAPLoss
from pytorch_metric_learning.samplers import MPerClassSampler
from pytorch_metric_learning.utils import common_functions
from torch.nn import functional as F

torch.set_num_threads(1)
print("torch", torch.__version__, "pytorch-metric-learning", version("pytorch-metric-learning"))
library = SmoothAPLoss()


def paper(rows: torch.Tensor, labels: torch.Tensor, temperature: float = 0.01) -> torch.Tensor:
    """The paper's loss, its positives by the labels; each item counts among its own, as in the authors' code."""
    scores = F.normalize(rows) @ F.normalize(rows).T
    above = torch.sigmoid((scores[:, None, :] - scores[:, :, None]) / temperature) * (1 - torch.eye(len(rows)))
    alike = (labels[:, None] == labels).float()
    precision = (1 + (above * alike[:, None]).sum(2)) / (1 + above.sum(2))
    return 1 - ((precision * alike).sum(1) / alike.sum(1)).mean()


def nearest_alike(rows: torch.Tensor, labels: torch.Tensor) -> float:
    """Share of the items whose nearest other is of their class."""
    scores = F.normalize(rows) @ F.normalize(rows).T
    return (labels[scores.fill_diagonal_(-2).argmax(1)] == labels).float().mean().item()


for classes, items in ((4, 4), (8, 8), (8, 4), (4, 8), (16, 2), (2, 16)):
    torch.manual_seed(0)
    labels = torch.arange(classes).repeat_interleave(items)
    perfect = torch.eye(classes, 32)[labels] + 1e-3 * torch.randn(len(labels), 32)
    noise, order = torch.randn(len(labels), 32), torch.randperm(len(labels))
    found = {name: loss(perfect, labels).item() for name, loss in (("library", library), ("paper", paper))}
    mixed = {name: loss(perfect[order], labels[order]).item() for name, loss in (("library", library), ("paper", paper))}
    random = {name: loss(noise, labels).item() for name, loss in (("library", library), ("paper", paper))}
    print(f"{classes} classes of {items}:", *(
        f"{kind}, library {each['library']:.3f}, paper {each['paper']:.3f};"
        for kind, each in (("perfect", found), ("perfect in another order", mixed), ("random", random))
    ))
    assert found["paper"] < 0.001 and mixed["paper"] < 0.001, "behaviour has changed"
    assert mixed["library"] > 0.2, "behaviour has changed"
    assert (found["library"] < 0.001) if classes == items else (found["library"] > 0.3), "behaviour has changed"

labels = torch.arange(16).repeat_interleave(8)
for classes, items, kept in ((8, 8, True), (8, 4, True), (16, 2, True), (8, 8, False), (8, 4, False)):
    hits, ends = {}, {}
    for name, loss in (("library", library), ("paper", paper)):
        torch.manual_seed(0)
        common_functions.NUMPY_RANDOM.seed(0)
        table, size = torch.randn(len(labels), 32, requires_grad=True), classes * items
        optimizer = torch.optim.Adam([table], lr=0.02)
        before, losses = nearest_alike(table.detach(), labels), []
        for drawn in torch.tensor(list(MPerClassSampler(labels, items, size, length_before_new_iter=150 * size))).split(size):
            batch = drawn if kept else drawn[torch.randperm(size)]
            value = loss(table[batch], labels[batch])
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            losses.append(value.item())
        hits[name], ends[name] = nearest_alike(table.detach(), labels), sum(losses[-10:]) / 10
        print(f"trained, {classes} classes of {items} a batch, {'as the sampler draws' if kept else 'in another order'}, {name}: loss "
              f"{losses[0]:.2f} to {ends[name]:.2f}, nearest of the same class {before:.2f} to {hits[name]:.2f}")
    assert hits["paper"] > 0.9, "behaviour has changed"
    if (classes, items, kept) == (8, 8, True):
        assert hits["library"] > 0.9 and ends["library"] < 0.1, "behaviour has changed"
    else:
        assert ends["library"] > 0.2 and ends["library"] > 2 * ends["paper"], "behaviour has changed"
        assert hits["library"] < 0.4 or (items == 4 and kept), "behaviour has changed"
PY
