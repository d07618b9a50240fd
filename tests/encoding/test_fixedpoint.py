"""Fixed-point averages against Python's exact fractions, and the state that clients share."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from hefl.encoding.codec import Scales, Sum
from hefl.encoding.fixedpoint import FixedPointCodec
from hefl.errors import NotFiniteError, OutOfRangeError, UploadError
from hefl.models.layout import Layout, Tensor

PRECISIONS = pytest.mark.parametrize("precision", [8, 9, 16, 17, 24, 32, 33, 40])


def _layout(*tensors: tuple[str, str, tuple[int, ...], Any], metrics: tuple[str, ...] = ()) -> Layout:
    return Layout(tuple(Tensor(*t) for t in tensors), metrics)


MIXED = _layout(
    ("weight", "float32", (3, 4), "parameter"),
    ("half", "float16", (2,), "parameter"),
    ("double", "float64", (5,), "parameter"),
    ("running_var", "float32", (4,), "buffer"),
    ("batches", "int64", (), "integer"),
    ("labels", "uint8", (3,), "integer"),
    ("empty", "float32", (0,), "parameter"),
    metrics=("loss", "accuracy"),
)


def _arrays(rng: np.random.Generator, layout: Layout = MIXED, spread: float = 1.0) -> list[NDArray[Any]]:
    out = []
    for t in layout.tensors:
        if t.kind == "integer":
            out.append(np.asarray(rng.integers(0, 200, t.shape), t.dtype))
        else:
            out.append(np.asarray(rng.normal(0, spread, t.shape), t.dtype))
    return out


def _start(codec: FixedPointCodec, arrays: Sequence[NDArray[Any]]) -> Scales:
    return codec.decode_initial(Sum(codec.encode_initial(arrays), 1))[1]


def _sum(vectors: Sequence[NDArray[np.int64]], weights: Sequence[int]) -> Sum:
    total: NDArray[np.int64] = np.zeros_like(vectors[0])
    for weight, vector in zip(weights, vectors, strict=True):
        total = total + weight * vector
    return Sum(total, sum(weights))


@PRECISIONS
def test_vectors_fit_the_precision_and_are_as_long_as_announced(precision: int) -> None:
    codec, arrays = FixedPointCodec(MIXED, precision), _arrays(np.random.default_rng(0))
    scales = _start(codec, arrays)
    metrics = {"loss": -3.25, "accuracy": 0.5}
    for exchange, vector in (
        ("initial", codec.encode_initial(arrays)),
        ("training", codec.encode_model(arrays, metrics, scales)),
        ("closing", codec.encode_metrics(metrics)),
    ):
        assert vector.dtype == np.int64
        assert vector.shape == (codec.values(exchange),)  # type: ignore[arg-type]
        assert np.abs(vector).max() <= 2 ** (precision - 1) - 1


@PRECISIONS
def test_initial_arrays_come_back_to_the_bit(precision: int) -> None:
    codec, arrays = FixedPointCodec(MIXED, precision), _arrays(np.random.default_rng(1))
    arrays[0][0, 0], arrays[2][0] = np.float32(-0.0), np.nextafter(0, 1)
    back, _ = codec.decode_initial(Sum(codec.encode_initial(arrays), 1))
    for a, b in zip(arrays, back, strict=True):
        assert (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())


@settings(max_examples=60, deadline=None)
@given(
    precision=st.integers(8, 40),
    weights=st.lists(st.integers(1, 2000), min_size=1, max_size=5),
    seed=st.integers(0, 2**32 - 1),
)
def test_averages_are_the_exact_mean_of_the_rounded_values(precision: int, weights: list[int], seed: int) -> None:
    rng, codec = np.random.default_rng(seed), FixedPointCodec(MIXED, precision)
    scales = _start(codec, _arrays(rng))
    models = [_arrays(rng, spread=0.3) for _ in weights]
    total = _sum([codec.encode_model(m, {}, scales) for m in models], weights)
    averages, _, _ = codec.decode_model(total, scales)
    for k, tensor in enumerate(MIXED.tensors):
        for i in np.ndindex(tensor.shape):
            values = [Fraction(m[k][i].item()) for m in models]
            if tensor.kind == "integer":
                exact = Fraction(sum(w * v for w, v in zip(weights, values, strict=True)), sum(weights))
                assert averages[k][i] == round(exact)  # Python rounds half to even too
                continue
            bits = 40 if tensor.kind == "buffer" else precision
            step, top = Fraction(2) ** (scales[k] - bits + 1), 2 ** (bits - 1) - 1
            rounded = [min(max(round(v / step), -top), top) for v in values]
            exact = sum((w * r for w, r in zip(weights, rounded, strict=True)), Fraction(0)) * step / sum(weights)
            assert averages[k][i] == np.dtype(tensor.dtype).type(float(exact))


@settings(max_examples=30, deadline=None)
@given(precision=st.integers(8, 40), seed=st.integers(0, 2**32 - 1))
def test_averages_differ_from_plaintext_by_the_promised_part_of_the_range(precision: int, seed: int) -> None:
    layout = _layout(("w", "float64", (200,), "parameter"))
    rng, codec = np.random.default_rng(seed), FixedPointCodec(layout, precision)
    scales = _start(codec, [rng.normal(0, 3, 200)])
    span, weights = 2.0 ** scales[0], [3, 1, 2]
    models = [rng.uniform(-span, span, 200) for _ in weights]
    total = _sum([codec.encode_model([m], {}, scales) for m in models], weights)
    plain = sum(w * m for w, m in zip(weights, models, strict=True)) / 6
    assert np.abs(codec.decode_model(total, scales)[0][0] - plain).max() <= 2.0 ** -(precision - 2) * span


def test_ranges_are_four_times_the_largest_magnitude_or_more_and_at_least_one() -> None:
    layout = _layout(("w", "float32", (2,), "parameter"), ("b", "float32", (2,), "buffer"))
    codec = FixedPointCodec(layout, 24)
    for largest, parameter, buffer in (
        (0.0, 0, 10),
        (0.24, 0, 10),
        (0.25, 1, 10),
        (1.0, 3, 10),
        (1.5, 3, 10),
        (5000.0, 15, 15),
    ):
        arrays = [np.array([0, -largest], np.float32)] * 2
        scales = _start(codec, arrays)
        assert scales == (parameter, buffer)
        assert 2.0**parameter >= max(4 * largest, 1)
        following = codec.decode_model(_sum([codec.encode_model(arrays, {}, scales)], [1]), scales)[2]
        assert 2.0 ** following[0] >= max(4 * largest, 1)
        assert abs(following[0] - parameter) <= 1  # a power of two may count as itself or as the next
        assert following[1] >= 10


def test_the_next_ranges_follow_from_integers_alone() -> None:
    layout = _layout(("w", "float32", (1,), "parameter"))
    codec = FixedPointCodec(layout, 24)
    sums = np.array([0, 9, 0, 0], np.int64)  # value, exponent, saturated, large; at 3 clients and 2**3
    for mean, exponent in ((0, 0), (2**19, 2), (2**20, 2), (2**20 + 1, 3), (2**23 - 1, 5)):
        sums[0] = -3 * mean
        assert codec.decode_model(Sum(sums, 3), (3,))[2] == (exponent,)
    sums[0] = -3 * 2**20 - 1  # a third of a step above counts
    assert codec.decode_model(Sum(sums, 3), (3,))[2] == (3,)


def test_a_range_halves_only_after_a_round_that_fits_half_of_it() -> None:
    layout = _layout(("w", "float32", (2,), "parameter"))
    codec, seen = FixedPointCodec(layout, 24), list[int]()
    scales: Scales = (3,)
    # Two clients that pull in opposite directions: their mean is an eighth of their values.
    for pull in (7.0, 4.5, 3.9, 3.9, 1.0, 0.1, 0.1, 0.1):
        arrays = [np.array([pull * sign, 0], np.float32) for sign in (1, -0.75)]
        vectors = [codec.encode_model([a], {}, scales) for a in arrays]
        scales = codec.decode_model(_sum(vectors, [1, 1]), scales)[2]
        seen.append(scales[0])
    assert seen == [3, 3, 2, 2, 1, 0, 0, 0]


@pytest.mark.parametrize("value", [1e-30, 0.3, 1.0, 3.9, 1e6])
def test_a_client_that_always_says_cut_drives_no_range_away(value: float) -> None:
    layout = _layout(("w", "float64", (1,), "parameter"))
    codec = FixedPointCodec(layout, 24)
    scales = _start(codec, [np.array([value])])
    for _ in range(60):
        vector = codec.encode_model([np.array([value])], {}, scales)
        vector[2:4] = 2**23 - 1  # all were cut, and beyond half
        (mean,), _, scales = codec.decode_model(_sum([vector], [1]), scales)
        assert 2.0 ** scales[0] <= max(1.0, 16 * abs(mean[0]))
        assert mean[0] == pytest.approx(value, abs=max(1.0, 16 * value) * 2**-23)


@pytest.mark.parametrize("place", [2, 3])
def test_a_negative_count_makes_the_sum_useless(place: int) -> None:
    """It would hide that another client's values were cut."""
    codec = FixedPointCodec(_layout(("w", "float32", (1,), "parameter")), 24)
    scales = _start(codec, [np.ones(1, np.float32)])
    vector = codec.encode_model([np.ones(1, np.float32)], {}, scales)
    vector[place] = -1
    with pytest.raises(UploadError, match="fewer than no values"):
        codec.decode_model(Sum(vector, 1), scales)


def test_a_range_far_above_its_mean_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    layout = _layout(("tiny", "float32", (2,), "parameter"), ("zero", "float32", (2,), "parameter"))
    codec = FixedPointCodec(layout, 24)
    arrays = [np.array([2**-9, 0], np.float32), np.zeros(2, np.float32)]
    scales = _start(codec, arrays)
    with caplog.at_level(logging.WARNING, "hefl"):
        for _ in range(3):
            scales = codec.decode_model(_sum([codec.encode_model(arrays, {}, scales)], [1]), scales)[2]
    assert [r.getMessage() for r in caplog.records] == [
        "tensor 'tiny' is averaged in the range +-1, and the largest magnitude of its mean is 0.002: its values keep "
        "about 15 bits"
    ]


def test_saturation_is_counted_said_and_doubles_the_range(caplog: pytest.LogCaptureFixture) -> None:
    layout = _layout(("w", "float32", (4,), "parameter"), ("v", "float32", (4,), "parameter"))
    codec = FixedPointCodec(layout, 24)
    zeros = np.zeros(4, np.float32)
    scales = _start(codec, [zeros, zeros])
    assert scales == (0, 0)
    with caplog.at_level(logging.WARNING, "hefl"):
        vector = codec.encode_model([np.array([0.5, 2.0, -16.0, 1.0], np.float32), zeros], {}, scales)
    assert [r.getMessage() for r in caplog.records] == [
        "3 of 4 values of tensor 'w' are beyond +-1 and are sent as that; its range doubles next round"
    ]
    assert vector[-4:].tolist() == [3, 0, 4, 0]  # saturated; beyond half, which 0.5 would be of half the range
    averages, _, following = codec.decode_model(
        _sum([vector, codec.encode_model([zeros, zeros], {}, scales)], [1, 7]), scales
    )
    assert averages[0].tolist() == [np.float32(0.5 / 8), *[np.float32(s * (1 - 2**-23) / 8) for s in (1, -1, 1)]]
    assert following == (1, 0)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_values_that_are_no_numbers_are_refused_by_name(bad: float) -> None:
    codec, arrays = FixedPointCodec(MIXED, 24), _arrays(np.random.default_rng(2))
    scales = _start(codec, arrays)
    arrays[0][1, 2] = bad
    with pytest.raises(NotFiniteError, match=r"'weight', index \(1, 2\)"):
        codec.encode_model(arrays, {}, scales)
    with pytest.raises(NotFiniteError, match=r"'weight', index \(1, 2\)"):
        codec.encode_initial(arrays)


def test_values_beyond_sixteen_ranges_are_refused_by_name() -> None:
    layout = _layout(("w", "float64", (2, 2), "parameter"))
    codec = FixedPointCodec(layout, 24)
    array = np.array([[0, 0], [16.0, 0]])
    codec.encode_model([array], {}, (0,))
    array[1, 0] = np.nextafter(16, 17)
    with pytest.raises(OutOfRangeError, match=r"beyond \+-16 in tensor 'w', index \(1, 0\)"):
        codec.encode_model([array], {}, (0,))


@PRECISIONS
def test_integers_are_exact_to_two_to_the_31_and_refused_beyond(precision: int) -> None:
    layout = _layout(("n", "int64", (4,), "integer"))
    codec, top = FixedPointCodec(layout, precision), 2**31
    arrays = [np.array(v, np.int64) for v in ([top, -top, 1, 0], [top, -top, 2, 1], [top, -top, 2, -1])]
    scales = _start(codec, [arrays[0]])
    total = _sum([codec.encode_model([a], {}, scales) for a in arrays], [30_000, 20_000, 10_000])
    assert codec.decode_model(total, scales)[0][0].tolist() == [top, -top, 2, 0]
    for bad in (top + 1, -top - 1):
        with pytest.raises(OutOfRangeError, match="'n'"):
            codec.encode_model([np.array([0, 0, 0, bad])], {}, scales)
        with pytest.raises(OutOfRangeError, match="'n'"):
            codec.encode_initial([np.array([0, 0, 0, bad])])


def test_means_of_integers_are_rounded_half_to_even() -> None:
    layout = _layout(("n", "int32", (6,), "integer"))
    codec = FixedPointCodec(layout, 24)
    a, b = np.array([0, 1, 2, -1, -2, -3], np.int32), np.array([1, 2, 3, 0, -1, -2], np.int32)
    total = _sum([codec.encode_model([x], {}, (32,)) for x in (a, b)], [1, 1])
    assert codec.decode_model(total, (32,))[0][0].tolist() == [0, 2, 2, 0, -2, -2]


def test_a_widened_layout_has_the_means_before_they_are_rounded() -> None:
    codec, wide = FixedPointCodec(MIXED, 24), FixedPointCodec(MIXED.widened(), 24)
    arrays = [_arrays(np.random.default_rng(seed)) for seed in (1, 2)]
    scales = _start(codec, arrays[0])
    total = _sum([codec.encode_model(a, {}, scales) for a in arrays], [3, 1])
    means, narrow = wide.decode_model(total, scales)[0], codec.decode_model(total, scales)[0]
    for tensor, mean, one, two in zip(MIXED.tensors, means, *arrays, strict=True):
        assert mean.dtype == np.float64
        if tensor.kind == "integer":
            np.testing.assert_array_equal(mean, (3.0 * one + two) / 4)
    assert any((mean % 1 != 0).any() for t, mean in zip(MIXED.tensors, means, strict=True) if t.kind == "integer")
    for mean, array in zip(means, narrow, strict=True):
        rounded = np.rint(mean) if array.dtype.kind in "iu" else mean
        np.testing.assert_array_equal(rounded.astype(array.dtype), array)


def test_a_client_that_was_away_reads_the_same_model_and_ranges() -> None:
    rng, codec = np.random.default_rng(3), FixedPointCodec(MIXED, 24)
    scales = _start(codec, _arrays(rng, spread=50.0))
    total = _sum([codec.encode_model(_arrays(rng), {"loss": 1.0}, scales) for _ in range(3)], [3, 1, 2])
    there, away = codec.decode_model(total, scales), codec.decode_model(total, None)
    assert there[1:] == away[1:]
    for a, b in zip(there[0], away[0], strict=True):
        assert (a == b).all()


def test_participants_with_other_ranges_are_noticed() -> None:
    codec, arrays = FixedPointCodec(MIXED, 24), _arrays(np.random.default_rng(4))
    scales = _start(codec, arrays)
    other = (scales[0] + 1, *scales[1:])
    mixed = _sum([codec.encode_model(arrays, {}, s) for s in (scales, scales, other)], [1, 1, 1])
    theirs = _sum([codec.encode_model(arrays, {}, other)], [3])
    for total, own in ((mixed, scales), (mixed, None), (theirs, scales)):
        with pytest.raises(UploadError, match="different ranges for tensor 'weight'"):
            codec.decode_model(total, own)


def test_digits_that_no_integers_have_are_noticed() -> None:
    codec = FixedPointCodec(_layout(("n", "int64", (1,), "integer"), metrics=("loss",)), 24)
    tail = 3 * codec.encode_metrics({"loss": 0.5})
    for low, top, changes in (
        (-1, 0, {}),
        (0, 3 * 2**9 + 1, {}),
        (0, -3 * 2**9 - 1, {}),
        (0, 0, {0: -1}),
        (0, 0, {6: 2**8}),  # a metric beyond what it may be
        (0, 0, {6: -(2**8)}),
        (0, 0, {7: -1}),
        (0, 0, {9: -1}),  # fewer than no rows
    ):
        vector = np.array([low, top, 3 * 32, 0, 0, *tail], np.int64)
        for place, value in changes.items():
            vector[5 + place] = value
        with pytest.raises(UploadError, match="out of range"):
            codec.decode_model(Sum(vector, 3), (32,))
    good = np.array([0, 3 * 2**8, 3 * 32, 0, 0, *tail])
    (array,), averages, _ = codec.decode_model(Sum(good, 3), (32,))
    assert array.tolist() == [2**31]
    assert averages.metrics == {"loss": 0.5}


@pytest.mark.parametrize("vector", [[-1, 0], [2**16, 0], [0, 0x7FC0]], ids=["negative", "large", "a NaN"])
def test_initial_words_that_are_none_are_refused(vector: list[int]) -> None:
    codec = FixedPointCodec(_layout(("w", "float32", (1,), "parameter")), 24)
    with pytest.raises(UploadError):
        codec.decode_initial(Sum(np.array(vector, np.int64), 1))


def test_initial_words_of_more_than_one_client_are_refused() -> None:
    codec = FixedPointCodec(_layout(("w", "float32", (1,), "parameter")), 24)
    with pytest.raises(UploadError, match="one client"):
        codec.decode_initial(Sum(np.array([0, 0], np.int64), 2))


@PRECISIONS
def test_metrics_are_averaged_over_those_who_have_them(precision: int) -> None:
    codec = FixedPointCodec(
        _layout(("w", "float32", (1,), "parameter"), metrics=("loss", "accuracy", "none")), precision
    )
    told = [{"loss": 1.0, "accuracy": 0.1}, {"loss": math.nan, "accuracy": 0.3}, {"loss": 1000.0}]
    total = _sum([codec.encode_metrics(m) for m in told], [1, 3, 2])
    averages = codec.decode_metrics(total)
    assert averages.metrics["none"] is None
    assert averages.metrics["accuracy"] == pytest.approx((0.1 + 3 * 0.3) / 4, abs=1e-9)
    assert averages.metrics["loss"] == pytest.approx((1 + 2 * 64.0) / 3, abs=1e-9)
    assert averages.present == {"loss": 3 / 6, "accuracy": 4 / 6, "none": 0.0}
    vectors = [codec.encode_model([np.zeros(1, np.float32)], m, (0,)) for m in told]
    assert codec.decode_model(_sum(vectors, [1, 3, 2]), (0,))[1] == averages


@given(
    precision=st.integers(8, 40),
    clients=st.lists(
        st.tuples(st.integers(1, 2**14), st.integers(1, 2**40), st.floats(-64, 64)), min_size=1, max_size=4
    ),
)
def test_metrics_weigh_by_their_rows_whatever_their_updates_weigh(
    precision: int, clients: list[tuple[int, int, float]]
) -> None:
    codec = FixedPointCodec(_layout(("w", "float32", (1,), "parameter"), metrics=("loss",)), precision)
    vectors = [codec.encode_metrics({"loss": loss}, {"loss": Fraction(rows, w)}) for w, rows, loss in clients]
    averages = codec.decode_metrics(_sum(vectors, [w for w, _, _ in clients]))
    step, top = Fraction(2) ** -33, 2**39 - 1
    exact = sum((rows * min(max(round(Fraction(loss) / step), -top), top) for _, rows, loss in clients), Fraction(0))
    expected = exact * step / sum(rows for _, rows, _ in clients)
    assert averages.metrics["loss"] == pytest.approx(float(expected), rel=1e-12, abs=64 * 2.0**-48)
    assert averages.present == {"loss": 1.0}


def test_metrics_of_equal_numbers_are_that_number_to_the_bit() -> None:
    """Shares are rounded, and cancel out: what all clients tell each other arrives as they told it."""
    codec = FixedPointCodec(_layout(("w", "float32", (1,), "parameter"), metrics=("loss",)), 24)
    told = 12345 * 2.0**-20
    vectors = [codec.encode_metrics({"loss": told}, {"loss": Fraction(rows, w)}) for w, rows in ((7, 3), (11, 5))]
    assert codec.decode_metrics(_sum(vectors, [7, 11])).metrics == {"loss": told}


def test_without_metrics_the_closing_exchange_says_nothing() -> None:
    codec = FixedPointCodec(_layout(("w", "float32", (1,), "parameter")), 24)
    assert codec.encode_metrics({}).tolist() == [0]
    assert codec.decode_metrics(Sum(np.zeros(1, np.int64), 3)).metrics == {}
