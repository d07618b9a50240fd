"""Compiled loops that round floating-point numbers to integers and back."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hefl.ckks import jit
from hefl.ckks.jit import kernel

I64 = NDArray[np.int64]
Floats = NDArray[np.floating[Any]]


@kernel
def round_scaled(values: Floats, scale: float, limit: float, top: float, out: I64) -> tuple[int, int, int]:
    """Write round(values * scale), half to even and cut to +-top, to out.

    Args:
        values: float32 or float64, shape (n,).
        scale: A power of two, so that only the rounding rounds.
        limit: Larger values are refused.
        top: A whole number below 2**53.
        out: Shape (n,).

    Returns:
        How many are beyond half of top; how many of them were cut; and how many values are refused or not finite: if
        any are, out means nothing.
    """
    large, cut, refused = 0, 0, 0
    half = 0.5 * top
    for i in range(values.size):
        x = np.float64(values[i])
        refused += 0 if abs(x) <= limit else 1
        rounded = np.rint(x * scale)
        kept = min(max(rounded, -top), top)
        large += 1 if abs(kept) > half else 0
        cut += 0 if kept == rounded else 1
        out[i] = np.int64(kept)
    return large, cut, refused


@kernel
def divide_scaled(sums: I64, step: float, total: float, out: Floats) -> None:
    """Write sums * step / total to out; step is a power of two.

    Sums below 2**53 are divided exactly and rounded once to float64, and once more where out is float32.
    """
    for i in range(sums.size):
        out[i] = np.float64(sums[i]) * step / total


@kernel
def largest_magnitude(values: I64) -> int:
    """The largest magnitude, 0 where there is no value."""
    largest = np.int64(0)
    for i in range(values.size):
        largest = max(largest, abs(values[i]))
    return int(largest)


@functools.cache
def check_quantise() -> None:
    """Compare these kernels with numpy, once.

    Raises:
        KernelError: One computes wrong values.
    """
    with jit.announced():
        for dtype in (np.float32, np.float64):
            jit.require(_is_right(np.dtype(dtype)), "round_scaled")


def _is_right(dtype: np.dtype[Any]) -> bool:
    # Halves, values beyond the top, and beyond the limit; more of them than a vectorised loop takes in one step.
    values = np.arange(-4096, 4096).astype(dtype) * dtype.type(0.03125)
    integers, means = np.empty(values.size, np.int64), np.empty(values.size, dtype)
    large, cut, refused = round_scaled(values, 16.0, 120.0, 1023.0, integers)
    rounded = np.rint(values.astype(np.float64) * 16.0)
    divide_scaled(integers, 0.0625, 7.0, means)
    return bool(
        (integers == np.clip(rounded, -1023, 1023)).all()
        and large == (np.abs(rounded) > 511.5).sum()
        and cut == (np.abs(rounded) > 1023).sum()
        and refused == (np.abs(values) > 120).sum()
        and round_scaled(np.array([np.nan, np.inf, 1.0], dtype), 1.0, 2.0, 3.0, np.empty(3, np.int64))[2] == 2
        and (means == (integers * 0.0625 / 7.0).astype(dtype)).all()
        and largest_magnitude(integers) == 1023
    )
