"""Weigh updates at the clients, so that the server learns no number of examples.

Each client multiplies its fixed-point integers by its own weight, from 1 to 2**10, and appends that weight as one
more exact value. The server adds; everybody divides by the decrypted sum of weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hefl.encoding.codec import AS_ANNOUNCED, Averages, Codec, RoundKind, Scales, Shares, Sum
from hefl.encoding.kernels import largest_magnitude
from hefl.errors import UploadError
from hefl.models.layout import Arrays
from hefl.params import CLIENT_WEIGHT_BITS


class ClientWeightedCodec:
    """Weighs what another codec of exact integers makes; see codec.Codec.

    Args:
        codec: Makes int64 vectors, and leaves CLIENT_WEIGHT_BITS of each lane free.
        precision_bits: Of its integers.
        weight: This client's weight, asked for at each update.
    """

    def __init__(self, codec: Codec, precision_bits: int, weight: Callable[[], int]) -> None:
        self._codec = codec
        self._bound = (1 << (precision_bits - 1)) - 1
        self._weight = weight

    def values(self, exchange: RoundKind) -> int:
        """One more than without the weight; initial arrays are one client's, and weigh 1."""
        return self._codec.values(exchange) + (exchange != "initial")

    def encode_initial(self, arrays: Sequence[NDArray[Any]]) -> NDArray[Any]:
        """See codec.Codec."""
        return self._codec.encode_initial(arrays)

    def decode_initial(self, total: Sum) -> tuple[Arrays, Scales]:
        """See codec.Codec."""
        return self._codec.decode_initial(total)

    def encode_model(
        self,
        arrays: Sequence[NDArray[Any]],
        metrics: Mapping[str, float],
        scales: Scales,
        shares: Shares = AS_ANNOUNCED,
    ) -> NDArray[Any]:
        """See codec.Codec."""
        weight = self._weight()
        return _weighed(self._codec.encode_model(arrays, metrics, scales, _divided(shares, metrics, weight)), weight)

    def decode_model(self, total: Sum, scales: Scales | None) -> tuple[Arrays, Averages, Scales]:
        """See codec.Codec. Raises UploadError where weights or values cannot be."""
        return self._codec.decode_model(self._weighted(total), scales)

    def ranges(self, total: Sum) -> tuple[Scales, Scales]:
        """See codec.Codec. Raises UploadError where weights or values cannot be."""
        return self._codec.ranges(self._weighted(total))

    def encode_metrics(self, metrics: Mapping[str, float], shares: Shares = AS_ANNOUNCED) -> NDArray[Any]:
        """See codec.Codec."""
        weight = self._weight()
        return _weighed(self._codec.encode_metrics(metrics, _divided(shares, metrics, weight)), weight)

    def decode_metrics(self, total: Sum) -> Averages:
        """See codec.Codec. Raises UploadError where weights or values cannot be."""
        return self._codec.decode_metrics(self._weighted(total))

    def _weighted(self, total: Sum) -> Sum:
        """The same sum over what its members say that they weigh.

        The engine bounds lanes by the largest weight. A member that says less than it multiplies by would carry the
        average beyond the range that all values have.
        """
        clients, weight = int(total.total_weight), int(total.vector[-1])
        if not clients <= weight <= clients << CLIENT_WEIGHT_BITS:
            raise UploadError(f"the weights of {clients} clients cannot sum to {weight}; the sum cannot be used")
        if largest_magnitude(total.vector[:-1]) > weight * self._bound:
            raise UploadError(
                f"a participant's upload is out of range (a value beyond the weight {weight}); the sum cannot be used"
            )
        return Sum(total.vector[:-1], weight)


def _divided(shares: Shares, metrics: Mapping[str, float], weight: int) -> Shares:
    return {name: shares.get(name, Fraction(1)) / weight for name in metrics}


def _weighed(vector: NDArray[Any], weight: int) -> NDArray[Any]:
    return np.append(vector * weight, weight)
