r"""Sums whose value does not depend on who computes them: no order of summation, chunk, thread or device shows in them.

Two ways to that. `correct_sums` gives the float64 number nearest to the true sum: one number, whatever the road to it.
`exact_product` cuts the factors into slices of so few bits that every product and every partial sum of a slice is exact
in float64; then any BLAS gives the same, at the speed of a matrix product.
"""

import math

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["correct_roots", "correct_sums", "exact_product", "power_of_two", "scale_rows"]

ENTRIES_AT_ONCE = 131_072  # of rows: 1 MB, so that what is made of them stays in the cache
SLICED_BITS = 66  # of a factor, below its row's largest entry; float64 itself has 53


def power_of_two(exponent: Int[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """2^exponent in float64, exactly, for exponents from -1022 to 1023 (others are clamped to these)."""
    # written as the bits of the number: a `pow` of the device may round
    return ((exponent.clamp(-1022, 1023) + 1023) << 52).view(torch.float64)


def scale_rows(x: Float[Tensor, "n dim"]) -> tuple[Float[Tensor, "n dim"], Int[Tensor, " n"]]:
    """Rows in float64, times a power of two that brings their largest entry into [0.5, 1); and that power's exponent.

    Exact, since a power of two only moves the exponent; nothing that is squared afterwards over- or underflows.

    Returns:
        scaled: `x · 2^-exponent`, row by row. A row of zeros stays as it is.
        exponent: whole numbers.
    """
    scaled = torch.empty(x.shape, dtype=torch.float64, device=x.device)
    exponents = []
    size = max(1, ENTRIES_AT_ONCE // max(1, x.shape[1]))
    for some, out in zip(x.split(size), scaled.split(size), strict=True):  # in the cache when it is multiplied
        values = some.double()
        exponent = torch.frexp(values.abs().amax(dim=1)).exponent.long().clamp_min(-1022)
        torch.mul(values, power_of_two(-exponent)[:, None], out=out)
        exponents.append(exponent)
    return scaled, torch.cat(exponents)


def correct_sums(terms: Float[Tensor, "n dim"]) -> Float[Tensor, " n"]:
    """Sum of each row of float64 numbers, correctly rounded: the float64 nearest to the true sum, as `math.fsum` gives.

    Every term is cut in two: a high part of so few bits that all sums of high parts are exact, in any order, and what
    is left, whose sum is off by 2⁻⁷⁰ of the largest term or so. Where that leaves open which float64 is the nearest,
    about once in 2²⁰ rows, `math.fsum` decides.
    """
    dim = terms.shape[1]
    if not terms.numel():
        return terms.sum(1)
    exponent = torch.frexp(terms.abs().amax(1)).exponent.long()
    bits = 52 - max(1, (dim - 1).bit_length())
    # beside a number this large, whole multiples of 2^(exponent - bits) are all that remains of a term
    lift = 1.5 * power_of_two(exponent - bits + 52)[:, None]
    high = (terms + lift).sub_(lift)
    total = high.sum(1)
    low = torch.sub(terms, high, out=high)
    error = low.sum(1)
    slack = low.abs_().sum(1).mul_((dim + 4) * 2.0**-52)
    # `error` is itself rounded: the true sum lies between these two, and so does its nearest float64
    result = total + (error - slack)
    for row in (result != total + (error + slack)).nonzero()[:, 0].tolist():
        result[row] = math.fsum(terms[row].tolist())
    return result + 0.0  # no -0.0


def correct_roots(x: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """Square roots of float64 numbers, correctly rounded.

    The vector library behind torch's own on a CPU gives a neighbour of one root in seventy, and other libraries give
    others; numpy's instruction, and a GPU's, round as IEEE 754 says.
    """
    return torch.from_numpy(np.sqrt(x.numpy())) if x.device.type == "cpu" else x.sqrt()


def exact_product(x: Float[Tensor, "n dim"], blocks: Float[Tensor, "k s s"]) -> Float[Tensor, "n dim"]:
    """x Δ for rows x and block-diagonal Δ, in float64; the same to the last bit however many rows come at once.

    Its error is below 2⁻⁶² of the largest entry of the row times the largest of Δ, times s.
    """
    count, size, _ = blocks.shape
    blocks = blocks.double()
    if size == 1:
        return x * blocks.reshape(count)
    weights, weight_exponent = scale_rows(blocks.reshape(1, -1))
    bits = (53 - math.ceil(math.log2(4 * size))) // 2
    number = math.ceil(SLICED_BITS / bits)
    slices = _slices(weights.reshape(blocks.shape), bits, number).split(size, dim=2)
    # slices i and j make whole multiples of 2^(-bits·(i+j+2)), so that one product adds all of one i+j exactly
    stacked = [torch.cat(slices[order::-1], dim=1) for order in range(number)]
    factor = power_of_two(weight_exponent)
    result = torch.empty_like(x)
    at_once = max(1, ENTRIES_AT_ONCE // x.shape[1])
    for some, out in zip(x.split(at_once), result.split(at_once), strict=True):
        rows, exponent = scale_rows(some)
        left = _slices(rows.view(-1, count, size).transpose(0, 1), bits, number)
        total = torch.bmm(left, stacked[-1])
        for order in range(number - 1, 0, -1):  # from the smallest up
            total += torch.bmm(left[:, :, : order * size], stacked[order - 1])
        torch.mul(total.transpose(0, 1).reshape(some.shape), power_of_two(exponent)[:, None], out=out).mul_(factor)
    return result


def _slices(x: Float[Tensor, "k n s"], bits: int, number: int) -> Float[Tensor, "k n parts"]:
    """Parts, side by side, that add up to x, |x| ≤ 1: whole multiples of 2^-bits, then of 2^-2·bits, and so on."""
    size = x.shape[2]
    parts = x.new_empty(*x.shape[:2], number * size)
    for place in range(number):
        part = parts[:, :, place * size : (place + 1) * size]
        # beside a number this large, whole multiples are all that remains
        lift = 1.5 * 2.0 ** (52 - bits * (place + 1))
        torch.add(x, lift, out=part).sub_(lift)
        x = x - part
    return parts
