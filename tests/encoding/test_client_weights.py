"""Clients that weigh their own updates: the exact mean, and nothing beyond it."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction

import numpy as np
import pytest
from builders import weighted_mean
from packed_support import new_attempt, new_secret, sum_of

from hefl.encoding.client_weights import ClientWeightedCodec
from hefl.encoding.codec import Sum
from hefl.engines.packed import PackedEngine
from hefl.errors import UploadError
from hefl.models.layout import describe

PRECISION = 24
ENGINE = PackedEngine(PRECISION, "client", threads=1)
SECRET = new_secret()
MODELS = {"client-0": np.array([0.5, -0.25, 1.0]), "client-1": np.array([-0.125, 0.75, 1.0])}
LOSSES, ROWS = {"client-0": 0.75, "client-1": 0.25}, {"client-0": 3, "client-1": 5}
LAYOUT = describe([MODELS["client-0"]], ["loss"])
SCALES = (0,)


def codec_of(weight: int) -> ClientWeightedCodec:
    return ClientWeightedCodec(ENGINE.codec(LAYOUT), PRECISION, lambda: weight)


def summed(weights: Mapping[str, int], said: Mapping[str, int]) -> Sum:
    """Of clients that multiply by these weights, and say those."""
    vectors = {
        name: codec_of(w).encode_model([MODELS[name]], {"loss": LOSSES[name]}, SCALES, {"loss": Fraction(ROWS[name])})
        for name, w in weights.items()
    }
    for name, vector in vectors.items():
        vector[-1] = said[name]
    attempt = new_attempt(codec_of(1).values("training"), [1, 1])
    return sum_of(ENGINE, SECRET, attempt, vectors).open(ENGINE, SECRET, attempt)


@pytest.mark.parametrize("weights", [(1, 1), (3, 7), (1024, 1), (1024, 1024)])
def test_the_mean_is_numpys_that_of_metrics_is_by_rows_and_every_value_may_fill_its_range(
    weights: tuple[int, int],
) -> None:
    named = dict(zip(MODELS, weights, strict=True))
    (mean,), averages, _ = codec_of(1).decode_model(summed(named, named), SCALES)
    expected = weighted_mean(list(MODELS.values()), weights)
    np.testing.assert_allclose(mean, expected, rtol=0, atol=2.0 ** (1 - PRECISION))
    assert averages.metrics == {"loss": np.average([*LOSSES.values()], weights=[*ROWS.values()])}
    assert averages.present == {"loss": 1.0}


@pytest.mark.parametrize("said", [-3, -1, 2047])
def test_weights_that_cannot_be_are_refused(said: int) -> None:
    total = summed({"client-0": 2, "client-1": 2}, {"client-0": said, "client-1": 2})
    with pytest.raises(UploadError, match="cannot sum to"):
        codec_of(1).decode_model(total, SCALES)


def test_a_client_that_says_less_than_it_weighs_moves_no_average_beyond_the_range() -> None:
    total = summed({"client-0": 1024, "client-1": 1}, {"client-0": 1, "client-1": 1})
    with pytest.raises(UploadError, match="beyond the weight 2"):
        codec_of(1).decode_model(total, SCALES)
