"""What the random sources give, and that they refuse to give less."""

from __future__ import annotations

import os

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from packed_support import chi_square

from hefl.ckks import sampling
from hefl.ckks.ring import data_primes
from hefl.ckks.sampling import Streams, draw_noise, draw_secret, draw_uniform, uniform, words_for
from hefl.errors import KernelError
from hefl.params import RINGS


def test_a_stream_is_aes_256_in_counter_mode() -> None:
    key, blocks = bytes(range(32)), []
    encryptor = Cipher(algorithms.AES256(key), modes.ECB()).encryptor()  # noqa: S305 - the oracle's building block
    for counter in range(3):
        blocks.append(encryptor.update((7).to_bytes(8, "big") + counter.to_bytes(8, "big")))
    assert Streams(key).words(7, 12).tobytes() == b"".join(blocks)


def test_a_stream_is_the_same_whatever_was_read_before() -> None:
    streams, key = Streams(bytes(32)), bytes(32)
    for number, count in ((3, 5), (0, 100), (3, 50), (2**40, 3), (0, 100)):
        assert (streams.words(number, count) == Streams(key).words(number, count)).all()


def test_streams_of_different_numbers_and_keys_differ() -> None:
    key = os.urandom(32)
    streams = [Streams(key).words(0, 8), Streams(key).words(1, 8), Streams(os.urandom(32)).words(0, 8)]
    assert len({s.tobytes() for s in streams}) == 3


@pytest.mark.parametrize("q", [data_primes(RINGS[0])[0], data_primes(RINGS[2])[0], 2**27 + 1])
def test_uniform_draws_are_uniform_below_their_modulus(q: int) -> None:
    bits = (q - 1).bit_length()
    drawn = draw_uniform(os.urandom(32), 0, 1 << 18, bits, q)
    assert int(drawn.max()) < q
    cells = np.bincount(drawn.astype(np.int64) * 256 // q, minlength=256)
    assert abs(chi_square(cells)) < 7
    low_bits = np.bincount(drawn & 255, minlength=256)
    assert abs(chi_square(low_bits)) < 7


def test_draws_are_the_accepted_words_in_order() -> None:
    q, mask = np.uint32(2**27 + 1), np.uint32(2**28 - 1)
    stream = Streams(bytes(32)).words(0, 4096)
    accepted = [int(w) & int(mask) for w in stream if int(w) & int(mask) < q]
    out = np.empty(1000, np.uint32)
    at = uniform(stream, 0, mask, q, out)
    assert out.tolist() == accepted[:1000]
    assert int(stream[at - 1] & mask) == accepted[999]


def test_a_stream_that_runs_dry_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    out, stream = np.empty(300, np.uint32), Streams(bytes(32)).words(0, 299)
    assert uniform(stream, 0, np.uint32(2**28 - 1), np.uint32(2**28 - 1), out) == -1
    monkeypatch.setattr(sampling, "words_for", lambda count, bits, modulus: count)
    with pytest.raises(KernelError, match="ran dry"):
        draw_uniform(bytes(32), 0, 4096, 28, 2**27 + 1)


def test_enough_words_are_read_for_rejection() -> None:
    for ring in RINGS:
        for q in data_primes(ring):
            bits, n = ring.limb_bits[0], ring.degree
            accepted = q / 2**bits
            spare = words_for(n, bits, q) * accepted - n
            assert spare > 12 * np.sqrt(n * (1 - accepted))


def test_noise_has_mean_0_variance_10_5_and_never_exceeds_21() -> None:
    streams = Streams(os.urandom(32))
    noise = np.concatenate([draw_noise(streams, block, 16384) for block in range(32)]).astype(np.float64)
    n = noise.size
    assert abs(noise.mean()) < 7 * np.sqrt(10.5 / n)
    assert abs(noise.var() - 10.5) < 7 * 10.5 * np.sqrt(2 / n)
    assert np.abs(noise).max() <= 21
    # Consecutive samples and blocks do not follow each other.
    assert abs((noise[1:] * noise[:-1]).mean()) < 7 * 10.5 / np.sqrt(n)


def test_the_extremes_of_noise_are_21_and_minus_21() -> None:
    ones, zeros = np.uint32(2**32 - 1), np.uint32(0)
    out = np.empty(3, np.int32)
    squares = sampling.binomial(np.array([ones, zeros, zeros, ones, ones, ones], np.uint32), out)
    assert out.tolist() == [21, -21, 0]
    assert squares == 2 * 21**2


@pytest.mark.parametrize("words", [np.uint32(0), np.uint32(2**32 - 1)], ids=["zeros", "ones"])
def test_noise_without_its_variance_is_refused(words: np.uint32, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Streams, "words", lambda self, number, count: np.full(count, words, np.uint32))
    with pytest.raises(KernelError, match=r"variance 0\.00, outside \[9, 12\]"):
        draw_noise(Streams(bytes(32)), 0, 4096)


def test_noise_that_is_too_wide_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    wide = np.tile(np.array([2**21 - 1, 0, 0, 2**21 - 1], np.uint32), 4096)
    monkeypatch.setattr(Streams, "words", lambda self, number, count: wide[:count])
    with pytest.raises(KernelError, match="variance 441"):
        draw_noise(Streams(bytes(32)), 0, 4096)


def test_secrets_are_narrow_and_reproducible() -> None:
    key = os.urandom(32)
    secret = draw_secret(key, 8192)
    assert (secret == draw_secret(key, 8192)).all()
    assert np.abs(secret).max() <= 21
    assert abs(secret.var() - 10.5) < 7 * 10.5 * np.sqrt(2 / 8192)
