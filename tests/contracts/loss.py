"""What every loss on a score matrix must hold, inherited by one test class per loss (tests/losses/).

A subclass makes its loss and writes its formula once more by loops over float64 numbers, pair by pair.
"""

import pytest
import torch
from torch import Tensor, nn

from gssf_plug.errors import ArgumentError
from gssf_plug.losses import relevance_by_id

QUERY_IDS = torch.tensor([3, 1, 4, 1, 5])
GALLERY_IDS = torch.tensor([1, 3, 3, 4, 1, 9, 5])  # uneven, several positives each, 9 belongs to nobody


class LossContract:
    def make(self) -> nn.Module:
        raise NotImplementedError

    def reference(self, scores: list[list[float]], relevance: list[list[bool]], forbidden: list[list[bool]]) -> float:
        """The loss by loops, in float64."""
        raise NotImplementedError

    def batch(self, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
        scores = (2 * torch.rand(5, 7, dtype=torch.float64) - 1).to(dtype)
        return scores, relevance_by_id(QUERY_IDS, GALLERY_IDS), torch.rand(5, 7) < 0.15

    def assert_is_reference(self, scores: Tensor, relevance: Tensor, forbidden: Tensor | None) -> None:
        loss = self.make().double().eval()(scores, relevance, forbidden=forbidden)
        none = torch.zeros_like(relevance) if forbidden is None else forbidden
        expected = self.reference(scores.tolist(), relevance.tolist(), none.tolist())
        torch.testing.assert_close(loss.detach(), torch.tensor(expected, dtype=torch.float64))

    def test_equals_the_slow_reference(self) -> None:
        scores, relevance, forbidden = self.batch()
        assert (relevance & forbidden).any()
        assert (~relevance & forbidden).any()
        self.assert_is_reference(scores, relevance, None)
        self.assert_is_reference(scores, relevance, forbidden)

    def test_equals_the_slow_reference_with_one_positive_each(self) -> None:
        self.assert_is_reference(self.batch()[0][:, :5], torch.eye(5, dtype=torch.bool), None)

    def test_gradcheck(self) -> None:
        scores, relevance, forbidden = self.batch()
        loss = self.make().double().eval()
        scores.requires_grad_()
        for mask in (None, forbidden):
            assert torch.autograd.gradcheck(lambda s, mask=mask: loss(s, relevance, forbidden=mask), scores)

    def test_does_not_depend_on_the_order(self) -> None:
        scores, relevance, forbidden = self.batch()
        rows, columns = torch.randperm(5), torch.randperm(7)
        loss = self.make().double().eval()
        shuffled = [matrix[rows][:, columns] for matrix in (scores, relevance, forbidden)]
        torch.testing.assert_close(
            loss(scores, relevance, forbidden=forbidden), loss(shuffled[0], shuffled[1], forbidden=shuffled[2])
        )

    def test_positives_by_id_are_never_pushed_away(self) -> None:
        """Lowering the loss raises every positive that has a gradient, and lowers every negative."""
        scores, relevance, _ = self.batch()
        scores.requires_grad_()
        self.make().double().eval()(scores, relevance).backward()
        assert scores.grad is not None
        assert (scores.grad[relevance] <= 1e-12).all()
        assert (scores.grad[~relevance] >= -1e-12).all()
        assert scores.grad[relevance].lt(0).any()
        assert scores.grad[~relevance].gt(0).any()

    def test_forbidden_pairs_have_no_gradient(self) -> None:
        scores, relevance, forbidden = self.batch()
        scores = scores.masked_fill(forbidden, 50.0).requires_grad_()
        self.make().double().eval()(scores, relevance, forbidden=forbidden).backward()
        assert scores.grad is not None
        assert scores.grad[forbidden].eq(0).all()

    @pytest.mark.parametrize("positive", [True, False])
    def test_one_kind_of_pair_alone_is_finite(self, positive: bool) -> None:
        scores = self.batch()[0].requires_grad_()
        loss = self.make().double()(scores, torch.full(scores.shape, positive))
        loss.backward()
        assert loss.isfinite()
        assert scores.grad is not None
        assert scores.grad.isfinite().all()
        if not positive:
            assert loss == 0

    def test_everything_forbidden_is_zero(self) -> None:
        scores, relevance, _ = self.batch()
        scores.requires_grad_()
        loss = self.make().double()(scores, relevance, forbidden=torch.ones_like(relevance))
        loss.backward()
        assert loss == 0
        assert scores.grad is not None
        assert scores.grad.eq(0).all()

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision_sums_in_float32(self, dtype: torch.dtype) -> None:
        scores, relevance, forbidden = self.batch(dtype)
        loss = self.make().eval()
        half = loss(scores, relevance, forbidden=forbidden)
        assert half.dtype == torch.float32
        torch.testing.assert_close(half, loss(scores.float(), relevance, forbidden=forbidden))

    @pytest.mark.bad_input
    def test_bad_masks_are_named(self) -> None:
        scores, relevance, _ = self.batch()
        with pytest.raises(ArgumentError, match=r"`relevance` must be a boolean matrix of shape \(5, 7\).*torch.int64"):
            self.make()(scores, relevance.long())
        with pytest.raises(ArgumentError, match=r"`forbidden` must be a boolean matrix of shape \(5, 7\).*\(7, 5\)"):
            self.make()(scores, relevance, forbidden=relevance.T)
