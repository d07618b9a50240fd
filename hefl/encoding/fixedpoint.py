"""Encode models as fixed-point integers, for engines whose sums are exact.

A tensor has a range 2**e and a number of bits b: a value is round(value / step), step = 2**(e - b + 1), cut to
+-(2**(b-1) - 1). Parameters have the engine's precision, buffers 40 bits, integers a step of 1 and 33 bits. Where b
is more than the precision, an integer is cut into digits of precision - 1 bits, each in a lane of its own: the low
ones from 0 up, the top one signed. So sums of digits recombine to the sum of integers, exactly.

The exponents e are the state that clients share, one for each tensor. They follow from the last sum's integers, so all
clients have the same; they also travel, beside the values, for one who has no last model. They are plain tuples:
nothing in a codec changes from round to round.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hefl.encoding.codec import AS_ANNOUNCED, Averages, Metrics, RoundKind, Scales, Shares, Sum, numbers
from hefl.encoding.kernels import I64, Floats, check_quantise, divide_scaled, largest_magnitude, round_scaled
from hefl.errors import NotFiniteError, OutOfRangeError, UploadError
from hefl.models.layout import Arrays, Layout, Tensor
from hefl.params import MAX_NUM_EXAMPLES, METRIC_RANGE

log = logging.getLogger("hefl")

BUFFER_BITS = 40
BUFFER_LEAST_EXPONENT = 10
INTEGER_BITS = 33
INTEGER_LIMIT = 2**31
METRIC_BITS = 40
METRIC_EXPONENT = int(math.log2(METRIC_RANGE))
SHARE_STEP_BITS = 64
"""A share is a multiple of 2**-64. As an update weighs at most 2**16, its relative error is at most 2**-49."""
SHARE_BITS = MAX_NUM_EXAMPLES.bit_length() + SHARE_STEP_BITS + 1
PRODUCT_BITS = SHARE_BITS + METRIC_BITS - 1
"""Of a metric's integer times its share's."""
MAX_EXPONENT = 120
"""Fits the smallest precision's lanes, and is far beyond what trains."""

HEADROOM_BITS = 2
"""A range is at least so many bits above the tensor's largest magnitude."""

LARGEST_RANGE_BITS = 4
"""A range is at most 2**4 times the largest magnitude of the mean: what clients say was cut cannot drive it further."""

WIDE_BITS = 8
"""A range that is so many bits above its tensor's mean leaves few bits to the values, which is said."""

REFUSED_AT = 16.0
"""Values beyond so many ranges are refused; what is less saturates."""


def word_bits(precision_bits: int) -> int:
    """How many bits of an initial array a lane carries."""
    return next(bits for bits in (16, 8, 4) if bits < precision_bits)


def initial_words(nbytes: int, precision_bits: int) -> int:
    """How many lanes carry initial arrays of so many bytes."""
    return (nbytes + 1) // 2 * (16 // word_bits(precision_bits))


class FixedPointCodec:
    """A model, its metrics and its ranges as one int64 vector; see codec.Codec and the module.

    The training vector has, for each tensor, one lane a value and digit, digit by digit from the low end; then an
    exponent for each tensor; then for each tensor how many of its values saturated; then how many are beyond half the
    range; then the metrics: digits of each one's integer times its share's, digits of the share's, and 1 or 0 for
    whether there was one.

    A learner keeps the scales that ``decode_initial`` or ``decode_model`` returned beside the arrays, and hands them
    to the next round's ``encode_model`` and ``decode_model``. One that has none, because it was away, passes None to
    ``decode_model`` and gets the same scales as everybody else. After an UploadError the model and its scales stay.
    """

    def __init__(self, layout: Layout, precision_bits: int) -> None:
        self.layout = layout
        self.precision_bits = precision_bits
        self._digit_bits = precision_bits - 1
        self._word_bits = word_bits(precision_bits)
        self._wide: set[str] = set()  # tensors whose wide range was said

    def values(self, exchange: RoundKind) -> int:
        """Length of the vector."""
        metrics = len(self.layout.metrics) * (self._digits(PRODUCT_BITS) + self._digits(SHARE_BITS) + 1)
        if exchange == "initial":
            return initial_words(self.layout.nbytes, self.precision_bits)
        if exchange == "closing":
            return max(metrics, 1)
        tensors = sum(t.size * self._digits(self._bits(t)) + 3 for t in self.layout.tensors)
        return tensors + metrics

    def encode_initial(self, arrays: Sequence[NDArray[Any]]) -> I64:
        """Initial arrays' exact bytes, in words of 16 bits, or 8 or 4 where the precision has no room for more.

        Raises:
            NotFiniteError, OutOfRangeError: No round could start from them; names the tensor.
        """
        words = self.layout.to_words(arrays)
        for tensor, array in zip(self.layout.tensors, arrays, strict=True):
            self._check_initial(tensor, array)
        parts = [words >> shift & ((1 << self._word_bits) - 1) for shift in range(0, 16, self._word_bits)]
        return np.stack(parts, axis=1).reshape(-1).astype(np.int64)

    def decode_initial(self, total: Sum) -> tuple[Arrays, Scales]:
        """Inverse of encode_initial, and the first round's scales.

        Raises:
            UploadError: The words are not words, or not those of one client, or make a model that cannot be used.
        """
        vector = total.vector
        if total.total_weight != 1 or vector.min() < 0 or vector.max() >= 1 << self._word_bits:
            raise UploadError("the initial model does not decrypt to words of one client")
        parts = vector.reshape(-1, 16 // self._word_bits)
        words = sum(parts[:, k] << (k * self._word_bits) for k in range(parts.shape[1]))
        arrays = self.layout.from_words(np.asarray(words, np.uint16))
        try:
            for tensor, array in zip(self.layout.tensors, arrays, strict=True):
                self._check_initial(tensor, array)
        except (NotFiniteError, OutOfRangeError) as error:
            raise UploadError(f"the initial model cannot be used: {error.message}") from error
        return arrays, tuple(self._first_exponent(t, a) for t, a in zip(self.layout.tensors, arrays, strict=True))

    def encode_model(
        self,
        arrays: Sequence[NDArray[Any]],
        metrics: Mapping[str, float],
        scales: Scales,
        shares: Shares = AS_ANNOUNCED,
    ) -> I64:
        """A trained model, its metrics, its scales and how much saturated; see codec.Codec."""
        check_quantise()
        self.layout.check(arrays)
        out, at, counts = np.zeros(self.values("training"), np.int64), 0, []
        for tensor, array, exponent in zip(self.layout.tensors, arrays, scales, strict=True):
            bits = self._bits(tensor)
            part = out[at : at + tensor.size * self._digits(bits)]
            counts.append(self._quantise(tensor, array, exponent, part[: tensor.size]))
            self._split(part.reshape(self._digits(bits), tensor.size))
            at += part.size
        count = len(self.layout.tensors)
        out[at : at + count] = scales
        out[at + count : at + 3 * count] = np.minimum(counts, (1 << self._digit_bits) - 1).T.reshape(-1)
        out[at + 3 * count :] = self._metrics_to_lanes(metrics, shares)
        return out

    def decode_model(self, total: Sum, scales: Scales | None) -> tuple[Arrays, Averages, Scales]:
        """The averages and the next round's scales; see codec.Codec.

        Raises:
            UploadError: A participant used other scales than these, or digits that no integers have.
        """
        check_quantise()
        parts, at = [], 0
        for tensor in self.layout.tensors:
            digits = self._digits(self._bits(tensor))
            size = tensor.size * digits
            lanes = total.vector[at : at + size].reshape(digits, tensor.size)
            parts.append(self._join(lanes, self._bits(tensor), int(total.total_weight)))
            at += size
        count = len(self.layout.tensors)
        used = self._used_scales(total.vector[at : at + count], int(total.total_weight), scales)
        counts = total.vector[at + count : at + 3 * count].reshape(2, count)
        if counts.min(initial=0) < 0:
            raise UploadError("a participant counts fewer than no values that were cut; the sum cannot be used")
        saturated, large = counts > 0
        arrays, following = [], []
        for tensor, part, exponent, grow, keep in zip(self.layout.tensors, parts, used, saturated, large, strict=True):
            arrays.append(self._mean(tensor, part, exponent, int(total.total_weight)))
            floor = exponent + 1 if grow else exponent if keep else exponent - 1
            following.append(self._next_exponent(tensor, part, exponent, int(total.total_weight), floor))
        return arrays, self._lanes_to_metrics(total.vector[at + 3 * count :], int(total.total_weight)), tuple(following)

    def ranges(self, total: Sum) -> tuple[Scales, Scales]:
        """See codec.Codec."""
        at, count = sum(t.size * self._digits(self._bits(t)) for t in self.layout.tensors), len(self.layout.tensors)
        used = self._used_scales(total.vector[at : at + count], int(total.total_weight), None)
        return used, self.decode_model(total, None)[2]

    def encode_metrics(self, metrics: Mapping[str, float], shares: Shares = AS_ANNOUNCED) -> I64:
        """Metrics alone; see codec.Codec."""
        return self._metrics_to_lanes(metrics, shares) if self.layout.metrics else np.zeros(1, np.int64)

    def decode_metrics(self, total: Sum) -> Averages:
        """The averages; see codec.Codec."""
        check_quantise()
        return self._lanes_to_metrics(total.vector, int(total.total_weight))

    # Bits and digits.

    def _bits(self, tensor: Tensor) -> int:
        return {"parameter": self.precision_bits, "buffer": BUFFER_BITS, "integer": INTEGER_BITS}[tensor.kind]

    def _digits(self, bits: int) -> int:
        return 1 if bits <= self.precision_bits else -(-bits // self._digit_bits)

    def _split(self, digits: NDArray[Any]) -> None:
        """Cut the integers that stand in the first row of digits (rows, size) into digits, in place."""
        for k in range(1, len(digits)):
            digits[k] = digits[k - 1] >> self._digit_bits
            digits[k - 1] &= (1 << self._digit_bits) - 1

    def _join(self, digits: I64, bits: int, total: int, dtype: type = np.int64) -> NDArray[Any]:
        """Inverse of _split, on sums of so many: it is linear. Integers of more than 63 bits are of dtype ``object``.

        Raises:
            UploadError: A sum of digits is none of integers of so many bits.
        """
        joined: I64 = digits[-1]
        if len(digits) == 1:
            return joined
        top_bits = bits - 1 - (len(digits) - 1) * self._digit_bits
        if digits[:-1].min(initial=0) < 0 or largest_magnitude(joined) > total << top_bits:
            raise UploadError(
                "a participant's upload is out of range (a value of several lanes); the sum cannot be used"
            )
        wide: NDArray[Any] = joined.astype(dtype, copy=False)
        for digit in digits[-2::-1]:
            wide = (wide << self._digit_bits) + digit.astype(dtype, copy=False)
        return wide

    # Tensors.

    def _quantise(self, tensor: Tensor, array: NDArray[Any], exponent: int, out: I64) -> tuple[int, int]:
        """Write one tensor's integers, shape (size,); returns how many saturated, and how many are beyond half."""
        if tensor.kind == "integer":
            self._check_integers(tensor, array)
            out[:] = array.reshape(-1)
            return 0, 0
        bits = self._bits(tensor)
        values: Floats = np.ascontiguousarray(array.reshape(-1), _compiled_dtype(tensor))
        limit, top = REFUSED_AT * 2.0**exponent, float((1 << (bits - 1)) - 1)
        large, saturated, refused = round_scaled(values, 2.0 ** (bits - 1 - exponent), limit, top, out)
        if refused:
            self._refuse(tensor, values, limit)
        if saturated:
            log.warning(
                "%d of %d values of tensor %r are beyond +-%g and are sent as that; its range doubles next round",
                saturated,
                tensor.size,
                tensor.name,
                2.0**exponent,
            )
        return saturated, large

    def _refuse(self, tensor: Tensor, values: NDArray[Any], limit: float) -> None:
        if not np.isfinite(values).all():
            index = np.unravel_index(int(np.argmin(np.isfinite(values))), tensor.shape)
            raise NotFiniteError(
                f"the update holds NaN or infinity in tensor {tensor.name!r}, index {tuple(map(int, index))}; "
                "nothing was sent",
                hint="training diverged: lower the learning rate, or look at the data",
            )
        index = np.unravel_index(int(np.argmax(np.abs(values) > limit)), tensor.shape)
        raise OutOfRangeError(
            f"the update holds a value beyond +-{limit:g} in tensor {tensor.name!r}, index {tuple(map(int, index))}: "
            f"more than {REFUSED_AT:g} times the range that follows from the last global model; nothing was sent",
            hint="training diverged: lower the learning rate, or look at the data",
        )

    def _check_integers(self, tensor: Tensor, array: NDArray[Any]) -> None:
        if tensor.size and max(-int(array.min()), int(array.max())) > INTEGER_LIMIT:
            raise OutOfRangeError(
                f"the update holds a whole number beyond +-2**31 in tensor {tensor.name!r}; nothing was sent",
                hint="leave the tensor out of get_parameters",
            )

    def _check_initial(self, tensor: Tensor, array: NDArray[Any]) -> None:
        if tensor.kind == "integer":
            self._check_integers(tensor, array)
        elif not np.isfinite(array).all():
            self._refuse(tensor, array.reshape(-1), math.inf)

    def _mean(self, tensor: Tensor, sums: I64, exponent: int, total: int) -> NDArray[Any]:
        if tensor.whole:
            whole, rest = np.divmod(sums, total)
            # Half to even: up where the rest is more than half, or half beside an odd number.
            whole += (2 * rest > total) | ((2 * rest == total) & (whole % 2 != 0))
            return whole.astype(tensor.dtype).reshape(tensor.shape)
        out: Floats = np.empty(tensor.size, _compiled_dtype(tensor))
        divide_scaled(sums, 2.0 ** (exponent - self._bits(tensor) + 1), float(total), out)
        return out.astype(tensor.dtype, copy=False).reshape(tensor.shape)

    # Scales.

    def _least_exponent(self, tensor: Tensor) -> int:
        return {"parameter": 0, "buffer": BUFFER_LEAST_EXPONENT, "integer": INTEGER_BITS - 1}[tensor.kind]

    def _first_exponent(self, tensor: Tensor, array: NDArray[Any]) -> int:
        least = self._least_exponent(tensor)
        if tensor.kind == "integer" or not array.any():
            return least
        # frexp's exponent k is exact, and the magnitude below 2**k.
        bits = math.frexp(float(np.abs(array).max()))[1]
        return min(max(least, bits + HEADROOM_BITS), MAX_EXPONENT)

    def _next_exponent(self, tensor: Tensor, sums: I64, exponent: int, total: int, floor: int) -> int:
        """From the sums' integers alone, so that every client finds the same on every machine.

        The mean may be far smaller than the values behind it. So the range is not less than ``floor``: it doubles after
        values saturated, and halves, at most, only after a round whose every value fits half of it. But no client can
        drive it away by saying that values were cut: 2**LARGEST_RANGE_BITS times the mean is the end.
        """
        least = self._least_exponent(tensor)
        if tensor.kind == "integer":
            return least
        magnitude = -(-largest_magnitude(sums) // total)  # of the mean, in steps, rounded up
        step = exponent - (self._bits(tensor) - 1)  # a power of two
        bits = (magnitude - 1).bit_length() if magnitude else 0
        most = magnitude.bit_length() - 1 + LARGEST_RANGE_BITS + step
        following = min(max(least, min(max(bits + HEADROOM_BITS + step, floor), most)), MAX_EXPONENT)
        self._note_wide(tensor, following, magnitude * 2.0**step)
        return following

    def _note_wide(self, tensor: Tensor, exponent: int, magnitude: float) -> None:
        """Say once of a tensor that its range is far above its values."""
        if tensor.name not in self._wide and 0 < magnitude * 2.0**WIDE_BITS <= 2.0**exponent:
            self._wide.add(tensor.name)
            log.warning(
                "tensor %r is averaged in the range +-%g, and the largest magnitude of its mean is %.2g: its values "
                "keep about %d bits",
                tensor.name,
                2.0**exponent,
                magnitude,
                max(0, self._bits(tensor) - 1 - exponent + math.frexp(magnitude)[1]),
            )

    def _used_scales(self, sums: I64, total: int, own: Scales | None) -> Scales:
        """The scales that this sum's participants used: the own ones, which are compared, or else theirs."""
        theirs = tuple(int(s) // total for s in sums)
        for tensor, sum_, exponent in zip(self.layout.tensors, sums, theirs if own is None else own, strict=True):
            if int(sum_) != total * exponent or not self._least_exponent(tensor) <= exponent <= MAX_EXPONENT:
                raise UploadError(
                    f"the participants used different ranges for tensor {tensor.name!r}; the sum cannot be used",
                    hint="a client of another version, or with a damaged state folder, is among them",
                )
        return theirs if own is None else own

    # Metrics.

    def _metrics_to_lanes(self, metrics: Mapping[str, float], shares: Shares) -> I64:
        values, present = numbers(metrics, self.layout.metrics)
        top = (1 << (METRIC_BITS - 1)) - 1
        integers = np.clip(np.rint(values * 2.0 ** (METRIC_BITS - 1 - METRIC_EXPONENT)), -top, top).astype(np.int64)
        asked = [max(round(shares.get(name, 1) * (1 << SHARE_STEP_BITS)), 1) for name in self.layout.metrics]
        weighed = present.astype(np.int64) * np.array(asked, object)
        parts = [present.astype(np.int64)]
        for bits, row in ((SHARE_BITS, weighed), (PRODUCT_BITS, integers * weighed)):
            digits = np.zeros((self._digits(bits), row.size), object)
            digits[0] = row
            self._split(digits)
            parts.insert(0, digits.reshape(-1).astype(np.int64))
        return np.concatenate(parts)

    def _lanes_to_metrics(self, lanes: I64, total: int) -> Averages:
        """The averages; a mean of numbers within their range is within it.

        Raises:
            UploadError: Digits are none of integers, or products none of metrics and shares.
        """
        names, product_digits = self.layout.metrics, self._digits(PRODUCT_BITS)
        if not names:
            return Averages({}, {})
        rows = lanes.reshape(-1, len(names))
        products = self._join(rows[:product_digits], PRODUCT_BITS, total, object)
        shares = self._join(rows[product_digits:-1], SHARE_BITS, total, object)
        top = (1 << (METRIC_BITS - 1)) - 1
        if any(abs(product) > top * share for product, share in zip(products, shares, strict=True)):
            raise UploadError("a participant's upload is out of range (a metric); the sum cannot be used")
        step = 2.0 ** (METRIC_EXPONENT - METRIC_BITS + 1)
        metrics: Metrics = {
            name: product / share * step if share else None
            for name, product, share in zip(names, products, shares, strict=True)
        }
        return Averages(metrics, {n: min(max(int(p) / total, 0.0), 1.0) for n, p in zip(names, rows[-1], strict=True)})


def _compiled_dtype(tensor: Tensor) -> type[np.floating[Any]]:
    """The kernels know two types; float16 fits float32."""
    return np.float64 if tensor.dtype == "float64" else np.float32
