"""What a server stores looks random: updates and sums of zeros, of a trained model, and uniform residues are alike.

Each test that expects no difference fails by chance with a probability below 1e-9, by the bound that its function
names; randomness is the operating system's, and new in each run. The same tests do find updates of the engine
``plaintext``, and of a ``packed`` engine that draws its seed only once, so they can fail.
"""

from __future__ import annotations

import functools
import itertools
import lzma
import math
import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import packed_reference as reference
import pytest
from builders import announcement, summed, update
from numpy.typing import NDArray
from packed_support import new_secret, public_of
from verifier_input import Frame, read_frame

from hefl.encoding.fixedpoint import FixedPointCodec
from hefl.engines.engine import Engine
from hefl.engines.packed import PackedEngine
from hefl.engines.plaintext import PlaintextEngine
from hefl.models.layout import describe
from hefl.protocol.records import Announcement

ALARM = 1e-9
"""Of each test function."""

UPDATES, SUMS = 400, 200
BITS = 30
MODULI = reference.primes(4096)[:2]
SECRET = new_secret()
PACKED = PackedEngine(threads=1)

Bytes = NDArray[np.uint8]
Vector = NDArray[Any]


@dataclass(frozen=True)
class Stored:
    """Frames of one kind, as a server has them; each payload is blocks, seeds and tag in one."""

    frames: Sequence[bytes]
    read: Sequence[Frame]

    @property
    def payloads(self) -> list[Bytes]:
        return [np.frombuffer(b"".join([*f.blocks, *seeds(f), f.tag]), np.uint8) for f in self.read]

    @property
    def blocks(self) -> list[Bytes]:
        return [np.frombuffer(b"".join(f.blocks), np.uint8) for f in self.read]


def seeds(frame: Frame) -> list[bytes]:
    """An update's own, or those of a sum's members."""
    return [seed for _, seed, _ in frame.members] or [frame.seed]


@functools.cache
def trained_vector() -> Vector:
    """A small network that has learnt to read digits, as its client would encrypt it."""
    from sklearn.datasets import load_digits
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.neural_network import MLPClassifier

    x, y = load_digits(return_X_y=True)
    network = MLPClassifier((100,), max_iter=20, random_state=0)
    with pytest.warns(ConvergenceWarning):
        network.fit(x[:1000], y[:1000])
    assert network.score(x[1000:], y[1000:]) > 0.85
    arrays = [np.asarray(a, np.float32) for a in (*network.coefs_, *network.intercepts_)]
    codec = FixedPointCodec(describe(arrays, ["loss"]), PACKED.precision_bits)
    return codec.encode_model(arrays, {"loss": float(network.loss_)}, (1,) * len(arrays))


def vectors() -> dict[str, Vector]:
    return {"zeros": np.zeros_like(trained_vector()), "trained": trained_vector()}


def attempt(engine: Engine) -> Announcement:
    return announcement({"alice": 10, "bob": 10}, engine=engine.name, values=trained_vector().size)


def updates(engine: Engine, vector: Vector, count: int = UPDATES) -> Stored:
    of = attempt(engine)
    frames = [update(engine, SECRET, of, "alice", vector) for _ in range(count)]
    return Stored(frames, [read_frame(frame) for frame in frames])


def sums(engine: Engine, vector: Vector, count: int = SUMS) -> Stored:
    of, public, frames = attempt(engine), public_of(SECRET), []
    for _ in range(count):
        each = {name: update(engine, SECRET, of, name, vector) for name in of.names}
        frames.append(summed(engine, public, of, each)[0])
    return Stored(frames, [read_frame(frame) for frame in frames])


def uniform(like: Stored) -> Stored:
    """The same frames with residues that are drawn uniformly below their primes, and random seeds."""
    rng = np.random.default_rng(list(os.urandom(32)))
    frames = []
    for frame in like.read:
        place = reference.Place(frame.federation, frame.generation, frame.round, frame.attempt, frame.ctx, frame.values)
        residues = np.concatenate([rng.integers(0, q, 4096) for q in MODULI])
        tag = [int(rng.integers(0, q)) for q in MODULI for _ in range(3)]
        frames.append(
            reference.frame(
                frame.kind,
                place,
                frame.name.decode(),
                [np.packbits(residues[:, None] >> np.arange(BITS) & 1, bitorder="little").tobytes()],
                bytes(32) if frame.members else os.urandom(32),
                reference.packed(tag, BITS).to_bytes(len(frame.tag), "little"),
                [(name, os.urandom(32), weight) for name, _, weight in frame.members],
            )
        )
    return Stored(frames, [read_frame(frame) for frame in frames])


@pytest.fixture(scope="module", params=["updates", "sums"])
def stored(request: pytest.FixtureRequest) -> dict[str, Stored]:
    make = updates if request.param == "updates" else sums
    made = {what: make(PACKED, vector) for what, vector in vectors().items()}
    return made | {"uniform": uniform(made["zeros"])}


@pytest.fixture(scope="module", params=["plaintext", "one seed"])
def telling(request: pytest.FixtureRequest) -> dict[str, Stored]:
    """Updates that do tell what is in them."""
    if request.param == "plaintext":
        return {what: updates(PlaintextEngine(), vector * 2.0**-22) for what, vector in vectors().items()}
    draws = itertools.count()

    def urandom(size: int) -> bytes:
        """The seed is drawn first, then the noise's key; and so for each update."""
        return os.urandom(size) if next(draws) % 2 else bytes(size)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hefl.engines.packed.os", SimpleNamespace(urandom=urandom))
        return {what: updates(PACKED, vector) for what, vector in vectors().items()}


def allowed(draws: int, comparisons: int) -> float:
    """How far so many sums of draws from [0, 1] are from their means at most, but for ALARM (Hoeffding 1963)."""
    return math.sqrt(draws / 2 * math.log(2 * comparisons / ALARM))


# --- the tests of randomness ------------------------------------------------------------------------------------------


def deficit_bits(frames: int) -> float:
    """Residues below primes have a little less entropy than their bits."""
    return frames * 4096 * sum(BITS - math.log2(q) for q in MODULI)


def compressible(stored: Stored) -> set[str]:
    """Which compressors make a frame's blocks, or several frames' together, smaller.

    Whatever a compressor does, it shortens no more than a share of 2**(1 - s) of all strings by s bits: there are no
    more short ones.
    """
    spare_bits = math.log2(3 * 2 * (len(stored.frames) + 1) / ALARM)
    found = set()
    for block in stored.blocks:
        if 8 * len(zlib.compress(block.tobytes())) < 8 * block.size - deficit_bits(1) - spare_bits:
            found.add("zlib")
    several = np.concatenate(stored.blocks[:50])
    if 8 * len(lzma.compress(several.tobytes())) < 8 * several.size - deficit_bits(50) - spare_bits:
        found.add("lzma")
    return found


def one_share(q: int, bit: int) -> float:
    """The share of numbers below q that have this bit."""
    high, low = divmod(q, 1 << (bit + 1))
    return ((high << bit) + max(0, low - (1 << bit))) / q


def biased_bits(stored: Stored) -> set[str]:
    """Bits that are one too often or too seldom: of a residue, over all; at one place, over all frames. Hoeffding."""
    blocks, found = stored.blocks, set()
    ones = sum(np.unpackbits(block, bitorder="little").astype(np.int64) for block in blocks)
    by_limb = np.asarray(ones).reshape(len(MODULI), -1, BITS)
    draws = len(blocks) * by_limb.shape[1]
    expected = np.array([[one_share(q, bit) for bit in range(BITS)] for q in MODULI]) * draws
    if (abs(by_limb.sum(axis=1) - expected) > allowed(draws, 3 * 2 * expected.size)).any():
        found.add("in all residues")
    if (abs(by_limb - len(blocks) / 2) > allowed(len(blocks), 3 * 2 * by_limb.size) + 1).any():
        found.add("at a place")
    return found


def byte_distance(one: Stored, other: Stored) -> float:
    """Of two kinds' byte frequencies: chi-square over what it exceeds with probability ALARM / 3 at most.

    Above 1 they differ (Laurent and Massart 2000, lemma 1, for 255 degrees of freedom; residues' bytes are not quite
    uniform, so two kinds are compared).
    """
    a, b = (np.bincount(np.concatenate(s.payloads), minlength=256) for s in (one, other))
    x = math.log(3 / ALARM)
    statistic = ((a - b) ** 2 / np.maximum(a + b, 1)).sum()
    return float(statistic / (255 + 2 * math.sqrt(255 * x) + 2 * x))


def features(payload: Bytes) -> Vector:
    """Of one frame: how often each byte value stands, and each bit of four residues; compressed size; its first bytes,
    and its last, which are seeds and tag.
    """
    blocks = payload[: payload.size // 15 * 15]
    bits = np.unpackbits(blocks.reshape(-1, 15), axis=1, bitorder="little").mean(axis=0)
    histogram = np.bincount(payload, minlength=256) / payload.size
    return np.concatenate([histogram, bits, [len(zlib.compress(payload.tobytes(), 1))], payload[:128], payload[-64:]])


def told_apart(one: Stored, other: Stored) -> float:
    """How far two trained classifiers are from chance at most, on frames that they have not seen; 1 is allowed.

    That is 68 right answers more than 200, of 400. Where the kinds are alike, they are as drawn without replacement
    from balanced labels; then Hoeffding's bound holds for m + 3 draws in m's place (Serfling 1974).
    """
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    x = np.array([features(payload) for s in (one, other) for payload in s.payloads])
    y = np.repeat([0, 1], len(x) // 2)
    test = np.arange(len(x)) % 2 == 0
    worst = 0.0
    for classifier in (
        make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)),
        RandomForestClassifier(100, random_state=0),
    ):
        right = (classifier.fit(x[~test], y[~test]).predict(x[test]) == y[test]).sum()
        worst = max(worst, abs(right - test.sum() / 2) / allowed(int(test.sum()) + 3, 3 * 2))
    return float(worst)


# --- what is stored passes them ---------------------------------------------------------------------------------------


def test_nothing_that_is_stored_compresses(stored: dict[str, Stored]) -> None:
    assert {what: compressible(s) for what, s in stored.items()} == {what: set() for what in stored}


def test_every_bit_is_one_as_often_as_in_uniform_residues(stored: dict[str, Stored]) -> None:
    assert {what: biased_bits(s) for what, s in stored.items()} == {what: set() for what in stored}


def test_bytes_are_equally_frequent_in_all_kinds(stored: dict[str, Stored]) -> None:
    for one, other in itertools.combinations(stored, 2):
        assert byte_distance(stored[one], stored[other]) < 1, (one, other)


def test_no_classifier_tells_the_kinds_apart(stored: dict[str, Stored]) -> None:
    for one, other in itertools.combinations(stored, 2):
        assert told_apart(stored[one], stored[other]) < 1, (one, other)


def test_seeds_and_tags_are_new_each_time_and_their_bits_unbiased(stored: dict[str, Stored]) -> None:
    """Repeats: two of 180 random bits or more among 3,000. Bits: Hoeffding."""
    all_seeds = [seed for s in stored.values() for frame in s.read for seed in seeds(frame)]
    all_tags = [frame.tag for s in stored.values() for frame in s.read]
    assert len({*all_seeds}) == len(all_seeds)
    assert len({*all_tags}) == len(all_tags)
    for what, data, bits in (("seeds", all_seeds, 256), ("tags", all_tags, 180)):
        ones = np.unpackbits([np.frombuffer(d, np.uint8) for d in data], axis=1, bitorder="little").sum(axis=0)
        assert (abs(ones[:bits] - len(data) / 2) <= allowed(len(data), 2 * 256) + 1).all(), what
        assert not ones[bits:].any()


def test_frames_differ_in_nothing_but_blocks_seeds_tag_and_digest(stored: dict[str, Stored]) -> None:
    frames = [frame for s in stored.values() for frame in s.frames]
    assert len({len(frame) for frame in frames}) == 1
    assert len({frame[:126] for frame in frames}) == 1
    assert len({tuple((n, w) for n, _, w in frame.members) for s in stored.values() for frame in s.read}) == 1
    assert all(len(frame.blocks) == 1 for s in stored.values() for frame in s.read)


# --- and what tells something does not --------------------------------------------------------------------------------


def test_the_same_tests_find_updates_that_tell_what_is_in_them(telling: dict[str, Stored]) -> None:
    zeros, trained = telling["zeros"], telling["trained"]
    plain = zeros.read[0].engine == b"plaintext"
    found = {"zlib", "lzma"} if plain else {"lzma"}
    assert compressible(zeros) == compressible(trained) == found
    assert plain or biased_bits(zeros) == biased_bits(trained) == {"at a place", "in all residues"}
    assert told_apart(zeros, trained) > 1
    assert byte_distance(zeros, trained) > 1
