from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tenseal as ts
from builders import Array, weighted_mean

from hefl.ckks.context import PublicContext, SecretContext
from hefl.engines.engine import Attempt, Member, Trailer
from hefl.engines.tenseal import SLOTS, SlotsEngine
from hefl.errors import KeyFileError, MalformedError, OutOfRangeError, SecretAtServerError
from hefl.models.layout import describe

ENGINE = SlotsEngine()
ATTEMPT = Attempt(bytes(32), 3, {"alice": 3, "bob": 1})
VECTORS = {"alice": np.array([0.5, -100.0, 3e-4]), "bob": np.array([2.5, 100.0, -3e-4])}


def encrypted(secret: SecretContext, vector: Array, attempt: Attempt = ATTEMPT) -> list[bytes]:
    blocks: list[bytes] = []
    ENGINE.encrypt(vector, secret, attempt, "alice", lambda b: blocks.append(bytes(b)))
    return blocks


def aggregated(secret: SecretContext, public: PublicContext) -> list[bytes]:
    aggregator = ENGINE.aggregator(public, ATTEMPT)
    for name, vector in VECTORS.items():
        blocks = encrypted(secret, vector)
        aggregator.add(name, lambda blocks=blocks: iter(blocks), Trailer())  # type: ignore[misc]
    out: list[bytes] = []
    assert aggregator.finish(lambda b: out.append(bytes(b))) == b""
    return out


def opened(secret: SecretContext, block: bytes) -> Any:
    """A block as TenSEAL alone reads it."""
    return ts.ckks_vector_from(ts.context_from(secret.ckks), block)


def test_tenseal_alone_reads_an_update(secret: SecretContext) -> None:
    (block,) = encrypted(secret, VECTORS["alice"])
    np.testing.assert_allclose(opened(secret, block).decrypt(), VECTORS["alice"], rtol=0, atol=1e-6)


def test_tenseal_alone_reads_an_aggregate_as_the_weighted_mean(secret: SecretContext, public: PublicContext) -> None:
    (block,) = aggregated(secret, public)
    expected = weighted_mean(list(VECTORS.values()), list(ATTEMPT.weights.values()))
    np.testing.assert_allclose(opened(secret, block).decrypt(), expected, rtol=0, atol=1e-6)


def test_a_sum_in_which_an_update_is_half_is_never_written(secret: SecretContext, public: PublicContext) -> None:
    attempt, passes = Attempt(bytes(32), SLOTS + 1, ATTEMPT.weights), 0
    second = encrypted(secret, np.ones(SLOTS + 1), attempt)

    def blocks() -> Iterator[bytes]:
        nonlocal passes
        passes += 1
        yield second[0]
        if passes == 2:
            raise OSError("the disk failed")
        yield second[1]

    aggregator = ENGINE.aggregator(public, attempt)
    with pytest.raises(OSError, match="the disk failed"):
        aggregator.add("bob", blocks, Trailer())
    # Not even after the same update has come again, whole.
    for name in attempt.weights:
        aggregator.add(name, lambda: iter(second), Trailer())
    with pytest.raises(MalformedError, match="in part"):
        aggregator.finish(lambda data: pytest.fail("something was written"))


def test_the_rescale_costs_no_precision_relative_to_the_value(secret: SecretContext, public: PublicContext) -> None:
    # Were the prime taken for 2**40, the result would be off by 6e-7 of itself.
    big = np.array([250_000.0, -250_000.0, 1.0])
    attempt = Attempt(bytes(32), 3, {"alice": 1, "bob": 1})
    aggregator = ENGINE.aggregator(public, attempt)
    for name in attempt.weights:
        blocks = encrypted(secret, big, attempt)
        aggregator.add(name, lambda blocks=blocks: iter(blocks), Trailer())  # type: ignore[misc]
    out: list[bytes] = []
    aggregator.finish(lambda b: out.append(bytes(b)))
    total = ENGINE.decrypt(lambda: iter(out), b"", secret, attempt, [Member(n, bytes(32), 1) for n in attempt.weights])
    np.testing.assert_allclose(total.vector, big, rtol=1e-8, atol=1e-6)


def test_an_aggregate_is_smaller_than_an_update(secret: SecretContext, public: PublicContext) -> None:
    assert len(aggregated(secret, public)[0]) < 0.7 * len(encrypted(secret, VECTORS["alice"])[0])


def test_encrypting_twice_gives_different_bytes_without_a_trace_of_the_values(secret: SecretContext) -> None:
    first, second = (encrypted(secret, VECTORS["alice"])[0] for _ in range(2))
    assert first != second
    for value in VECTORS["alice"]:
        assert np.float64(value).tobytes() not in first


def test_another_federations_key_reads_nothing(
    secret: SecretContext, public: PublicContext, other_secret: SecretContext
) -> None:
    members = [Member(name, bytes(32), weight) for name, weight in ATTEMPT.weights.items()]
    total = ENGINE.decrypt(lambda: iter(aggregated(secret, public)), b"", other_secret, ATTEMPT, members)
    assert (np.abs(total.vector) > 1e3).any()


def test_a_servers_context_cannot_read_an_update(secret: SecretContext, public: PublicContext) -> None:
    (block,) = encrypted(secret, VECTORS["alice"])
    with pytest.raises(ValueError, match="secret_key"):
        ts.ckks_vector_from(ts.context_from(public.ckks), block).decrypt()


def test_a_server_with_a_secret_key_cannot_add(secret: SecretContext, public: PublicContext) -> None:
    with pytest.raises(SecretAtServerError):
        ENGINE.aggregator(dataclasses.replace(public, ckks=secret.ckks), ATTEMPT)


def test_a_client_without_a_secret_key_cannot_encrypt(secret: SecretContext, public: PublicContext) -> None:
    with pytest.raises(KeyFileError):
        encrypted(dataclasses.replace(secret, ckks=public.ckks), VECTORS["alice"])


@pytest.mark.parametrize("share", [0.0, 0.001, 0.01, 0.5, 0.99])
def test_a_truncated_ciphertext_is_refused(secret: SecretContext, public: PublicContext, share: float) -> None:
    (block,) = encrypted(secret, VECTORS["alice"])
    with pytest.raises(MalformedError):
        ENGINE.aggregator(public, ATTEMPT).add("alice", lambda: iter([block[: int(share * len(block))]]), Trailer())


def test_a_ciphertext_of_another_ring_is_refused(public: PublicContext) -> None:
    context = ts.context(ts.SCHEME_TYPE.CKKS, 4096, coeff_mod_bit_sizes=[40, 20, 40], n_threads=1)
    context.global_scale = 2.0**20
    foreign = ts.ckks_vector(context, [1.0, 2.0, 3.0]).serialize()
    with pytest.raises(MalformedError):
        ENGINE.aggregator(public, ATTEMPT).add("alice", lambda: iter([foreign]), Trailer())


@pytest.mark.parametrize(("values", "ciphertexts"), [(SLOTS, 1), (SLOTS + 1, 2)])
def test_a_block_holds_as_many_values_as_one_ciphertext_of_tenseals(
    secret: SecretContext, values: int, ciphertexts: int
) -> None:
    vector = ts.ckks_vector(ts.context_from(secret.ckks), [0.0] * values)
    assert len(vector.ciphertext()) == ciphertexts
    assert ENGINE.block_count(Attempt(bytes(32), values, {})) == ciphertexts


def test_values_that_would_wrap_are_refused_by_the_codec() -> None:
    codec = ENGINE.codec(describe([np.zeros(2)], [], ["weight"]))
    codec.encode_model([np.array([0.0, 2.0**18 - 1])], {}, ())
    with pytest.raises(OutOfRangeError, match="'weight'"):
        codec.encode_model([np.array([0.0, 2.0**18])], {}, ())


def test_sums_are_not_said_to_be_verified() -> None:
    assert SlotsEngine.verifies is False


@pytest.mark.parametrize("value", [2.0**18, -(2.0**18), 1e12, math.nan, math.inf])
def test_a_value_that_would_wrap_is_refused_before_it_is_encrypted(secret: SecretContext, value: float) -> None:
    with pytest.raises(OutOfRangeError, match="262144"):
        encrypted(secret, np.array([0.0, value, 1.0]))


def test_a_sum_is_precise_where_the_client_with_nearly_all_examples_is_missing(
    secret: SecretContext, public: PublicContext
) -> None:
    attempt = Attempt(bytes(32), 3, {"alice": 1, "bob": 3, "carol": 2**24})
    vectors = {"alice": np.array([1.0, -2.0, 1e5]), "bob": np.array([5.0, 2.0, -1e5])}
    aggregator = ENGINE.aggregator(public, attempt, vectors)
    for name, vector in vectors.items():
        blocks = encrypted(secret, vector, attempt)
        aggregator.add(name, lambda blocks=blocks: iter(blocks), Trailer())  # type: ignore[misc]
    out: list[bytes] = []
    aggregator.finish(lambda b: out.append(bytes(b)))
    total = ENGINE.decrypt(lambda: iter(out), b"", secret, attempt, [Member(n, bytes(32), 1) for n in vectors])
    np.testing.assert_allclose(total.vector / total.total_weight, [4.0, 1.0, -5e4], rtol=0, atol=1e-3)


def test_the_smallest_share_that_can_be_announced_still_counts(secret: SecretContext, public: PublicContext) -> None:
    attempt = Attempt(bytes(32), 3, {"alice": 1, "bob": ENGINE.max_num_examples, "carol": ENGINE.max_num_examples})
    vectors = {"alice": np.full(3, 250_000.0), "bob": np.zeros(3), "carol": np.zeros(3)}
    aggregator = ENGINE.aggregator(public, attempt)
    for name, vector in vectors.items():
        blocks = encrypted(secret, vector, attempt)
        aggregator.add(name, lambda blocks=blocks: iter(blocks), Trailer())  # type: ignore[misc]
    out: list[bytes] = []
    aggregator.finish(lambda b: out.append(bytes(b)))
    total = ENGINE.decrypt(
        lambda: iter(out), b"", secret, attempt, [Member(n, bytes(32), w) for n, w in attempt.weights.items()]
    )
    np.testing.assert_allclose(total.vector, 250_000 / (2 * 2**24 + 1), rtol=0, atol=1e-6)


def crafted(secret: SecretContext, values: list[float], *, scale: float = 2.0**40, rescaled: bool = False) -> bytes:
    """A ciphertext that parses and is not one of hefl's."""
    vector = ts.ckks_vector(ts.context_from(secret.ckks), values, scale=scale)
    return bytes((vector * 0.5 if rescaled else vector).serialize())


@pytest.mark.parametrize(
    "block", [{"scale": 2.0**30}, {"rescaled": True}, {"values": [1.0]}], ids=["scale", "level", "size"]
)
def test_a_ciphertext_of_another_form_is_refused_and_the_sum_goes_on_without_it(
    secret: SecretContext, public: PublicContext, block: dict[str, Any]
) -> None:
    """Its second block is at fault: the first must not have been added."""
    count = ENGINE.block_count(Attempt(bytes(32), 4097, {}))
    assert count == 2
    attempt = Attempt(bytes(32), 4097, {"alice": 1, "bob": 1})
    vector = np.ones(4097)
    good = encrypted(secret, vector, attempt)
    bad = [good[0], crafted(secret, **{"values": [1.0], **block})]
    if "values" in block:
        bad[1] = crafted(secret, [1.0, 2.0])
    aggregator = ENGINE.aggregator(public, attempt)
    with pytest.raises(MalformedError, match="belong"):
        aggregator.add("alice", lambda: iter(bad), Trailer())
    for name in attempt.weights:
        aggregator.add(name, lambda: iter(good), Trailer())
    out: list[bytes] = []
    aggregator.finish(lambda b: out.append(bytes(b)))
    total = ENGINE.decrypt(lambda: iter(out), b"", secret, attempt, [Member(n, bytes(32), 1) for n in attempt.weights])
    np.testing.assert_allclose(total.vector, vector, rtol=0, atol=1e-6)
