"""What the engines for floating-point vectors promise, for each of them; and which engines there are.

``packed`` promises more, of integers: see test_packed.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import pytest
from builders import Array, weighted_mean
from hypothesis import given, settings
from hypothesis import strategies as st

from hefl.ckks.context import PublicContext, SecretContext
from hefl.engines.engine import Attempt, Engine, Member, Trailer
from hefl.engines.load import load_engine
from hefl.errors import EngineError, MalformedError
from hefl.params import DEFAULT_ENGINE, ENGINES

FLOAT_ENGINES = [name for name in ENGINES if name != "packed"]
NAMES = "abcdef"
TOLERANCE = 1e-6


@pytest.fixture(params=FLOAT_ENGINES)
def engine(request: pytest.FixtureRequest) -> Engine:
    return load_engine(request.param, insecure_plaintext=True)


def encrypted(engine: Engine, secret: SecretContext, attempt: Attempt, name: str, vector: Array) -> list[bytes]:
    blocks: list[bytes] = []
    assert engine.encrypt(vector, secret, attempt, name, lambda b: blocks.append(bytes(b))) == Trailer()
    return blocks


def summed(
    engine: Engine,
    secret: SecretContext,
    public: PublicContext,
    attempt: Attempt,
    updates: dict[str, list[bytes]],
) -> Array:
    """The mean of those who are in, by way of the engine."""
    aggregator = engine.aggregator(public, attempt, updates)
    for name, blocks in updates.items():
        aggregator.add(name, lambda blocks=blocks: iter(blocks), Trailer())  # type: ignore[misc]
    out: list[bytes] = []
    tag = aggregator.finish(lambda b: out.append(bytes(b)))
    assert len(out) == engine.block_count(attempt)
    assert all(len(block) <= engine.max_block_bytes(attempt) for block in out)
    members = [Member(name, bytes(32), attempt.weights[name]) for name in updates]
    total = engine.decrypt(lambda: iter(out), tag, secret, attempt, members)
    assert total.vector.shape == (attempt.values,)
    mean: Array = total.vector.astype(np.float64) / total.total_weight
    return mean


def attempt_of(values: int, weights: Sequence[int]) -> Attempt:
    return Attempt(bytes(32), values, dict(zip(NAMES, weights, strict=False)))


SIZES = st.sampled_from([1, 2, 100, 4095, 4096, 4097, 9000])
WEIGHTS = st.lists(st.integers(1, 100_000), min_size=2, max_size=4)


@settings(max_examples=12)
@given(values=SIZES, weights=WEIGHTS, seed=st.integers(0, 2**32 - 1))
@pytest.mark.parametrize("name", FLOAT_ENGINES)
def test_the_mean_is_numpys_weighted_mean(
    secret: SecretContext, public: PublicContext, name: str, values: int, weights: list[int], seed: int
) -> None:
    engine = load_engine(name, insecure_plaintext=True)
    vectors = np.random.default_rng(seed).normal(size=(len(weights), values)).astype(np.float32)
    attempt = attempt_of(values, weights)
    updates = {n: encrypted(engine, secret, attempt, n, v) for n, v in zip(attempt.weights, vectors, strict=True)}
    mean = summed(engine, secret, public, attempt, updates)
    np.testing.assert_allclose(mean, weighted_mean(list(vectors), weights), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("missing", NAMES[:4])
def test_the_mean_of_those_who_are_in_is_renormalised(
    engine: Engine, secret: SecretContext, public: PublicContext, missing: str
) -> None:
    weights = [30, 10, 25, 1]
    vectors = np.random.default_rng(1).normal(size=(4, 5)).astype(np.float32)
    attempt = attempt_of(5, weights)
    rows = {n: (v, w) for n, v, w in zip(NAMES, vectors, weights, strict=False) if n != missing}
    updates = {n: encrypted(engine, secret, attempt, n, v) for n, (v, _) in rows.items()}
    mean = summed(engine, secret, public, attempt, updates)
    expected = weighted_mean([v for v, _ in rows.values()], [w for _, w in rows.values()])
    np.testing.assert_allclose(mean, expected, rtol=0, atol=TOLERANCE)


def test_the_order_in_which_updates_come_does_not_matter(
    engine: Engine, secret: SecretContext, public: PublicContext
) -> None:
    attempt = attempt_of(3, [3, 1, 2])
    updates = {n: encrypted(engine, secret, attempt, n, np.array([i, -i, 0.5])) for i, n in enumerate(NAMES[:3])}
    forth = summed(engine, secret, public, attempt, updates)
    back = summed(engine, secret, public, attempt, dict(reversed(updates.items())))
    np.testing.assert_allclose(forth, back, rtol=0, atol=TOLERANCE)


def test_16_bit_words_of_one_sender_come_back_exactly(
    engine: Engine, secret: SecretContext, public: PublicContext
) -> None:
    words = np.arange(0, 65536, 13, dtype=np.float64)
    attempt = attempt_of(words.size, [1])
    mean = summed(engine, secret, public, attempt, {"a": encrypted(engine, secret, attempt, "a", words)})
    np.testing.assert_array_equal(np.rint(mean), words)


@pytest.mark.parametrize("values", [1, 4096, 4097, 9000])
def test_an_update_has_as_many_blocks_as_it_is_said_to_have(engine: Engine, secret: SecretContext, values: int) -> None:
    attempt = attempt_of(values, [1])
    blocks = encrypted(engine, secret, attempt, "a", np.zeros(values))
    assert len(blocks) == engine.block_count(attempt)
    assert all(len(block) <= engine.max_block_bytes(attempt) for block in blocks)


@pytest.mark.parametrize("damage", [b"", b"\x00", b"x" * 100])
def test_a_block_that_does_not_parse_is_refused_and_leaves_the_sum_as_it_was(
    engine: Engine, secret: SecretContext, public: PublicContext, damage: bytes
) -> None:
    values = 5000 if engine.name == "tenseal" else 2**18 + 10
    attempt = attempt_of(values, [3, 1])
    good = encrypted(engine, secret, attempt, "a", np.full(values, 2.0))
    assert len(good) == 2
    aggregator = engine.aggregator(public, attempt, ["a"])
    aggregator.add("a", lambda: iter(good), Trailer())
    with pytest.raises(MalformedError):
        aggregator.add("a", lambda: iter([good[0], damage]), Trailer())
    out: list[bytes] = []
    aggregator.finish(lambda b: out.append(bytes(b)))
    total = engine.decrypt(lambda: iter(out), b"", secret, attempt, [Member("a", bytes(32), 3)])
    np.testing.assert_allclose(total.vector / total.total_weight, 2.0, rtol=0, atol=TOLERANCE)


def test_a_sum_of_blocks_that_do_not_parse_is_refused(engine: Engine, secret: SecretContext) -> None:
    attempt = attempt_of(3, [1, 1])
    with pytest.raises(MalformedError):
        engine.decrypt(lambda: iter([b"nonsense"]), b"", secret, attempt, [Member("a", bytes(32), 1)])


def test_blocks_of_another_length_of_vector_are_refused(
    engine: Engine, secret: SecretContext, public: PublicContext
) -> None:
    attempt = attempt_of(3, [1, 1])
    longer = encrypted(engine, secret, attempt_of(4, [1, 1]), "a", np.zeros(4))
    with pytest.raises(MalformedError, match="belong"):
        engine.aggregator(public, attempt).add("a", lambda: iter(longer), Trailer())
    with pytest.raises(MalformedError, match="belong"):
        engine.decrypt(lambda: iter(longer), b"", secret, attempt, [Member("a", bytes(32), 1)])


# --- which engines there are ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ENGINES)
def test_an_engine_has_the_name_that_loads_it(name: str) -> None:
    assert load_engine(name, insecure_plaintext=True).name == name


def test_the_default_engine_encrypts() -> None:
    assert load_engine(DEFAULT_ENGINE).name != "plaintext"


def test_plaintext_is_refused_unless_it_is_asked_for_by_name_and_flag() -> None:
    with pytest.raises(EngineError, match="shows every update") as caught:
        load_engine("plaintext")
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("name", ["", "TenSEAL", "paillier"])
def test_an_engine_that_does_not_exist_is_refused_and_those_that_do_are_listed(name: str) -> None:
    with pytest.raises(EngineError) as caught:
        load_engine(name, insecure_plaintext=True)
    assert all(engine in str(caught.value.hint) for engine in ENGINES)


@pytest.mark.parametrize("cls", [Attempt, Member, Trailer])
def test_values_cannot_be_changed(cls: type) -> None:
    value = {Attempt: attempt_of(3, [1]), Member: Member("a", bytes(32), 1), Trailer: Trailer()}[cls]
    for field in dataclasses.fields(cls):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(value, field.name, None)
