from __future__ import annotations

import logging
import math
from fractions import Fraction

import numpy as np
import pytest
from builders import Array, weighted_mean
from hypothesis import given
from hypothesis import strategies as st

from hefl.encoding.codec import Averages, FloatCodec, RoundKind, Sum
from hefl.errors import LayoutError, MalformedError, NotFiniteError, OutOfRangeError
from hefl.models.layout import describe

LIMIT = 2.0**18
MODEL: list[Array] = [
    np.arange(6, dtype=np.float32).reshape(2, 3),
    np.array([7, -8], np.int64),
    np.array(0.5, np.float16),
]
LAYOUT = describe(MODEL, ["loss", "accuracy"], ["weight", "steps", "gain"], [None, "integer", None])
CODEC = FloatCodec(LAYOUT, LIMIT)
METRICS = {"loss": 0.25, "accuracy": 0.875}


def changed(tensor: int, index: tuple[int, ...], value: float) -> list[Array]:
    arrays = [a.copy() for a in MODEL]
    arrays[tensor][index] = value
    return arrays


# --- lengths ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metrics", [[], ["loss"], ["loss", "accuracy"]])
def test_the_announced_length_is_the_encoded_one(metrics: list[str]) -> None:
    codec = FloatCodec(describe(MODEL, metrics, None, [None, "integer", None]), LIMIT)
    encoded: dict[RoundKind, Array] = {
        "initial": codec.encode_initial(MODEL),
        "training": codec.encode_model(MODEL, METRICS, ()),
        "closing": codec.encode_metrics(METRICS),
    }
    for exchange, vector in encoded.items():
        assert vector.shape == (codec.values(exchange),)
        assert vector.size >= 1


# --- initial arrays ---------------------------------------------------------------------------------------------------


@given(st.integers(0, 2**32 - 1), st.floats(0.001, 1.0))
def test_initial_arrays_survive_an_approximate_sum_to_the_bit(seed: int, weight: float) -> None:
    words = CODEC.encode_initial(MODEL)
    assert ((words >= 0) & (words <= 0xFFFF) & (words % 1 == 0)).all()
    noise = np.random.default_rng(seed).uniform(-0.2, 0.2, words.shape)
    back, scales = CODEC.decode_initial(Sum((words + noise) * weight, weight))
    assert [(a.dtype, a.shape, a.tobytes()) for a in back] == [(a.dtype, a.shape, a.tobytes()) for a in MODEL]
    assert scales == ()


@pytest.mark.parametrize("wrong", [-1.0, 65536.0, 0.5, math.nan, 1e300])
def test_a_sum_that_is_no_16_bit_word_is_refused(wrong: float) -> None:
    words = CODEC.encode_initial(MODEL)
    words[-1] = wrong
    with pytest.raises(MalformedError, match="16-bit words"):
        CODEC.decode_initial(Sum(words, 1.0))


# --- trained models ---------------------------------------------------------------------------------------------------


def test_a_model_alone_in_a_sum_comes_back_with_its_dtypes() -> None:
    arrays, averages, scales = CODEC.decode_model(Sum(CODEC.encode_model(MODEL, METRICS, ()), 1.0), ())
    for back, array in zip(arrays, MODEL, strict=True):
        assert back.dtype == array.dtype
        np.testing.assert_array_equal(back, array)
    assert (averages.metrics, scales) == (METRICS, ())


@given(st.lists(st.integers(1, 10**6), min_size=2, max_size=5), st.integers(0, 2**32 - 1))
def test_a_weighted_sum_decodes_to_numpys_weighted_mean(weights: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    layout = describe([np.zeros((2, 3))], ["loss"])
    codec = FloatCodec(layout, LIMIT)
    models = [rng.normal(size=(2, 3)) for _ in weights]
    losses = rng.uniform(0, 5, len(weights))
    rows = [codec.encode_model([m], {"loss": x}, ()) * w for m, x, w in zip(models, losses, weights, strict=True)]
    (mean,), averages, _ = codec.decode_model(Sum(np.sum(rows, axis=0), float(sum(weights))), ())
    np.testing.assert_allclose(mean, weighted_mean(models, weights), rtol=0, atol=1e-12)
    assert averages.metrics["loss"] == pytest.approx(float(np.average(losses, weights=weights)))


@pytest.mark.parametrize("halves", [1, 3, 5, -1, -3])
def test_a_mean_of_integers_is_rounded_half_to_even(halves: int) -> None:
    codec = FloatCodec(describe([np.zeros(1, np.int32)], []), LIMIT)
    (back,), _, _ = codec.decode_model(Sum(np.array([float(halves)]), 2.0), ())
    assert back.dtype == np.int32
    assert back.tolist() == [round(halves / 2)]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    ("tensor", "index", "where"),
    [
        (0, (0, 0), r"tensor 'weight', index \(0, 0\)"),
        (0, (1, 2), r"tensor 'weight', index \(1, 2\)"),
        (2, (), r"tensor 'gain', index \(\)"),
    ],
)
def test_a_value_that_is_not_finite_is_refused_and_located(
    bad: float, tensor: int, index: tuple[int, ...], where: str
) -> None:
    with pytest.raises(NotFiniteError, match=where):
        CODEC.encode_model(changed(tensor, index, bad), METRICS, ())


@pytest.mark.parametrize("value", [LIMIT, -LIMIT, 2 * LIMIT])
@pytest.mark.parametrize(("tensor", "index", "name"), [(0, (1, 0), "weight"), (1, (1,), "steps")])
def test_a_value_at_the_engines_limit_is_refused_and_located(
    value: float, tensor: int, index: tuple[int, ...], name: str
) -> None:
    with pytest.raises(OutOfRangeError, match=rf"tensor '{name}', index \({index[0]}, ?"):
        CODEC.encode_model(changed(tensor, index, value), METRICS, ())


def test_the_largest_value_below_the_limit_is_sent() -> None:
    below = float(np.nextafter(np.float32(LIMIT), np.float32(0)))
    assert below in CODEC.encode_model(changed(0, (0, 0), below), METRICS, ())


def test_no_refusal_shows_the_value() -> None:
    with pytest.raises(OutOfRangeError) as caught:
        CODEC.encode_model(changed(0, (0, 0), 777777.0), METRICS, ())
    assert "777777" not in f"{caught.value} {caught.value.hint}"


def test_arrays_of_another_layout_are_refused() -> None:
    with pytest.raises(LayoutError, match="'weight'"):
        CODEC.encode_model([MODEL[0].astype(np.float64), *MODEL[1:]], METRICS, ())


# --- metrics ----------------------------------------------------------------------------------------------------------


LOSS = FloatCodec(describe([np.zeros(1)], ["loss"]), LIMIT)


@given(
    st.lists(
        st.tuples(
            st.integers(1, 1000),
            st.integers(1, 1000),
            st.floats(-64, 64) | st.sampled_from([math.nan, math.inf, -math.inf]),
        ),
        min_size=1,
        max_size=6,
    )
)
def test_a_metric_is_averaged_by_rows_over_the_clients_that_have_a_number(
    clients: list[tuple[int, int, float]],
) -> None:
    total = sum(weight for weight, _, _ in clients)
    vectors = [
        LOSS.encode_metrics({"loss": loss}, {"loss": Fraction(rows, weight)}) * weight / total
        for weight, rows, loss in clients
    ]
    finite = [(weight, rows, loss) for weight, rows, loss in clients if math.isfinite(loss)]
    expected = np.average([v for _, _, v in finite], weights=[r for _, r, _ in finite]) if finite else None
    found = LOSS.decode_metrics(Sum(np.sum(vectors, axis=0), 1.0))
    assert found.metrics == {"loss": pytest.approx(expected, abs=1e-9)}
    assert found.present == {"loss": pytest.approx(sum(weight for weight, _, _ in finite) / total)}


def test_a_metric_that_a_client_does_not_have_is_left_out() -> None:
    told: list[dict[str, float]] = [{"loss": 3.0}, {"loss": 1.0, "accuracy": 0.5}]
    vector = np.sum([CODEC.encode_metrics(metrics) for metrics in told], axis=0)
    assert CODEC.decode_metrics(Sum(vector, 2.0)) == Averages(
        {"loss": 2.0, "accuracy": 0.5}, {"loss": 1.0, "accuracy": 0.5}
    )


def test_a_metric_that_nobody_has_is_none_and_not_a_number() -> None:
    assert CODEC.decode_metrics(Sum(CODEC.encode_metrics({"loss": 1.0}), 1.0)) == Averages(
        {"loss": 1.0, "accuracy": None}, {"loss": 1.0, "accuracy": 0.0}
    )


def test_a_metric_that_nobody_asked_for_is_not_sent() -> None:
    assert CODEC.encode_metrics({**METRICS, "private": 5.0}).tolist() == [0.25, 0.875, 1.0, 1.0, 1.0, 1.0]


def test_more_rows_than_the_engine_has_room_for_weigh_as_what_it_has_room_for(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING, "hefl"):
        vector = LOSS.encode_metrics({"loss": 64.0}, {"loss": Fraction(2049)})
    assert (np.abs(vector) < LIMIT).all()
    assert "more than 2048 rows for each training example" in caplog.text
    assert LOSS.decode_metrics(Sum(vector, 1.0)).metrics == {"loss": 64.0}


@pytest.mark.parametrize(("value", "sent"), [(1000.0, 64.0), (-1000.0, -64.0), (64.0, 64.0)])
def test_a_metric_beyond_its_range_saturates_and_the_log_says_so(
    value: float, sent: float, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "hefl"):
        assert LOSS.encode_metrics({"loss": value}).tolist() == [sent, 1.0, 1.0]
    assert [("loss" in r.getMessage()) for r in caplog.records] == ([True] if value != sent else [])
    assert "1000" not in caplog.text
