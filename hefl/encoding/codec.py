"""Interfaces of a codec: a model and its metrics as one vector, and an average as a model."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from types import MappingProxyType
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from hefl.errors import MalformedError, NotFiniteError, OutOfRangeError
from hefl.models.layout import Arrays, Layout
from hefl.params import METRIC_RANGE

log = logging.getLogger("hefl")

RoundKind = Literal["initial", "training", "closing"]
"""What a round carries: one client's initial arrays; everyone's parameters and metrics; metrics of the last model."""

Metrics = dict[str, float | None]
"""By name; None where no client had a number."""

Shares = Mapping[str, Fraction]
"""Of metrics by name: the rows that one is of / what the engine multiplies the vector by; above 0."""

AS_ANNOUNCED: Shares = MappingProxyType({})
"""A metric without a share has 1: it weighs as its update is announced to."""


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


@dataclass(frozen=True, slots=True)
class Averages:
    """What a sum says of the metrics.

    Attributes:
        metrics: Weighted means over the clients that had a finite number.
        present: By name, those clients' part of the sum's weight; 1 where all had one.
    """

    metrics: Metrics
    present: Mapping[str, float]


class Codec(Protocol):
    """Turns what a client says into a vector of an engine's, and a sum of vectors into what was said on average.

    A sum multiplies a client's vector by its announced weight, and a metric is to weigh by the rows that it is of. So
    it travels multiplied by its *share*, rows / weight, and the share travels beside it: the sum of the one divided by
    the sum of the other is the mean by rows.
    """

    def values(self, exchange: RoundKind) -> int:
        """Length of the vector."""

    def encode_initial(self, arrays: Sequence[NDArray[Any]]) -> NDArray[Any]:
        """Initial arrays, to the bit. Raises as encode_model: no later round could hold what this one cannot."""

    def decode_initial(self, total: Sum) -> tuple[Arrays, Scales]:
        """Inverse of encode_initial, and the scales of the first round.

        Raises:
            ProtocolError: The words are not words.
        """

    def encode_model(
        self,
        arrays: Sequence[NDArray[Any]],
        metrics: Mapping[str, float],
        scales: Scales,
        shares: Shares = AS_ANNOUNCED,
    ) -> NDArray[Any]:
        """A trained model and metrics.

        Args:
            arrays: In the layout's order.
            metrics: What is missing or not finite is left out of the averages.
            scales: Those that came with the model that it was trained from.
            shares: Of the metrics.

        Raises:
            NotFiniteError: A value is NaN or infinite; names the tensor.
            OutOfRangeError: A value is beyond what the engine can hold; names the tensor.
        """

    def decode_model(self, total: Sum, scales: Scales | None) -> tuple[Arrays, Averages, Scales]:
        """The averages, and the scales of the next round.

        Args:
            total: Of vectors from encode_model.
            scales: Those that they were encoded at; None where this client has no model of the round before.
        """

    def ranges(self, total: Sum) -> tuple[Scales, Scales]:
        """The scales that a sum of vectors from encode_model was made at, as it says itself, and those that follow.

        Raises:
            UploadError: It cannot be used.
        """

    def encode_metrics(self, metrics: Mapping[str, float], shares: Shares = AS_ANNOUNCED) -> NDArray[Any]:
        """Metrics alone; see encode_model."""

    def decode_metrics(self, total: Sum) -> Averages:
        """The averages."""


class FloatCodec:
    """Values as they are, for engines that compute with floating-point numbers.

    Metrics times their share come first, then the shares, then 1 for each metric; for a missing one it is 0 thrice.
    """

    def __init__(self, layout: Layout, limit: float, dtype: type[np.floating[Any]] = np.float64) -> None:
        """Take ``limit``, the magnitude from which on the engine cannot hold a value, and the type it computes in."""
        self.layout = layout
        self.limit = limit
        self._dtype = dtype

    def values(self, exchange: RoundKind) -> int:
        """Length of the vector."""
        metrics = 3 * len(self.layout.metrics)
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
        self,
        arrays: Sequence[NDArray[Any]],
        metrics: Mapping[str, float],
        scales: Scales,
        shares: Shares = AS_ANNOUNCED,
    ) -> NDArray[Any]:
        """A trained model and its metrics; see Codec."""
        tail = self._tail(metrics, shares)
        vector = self.layout.flatten(arrays, self._dtype, room=tail.size)
        self._check(vector[: self.layout.size], arrays)
        vector[self.layout.size :] = tail
        return vector

    def decode_model(self, total: Sum, scales: Scales | None) -> tuple[Arrays, Averages, Scales]:
        """The averages; see Codec."""
        model, tail = total.vector[: self.layout.size], total.vector[self.layout.size :]
        arrays = self.layout.unflatten(model / self._dtype(total.total_weight))
        return arrays, self._averages(tail, total.total_weight), ()

    def ranges(self, total: Sum) -> tuple[Scales, Scales]:
        """None are needed."""
        return (), ()

    def encode_metrics(self, metrics: Mapping[str, float], shares: Shares = AS_ANNOUNCED) -> NDArray[Any]:
        """Metrics alone; see Codec."""
        return (self._tail(metrics, shares) if self.layout.metrics else np.zeros(1)).astype(self._dtype)

    def decode_metrics(self, total: Sum) -> Averages:
        """The averages; see Codec."""
        return self._averages(total.vector, total.total_weight)

    def _tail(self, metrics: Mapping[str, float], shares: Shares) -> NDArray[np.float64]:
        names = self.layout.metrics
        values, present = numbers(metrics, names)
        most = self.limit / METRIC_RANGE / 2
        asked = [float(shares.get(name, 1)) for name in names]
        if max(asked, default=0) > most:
            log.warning("metrics of more than %g rows for each training example weigh as those of so many", most)
        weighed = present * np.minimum(asked, most)
        return np.concatenate([values * weighed, weighed, present])

    def _averages(self, tail: NDArray[Any], total_weight: float) -> Averages:
        # An approximate engine leaves about 1e-9 in place of a zero; who has less than this of the weight counts as
        # nobody.
        floor, names = 1e-6, self.layout.metrics
        columns = tail[: 3 * len(names)].astype(np.float64).reshape(3, -1).T.tolist()
        metrics: Metrics = {}
        shares: dict[str, float] = {}
        for name, (total, weighed, present) in zip(names, columns, strict=True):
            metrics[name] = total / weighed if min(present, weighed) > floor else None
            shares[name] = 1.0 if present > total_weight - floor else max(present / total_weight, 0.0)
        return Averages(metrics, shares)

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


def numbers(metrics: Mapping[str, float], names: Sequence[str]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Metrics in the order of ``names``, and for each 1, or 0 where it is missing or not finite, and then 0 itself.

    Values beyond METRIC_RANGE saturate, and the log says which.
    """
    values = np.array([metrics.get(name, math.nan) for name in names])
    present = np.isfinite(values)
    for name in np.array(names)[present & (np.abs(values) > METRIC_RANGE)]:
        log.warning("metric %r is beyond +-%g and is sent as that", str(name), METRIC_RANGE)
    return np.where(present, np.clip(values, -METRIC_RANGE, METRIC_RANGE), 0.0), present.astype(np.float64)
