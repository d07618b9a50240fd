from __future__ import annotations

import dataclasses
import io
import math
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pytest
from builders import Array, announcement, redigested, summed, update, weighted_mean
from hypothesis import given, settings
from hypothesis import strategies as st

import hefl
from hefl.ckks.context import PublicContext, SecretContext
from hefl.engines.engine import Engine, Member, Trailer
from hefl.engines.load import load_engine
from hefl.errors import (
    ConflictError,
    EngineError,
    HeflError,
    MalformedError,
    MismatchError,
    NotFiniteError,
    NumExamplesError,
    OutOfRangeError,
    ParametersError,
    StaleError,
    TamperError,
    UploadError,
)
from hefl.identity import Identity
from hefl.params import ENGINES
from hefl.protocol import frames
from hefl.protocol.records import Announcement, Record
from hefl.protocol.updates import Aggregation, max_aggregate_bytes, max_update_bytes, read_aggregate

WEIGHTS = {"alice": 30, "bob": 10, "carol": 25}
VECTORS = {"alice": np.array([1.0, 2.0, -3.0]), "bob": np.array([5.0, -6.0, 0.0]), "carol": np.array([0.1, 0.2, 0.3])}
ATTEMPT = announcement(WEIGHTS)
RANGE = 8.0


@pytest.fixture(scope="module")
def tenseal() -> Engine:
    return load_engine("tenseal")


@pytest.fixture(scope="module")
def updates(tenseal: Engine, secret: SecretContext) -> dict[str, bytes]:
    return {name: update(tenseal, secret, ATTEMPT, name, vector) for name, vector in VECTORS.items()}


@pytest.fixture(scope="module")
def aggregated(tenseal: Engine, public: PublicContext, updates: dict[str, bytes]) -> tuple[bytes, Record]:
    return summed(tenseal, public, ATTEMPT, updates)


def expected(names: list[str]) -> Array:
    return weighted_mean([VECTORS[n] for n in names], [WEIGHTS[n] for n in names])


# --- three calls on bytes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["packed", "tenseal"])
def test_three_clients_of_different_weight_give_numpys_weighted_mean(
    secret: SecretContext, public: PublicContext, engine: str
) -> None:
    attempt = hefl.announce(public, WEIGHTS, values=3, engine=engine)
    updates = [hefl.encrypt(vector, secret, attempt, name, value_range=RANGE) for name, vector in VECTORS.items()]
    mean = hefl.decrypt(hefl.aggregate(updates, public, attempt), secret, attempt)
    assert mean.dtype == np.float64
    np.testing.assert_allclose(mean, expected(list(VECTORS)), rtol=0, atol=1e-6)


@settings(max_examples=10)
@given(
    st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 10_000), min_size=2),
    st.integers(1, 5000),
    st.sampled_from(["packed", "tenseal"]),
)
def test_any_weights_and_any_length_give_numpys_weighted_mean(
    secret: SecretContext, public: PublicContext, weights: dict[str, int], values: int, engine: str
) -> None:
    attempt = hefl.announce(public, weights, values, engine=engine)
    vectors = {n: np.random.default_rng(i).normal(size=values) for i, n in enumerate(weights)}
    updates = [hefl.encrypt(vector, secret, attempt, name, value_range=8) for name, vector in vectors.items()]
    mean = hefl.decrypt(hefl.aggregate(updates, public, attempt), secret, attempt)
    np.testing.assert_allclose(mean, weighted_mean(list(vectors.values()), list(weights.values())), rtol=0, atol=1e-6)


@pytest.mark.parametrize("missing", WEIGHTS)
def test_a_client_that_drops_out_leaves_the_mean_of_the_others(
    secret: SecretContext, public: PublicContext, updates: dict[str, bytes], missing: str
) -> None:
    present = [name for name in WEIGHTS if name != missing]
    aggregate = hefl.aggregate([updates[name] for name in present], public, ATTEMPT)
    np.testing.assert_allclose(hefl.decrypt(aggregate, secret, ATTEMPT), expected(present), rtol=0, atol=1e-6)


def test_two_announcements_never_share_a_ctx(public: PublicContext) -> None:
    assert len({hefl.announce(public, WEIGHTS, 3).ctx for _ in range(20)}) == 20


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_not_encrypted(secret: SecretContext, bad: float) -> None:
    with pytest.raises(NotFiniteError, match="value 1 "):
        hefl.encrypt([1.0, bad, bad], secret, ATTEMPT, "alice")


@pytest.mark.parametrize("vector", [[], [1.0, 2.0], [1.0, 2.0, 3.0, 4.0], [[1.0, 2.0, 3.0]], 1.0])
def test_a_vector_of_another_shape_is_not_encrypted(secret: SecretContext, vector: Any) -> None:
    with pytest.raises(ParametersError, match=r"shape \(3,\)"):
        hefl.encrypt(vector, secret, ATTEMPT, "alice")


def test_who_was_not_announced_cannot_encrypt(secret: SecretContext) -> None:
    with pytest.raises(ParametersError, match="'mallory'"):
        hefl.encrypt([1.0, 2.0, 3.0], secret, ATTEMPT, "mallory")


def test_the_three_calls_never_run_without_encryption(secret: SecretContext, public: PublicContext) -> None:
    attempt = announcement(WEIGHTS, engine="plaintext")
    calls: list[Callable[[], object]] = [
        lambda: hefl.encrypt(VECTORS["alice"], secret, attempt, "alice"),
        lambda: hefl.aggregate([], public, attempt),
        lambda: hefl.decrypt(b"", secret, attempt),
    ]
    for call in calls:
        with pytest.raises(EngineError):
            call()


# --- updates that do not belong ---------------------------------------------------------------------------------------


def replaced(**changes: Any) -> Announcement:
    return msgspec.structs.replace(ATTEMPT, **changes)


@pytest.mark.parametrize(
    ("made_for", "error"),
    [
        (replaced(round=2), StaleError),
        (replaced(round=3), StaleError),
        (replaced(attempt=2), StaleError),
        (replaced(run="00" * 16), StaleError),
        (replaced(nonce="00" * 32), StaleError),
        (replaced(head="00" * 32), StaleError),
        (replaced(participants=announcement({**WEIGHTS, "bob": 11}).participants), StaleError),
        (replaced(engine="plaintext"), EngineError),
    ],
    ids=["later round", "still later round", "attempt", "run", "nonce", "head", "weights", "engine"],
)
def test_an_update_of_another_attempt_is_refused(
    secret: SecretContext, public: PublicContext, made_for: Announcement, error: type[HeflError]
) -> None:
    engine = load_engine(made_for.engine, insecure_plaintext=True)
    foreign = update(engine, secret, made_for, "alice", VECTORS["alice"])
    with pytest.raises(error) as caught:
        hefl.aggregate([foreign], public, ATTEMPT)
    assert type(caught.value) is error


@pytest.mark.parametrize("identity", [Identity("ab" * 16, 1), None], ids=["federation", "generation"])
def test_an_update_of_another_federation_or_generation_is_refused(
    tenseal: Engine, secret: SecretContext, public: PublicContext, identity: Identity | None
) -> None:
    identity = identity or dataclasses.replace(secret.identity, generation=2)
    foreign = update(tenseal, dataclasses.replace(secret, identity=identity), ATTEMPT, "alice", VECTORS["alice"])
    with pytest.raises(MismatchError):
        hefl.aggregate([foreign], public, ATTEMPT)


def test_an_update_of_more_values_is_refused(tenseal: Engine, secret: SecretContext, public: PublicContext) -> None:
    data = bytearray(update(tenseal, secret, ATTEMPT, "alice", VECTORS["alice"]))
    at = frames.HEADER.size - struct_tail()
    data[at : at + 8] = (4).to_bytes(8, "little")
    with pytest.raises(MalformedError, match="4 values"):
        hefl.aggregate([redigested(data)], public, ATTEMPT)


def struct_tail() -> int:
    """Bytes from the header's number of values to its end: values, blocks, members, tag length."""
    return 8 + 4 + 4 + 2


def test_an_update_that_another_client_sent_is_refused(
    tenseal: Engine, public: PublicContext, updates: dict[str, bytes]
) -> None:
    aggregation = Aggregation(public, tenseal, ATTEMPT)
    with pytest.raises(ConflictError, match="'alice', not 'bob'"):
        aggregation.open(updates["alice"], "bob")


def test_an_update_of_a_client_that_was_not_announced_is_refused(
    tenseal: Engine, secret: SecretContext, public: PublicContext
) -> None:
    foreign = update(tenseal, secret, ATTEMPT, "mallory", VECTORS["alice"])
    with pytest.raises(ConflictError, match="mallory"):
        hefl.aggregate([foreign], public, ATTEMPT)


def test_a_client_counts_at_most_once(
    tenseal: Engine, secret: SecretContext, public: PublicContext, updates: dict[str, bytes]
) -> None:
    again = update(tenseal, secret, ATTEMPT, "alice", VECTORS["alice"])
    for second in (updates["alice"], again):
        with pytest.raises(ConflictError, match="alice"):
            hefl.aggregate([updates["alice"], second], public, ATTEMPT)


def test_an_aggregate_is_no_update_and_an_update_no_aggregate(
    secret: SecretContext, public: PublicContext, updates: dict[str, bytes], aggregated: tuple[bytes, Record]
) -> None:
    with pytest.raises(MalformedError, match="aggregate"):
        hefl.aggregate([aggregated[0]], public, ATTEMPT)
    with pytest.raises(MalformedError, match="update"):
        hefl.decrypt(updates["alice"], secret, ATTEMPT)


def test_an_update_with_a_list_of_members_is_refused(
    tenseal: Engine, secret: SecretContext, public: PublicContext
) -> None:
    file = io.BytesIO()
    header = frames.Header.of("update", secret.identity, ATTEMPT, 1, "alice")
    writer = frames.Writer(file, header, [Member("alice", bytes(32), 30)])
    writer.finish(tenseal.encrypt(VECTORS["alice"], secret, ATTEMPT.as_attempt(), "alice", writer.block))
    with pytest.raises(MalformedError, match="members"):
        hefl.aggregate([file.getvalue()], public, ATTEMPT)


def test_a_refused_update_leaves_the_others_and_its_place(
    tenseal: Engine, secret: SecretContext, public: PublicContext, updates: dict[str, bytes]
) -> None:
    file = io.BytesIO()
    writer = frames.Writer(file, frames.Header.of("update", secret.identity, ATTEMPT, 1, "bob"))
    writer.block(b"no ciphertext")
    writer.finish(Trailer())
    aggregation = Aggregation(public, tenseal, ATTEMPT, ["alice", "bob"])
    aggregation.add(frames.open_frame(updates["alice"]), "alice")
    with pytest.raises(MalformedError):
        aggregation.add(frames.open_frame(file.getvalue()), "bob")
    aggregation.add(frames.open_frame(updates["bob"]), "bob")
    out = io.BytesIO()
    record = aggregation.finish(out)
    assert [m.name for m in record.members] == ["alice", "bob"]
    np.testing.assert_allclose(
        hefl.decrypt(out.getvalue(), secret, ATTEMPT), expected(["alice", "bob"]), rtol=0, atol=1e-6
    )


# --- records and aggregates -------------------------------------------------------------------------------------------


def test_a_record_says_who_is_in_with_the_announced_weights_and_order(
    tenseal: Engine, public: PublicContext, updates: dict[str, bytes]
) -> None:
    data, record = summed(tenseal, public, ATTEMPT, {n: updates[n] for n in ("carol", "alice")})
    assert [(m.name, m.weight) for m in record.members] == [("alice", 30), ("carol", 25)]
    assert record.announcement == ATTEMPT
    assert record.digest == data[-32:].hex()
    assert record.tag == ""


def test_an_aggregate_reads_with_its_own_record(
    tenseal: Engine, secret: SecretContext, aggregated: tuple[bytes, Record]
) -> None:
    total = read_aggregate(aggregated[0], secret, tenseal, ATTEMPT, aggregated[1])
    np.testing.assert_allclose(total.vector / total.total_weight, expected(list(WEIGHTS)), rtol=0, atol=1e-6)


def test_an_aggregate_whose_record_says_otherwise_is_refused(
    tenseal: Engine,
    secret: SecretContext,
    public: PublicContext,
    updates: dict[str, bytes],
    aggregated: tuple[bytes, Record],
) -> None:
    data, record = aggregated
    changes: list[dict[str, Any]] = [
        {"digest": "00" * 32},
        {"tag": "00"},
        {"members": record.members[:2]},
        {"members": record.members[::-1]},
        {"members": (*record.members[:2], msgspec.structs.replace(record.members[2], weight=26))},
        {"members": (*record.members[:2], msgspec.structs.replace(record.members[2], seed="11" * 32))},
    ]
    for change in changes:
        with pytest.raises(TamperError, match="record"):
            read_aggregate(data, secret, tenseal, ATTEMPT, msgspec.structs.replace(record, **change))
    other, _ = summed(tenseal, public, ATTEMPT, {n: updates[n] for n in ("alice", "bob")})
    with pytest.raises(TamperError, match="record"):
        read_aggregate(other, secret, tenseal, ATTEMPT, record)


@pytest.mark.parametrize(
    ("members", "check"),
    [
        ([], "names-distinct"),
        ([("alice", 30), ("mallory", 10)], "names-announced"),
        ([("alice", 31), ("bob", 10)], "weights-announced"),
        ([("alice", 30), ("alice", 30)], "names-distinct"),
        ([("alice", 30), ("bob", 10), ("bob", 10)], "names-distinct"),
        ([("bob", 10), ("alice", 30)], "names-ordered"),
        ([("alice", 30)], "enough-members"),
    ],
    ids=[
        "nobody",
        "a stranger",
        "another weight",
        "one twice",
        "one twice beside another",
        "another order",
        "one alone",
    ],
)
def test_an_aggregate_of_other_members_than_the_announced_is_refused(
    tenseal: Engine,
    secret: SecretContext,
    aggregated: tuple[bytes, Record],
    members: list[tuple[str, int]],
    check: str,
) -> None:
    frame = frames.open_frame(aggregated[0])
    file = io.BytesIO()
    writer = frames.Writer(file, frame.header, [Member(name, bytes(32), weight) for name, weight in members])
    for block in frame.blocks():
        writer.block(block)
    writer.finish(Trailer())
    with pytest.raises(TamperError) as caught:
        read_aggregate(file.getvalue(), secret, tenseal, ATTEMPT)
    assert caught.value.check == check


def framed_again(data: bytes, trailer: Trailer) -> bytes:
    """The same frame with another end."""
    frame, file = frames.open_frame(data), io.BytesIO()
    writer = frames.Writer(file, frame.header, frame.members, len(trailer.tag))
    for block in frame.blocks():
        writer.block(block)
    writer.finish(trailer)
    return file.getvalue()


def test_a_tag_where_the_engine_has_none_is_refused(
    secret: SecretContext, public: PublicContext, updates: dict[str, bytes], aggregated: tuple[bytes, Record]
) -> None:
    tagged = framed_again(updates["alice"], Trailer(tag=b"x"))
    with pytest.raises(MalformedError, match="a tag has 1 bytes where 0 belong"):
        hefl.aggregate([tagged, updates["bob"]], public, ATTEMPT)
    with pytest.raises(MalformedError, match="a tag has 1 bytes where 0 belong"):
        hefl.decrypt(framed_again(aggregated[0], Trailer(tag=b"x")), secret, ATTEMPT)


def test_an_aggregate_has_no_seed_of_its_own(secret: SecretContext, aggregated: tuple[bytes, Record]) -> None:
    with pytest.raises(MalformedError, match="seed"):
        hefl.decrypt(framed_again(aggregated[0], Trailer(b"\x01" + bytes(31))), secret, ATTEMPT)


@pytest.mark.parametrize(
    ("read_for", "error"),
    [
        (replaced(round=2), StaleError),
        (replaced(attempt=2), StaleError),
        (replaced(run="00" * 16), StaleError),
        (replaced(participants=announcement({**WEIGHTS, "bob": 11}).participants), StaleError),
        (replaced(engine="plaintext"), EngineError),
        (replaced(values=4), StaleError),
    ],
    ids=["round", "attempt", "run", "weights", "engine", "values"],
)
def test_an_aggregate_of_another_attempt_is_refused(
    tenseal: Engine,
    secret: SecretContext,
    aggregated: tuple[bytes, Record],
    read_for: Announcement,
    error: type[HeflError],
) -> None:
    with pytest.raises(error) as caught:
        read_aggregate(aggregated[0], secret, tenseal, read_for)
    assert type(caught.value) is error


def test_an_aggregate_of_another_federation_is_refused(
    tenseal: Engine, other_secret: SecretContext, aggregated: tuple[bytes, Record]
) -> None:
    with pytest.raises(MismatchError):
        read_aggregate(aggregated[0], other_secret, tenseal, ATTEMPT)


def test_a_damaged_aggregate_is_refused(secret: SecretContext, aggregated: tuple[bytes, Record]) -> None:
    data = aggregated[0]
    for at in range(0, len(data), len(data) // 20):
        flipped = bytearray(data)
        flipped[at] ^= 0x10
        with pytest.raises(MalformedError):
            hefl.decrypt(bytes(flipped), secret, ATTEMPT)


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("values", [1, 4097])
def test_no_update_and_no_aggregate_is_longer_than_its_bound(
    secret: SecretContext, public: PublicContext, name: str, values: int
) -> None:
    engine = load_engine(name, insecure_plaintext=True)
    attempt = announcement(WEIGHTS, engine=name, values=values)
    rng = np.random.default_rng(0)
    dtype = np.int64 if name == "packed" else np.float64
    updates = {n: update(engine, secret, attempt, n, rng.normal(0, 100, values).astype(dtype)) for n in WEIGHTS}
    data, _ = summed(engine, public, attempt, updates)
    assert max(map(len, updates.values())) <= max_update_bytes(engine, attempt)
    assert len(data) <= max_aggregate_bytes(engine, attempt)


@pytest.mark.parametrize("weights", [{"alice": 0, "bob": 1}, {"alice": -1, "bob": 1}, {"alice": 1.5, "bob": 1}])
def test_announcing_a_weight_that_is_none_is_refused(public: PublicContext, weights: dict[str, int]) -> None:
    with pytest.raises(NumExamplesError, match="whole number from 1 to"):
        hefl.announce(public, weights, values=1)


@pytest.mark.parametrize(
    ("weights", "values"),
    [({"alice": 1}, 1), ({"A B": 1, "bob": 1}, 1), ({"alice\n": 1, "bob": 1}, 1), ({"a": 1, "b": 1}, 0)],
)
def test_announcing_what_cannot_be_summed_is_refused(
    public: PublicContext, weights: dict[str, int], values: int
) -> None:
    with pytest.raises(ParametersError):
        hefl.announce(public, weights, values=values)


def test_one_update_alone_is_never_published(tenseal: Engine, secret: SecretContext, public: PublicContext) -> None:
    attempt = hefl.announce(public, {"alice": 30, "bob": 10}, values=1)
    update = hefl.encrypt([1.0], secret, attempt, "alice")
    for updates in ([], [update]):
        with pytest.raises(ConflictError, match="it would show one"):
            hefl.aggregate(updates, public, attempt)


@pytest.mark.parametrize("engine", ["packed", "tenseal"])
def test_a_value_that_the_engine_cannot_hold_is_refused(
    secret: SecretContext, public: PublicContext, engine: str
) -> None:
    attempt = hefl.announce(public, {"alice": 30, "bob": 10}, values=2, engine=engine)
    with pytest.raises(OutOfRangeError):
        hefl.encrypt([1e12, 1.0], secret, attempt, "alice")


@pytest.mark.parametrize("value_range", [0.5, 3, 0, -2, math.nan, math.inf])
def test_a_range_that_is_no_power_of_two_is_refused(
    secret: SecretContext, public: PublicContext, value_range: float
) -> None:
    attempt = hefl.announce(public, {"alice": 30, "bob": 10}, values=2)
    with pytest.raises(ParametersError, match="power of two"):
        hefl.encrypt([0.0, 0.0], secret, attempt, "alice", value_range=value_range)


def test_vectors_of_different_ranges_do_not_add_up(secret: SecretContext, public: PublicContext) -> None:
    attempt = hefl.announce(public, {"alice": 30, "bob": 10}, values=1)
    updates = [hefl.encrypt([0.5], secret, attempt, n, value_range=r) for n, r in (("alice", 1), ("bob", 2))]
    with pytest.raises(UploadError, match="different ranges"):
        hefl.decrypt(hefl.aggregate(updates, public, attempt), secret, attempt)


def test_a_packed_aggregate_that_was_altered_is_refused(secret: SecretContext, public: PublicContext) -> None:
    attempt = hefl.announce(public, {"alice": 30, "bob": 10}, values=1)
    updates = [hefl.encrypt([0.5], secret, attempt, n) for n in ("alice", "bob")]
    data = bytearray(hefl.aggregate(updates, public, attempt))
    data[1000] ^= 1
    with pytest.raises(TamperError):
        hefl.decrypt(redigested(data), secret, attempt)
