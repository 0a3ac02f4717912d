"""Bringing two features to one shape, against loops."""

import pytest
import torch
from torch.nn.functional import avg_pool2d

from gssf_plug.distillation.shape_matching import align, as_vector
from gssf_plug.distillation.taps import Feature
from gssf_plug.errors import ArgumentError


def test_equal_shapes_stay():
    x, y, mask = torch.randn(2, 5, 3), torch.randn(2, 5, 4), torch.rand(2, 5) > 0.3
    ours, theirs, kept = align(Feature(x, mask), Feature(y, mask))
    assert ours is x
    assert theirs is y
    assert kept is mask


def test_another_tokenizer_is_read_at_even_places():
    """Left- and right-padded rows of other lengths; each row against a loop over its valid tokens."""
    student_mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [0, 0, 1, 1, 1], [1, 0, 0, 0, 0]]).bool()
    teacher_mask = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1], [0, 0, 0, 1], [1, 1, 0, 0]]).bool()
    x, y = torch.randn(4, 5, 2), torch.randn(4, 4, 3)
    ours, theirs, mask = align(Feature(x, student_mask), Feature(y, teacher_mask))
    assert ours is x
    assert torch.equal(mask, student_mask)
    for row in range(4):
        valid = y[row][teacher_mask[row]]
        count = int(student_mask[row].sum())
        for rank, column in enumerate(student_mask[row].nonzero().flatten().tolist()):
            at = rank * (len(valid) - 1) / max(count - 1, 1)
            low = int(at)
            high = min(low + 1, len(valid) - 1)
            torch.testing.assert_close(theirs[row, column], valid[low] + (at - low) * (valid[high] - valid[low]))


def test_padding_of_another_tokenizer_never_counts():
    x, y = torch.randn(3, 6, 2), torch.randn(3, 4, 3)
    student_mask, teacher_mask = (
        torch.arange(6) < torch.tensor([[6], [3], [1]]),
        torch.arange(4) < torch.tensor([[2], [4], [1]]),
    )
    clean = align(Feature(x, student_mask), Feature(y, teacher_mask))[1][student_mask]
    spoilt = torch.where(teacher_mask[..., None], y, float("nan"))
    torch.testing.assert_close(align(Feature(x, student_mask), Feature(spoilt, teacher_mask))[1][student_mask], clean)


def test_maps_are_resized_to_the_students_grid():
    small, large = torch.randn(2, 3, 4, 4), torch.randn(2, 5, 8, 8)
    ours, theirs, mask = align(Feature(small), Feature(large))
    assert mask is None
    torch.testing.assert_close(ours, small.flatten(2).mT)
    torch.testing.assert_close(theirs, avg_pool2d(large, 2).flatten(2).mT)
    ours, theirs, _ = align(Feature(large), Feature(small))
    assert ours.shape == (2, 64, 5)
    assert theirs.shape == (2, 64, 3)
    flat = torch.ones(2, 3, 4, 4) * torch.arange(3)[None, :, None, None]
    torch.testing.assert_close(align(Feature(large), Feature(flat))[1], torch.arange(3.0).expand(2, 64, 3))


@pytest.mark.parametrize("extra", [0, 1, 5])
def test_map_and_tokens_leave_class_and_register_tokens_out(extra):
    grid, tokens = torch.randn(2, 3, 4, 4), torch.randn(2, 16 + extra, 6)
    ours, theirs, _ = align(Feature(grid), Feature(tokens))
    torch.testing.assert_close(ours, grid.flatten(2).mT)
    torch.testing.assert_close(theirs, tokens[:, extra:])
    back, _, _ = align(Feature(tokens), Feature(grid))
    torch.testing.assert_close(back, tokens[:, extra:])


def test_a_vector_meets_the_mean():
    vector, tokens = torch.randn(2, 3), torch.randn(2, 4, 5)
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]]).bool()
    ours, theirs, kept = align(Feature(vector), Feature(tokens, mask))
    assert kept is None
    assert ours is vector
    torch.testing.assert_close(theirs, torch.stack([tokens[0, :2].mean(0), tokens[1].mean(0)]))
    torch.testing.assert_close(as_vector(Feature(torch.ones(2, 3, 4, 4))), torch.ones(2, 3))


def test_other_batch_sizes_are_refused():
    with pytest.raises(
        ArgumentError, match=r"`batch` must give student and teacher the same examples, 3 of them, but got 2"
    ):
        align(Feature(torch.ones(3, 2)), Feature(torch.ones(2, 2)))
