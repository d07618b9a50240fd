"""Check every kernel against numpy or Python before it is first used.

A compiler that gets one loop wrong would otherwise encrypt with weak noise, or average wrong numbers. The inputs have
the sizes of real ones, because the vectorised part of a loop is another piece of code than its remainder.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from hefl.ckks import bitpacking, blocks, jit, mac, ntt, ring, sampling
from hefl.ckks.lanes import LANE, NOISE, TOP, Lanes
from hefl.ckks.ntt import TAIL, U32, U64
from hefl.ckks.ring import Basis, basis_of
from hefl.ckks.sampling import Streams
from hefl.params import NOISE_BOUND, TAG_REPEATS, Ring

_KEY = bytes(range(32))
_STREAMS = Streams(_KEY)


@functools.cache
def check_kernels(of: Ring) -> None:
    """Check every kernel at this ring's size; a process does so once a ring.

    Raises:
        KernelError: One computes wrong values; names it.
    """
    with jit.announced():
        basis = basis_of(of, len(of.limb_bits))
        for name, check in CHECKS.items():
            jit.require(check(basis), name)


def _residues(basis: Basis, number: int) -> U32:
    """Residues (limbs, N), the same in every process."""
    words = _STREAMS.words(number, basis.limbs * basis.degree).reshape(basis.limbs, basis.degree)
    return (words % basis.moduli[:, None]).astype(np.uint32)


def _wide(values: NDArray[np.uint32]) -> U64:
    return values.astype(np.uint64)


def _modulo(number: int, basis: Basis) -> U64:
    """The number modulo each prime, shape (limbs, 1)."""
    return np.array([[number % q] for q in basis.primes], np.uint64)


def _powers(base: int, q: int, count: int) -> U64:
    powers = np.ones(1, np.uint64)
    while powers.size < count:
        powers = np.concatenate([powers, powers * np.uint64(pow(base, powers.size, q)) % np.uint64(q)])
    return powers


def _reversed_bits(count: int) -> NDArray[np.int64]:
    order = np.zeros(1, np.int64)
    while order.size < count:
        order = np.concatenate([2 * order, 2 * order + 1])
    return order


def _roots_are_right(basis: Basis) -> bool:
    """Roots are the smallest, and twiddles their powers in bit-reversed order."""
    n, order = basis.degree, _reversed_bits(basis.degree)
    for j, q in enumerate(basis.primes):
        root = _root(basis, j)
        powers = _powers(root, q, 2 * n)
        table = np.empty(n, np.uint32)
        ntt.fill_powers(np.uint64(root), np.uint64(q), table)
        if powers[n] != q - 1 or powers[1::2].min() != root or (table != powers[order]).any():
            return False
        smallest = ntt.smallest_root(np.uint64(powers[3]), np.uint64(q), n)
        if smallest != root or (basis.forward.head[j] != table[: n // TAIL]).any():
            return False
    return True


def _root(basis: Basis, limb: int) -> int:
    """psi: the bit-reversed table has it in the middle, which is where the last stage's twiddles begin."""
    return int(basis.forward.tail[limb, TAIL // 2 - 1, 0])


def _transform_is_right(basis: Basis) -> bool:
    """Four entries of each spectrum are the polynomial's values at the right roots, and all invert back."""
    poly = _residues(basis, 0)[0].astype(np.int64)
    spectrum, companions = basis.spectrum(poly)
    moduli = _wide(basis.moduli)[:, None]
    n, rows = basis.degree, basis.degree // TAIL
    order = _reversed_bits(n)
    for j, q in enumerate(basis.primes):
        for entry in (0, 1, n // 2, n - 1):
            point = pow(_root(basis, j), 2 * int(order[entry]) + 1, q)
            value = (poly.astype(np.uint64) % np.uint64(q) * _powers(point, q, n) % np.uint64(q)).sum() % np.uint64(q)
            if value != spectrum[j, entry % TAIL * rows + entry // TAIL]:
                return False
    back = basis.coefficients(spectrum)
    return bool(((poly % moduli) == back).all() and (companions == (_wide(spectrum) << np.uint64(32)) // moduli).all())


def _recombination_is_right(basis: Basis) -> bool:
    """Digits and words give back every residue, and the first integers are Python's."""
    residues, moduli = _residues(basis, 1), _wide(basis.moduli)[:, None]
    layout = _layouts(basis)[0]
    digits = np.empty_like(residues)
    words = np.empty((layout.radix.shape[0], basis.degree), np.uint64)
    ring.separate(residues, basis.moduli, basis.unmix, basis.unmix_shoup, digits)
    ring.combine(digits, layout.radix, words)
    from_digits, from_words = np.zeros_like(residues, np.uint64), np.zeros_like(residues, np.uint64)
    product = 1
    for digit, q in zip(digits, basis.primes, strict=True):
        from_digits = (from_digits + _wide(digit) * _modulo(product, basis)) % moduli
        product *= q
    for t, word in enumerate(words):
        from_words = (from_words + word % moduli * _modulo(1 << (32 * t), basis)) % moduli
    crt = [product // q * pow(product // q, -1, q) for q in basis.primes]
    for i in range(8):
        exact = sum(int(r) * f for r, f in zip(residues[:, i], crt, strict=True)) % product
        if exact != sum(int(word) << (32 * t) for t, word in enumerate(words[:, i])):
            return False
    reduced = (digits < moduli).all() and words.max() < 1 << 32
    return bool(reduced and (from_digits == residues).all() and (from_words == residues).all())


def _uniform_is_right(basis: Basis) -> bool:
    """Draws are the stream's words below q in order, and a stream that is too short is noticed."""
    n, mask = basis.degree, np.uint32((1 << basis.limb_bits) - 1)
    for q in (basis.moduli[0], np.uint32(mask // 3 * 2), np.uint32(mask // 9)):
        stream = _STREAMS.words(2, 12 * n)
        taken = (stream & mask) < q
        last = int(np.flatnonzero(taken)[n - 1])
        expected = (stream & mask)[taken][:n]
        out = np.empty(n, np.uint32)
        if sampling.uniform(stream, 0, mask, q, out) != last + 1 or (out != expected).any():
            return False
        if sampling.uniform(stream[:last], 0, mask, q, out) != -1:
            return False
    return True


def _binomial_is_right(basis: Basis) -> bool:
    """Samples are differences of two counts of 21 bits."""
    stream = _STREAMS.words(3, 2 * basis.degree)
    out = np.empty(basis.degree, np.int32)
    squares = sampling.binomial(stream, out)
    ones = np.unpackbits((stream & np.uint32((1 << 21) - 1)).view(np.uint8)).reshape(-1, 32).sum(1, dtype=np.int64)
    expected = ones[::2] - ones[1::2]
    return bool((out == expected).all() and squares == (expected**2).sum())


def _packing_is_right(basis: Basis) -> bool:
    """Bits on the wire are the residues', lowest first; and the way back, which tells a residue that is not reduced."""
    residues, width = _residues(basis, 4), basis.limb_bits
    words = np.empty(residues.size * width // 32, np.uint32)
    bitpacking.pack_block(residues, width, words)
    ones = (residues.reshape(-1, 1) >> np.arange(width, dtype=np.uint32) & np.uint32(1)).astype(np.uint8)
    if np.packbits(ones, bitorder="little").tobytes() != words.tobytes():
        return False
    back, unreduced = np.empty_like(residues), residues.copy()
    reduced = bitpacking.unpack_block(words, width, basis.moduli, back)
    unreduced[-1, -1] = basis.moduli[-1]
    bitpacking.pack_block(unreduced, width, words)
    return bool(reduced and (back == residues).all() and not bitpacking.unpack_block(words, width, basis.moduli, back))


def _multiples_are_right(basis: Basis) -> bool:
    """Sums and multiples are reduced as numpy reduces them."""
    total, residues, moduli = _residues(basis, 5), _residues(basis, 6), _wide(basis.moduli)[:, None]
    factors = basis.moduli - np.uint32(2)
    expected = (_wide(total) + _wide(residues) * _wide(factors)[:, None]) % moduli
    bitpacking.add_multiple(total, residues, factors, ring.shoup(factors, basis.moduli), basis.moduli)
    return bool((total == expected).all())


def _layouts(basis: Basis) -> list[Lanes]:
    """Narrow lanes and wide ones, as many as fit."""
    room = basis.modulus.bit_length() - 1
    return [Lanes.of(basis, margin, width, (room - margin) // width) for margin, width in ((7, 26), (22, 56), (6, 8))]


def _lanes_are_right(basis: Basis) -> bool:
    """Residues are those of sum_k value_k * 2**at_k + noise - product, and decode takes all of it back."""
    n, moduli = basis.degree, basis.moduli.astype(np.int64)[:, None]
    products = _residues(basis, 7)
    noise = np.empty(n, np.int32)
    sampling.binomial(_STREAMS.words(8, 2 * n), noise)
    noise[:2] = NOISE_BOUND, -NOISE_BOUND
    for layout in _layouts(basis):
        bound = (1 << (layout.width - 1)) - 1
        values = _STREAMS.words(9, 2 * layout.at.size * n).view(np.int64).reshape(-1, n) >> np.int64(65 - layout.width)
        values[:, 0], values[:, 1] = bound, -bound
        out, back = np.empty_like(products), np.empty_like(values)
        layout.encode(values, noise, products, out)
        expected = noise - products.astype(np.int64)
        for row, low in zip(values, layout.at, strict=True):
            expected = (expected + row % moduli * _modulo(1 << int(low), basis).astype(np.int64)) % moduli
        if (out != expected).any() or layout.decode(out, products, NOISE_BOUND, bound, back) or (back != values).any():
            return False
        flags = layout.decode(out, products, NOISE_BOUND - 1, bound - 1, back)
        random = layout.decode(products, products, NOISE_BOUND, bound, back)
        if flags != NOISE | LANE or not random & TOP:
            return False
    return True


def _products_are_right(basis: Basis) -> bool:
    """Drawing, multiplying and inverting in one go is the three in turn."""
    n, rows, moduli = basis.degree, basis.degree // TAIL, _wide(basis.moduli)[:, None]
    mask, at = np.uint32((1 << basis.limb_bits) - 1), 0
    stream = _STREAMS.words(10, 2 * basis.limbs * n)
    secret = sampling.draw_secret(_KEY, n)
    spectrum, companions = basis.spectrum(secret)
    a, out = np.empty_like(spectrum), np.empty_like(spectrum)
    for j, q in enumerate(basis.moduli):
        at = sampling.uniform(stream, at, mask, q, a[j])
    turned = a.reshape(basis.limbs, rows, TAIL).transpose(0, 2, 1).reshape(basis.limbs, n)
    end = blocks.multiply_drawn(stream, mask, basis, blocks.Secret(spectrum, companions), out)
    return bool(end == at and (out == basis.coefficients((_wide(turned) * spectrum % moduli).astype(np.uint32))).all())


def _hash_is_right(basis: Basis) -> bool:
    """The MAC's inner sums are numpy's."""
    residues, moduli = _residues(basis, 11), _wide(basis.moduli)[:, None]
    beta = np.stack([_residues(basis, 12 + r) for r in range(TAG_REPEATS)], axis=1)
    out = np.empty((basis.limbs, TAG_REPEATS), np.uint64)
    mac.hash_block(residues, beta, basis.moduli, mac.products_in_64_bits(basis.limb_bits), out)
    products = _wide(residues)[:, None] * _wide(beta) % moduli[:, None]
    return bool((out == products.sum(2) % moduli).all())


CHECKS: dict[str, Callable[[Basis], bool]] = {
    "fill_powers": _roots_are_right,
    "transform": _transform_is_right,
    "separate": _recombination_is_right,
    "uniform": _uniform_is_right,
    "binomial": _binomial_is_right,
    "pack": _packing_is_right,
    "add_multiple": _multiples_are_right,
    "encode": _lanes_are_right,
    "draw_products": _products_are_right,
    "hash_block": _hash_is_right,
}
