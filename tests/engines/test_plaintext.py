from __future__ import annotations

import numpy as np
import pytest

from hefl.ckks.context import PublicContext, SecretContext
from hefl.engines.engine import Attempt, Trailer
from hefl.engines.plaintext import BLOCK, PlaintextEngine
from hefl.errors import NotFiniteError, OutOfRangeError
from hefl.models.layout import describe

ENGINE = PlaintextEngine()


def test_an_update_is_the_vector_in_little_endian_float32(secret: SecretContext) -> None:
    vector = np.random.default_rng(0).normal(size=BLOCK + 3)
    blocks: list[bytes] = []
    attempt = Attempt(bytes(32), vector.size, {"alice": 1})
    assert ENGINE.encrypt(vector, secret, attempt, "alice", lambda b: blocks.append(bytes(b))) == Trailer()
    assert b"".join(blocks) == vector.astype("<f4").tobytes()
    assert [len(block) for block in blocks] == [4 * BLOCK, 12]


def test_a_sum_is_numpys_in_float32(public: PublicContext) -> None:
    attempt = Attempt(bytes(32), 2, {"alice": 3, "bob": 1})
    vectors = {"alice": np.array([1.1, -2.2], np.float32), "bob": np.array([5.5, 1e30], np.float32)}
    aggregator = ENGINE.aggregator(public, attempt)
    for name, vector in vectors.items():
        aggregator.add(name, lambda vector=vector: iter([vector.astype("<f4").tobytes()]), Trailer())  # type: ignore[misc]
    out: list[bytes] = []
    aggregator.finish(lambda b: out.append(bytes(b)))
    expected = np.float32(0.75) * vectors["alice"] + np.float32(0.25) * vectors["bob"]
    assert out == [expected.tobytes()]


def test_values_that_float32_cannot_hold_are_refused() -> None:
    codec = ENGINE.codec(describe([np.zeros(1)], [], ["weight"]))
    codec.encode_model([np.array([1e38])], {}, ())
    with pytest.raises(OutOfRangeError, match="'weight'"):
        codec.encode_model([np.array([1e39])], {}, ())
    with pytest.raises(NotFiniteError, match="'weight'"):
        codec.encode_model([np.array([np.nan])], {}, ())


def test_sums_are_not_said_to_be_verified() -> None:
    assert PlaintextEngine.verifies is False
