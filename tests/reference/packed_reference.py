"""The wire format and the packed engine a second time, slowly: Python's integers, hashlib, AES, nothing of hefl's.

What is random is given. Written from the documents, so that the two check each other and the format stays as it is.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

Residues = Sequence[Sequence[int]]
"""A block: its coefficients modulo each prime."""


@dataclass(frozen=True)
class Given:
    """Everything that determines one update."""

    group_key: bytes
    ctx: bytes
    name: str
    seed: bytes
    noise_key: bytes
    degree: int
    primes: Sequence[int]
    bits: int
    lanes: int
    precision: int
    total_weight: int
    values: Sequence[int]


def derive(key: bytes, salt: bytes, info: str) -> bytes:
    return HKDF(hashes.SHA256(), 32, salt, info.encode()).derive(key)


def words(key: bytes, number: int, count: int) -> Iterator[int]:
    encryptor = Cipher(algorithms.AES256(key), modes.CTR(number.to_bytes(8, "big") + bytes(8))).encryptor()
    data = encryptor.update(bytes(4 * count))
    return (int.from_bytes(data[4 * i : 4 * i + 4], "little") for i in range(count))


def draw(stream: Iterator[int], count: int, bits: int, q: int) -> list[int]:
    """Take from the stream's front."""
    out: list[int] = []
    while len(out) < count:
        v = next(stream) & ((1 << bits) - 1)
        if v < q:
            out.append(v)
    return out


def binomial(key: bytes, number: int, count: int) -> list[int]:
    stream, low = words(key, number, 2 * count), (1 << 21) - 1
    return [(next(stream) & low).bit_count() - (next(stream) & low).bit_count() for _ in range(count)]


def ntt(x: list[int], omega: int, q: int) -> list[int]:
    """Values at omega**k, k = 0 ... len(x) - 1."""
    if len(x) == 1:
        return x
    even, odd = ntt(x[0::2], omega * omega % q, q), ntt(x[1::2], omega * omega % q, q)
    half, out, power = len(x) // 2, [0] * len(x), 1
    for k in range(half):
        t = power * odd[k] % q
        out[k], out[k + half] = (even[k] + t) % q, (even[k] - t) % q
        power = power * omega % q
    return out


@functools.cache
def smallest_root(degree: int, q: int) -> int:
    root = next(r for x in range(2, q) if pow(r := pow(x, (q - 1) // (2 * degree), q), degree, q) == q - 1)
    best, odd = root, root
    for _ in range(degree):
        best, odd = min(best, odd), odd * root * root % q
    return best


def product(a: list[int], s: list[int], q: int) -> list[int]:
    """Coefficients of the polynomial whose values are a's, given in SEAL's order, times those of s."""
    n = len(s)
    psi = smallest_root(n, q)
    at_points = ntt([c * pow(psi, i, q) % q for i, c in enumerate(s)], psi * psi % q, q)
    order = [int(format(i, f"0{n.bit_length() - 1}b")[::-1], 2) for i in range(n)]
    values = [0] * n
    for i, k in enumerate(order):
        values[k] = a[i] * at_points[k] % q
    back = ntt(values, pow(psi, -2, q), q)
    scale = pow(n, -1, q)
    return [c * scale * pow(psi, -i, q) % q for i, c in enumerate(back)]


def packed(values: Sequence[int], bits: int) -> int:
    """Eight values at a time, which are whole bytes."""
    data = bytearray()
    for at in range(0, len(values), 8):
        eight = sum(value << (bits * i) for i, value in enumerate(values[at : at + 8]))
        data += eight.to_bytes(bits, "little")
    return int.from_bytes(data, "little")


def masks(ctx: bytes, block: int, secret: list[int], moduli: Sequence[int], bits: int) -> list[list[int]]:
    """Coefficients of the block's public polynomial times a secret, modulo each prime."""
    n = len(secret)
    stream = words(hashlib.sha256(b"hefl/v1/a" + ctx).digest(), block, 2 * n * len(moduli))
    return [product(draw(stream, n, bits, q), secret, q) for q in moduli]


def hashed(group_key: bytes, ctx: bytes, blocks: Sequence[Residues], moduli: Sequence[int], bits: int) -> list[int]:
    """A tag without its pad: three elements modulo each prime."""
    n, key, out = len(blocks[0][0]), derive(group_key, ctx, "hefl/v1/hash"), []
    for j, q in enumerate(moduli):
        beta = draw(words(key, 2 * j, 6 * n), 3 * n, bits, q)
        alpha = draw(words(key, 2 * j + 1, 6 * len(blocks) + 64), 3 * len(blocks), bits, q)
        for r in range(3):
            inner = [sum(x * y for x, y in zip(block[j], beta[r * n : (r + 1) * n], strict=True)) for block in blocks]
            out.append(sum(alpha[3 * b + r] * h for b, h in enumerate(inner)) % q)
    return out


def pads(group_key: bytes, ctx: bytes, seed: bytes, name: str, moduli: Sequence[int], bits: int) -> list[int]:
    """What hides an update's tag: three elements modulo each prime."""
    key = derive(group_key, ctx + seed, "hefl/v1/pad" + name)
    return [pad for j, q in enumerate(moduli) for pad in draw(words(key, j, 64), 3, bits, q)]


def one_time_secret(group_key: bytes, ctx: bytes, seed: bytes, name: str, degree: int) -> list[int]:
    return binomial(derive(group_key, ctx + seed, "hefl/v1/secret" + name), 0, degree)


def update(g: Given) -> tuple[list[bytes], bytes]:
    """Blocks and tag."""
    n, bits = g.degree, g.bits
    margin = (21 * g.total_weight).bit_length() + 1
    width = g.precision + (g.total_weight - 1).bit_length()
    secret = one_time_secret(g.group_key, g.ctx, g.seed, g.name, n)
    per_block = g.lanes * n
    blocks = []
    for b in range(-(-len(g.values) // per_block)):
        values = [*g.values[b * per_block : (b + 1) * per_block]]
        values += [0] * (per_block - len(values))
        noise = binomial(g.noise_key, b, n)
        message = [sum(values[k * n + i] << (margin + k * width) for k in range(g.lanes)) for i in range(n)]
        products = masks(g.ctx, b, secret, g.primes, bits)
        blocks.append(
            [
                [(message[i] + noise[i] - row[i]) % q for i in range(n)]
                for q, row in zip(g.primes, products, strict=True)
            ]
        )
    hashes = hashed(g.group_key, g.ctx, blocks, g.primes, bits)
    padding = pads(g.group_key, g.ctx, g.seed, g.name, g.primes, bits)
    tag = [(h + pad) % g.primes[i // 3] for i, (h, pad) in enumerate(zip(hashes, padding, strict=True))]
    size = n * len(g.primes) * bits // 8
    data = [packed([v for limb in block for v in limb], bits).to_bytes(size, "little") for block in blocks]
    return data, packed(tag, bits).to_bytes(-(-len(tag) * bits // 8), "little")


# --- weights and plan -------------------------------------------------------------------------------------------------

RINGS = {4096: (30, 3), 8192: (28, 7), 16384: (28, 14)}


@dataclass(frozen=True)
class Plan:
    degree: int
    bits: int
    limbs: int
    lanes: int
    margin: int
    width: int
    blocks: int
    block_bytes: int
    tag_bytes: int


def is_prime(n: int) -> bool:
    return n > 1 and all(n % d for d in range(2, math.isqrt(n) + 1))


@functools.cache
def primes(degree: int) -> list[int]:
    """All of a ring's, ascending."""
    bits, count = RINGS[degree]
    down = ((1 << bits) // (2 * degree) * 2 * degree + 1 - 2 * degree * k for k in range(1 << 20))
    found: list[int] = []
    while len(found) < count:
        q = next(down)
        if q < 1 << bits and is_prime(q):
            found.append(q)
    return sorted(found)


def reduced(num_examples: Mapping[str, int], budget: int = 2**16) -> dict[str, int]:
    divisor = math.gcd(*num_examples.values())
    weights = {name: n // divisor for name, n in num_examples.items()}
    if sum(weights.values()) <= budget:
        return weights
    ones: set[str] = set()
    while True:
        left, total = budget - len(ones), sum(w for name, w in weights.items() if name not in ones)
        below = {name for name, w in weights.items() if name not in ones and w * left < total}
        if not below:
            break
        ones |= below
    out = {name: 1 if name in ones else w * left // total for name, w in weights.items()}
    order = [(-(w * left % total), i, name) for i, (name, w) in enumerate(weights.items()) if name not in ones]
    for _, _, name in sorted(order)[: budget - sum(out.values())]:
        out[name] += 1
    divisor = math.gcd(*out.values())
    return {name: n // divisor for name, n in out.items()}


def exact(num_examples: Mapping[str, int]) -> dict[str, int]:
    divisor = math.gcd(*num_examples.values())
    return {name: n // divisor for name, n in num_examples.items()}


def total_planned(announced: Mapping[str, int]) -> int:
    return min(sum(exact(announced).values()), 2**16)


def weights_in(announced: Mapping[str, int], members: Collection[str]) -> dict[str, int]:
    """Of a sum's members: exact ones are the same whoever is missing, rounded ones are the members' own."""
    fits = sum(exact(announced).values()) <= 2**16
    chosen = {name: n for name, n in announced.items() if name in members}
    return {name: exact(announced)[name] for name in chosen} if fits else reduced(chosen)


def plan(values: int, precision: int, total_weight: int) -> Plan:
    margin = (21 * total_weight).bit_length() + 1
    width = precision
    while 1 << (width - precision) < total_weight:
        width += 1
    found = []
    for degree, (bits, most) in RINGS.items():
        for limbs in range(1, most + 1):
            lanes = (limbs * bits - 1 - margin) // width
            if lanes >= 1:
                blocks, tag = math.ceil(values / (lanes * degree)), math.ceil(3 * limbs * bits / 8)
                size = limbs * degree * bits // 8
                cost = blocks * size + 32 + tag, degree, limbs
                found.append((cost, Plan(degree, bits, limbs, lanes, margin, width, blocks, size, tag)))
    return min(found, key=lambda pair: pair[0])[1]


# --- sums -------------------------------------------------------------------------------------------------------------


def unpacked(data: bytes, bits: int) -> list[int]:
    out: list[int] = []
    for at in range(0, len(data), bits):
        eight = int.from_bytes(data[at : at + bits], "little")
        out += [eight >> (bits * i) & ((1 << bits) - 1) for i in range(8)]
    return out[: 8 * len(data) // bits]


def add_up(parts: Sequence[tuple[int, bytes]], bits: int, moduli: Sequence[int]) -> bytes:
    """sum of weight * residues, modulo these in equal stretches, packed."""
    rows = [(weight, unpacked(data, bits)) for weight, data in parts]
    count = len(rows[0][1]) // len(moduli) * len(moduli)  # a tag may have bits to spare
    each = count // len(moduli)
    out = [sum(w * row[i] for w, row in rows) % moduli[i // each] for i in range(count)]
    return packed(out, bits).to_bytes(len(parts[0][1]), "little")


# --- frames and history -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Place:
    """What the header says of where a frame belongs."""

    federation: bytes
    generation: int
    round: int
    attempt: int
    ctx: bytes
    values: int


def frame(
    kind: int,
    place: Place,
    name: str,
    blocks: Sequence[bytes],
    seed: bytes,
    tag: bytes,
    members: Sequence[tuple[str, bytes, int]] = (),
) -> bytes:
    def padded(text: str, size: int) -> bytes:
        return text.encode() + bytes(size - len(text))

    def parts() -> Iterator[bytes]:
        yield b"HEFL" + bytes([1, kind]) + padded("packed", 10) + place.federation
        for number in (place.generation, place.round, place.attempt):
            yield number.to_bytes(4, "little")
        yield place.ctx + padded(name, 32) + place.values.to_bytes(8, "little")
        yield len(blocks).to_bytes(4, "little") + len(members).to_bytes(4, "little") + len(tag).to_bytes(2, "little")
        for member, its_seed, weight in members:
            yield padded(member, 32) + its_seed + weight.to_bytes(8, "little")
        for block in blocks:
            yield len(block).to_bytes(4, "little") + block
        yield seed + tag

    data = b"".join(parts())
    return data + hashlib.sha256(data).digest()


def canonical(value: Any) -> bytes:
    """Right for numbers that need no exponent."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def genesis(federation: bytes, generation: int, run: bytes) -> bytes:
    return hashlib.sha256(b"hefl/v1/genesis" + federation + generation.to_bytes(4, "big") + run).digest()


def ctx_of(announcement: Mapping[str, Any]) -> bytes:
    return hashlib.sha256(b"hefl/v1/ctx" + bytes.fromhex(announcement["head"]) + canonical(announcement)).digest()


def head_of(record: Mapping[str, Any]) -> bytes:
    return hashlib.sha256(b"hefl/v1/head" + canonical(record)).digest()
