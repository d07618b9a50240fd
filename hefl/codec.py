"""What one update says, as a vector: a model beside its metrics, or initial arrays, or metrics alone."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from hefl.errors import MalformedError, NotFiniteError, OutOfRangeError
from hefl.layout import Arrays, Layout
from hefl.params import METRIC_RANGE

log = logging.getLogger("hefl")

Exchange = Literal["initial", "training", "closing"]
"""What a round carries: one client's initial arrays; everyone's parameters and metrics; metrics of the last model."""

Metrics = dict[str, float | None]
"""By name; None where no client had a number."""


Scales = tuple[int, ...]
"""Each tensor's range as a power of two, which all clients share; empty for engines that need none."""


@dataclass(frozen=True, slots=True)
class Sum:
    """A decrypted weighted sum.

    Attributes:
        vector: sum_i weight_i * vector_i, shape (values,); int64 and exact where the engine is.
        total_weight: sum_i weight_i over those who are in it; then an int.
    """

    vector: NDArray[Any]
    total_weight: float


class Codec(Protocol):
    """Turns what a client says into a vector of an engine's, and a sum of vectors into what was said on average."""

    def values(self, exchange: Exchange) -> int:
        """Length of the vector."""

    def encode_initial(self, arrays: Sequence[NDArray[Any]]) -> NDArray[Any]:
        """Initial arrays, to the bit. Raises as encode_model: no later round could hold what this one cannot."""

    def decode_initial(self, total: Sum) -> tuple[Arrays, Scales]:
        """Inverse of encode_initial, and the scales of the first round.

        Raises:
            ProtocolError: The words are not words.
        """

    def encode_model(
        self, arrays: Sequence[NDArray[Any]], metrics: Mapping[str, float], scales: Scales
    ) -> NDArray[Any]:
        """A trained model and its metrics, at the scales that came with the model that it was trained from.

        Raises:
            NotFiniteError: A value is NaN or infinite; names the tensor.
            OutOfRangeError: A value is beyond what the engine can hold; names the tensor.
        """

    def decode_model(self, total: Sum, scales: Scales | None) -> tuple[Arrays, Metrics, Scales]:
        """The averages, and the scales of the next round.

        Args:
            total: Of vectors from encode_model.
            scales: Those that they were encoded at; None where this client has no model of the round before.
        """

    def encode_metrics(self, metrics: Mapping[str, float]) -> NDArray[Any]:
        """Metrics alone; what is missing or not finite is left out of the average."""

    def decode_metrics(self, total: Sum) -> Metrics:
        """The averages."""


class FloatCodec:
    """Values as they are, for engines that compute with floating-point numbers.

    A metric travels as (value, 1), a missing one as (0, 0): the average is over those who have one.
    """

    def __init__(self, layout: Layout, limit: float, dtype: type[np.floating[Any]] = np.float64) -> None:
        """Take ``limit``, the magnitude from which on the engine cannot hold a value, and the type it computes in."""
        self.layout = layout
        self.limit = limit
        self._dtype = dtype

    def values(self, exchange: Exchange) -> int:
        """Length of the vector."""
        metrics = 2 * len(self.layout.metrics)
        return {
            "initial": (self.layout.nbytes + 1) // 2,
            "training": self.layout.size + metrics,
            "closing": max(metrics, 1),
        }[exchange]

    def encode_initial(self, arrays: Sequence[NDArray[Any]]) -> NDArray[Any]:
        """Initial arrays as 16-bit words, each a whole number that every engine holds."""
        self._check(self.layout.flatten(arrays, self._dtype), arrays)
        return self.layout.to_words(arrays).astype(self._dtype)

    def decode_initial(self, total: Sum) -> tuple[Arrays, Scales]:
        """Inverse of encode_initial."""
        vector = total.vector.astype(np.float64) / total.total_weight
        words = np.rint(vector)
        if (
            not np.isfinite(vector).all()
            or not (np.abs(vector - words) < 0.25).all()
            or words.min() < 0
            or words.max() > 0xFFFF
        ):
            raise MalformedError(
                "the initial model does not decrypt to 16-bit words",
                hint="is this client's key the sender's?",
            )
        return self.layout.from_words(words.astype(np.uint16)), ()

    def encode_model(
        self, arrays: Sequence[NDArray[Any]], metrics: Mapping[str, float], scales: Scales
    ) -> NDArray[Any]:
        """A trained model and its metrics; see Codec."""
        tail = pairs(metrics, self.layout.metrics)
        vector = self.layout.flatten(arrays, self._dtype, room=tail.size)
        self._check(vector[: self.layout.size], arrays)
        vector[self.layout.size :] = tail
        return vector

    def decode_model(self, total: Sum, scales: Scales | None) -> tuple[Arrays, Metrics, Scales]:
        """The averages; see Codec."""
        model, tail = total.vector[: self.layout.size], total.vector[self.layout.size :]
        arrays = self.layout.unflatten(model / self._dtype(total.total_weight))
        return arrays, averages(tail.astype(np.float64), self.layout.metrics), ()

    def encode_metrics(self, metrics: Mapping[str, float]) -> NDArray[Any]:
        """Metrics alone; see Codec."""
        return (pairs(metrics, self.layout.metrics) if self.layout.metrics else np.zeros(1)).astype(self._dtype)

    def decode_metrics(self, total: Sum) -> Metrics:
        """The averages; see Codec."""
        return averages(total.vector.astype(np.float64), self.layout.metrics)

    def _check(self, vector: NDArray[np.floating[Any]], arrays: Sequence[NDArray[Any]]) -> None:
        # One pass that makes no copy; what is wrong is looked for, in full width, only where something is.
        if -self.limit < vector.min() <= vector.max() < self.limit:
            return
        vector = self.layout.flatten(arrays)
        if not np.isfinite(vector).all():
            where = self.layout.locate(int(np.argmin(np.isfinite(vector))))
            raise NotFiniteError(
                f"the update holds NaN or infinity in {where}; nothing was sent",
                hint="training diverged: lower the learning rate, or look at the data",
            )
        where = self.layout.locate(int(np.argmax(np.abs(vector) >= self.limit)))
        raise OutOfRangeError(
            f"the update holds a value of magnitude {self.limit:g} or more in {where}; nothing was sent",
            hint="scale the model, or leave the tensor out of get_parameters",
        )


def pairs(metrics: Mapping[str, float], names: Sequence[str]) -> NDArray[np.float64]:
    """Metrics as (value, 1), in the order of ``names``; (0, 0) where one is missing or not finite.

    Values beyond METRIC_RANGE saturate, and the log says which.
    """
    out = np.zeros(2 * len(names))
    for i, name in enumerate(names):
        value = metrics.get(name, math.nan)
        if not math.isfinite(value):
            log.warning("metric %r is missing or not a finite number and is left out of the average", name)
            continue
        if abs(value) > METRIC_RANGE:
            log.warning("metric %r is beyond +-%g and is sent as that", name, METRIC_RANGE)
        out[2 * i : 2 * i + 2] = np.clip(value, -METRIC_RANGE, METRIC_RANGE), 1.0
    return out


def averages(tail: NDArray[np.float64], names: Sequence[str]) -> Metrics:
    """Weighted means from weighted sums of ``pairs``; None where nobody had a number."""
    # An approximate engine leaves about 1e-9 in place of a zero; who has less than this of the weight counts as nobody.
    floor = 1e-6
    return {
        name: float(tail[2 * i] / tail[2 * i + 1]) if tail[2 * i + 1] > floor else None for i, name in enumerate(names)
    }
