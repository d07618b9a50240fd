"""Sums are exact and nobody can change them: the packed engine as its users see it."""

from __future__ import annotations

import dataclasses
import os
import threading
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from packed_support import (
    Total,
    add_up,
    again,
    chi_square,
    encrypt,
    new_attempt,
    new_secret,
    public_of,
    sum_of,
    vectors_of,
)

from hefl.ckks.blocks import BlockCoder
from hefl.ckks.context import SecretContext
from hefl.ckks.plan import reduce_weights
from hefl.engines import packed
from hefl.engines.engine import Attempt, Member
from hefl.engines.packed import PackedEngine
from hefl.errors import EngineError, MalformedError, ParametersError, ProtocolError, TamperError, UploadError
from hefl.params import RINGS

SECRET = new_secret()
ENGINE = PackedEngine(threads=1)

weight_lists = st.lists(st.integers(1, 2**20), min_size=1, max_size=6)


@settings(max_examples=40, deadline=None)
@given(
    values=st.one_of(st.just(1), st.integers(1, 40_000)),
    weights=st.one_of(weight_lists, st.integers(1, 40).map(lambda n: [1] * n)),
    precision=st.integers(8, 40),
    seed=st.integers(0, 2**32 - 1),
)
def test_a_decrypted_sum_is_the_integer_weighted_sum(
    values: int, weights: list[int], precision: int, seed: int
) -> None:
    engine, attempt = PackedEngine(precision, threads=1), new_attempt(values, weights)
    vectors = vectors_of(attempt, precision, seed)
    total = sum_of(engine, SECRET, attempt, vectors).open(engine, SECRET, attempt)
    reduced = reduce_weights(attempt.weights)
    assert total.total_weight == reduced.total
    assert (total.vector == sum(reduced.of[name] * vector for name, vector in vectors.items())).all()


@pytest.mark.parametrize("precision", [8, 24, 32, 33, 40])
@pytest.mark.parametrize("weights", [[1], [2**16 - 1, 1], [1] * 33], ids=str)
def test_every_value_noise_and_weight_at_its_bound_is_exact(
    precision: int, weights: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    top, values = 2 ** (precision - 1) - 1, 9000
    for sign in (1, -1):
        monkeypatch.setattr(
            packed, "draw_noise", lambda streams, block, degree, sign=sign: np.full(degree, 21 * sign, np.int32)
        )
        engine, attempt = PackedEngine(precision, threads=1), new_attempt(values, weights)
        vectors = {name: np.full(values, top * sign) for name in attempt.weights}
        total = sum_of(engine, SECRET, attempt, vectors).open(engine, SECRET, attempt)
        assert (total.vector == sign * top * sum(weights)).all()


@settings(max_examples=15, deadline=None)
@given(weights=st.lists(st.integers(1, 5000), min_size=2, max_size=5), data=st.data())
def test_a_sum_of_those_who_came_is_exact(weights: list[int], data: st.DataObject) -> None:
    attempt = new_attempt(100, weights)
    came = data.draw(st.lists(st.sampled_from(sorted(attempt.weights)), min_size=1, unique=True))
    vectors = {name: vector for name, vector in vectors_of(attempt, 24).items() if name in came}
    total = sum_of(ENGINE, SECRET, attempt, vectors).open(ENGINE, SECRET, attempt)
    reduced = reduce_weights(attempt.weights).of
    assert total.total_weight == sum(reduced[name] for name in came)
    assert (total.vector == sum(reduced[name] * vector for name, vector in vectors.items())).all()


def test_threads_change_neither_bytes_order_nor_sums() -> None:
    attempt, many = new_attempt(500_000, [2, 3]), PackedEngine(threads=3)
    vectors = vectors_of(attempt, 24)
    updates = {name: encrypt(many, SECRET, attempt, name, vector) for name, vector in vectors.items()}
    one, three = add_up(ENGINE, SECRET, attempt, updates), add_up(many, SECRET, attempt, updates)
    assert (one.blocks, one.tag) == (three.blocks, three.tag)
    assert len(one.blocks) == many.block_count(attempt) > 6
    for engine in (ENGINE, many):
        assert (three.open(engine, SECRET, attempt).vector == 2 * vectors["client-0"] + 3 * vectors["client-1"]).all()


def test_work_in_threads_ends_with_the_call() -> None:
    attempt, before = new_attempt(500_000, [2, 3]), threading.active_count()

    def full(data: bytes | memoryview) -> None:
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="the disk is full"):
        PackedEngine(threads=3).encrypt(np.zeros(500_000, np.int64), SECRET, attempt, "client-0", full)
    assert threading.active_count() == before


def test_every_block_is_as_long_as_the_plan_says() -> None:
    attempt = new_attempt(60_000, [5, 7])
    update = encrypt(ENGINE, SECRET, attempt, "client-0", np.zeros(60_000, np.int64))
    assert len(update.blocks) == ENGINE.block_count(attempt)
    assert {len(block) for block in update.blocks} == {ENGINE.max_block_bytes(attempt)}
    assert len(update.trailer.tag) == ENGINE.tag_bytes(attempt)
    size = sum(map(len, update.blocks)) + len(update.trailer.seed) + len(update.trailer.tag)
    assert size == ENGINE.plan(attempt).update_bytes


# --- secrecy --------------------------------------------------------------------------------------------------------


def test_two_encryptions_of_one_vector_share_nothing() -> None:
    attempt = new_attempt(20_000, [1, 1])
    vector = np.zeros(20_000, np.int64)
    first, second = (encrypt(ENGINE, SECRET, attempt, "client-0", vector) for _ in range(2))
    assert first.trailer.seed != second.trailer.seed
    assert first.trailer.tag != second.trailer.tag
    coder = BlockCoder(ENGINE.plan(attempt), attempt.ctx)
    for a, b in zip(first.blocks, second.blocks, strict=True):
        x, y = coder.from_bytes(a), coder.from_bytes(b)
        assert (x == y).sum() < 10  # by chance: 2**-28 for each residue
        difference = (x.astype(np.int64) - y) % coder.basis.moduli[:, None]
        cells = np.bincount((difference * 64 // coder.basis.moduli[:, None]).reshape(-1), minlength=64)
        assert abs(chi_square(cells)) < 7


def test_ciphertexts_of_the_largest_values_are_uniform() -> None:
    attempt = new_attempt(300_000, [1, 1])
    update = encrypt(ENGINE, SECRET, attempt, "client-0", np.full(300_000, 2**23 - 1))
    coder = BlockCoder(ENGINE.plan(attempt), attempt.ctx)
    residues = np.stack([coder.from_bytes(block) for block in update.blocks])
    for j, q in enumerate(coder.basis.primes):
        limb = residues[:, j].reshape(-1).astype(np.int64)
        assert abs(chi_square(np.bincount(limb * 256 // q, minlength=256))) < 7
        assert abs(chi_square(np.bincount(limb & 255, minlength=256))) < 7


def test_secrets_of_two_updates_have_nothing_in_common() -> None:
    def expand(secret: SecretContext, ctx: bytes, name: str, seed: bytes) -> bytes:
        return packed.one_time_secret(secret, ctx, name, seed, 4096).tobytes()

    ctx, seed = os.urandom(32), os.urandom(32)
    secrets = {
        expand(SECRET, ctx, "alice", seed),
        expand(SECRET, ctx, "bob", seed),
        expand(SECRET, ctx, "alice", os.urandom(32)),
        expand(SECRET, os.urandom(32), "alice", seed),
        expand(new_secret(), ctx, "alice", seed),
    }
    assert len(secrets) == 5


# --- authenticity ---------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Case:
    """A genuine sum of three, and how often a secret was expanded to look at it."""

    attempt: Attempt
    total: Total
    spare: bytes
    expanded: int = 0


@pytest.fixture
def case(monkeypatch: pytest.MonkeyPatch) -> Iterator[Case]:
    attempt = new_attempt(60_000, [3, 5, 9])
    vectors = vectors_of(attempt, 24)
    updates = {name: encrypt(ENGINE, SECRET, attempt, name, vector) for name, vector in vectors.items()}
    spare = encrypt(ENGINE, SECRET, attempt, "client-0", vectors["client-0"])
    assert ENGINE.block_count(attempt) > 1
    case = Case(attempt, add_up(ENGINE, SECRET, attempt, updates), spare.trailer.seed)
    real = packed.one_time_secret

    def counted(secret: SecretContext, ctx: bytes, name: str, seed: bytes, degree: int) -> np.ndarray:
        case.expanded += 1
        return real(secret, ctx, name, seed, degree)

    monkeypatch.setattr(packed, "one_time_secret", counted)
    yield case


def _flip(case: Case, block: int, byte: int, bit: int) -> None:
    data = bytearray(case.total.blocks[block])
    data[byte] ^= 1 << bit
    case.total.blocks[block] = bytes(data)


def _unit(case: Case) -> None:
    """Add 1 to one coefficient, inside the margin, reduced in every limb."""
    coder = BlockCoder(ENGINE.plan(case.attempt), case.attempt.ctx)
    residues = coder.from_bytes(case.total.blocks[0])
    residues[:, 5] = (residues[:, 5] + 1) % coder.basis.moduli
    case.total.blocks[0] = bytes(coder.to_bytes(residues))


def _rotate(case: Case) -> None:
    """Multiply by X**N = -1: negate everything."""
    coder = BlockCoder(ENGINE.plan(case.attempt), case.attempt.ctx)
    for b, block in enumerate(case.total.blocks):
        residues = coder.from_bytes(block)
        negated = (coder.basis.moduli[:, None] - residues) % coder.basis.moduli[:, None]
        case.total.blocks[b] = bytes(coder.to_bytes(negated.astype(np.uint32)))


def _member(case: Case, index: int, **changes: object) -> None:
    case.total.members[index] = dataclasses.replace(case.total.members[index], **changes)  # type: ignore[arg-type]


def _swap_seeds(case: Case) -> None:
    first, second = case.total.members[:2]
    _member(case, 0, seed=second.seed)
    _member(case, 1, seed=first.seed)


def _drop_block_for_zeros(case: Case) -> None:
    case.total.blocks[-1] = bytes(len(case.total.blocks[-1]))


TAMPERING: dict[str, tuple[str, Callable[[Case], object]]] = {
    "a bit of c0": ("tag", lambda c: _flip(c, 0, 0, 0)),
    "a bit at the end of c0": ("tag", lambda c: _flip(c, -1, -1, 0)),
    "one unit inside the margin": ("tag", _unit),
    "negated": ("tag", _rotate),
    "blocks in another order": ("tag", lambda c: c.total.blocks.reverse()),
    "a block replaced by zeros": ("tag", _drop_block_for_zeros),
    "another tag": ("tag", lambda c: setattr(c.total, "tag", bytes([c.total.tag[0] ^ 1]) + c.total.tag[1:])),
    "another seed": ("tag", lambda c: _member(c, 1, seed=os.urandom(32))),
    "an older seed of the same client": ("tag", lambda c: _member(c, 0, seed=c.spare)),
    "seeds exchanged": ("tag", _swap_seeds),
    "another ctx": ("tag", lambda c: setattr(c, "attempt", dataclasses.replace(c.attempt, ctx=os.urandom(32)))),
    "a member missing": ("tag", lambda c: c.total.members.pop()),
    "nobody": ("names-distinct", lambda c: c.total.members.clear()),
    "a member twice": ("names-distinct", lambda c: c.total.members.append(c.total.members[0])),
    "a stranger": ("names-announced", lambda c: _member(c, 0, name="mallory")),
    "a stranger more": ("names-announced", lambda c: c.total.members.append(Member("mallory", bytes(32), 3))),
    "another weight": ("weights-announced", lambda c: _member(c, 0, weight=4)),
}


@pytest.mark.parametrize("what", TAMPERING)
def test_every_tampering_is_refused_before_a_secret_is_touched(what: str, case: Case) -> None:
    check, tamper = TAMPERING[what]
    tamper(case)
    with pytest.raises(TamperError) as caught:
        case.total.open(ENGINE, SECRET, case.attempt)
    assert caught.value.check == check
    assert caught.value.exit_code == 4
    assert case.expanded == 0


def test_a_sum_under_another_name_is_refused() -> None:
    attempt = Attempt(os.urandom(32), 100, {"alice": 1, "bob": 1})
    update = encrypt(ENGINE, SECRET, attempt, "alice", np.arange(100))
    total = add_up(ENGINE, SECRET, attempt, {"bob": update})
    with pytest.raises(TamperError, match="not the announced weighted sum"):
        total.open(ENGINE, SECRET, attempt)


def test_a_sum_with_other_weights_than_announced_is_refused(case: Case) -> None:
    other = dataclasses.replace(case.attempt, weights={**case.attempt.weights, "client-0": 4})
    case.total.members[0] = dataclasses.replace(case.total.members[0], weight=4)
    with pytest.raises(TamperError):
        case.total.open(ENGINE, SECRET, other)
    assert case.expanded == 0


def test_a_client_without_the_group_key_reads_nothing(case: Case) -> None:
    with pytest.raises(TamperError):
        case.total.open(ENGINE, new_secret(), case.attempt)
    assert case.expanded == 0


def test_a_genuine_sum_expands_one_secret_for_each_member(case: Case) -> None:
    case.total.open(ENGINE, SECRET, case.attempt)
    assert case.expanded == 3


def test_blocks_that_change_between_the_two_passes_are_refused(case: Case) -> None:
    passes = 0

    def blocks() -> Iterator[bytes]:
        nonlocal passes
        passes += 1
        if passes == 2:
            _unit(case)
        return iter(case.total.blocks)

    with pytest.raises(TamperError, match="changed after"):
        ENGINE.decrypt(blocks, case.total.tag, SECRET, case.attempt, case.total.members)


# --- form -----------------------------------------------------------------------------------------------------------


def _malform(blocks: list[bytes], how: str) -> list[bytes]:
    return {
        "a block missing": blocks[:-1],
        "a block too many": [*blocks, blocks[0]],
        "no block": [],
        "a byte missing": [*blocks[:-1], blocks[-1][:-1]],
        "a byte too many": [*blocks[:-1], blocks[-1] + b"\0"],
        "a residue not reduced": [*blocks[:-1], b"\xff" * len(blocks[-1])],
    }[how]


HOW = ["a block missing", "a block too many", "no block", "a byte missing", "a byte too many", "a residue not reduced"]


@pytest.mark.parametrize("how", HOW)
def test_malformed_sums_are_refused_before_a_secret_is_touched(how: str, case: Case) -> None:
    case.total.blocks = _malform(case.total.blocks, how)
    with pytest.raises(MalformedError):
        case.total.open(ENGINE, SECRET, case.attempt)
    assert case.expanded == 0


@pytest.mark.parametrize("how", [*HOW, "a tag too short"])
def test_a_malformed_update_leaves_a_sum_as_it_was(how: str) -> None:
    attempt = new_attempt(20_000, [1, 2])
    vectors = vectors_of(attempt, 24)
    updates = {name: encrypt(ENGINE, SECRET, attempt, name, vector) for name, vector in vectors.items()}
    aggregator, good, bad = ENGINE.aggregator(public_of(SECRET), attempt), updates["client-0"], updates["client-1"]
    aggregator.add("client-0", again(good.blocks), good.trailer)
    trailer = bad.trailer if how in HOW else dataclasses.replace(bad.trailer, tag=bad.trailer.tag[:-1])
    with pytest.raises(MalformedError):
        aggregator.add("client-1", again(_malform(bad.blocks, how) if how in HOW else bad.blocks), trailer)
    blocks: list[bytes] = []
    tag = aggregator.finish(lambda data: blocks.append(bytes(data)))
    total = Total(blocks, tag, [Member("client-0", good.trailer.seed, 1)])
    assert (total.open(ENGINE, SECRET, attempt).vector == vectors["client-0"]).all()


def test_a_sum_in_which_an_update_is_half_is_never_written() -> None:
    attempt = new_attempt(20_000, [1, 2])
    updates = {n: encrypt(ENGINE, SECRET, attempt, n, v) for n, v in vectors_of(attempt, 24).items()}
    aggregator, second, passes = ENGINE.aggregator(public_of(SECRET), attempt), updates["client-1"], 0

    def blocks() -> Iterator[bytes]:
        nonlocal passes
        passes += 1
        for block in second.blocks:
            yield block
            if passes == 2:
                raise OSError("the disk failed")

    aggregator.add("client-0", again(updates["client-0"].blocks), updates["client-0"].trailer)
    with pytest.raises(OSError, match="the disk failed"):
        aggregator.add("client-1", blocks, second.trailer)
    written: list[bytes | memoryview] = []
    # Not even after the same update has come again, whole.
    aggregator.add("client-1", again(second.blocks), second.trailer)
    with pytest.raises(MalformedError, match="in part"):
        aggregator.finish(written.append)
    assert written == []


@pytest.mark.parametrize(
    "vector",
    [np.zeros(9, np.int64), np.zeros(10), np.zeros((10, 1), np.int64), np.full(10, 2**23), np.full(10, -(2**23))],
    ids=["short", "float", "matrix", "large", "small"],
)
def test_vectors_that_do_not_fit_are_refused_before_anything_is_written(vector: np.ndarray) -> None:
    written: list[object] = []
    with pytest.raises(ParametersError):
        ENGINE.encrypt(vector, SECRET, new_attempt(10, [1]), "client-0", written.append)
    assert not written


def test_a_ring_that_the_keys_do_not_allow_is_refused() -> None:
    secret = dataclasses.replace(SECRET, rings=RINGS[1:])
    with pytest.raises(EngineError, match="the ring 4096"):
        ENGINE.encrypt(np.zeros(10, np.int64), secret, new_attempt(10, [1]), "client-0", lambda data: None)


# --- participants ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["a value", "the noise", "bits above the values"])
def test_an_upload_out_of_range_makes_a_sum_that_is_genuine_and_not_used(
    what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A participant with its own program: it holds the keys, so its tag is right whatever it encrypts.
    attempt, vector = new_attempt(5000, [1, 1, 1]), np.zeros(5000, np.int64)
    plan = ENGINE.plan(attempt)
    assert plan.lanes * plan.ring.degree - 5000 < plan.ring.degree  # the last value is in the top lane
    with monkeypatch.context() as patched:
        if what == "the noise":
            patched.setattr(packed, "draw_noise", lambda streams, block, degree: np.full(degree, 3 * 21 + 1, np.int32))
        else:
            patched.setattr(packed, "_check_vector", lambda vector, plan: None)
            vector[-1] = 3 * (2**23 - 1) + 1 if what == "a value" else 2**plan.width_bits
        bad = encrypt(ENGINE, SECRET, attempt, "client-0", vector)
    zeros = np.zeros(5000, np.int64)
    good = {name: encrypt(ENGINE, SECRET, attempt, name, zeros) for name in ("client-1", "client-2")}
    total = add_up(ENGINE, SECRET, attempt, {"client-0": bad, **good})
    with pytest.raises(UploadError, match=f"out of range.*{what}"):
        total.open(ENGINE, SECRET, attempt)


def test_errors_of_a_peer_end_with_exit_code_4() -> None:
    assert issubclass(UploadError, ProtocolError)
    assert UploadError().exit_code == TamperError().exit_code == 4
