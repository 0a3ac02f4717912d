"""What every structure of the metric must hold, inherited by one test class per structure in tests/metric.

A subclass names the constructor's options and writes its matrix once more, by obvious loops over the raw parameters in
float64. Everything is tested on perturbed parameters, so that nothing passes because the metric is the identity.
"""

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from gssf_plug import GSSFMetric

DIM = 12


class MetricContract:
    options: dict[str, Any]

    def make(self, *, perturbed: bool = True, **extra: Any) -> GSSFMetric:
        metric = GSSFMetric(DIM, **{**self.options, **extra})
        if perturbed:
            with torch.no_grad():
                for parameter in metric.parameters():
                    parameter.add_(0.3 * torch.randn_like(parameter))
        return metric

    def reference_structure(self, parameters: dict[str, Tensor]) -> Tensor:
        """The D×D matrix before constraint and grouping, by loops, in float64."""
        raise NotImplementedError

    def reference_matrix(self, metric: GSSFMetric) -> Tensor:
        raw = self.reference_structure({name: value.detach().double() for name, value in metric.named_parameters()})
        if self.options.get("constraint") == "symmetric":
            raw = (raw + raw.T) / 2
        if self.options.get("constraint") == "psd":
            raw = raw.T @ raw
        grouping = self.options.get("grouping")
        if grouping is None:
            return raw
        placed = torch.zeros_like(raw)
        for i in range(DIM):
            for j in range(DIM):
                placed[grouping[i], grouping[j]] = raw[i, j]
        return placed

    def reference_scores(self, metric: GSSFMetric, x: Tensor, y: Tensor) -> Tensor:
        matrix = self.reference_matrix(metric)
        scores = torch.zeros(len(x), len(y), dtype=torch.float64)
        for i, left in enumerate(x.double()):
            for j, right in enumerate(y.double()):
                unit_left, unit_right = left / left.norm(), right / right.norm()
                scores[i, j] = unit_left @ matrix @ unit_right
        return scores

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
    def test_starts_as_cosine_to_the_bit(self, dtype: torch.dtype) -> None:
        metric = self.make(perturbed=False)
        x, y = torch.randn(5, DIM).to(dtype), torch.randn(7, DIM).to(dtype)
        assert torch.equal(metric.fold(x), metric.gallery(x))
        expected = cosine_similarity(x.double()[:, None], y.double()[None], dim=-1)
        tolerance = {torch.float64: 1e-12, torch.float32: 1e-6, torch.bfloat16: 2e-2, torch.float16: 2e-3}[dtype]
        torch.testing.assert_close(metric(x, y).double(), expected, atol=tolerance, rtol=0)
        assert metric(x, y).dtype == dtype

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
    def test_equals_the_dense_reference(self, dtype: torch.dtype) -> None:
        metric = self.make()
        x, y = torch.randn(5, DIM).to(dtype), torch.randn(7, DIM).to(dtype)
        expected = self.reference_scores(metric, x, y)
        tolerance = {torch.float64: 1e-6, torch.float32: 1e-5, torch.bfloat16: 0.05, torch.float16: 5e-3}[dtype]
        torch.testing.assert_close(metric(x, y).double(), expected, atol=tolerance, rtol=0)
        assert (expected - cosine_similarity(x.double()[:, None], y.double()[None], dim=-1)).abs().max() > 0.05

    def test_equals_the_reference_tightly_in_float64(self) -> None:
        metric = self.make().double()
        x, y = torch.randn(5, DIM, dtype=torch.float64), torch.randn(7, DIM, dtype=torch.float64)
        torch.testing.assert_close(metric(x, y), self.reference_scores(metric, x, y), atol=1e-12, rtol=0)
        torch.testing.assert_close(metric.matrix(), self.reference_matrix(metric), atol=1e-12, rtol=0)

    def test_folds_into_the_query_side(self) -> None:
        metric = self.make()
        x, y = torch.randn(5, DIM), torch.randn(7, DIM)
        torch.testing.assert_close(metric(x, y), metric.fold(x) @ metric.gallery(y).T)
        torch.testing.assert_close(metric.fold(x), metric.gallery(x) @ metric.matrix())

    def test_aligned_is_the_diagonal_of_all_pairs(self) -> None:
        metric = self.make()
        x, y = torch.randn(2, 5, DIM), torch.randn(2, 5, DIM)
        torch.testing.assert_close(metric.aligned(x, y), metric(x, y).diagonal(dim1=-2, dim2=-1))
        torch.testing.assert_close(metric.aligned(x[0, 0], y[0, 0]), metric(x, y)[0, 0, 0])

    def test_batches_broadcast(self) -> None:
        metric = self.make()
        x, y = torch.randn(3, 1, 5, DIM), torch.randn(4, 7, DIM)
        scores = metric(x, y)
        assert scores.shape == (3, 4, 5, 7)
        torch.testing.assert_close(scores[2, 1], metric(x[2, 0], y[1]))
        assert metric(x[0, 0, :0], y[0]).shape == (0, 7)

    def test_gradients(self) -> None:
        metric = self.make().double()
        names, values = zip(*metric.named_parameters(), strict=True)
        x = torch.randn(3, DIM, dtype=torch.float64, requires_grad=True)
        y = torch.randn(4, DIM, dtype=torch.float64, requires_grad=True)

        def score(x: Tensor, y: Tensor, *parameters: Tensor) -> Tensor:
            return torch.func.functional_call(metric, dict(zip(names, parameters, strict=True)), (x, y))

        leaves = tuple(value.detach().requires_grad_() for value in values)
        assert torch.autograd.gradcheck(score, (x, y, *leaves))

    def test_every_parameter_trains_from_neutral(self) -> None:
        """A block that is a product of two zeros would have no gradient; the mask of U may stop some entries."""
        metric = self.make(perturbed=False)
        metric(torch.randn(9, DIM), torch.randn(8, DIM)).square().sum().backward()
        for name, parameter in metric.named_parameters():
            acting = self.acting(name, parameter)
            assert bool((parameter.grad[acting] != 0).all()), name

    def acting(self, name: str, parameter: Tensor) -> Tensor:
        return torch.ones_like(parameter, dtype=torch.bool)

    def test_zero_rows_score_zero_and_large_ones_do_not_overflow(self) -> None:
        metric = self.make()
        y = torch.randn(4, DIM)
        assert torch.equal(metric(torch.zeros(2, DIM), y), torch.zeros(2, 4))
        large = (torch.randn(2, DIM).sign() * 30_000).half()  # a norm above what float16 holds
        expected = self.reference_scores(metric, large, y)
        torch.testing.assert_close(metric(large, y.half()).double(), expected, atol=1e-2, rtol=0)

    def test_penalty_is_the_distance_from_neutral(self) -> None:
        neutral, moved = self.make(perturbed=False), self.make()
        assert neutral.penalty().item() == 0
        neutral.penalty().backward()
        assert all(bool(parameter.grad.isfinite().all()) for parameter in neutral.parameters())
        assert moved.penalty().item() > 0.1
        moved.reset_parameters()
        assert moved.penalty().item() == 0

    def test_log_determinant(self) -> None:
        metric = self.make().double()
        expected = torch.linalg.slogdet(self.reference_matrix(metric)).logabsdet
        torch.testing.assert_close(metric.log_determinant(), expected, atol=1e-9, rtol=1e-9)

    def test_constraint_holds(self) -> None:
        metric = self.make()
        x = torch.randn(6, DIM)
        if metric.constraint is not None:
            torch.testing.assert_close(metric(x, x), metric(x, x).T)
        if metric.constraint == "psd":
            assert torch.linalg.eigvalsh(metric.matrix()).min() > -1e-5
            assert metric.aligned(x, x).min() >= 0

    def test_autocast(self) -> None:
        metric = self.make()
        x, y = torch.randn(5, DIM), torch.randn(7, DIM)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            scores = metric(x, y)
        assert scores.dtype == torch.bfloat16
        torch.testing.assert_close(scores.double(), self.reference_scores(metric, x, y), atol=0.1, rtol=0)

    def test_small_deviations_survive_autocast(self) -> None:
        """Rounded to the grid of bfloat16 around 1, deviations of 1e-3 would vanish or double."""
        metric = self.make(perturbed=False)
        with torch.no_grad():
            for parameter in metric.parameters():
                parameter.add_(1e-3 * torch.randn_like(parameter))
        exact = metric.deviation()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            torch.testing.assert_close(metric.deviation(), exact, atol=1e-7, rtol=1e-3)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_half_precision_rounds_once(self, dtype: torch.dtype) -> None:
        """Folding features of bfloat16 loses what rounding the exact result to bfloat16 loses, and hardly more."""
        metric = self.make(perturbed=False, normalize=False)
        with torch.no_grad():
            for parameter in metric.parameters():
                parameter.add_(1e-2 * torch.randn_like(parameter))
        metric, x = metric.to(dtype), torch.randn(1000, DIM).bfloat16()
        exact = copy.deepcopy(metric).double().fold(x.double())
        lost = (metric.fold(x).double() - exact).abs().mean()
        assert lost < 1.1 * (exact.bfloat16().double() - exact).abs().mean()

    def test_raw_vectors_without_normalisation(self) -> None:
        metric = self.make(normalize=False).double()
        x, y = torch.randn(5, DIM, dtype=torch.float64), torch.randn(7, DIM, dtype=torch.float64)
        torch.testing.assert_close(metric(x, y), x @ self.reference_matrix(metric) @ y.T)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
    def test_saved_and_loaded(self, tmp_path: Path, dtype: torch.dtype) -> None:
        metric = self.make().to(dtype)
        metric.save_pretrained(tmp_path / "metric")
        loaded = GSSFMetric.from_pretrained(tmp_path / "metric")
        assert loaded.file_config() == metric.file_config()
        assert not loaded.training
        for name, value in metric.state_dict().items():
            assert torch.equal(loaded.state_dict()[name], value), name
            assert loaded.state_dict()[name].dtype == value.dtype
        x, y = torch.randn(5, DIM).to(dtype), torch.randn(7, DIM).to(dtype)
        assert torch.equal(loaded(x, y), metric(x, y))
        assert all(parameter.requires_grad for parameter in loaded.parameters())

    def test_copies_are_independent(self) -> None:
        metric = self.make()
        x, y = torch.randn(5, DIM), torch.randn(7, DIM)
        before = metric(x, y)
        for twin in (copy.deepcopy(metric), pickle.loads(pickle.dumps(metric))):
            assert torch.equal(twin(x, y), before)
            twin.reset_parameters()
            assert not torch.equal(twin(x, y), before)
        assert torch.equal(metric(x, y), before)

    @pytest.mark.compile
    def test_compiles_whole(self) -> None:
        metric = self.make()
        x, y = torch.randn(5, DIM), torch.randn(7, DIM)
        compiled = torch.compile(metric, fullgraph=True, backend="aot_eager", dynamic=True)
        torch.testing.assert_close(compiled(x, y), metric(x, y))
        torch.testing.assert_close(compiled(x[:3], y[:2]), metric(x[:3], y[:2]))

    @pytest.mark.compile
    def test_exports(self) -> None:
        metric = self.make()
        x, y = torch.randn(5, DIM), torch.randn(7, DIM)
        rows = {0: torch.export.Dim("n", min=2, max=64)}
        columns = {0: torch.export.Dim("m", min=2, max=64)}
        program = torch.export.export(metric, (x, y), dynamic_shapes=(rows, columns))
        x, y = torch.randn(9, DIM), torch.randn(3, DIM)
        torch.testing.assert_close(program.module()(x, y), metric(x, y))
