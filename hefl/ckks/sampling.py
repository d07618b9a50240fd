"""Sample random polynomials from AES-256 in counter mode.

Uniform residues come by rejection; secrets and noise are centred binomial with eta = 21, as SEAL's noise is.
"""

from __future__ import annotations

import functools
import math
import threading

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

from hefl.ckks.jit import kernel
from hefl.ckks.ntt import U32
from hefl.errors import KernelError
from hefl.params import NOISE_VARIANCE

I32 = NDArray[np.int32]


@functools.lru_cache(maxsize=4)
def _zeros(size: int) -> bytes:
    return bytes(size)


class Streams:
    """The streams of one key: AES-256-CTR from the counter block number || 0, eight bytes each, big-endian.

    Setting up a cipher takes as long as 100 kB of its output, so each thread keeps one and moves it.
    """

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._threads = threading.local()

    def words(self, number: int, count: int) -> U32:
        """The first ``count`` 32-bit words, little-endian, of stream ``number``."""
        start = number.to_bytes(8, "big") + bytes(8)
        if not hasattr(self._threads, "encryptor"):
            self._threads.encryptor = Cipher(algorithms.AES256(self._key), modes.CTR(start)).encryptor()
        else:
            self._threads.encryptor.reset_nonce(start)
        out = np.empty(4 * count + 16, np.uint8)  # update_into asks for room for one more cipher block
        self._threads.encryptor.update_into(_zeros(4 * count), out.data)
        return out[: 4 * count].view("<u4")


def words_for(count: int, bits: int, modulus: int) -> int:
    """Stream words that ``count`` uniform draws below the modulus need, but for a chance far below 2**-128.

    The number rejected has mean and variance below those of a geometric sum; 14 standard deviations more are read.
    """
    rejected = (1 << bits) / modulus - 1
    return count + math.ceil(count * rejected + 14 * math.sqrt(count * rejected * (1 + rejected))) + 64


@kernel
def mask_words(words: U32, mask: np.uint32, out: U32) -> np.uint32:
    """Low bits of words to out, of the same size; returns the largest."""
    largest = np.uint32(0)
    for i in range(out.size):
        v = np.uint32(words[i] & mask)
        out[i] = v
        largest = max(largest, v)
    return largest


@kernel
def mask_accepted(words: U32, mask: np.uint32, q: np.uint32, out: U32) -> int:
    """Those low bits of words that are below q, in order, to out, which has room for all; returns how many."""
    count = 0
    for i in range(words.size):
        v = np.uint32(words[i] & mask)
        out[count] = v
        count += 1 if v < q else 0
    return count


@kernel
def uniform(stream: U32, at: int, mask: np.uint32, q: np.uint32, out: U32) -> int:
    """Draw out uniformly below q, in order; returns where the stream goes on, or -1 where it ran out.

    A draw is the low bits of one word, taken if it is below q. Most stretches of the stream have none to reject, and
    those are copied by a loop that vectorises.
    """
    i, stretch = 0, 128
    while i + stretch <= out.size and at + stretch <= stream.size:
        words, part = stream[at : at + stretch], out[i : i + stretch]
        if mask_words(words, mask, part) < q:
            i += stretch
        else:
            i += mask_accepted(words, mask, q, part)
        at += stretch
    while i < out.size:
        if at >= stream.size:
            return -1
        v = np.uint32(stream[at] & mask)
        out[i] = v
        i += 1 if v < q else 0
        at += 1
    return at


@kernel
def count_bits21(x: np.uint32) -> np.uint32:
    """Ones among the low 21 bits."""
    x = np.uint32(x & np.uint32((1 << 21) - 1))
    x = np.uint32(x - ((x >> np.uint32(1)) & np.uint32(0x55555555)))
    x = np.uint32((x & np.uint32(0x33333333)) + ((x >> np.uint32(2)) & np.uint32(0x33333333)))
    x = np.uint32((x + (x >> np.uint32(4))) & np.uint32(0x0F0F0F0F))
    return np.uint32(np.uint32(x * np.uint32(0x01010101)) >> np.uint32(24))


@kernel
def binomial(stream: U32, out: I32) -> int:
    """Centred binomial, eta = 21: |e| <= 21, variance 10.5. Two words a sample; returns the sum of squares."""
    squares = np.int64(0)
    for i in range(out.size):
        e = np.int32(count_bits21(stream[2 * i])) - np.int32(count_bits21(stream[2 * i + 1]))
        out[i] = e
        squares += np.int64(e * e)
    return int(squares)


def draw_uniform(key: bytes, number: int, count: int, bits: int, modulus: int) -> U32:
    """``count`` values below the modulus, from one stream.

    Raises:
        KernelError: The stream ran dry.
    """
    out = np.empty(count, np.uint32)
    stream = Streams(key).words(number, words_for(count, bits, modulus))
    require_drawn(uniform(stream, 0, np.uint32((1 << bits) - 1), np.uint32(modulus), out))
    return out


def require_drawn(at: int) -> None:
    """Refuse to go on after a stream that ran dry.

    Raises:
        KernelError: ``at`` is negative.
    """
    if at < 0:
        raise KernelError("a random stream ran dry before its polynomial was full; nothing was encrypted")


def draw_secret(key: bytes, degree: int) -> NDArray[np.int64]:
    """A one-time secret polynomial, shape (degree,)."""
    out = np.empty(degree, np.int32)
    binomial(Streams(key).words(0, 2 * degree), out)
    return out.astype(np.int64)


def draw_noise(streams: Streams, block: int, degree: int) -> I32:
    """One block's noise, shape (degree,).

    Raises:
        KernelError: Its variance is not that of noise: what would be encrypted with it could be read.
    """
    out = np.empty(degree, np.int32)
    variance = binomial(streams.words(block, 2 * degree), out) / degree
    low, high = NOISE_VARIANCE
    if not low <= variance <= high:
        raise KernelError(
            f"the noise of a block has variance {variance:.2f}, outside [{low:g}, {high:g}]; nothing was encrypted",
            hint="the machine's source of randomness or its compiled code is broken",
        )
    return out
