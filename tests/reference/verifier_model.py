"""From the exact sums of a round to the model: hefl/encoding/README.md, in Python's own numbers."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from typing import Any

import packed_reference as reference
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from verifier import Opened
from verifier_input import Key, require

KINDS = {"parameter": (None, 0), "buffer": (40, 10), "integer": (33, 32)}
"""Bits, None being the precision, and the least exponent."""

MOST_EXPONENT = 120
METRIC = (40, 6)
SHARE, PRODUCT = 106, 145
"""Bits of what a metric weighs, and of the metric times that."""

CODES = {
    "float16": "e",
    "float32": "f",
    "float64": "d",
    **{f"{sign}int{8 * size}": (code.upper() if sign else code) for sign in ("", "u") for size, code in
       ((1, "b"), (2, "h"), (4, "i"), (8, "q"))},
}  # fmt: skip

Values = Sequence[float | int]


@dataclass(frozen=True)
class Tensor:
    name: str
    dtype: str
    shape: tuple[int, ...]
    kind: str

    @property
    def size(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class Layout:
    tensors: Sequence[Tensor]
    metrics: Sequence[str]


@dataclass(frozen=True)
class Model:
    """Arrays in the layout's order, flat; the exponents that made them, and those of the next round."""

    arrays: Sequence[Values]
    exponents: Sequence[int]
    following: Sequence[int]
    metrics: Mapping[str, float | None]


def unseal(sealed: bytes, key: Key) -> Layout:
    """What clients tell each other of the model, through the server."""
    derived = reference.derive(key.group_key, b"", "hefl/v1/sealed-layout")
    try:
        value = json.loads(AESGCM(derived).decrypt(sealed[:12], sealed[12:], None))
    except InvalidTag:
        require("layout", False, "it was not sealed under this group key")
        raise
    tensors = [Tensor(t["name"], t["dtype"], tuple(t["shape"]), t["kind"]) for t in value["tensors"]]
    return Layout(tensors, value["metrics"])


class Decoder:
    """Decodes one run's rounds."""

    def __init__(self, layout: Layout, precision: int) -> None:
        self.layout, self.precision = layout, precision

    def initial(self, opened: Opened) -> Model:
        """The exact bytes of one client's arrays."""
        part = 16 if self.precision > 16 else 8 if self.precision > 8 else 4
        require("words", all(0 <= v < 1 << part for v in opened.sums), f"words of {part} bits")
        number = reference.packed(opened.sums, part)
        data, at, arrays = number.to_bytes(len(opened.sums) * part // 8, "little"), 0, []
        for tensor in self.layout.tensors:
            form = f"<{tensor.size}{CODES[tensor.dtype]}"
            arrays.append(struct.unpack_from(form, data, at))
            at += struct.calcsize(form)
        first = [self._first(t, array) for t, array in zip(self.layout.tensors, arrays, strict=True)]
        return Model(arrays, [], first, {})

    def training(self, opened: Opened) -> Model:
        sums, total = self._weighted(opened)
        tensors, values = self.layout.tensors, iter(sums)
        parts = [self._joined(values, t.size, self._bits(t), total) for t in tensors]
        told, cut, large = ([*islice(values, len(tensors))] for _ in range(3))
        require("counts", min(cut + large, default=0) >= 0, "a count is negative")
        exponents = [e // total for e in told]
        for tensor, e, sum_ in zip(tensors, exponents, told, strict=True):
            right = sum_ == total * e and KINDS[tensor.kind][1] <= e <= MOST_EXPONENT
            require("exponents", right, f"participants do not agree on one for {tensor.name}")
        arrays = [self._mean(t, part, e, total) for t, part, e in zip(tensors, parts, exponents, strict=True)]
        following = []
        for tensor, part, e, grow, keep in zip(tensors, parts, exponents, cut, large, strict=True):
            floor = e + 1 if grow else e if keep else e - 1
            following.append(self._next(tensor, part, e, total, floor))
        return Model(arrays, exponents, following, self._metrics([*values], total))

    def closing(self, opened: Opened) -> Mapping[str, float | None]:
        sums, total = self._weighted(opened)
        return self._metrics(sums, total)

    def _weighted(self, opened: Opened) -> tuple[Sequence[int], int]:
        """The sums, and what divides them."""
        if opened.announcement["weighting"] == "server":
            return opened.sums, opened.weight
        *sums, weight = opened.sums
        require("weights-told", opened.clients <= weight <= opened.clients << 10, f"{weight} of {opened.clients}")
        bound = weight * ((1 << (self.precision - 1)) - 1)
        require("weights-told", max(map(abs, sums)) <= bound, "a value is beyond the weight")
        return sums, weight

    def _bits(self, tensor: Tensor) -> int:
        return KINDS[tensor.kind][0] or self.precision

    def _joined(self, values: Any, size: int, bits: int, total: int) -> list[int]:
        """Digits, low ones first, to integers."""
        each = self.precision - 1
        count = 1 if bits <= self.precision else -(-bits // each)
        digits = [[*islice(values, size)] for _ in range(count)]
        for low in digits[:-1]:
            require("digits", min(low, default=0) >= 0, "a low digit is negative")
        top = total << (bits - 1 - (count - 1) * each)
        require("digits", count == 1 or max(map(abs, digits[-1]), default=0) <= top, "a top digit is too large")
        return [sum(digit << (k * each) for k, digit in enumerate(column)) for column in zip(*digits, strict=True)]

    def _mean(self, tensor: Tensor, sums: Sequence[int], exponent: int, total: int) -> Values:
        if tensor.kind == "integer":
            return [round(Fraction(s, total)) for s in sums]
        step = 2.0 ** (exponent - self._bits(tensor) + 1)
        means = [float(s) * step / float(total) for s in sums]
        for code in {"float64": "", "float32": "f", "float16": "fe"}[tensor.dtype]:
            means = [struct.unpack(code, struct.pack(code, mean))[0] for mean in means]
        return means

    def _metrics(self, values: Sequence[int], total: int) -> dict[str, float | None]:
        names, source = self.layout.metrics, iter(values)
        products, shares = (self._joined(source, len(names), bits, total) for bits in (PRODUCT, SHARE))
        top = (1 << (METRIC[0] - 1)) - 1
        require("metrics", all(abs(p) <= top * s for p, s in zip(products, shares, strict=True)), "one is out of range")
        step = 2.0 ** (METRIC[1] - METRIC[0] + 1)
        return {name: p / s * step if s else None for name, p, s in zip(names, products, shares, strict=True)}

    # Exponents: what every client must find alike.

    def _first(self, tensor: Tensor, array: Values) -> int:
        largest = max(map(abs, array), default=0)
        least = KINDS[tensor.kind][1]
        if tensor.kind == "integer" or not largest:
            return least
        return min(max(least, math.frexp(largest)[1] + 2), MOST_EXPONENT)

    def _next(self, tensor: Tensor, sums: Sequence[int], exponent: int, total: int, floor: int) -> int:
        least = KINDS[tensor.kind][1]
        if tensor.kind == "integer":
            return least
        largest = -(-max(map(abs, sums), default=0) // total)
        bits = (largest - 1).bit_length() if largest else 0
        step = exponent - (self._bits(tensor) - 1)
        most = step
        while 2 ** (most - step + 1) <= 16 * largest:
            most += 1
        return min(max(least, min(max(bits + 2 + step, floor), most)), MOST_EXPONENT)
