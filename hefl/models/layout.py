"""A model's named arrays, and the flat vector that they become."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, get_args

import msgspec
import numpy as np
from numpy.typing import NDArray

from hefl.errors import LayoutError
from hefl.params import MAX_METRICS, MAX_VALUES

Arrays = list[NDArray[Any]]
Kind = Literal["parameter", "buffer", "integer"]
"""A trained floating tensor; a floating tensor that is not trained, such as running statistics; whole numbers."""


_NAMES_AND_KINDS = (
    "a trainer's names and kinds have one for each array of get_parameters; see hefl.models.trainer.Trainer"
)


class Tensor(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One array of a model: its name, dtype (numpy's name, native byte order), shape and kind."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    kind: Kind

    @property
    def size(self) -> int:
        """Number of values."""
        return math.prod(self.shape)

    @property
    def whole(self) -> bool:
        """Whether its mean is rounded to a whole number."""
        return np.dtype(self.dtype).kind in "iu"

    def __str__(self) -> str:
        return f"{self.name!r} {self.dtype} {self.shape} ({self.kind})"


class Layout(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A model's tensors in order, and the names of the metrics that travel beside them."""

    tensors: tuple[Tensor, ...]
    metrics: tuple[str, ...]

    @property
    def size(self) -> int:
        """Values of the model."""
        return sum(tensor.size for tensor in self.tensors)

    @property
    def nbytes(self) -> int:
        """Bytes of the model's arrays."""
        return sum(tensor.size * np.dtype(tensor.dtype).itemsize for tensor in self.tensors)

    def check(self, arrays: Sequence[NDArray[Any]]) -> None:
        """Compare arrays with the layout.

        Raises:
            LayoutError: Their number, a dtype or a shape differs; names the first.
        """
        if len(arrays) != len(self.tensors):
            raise LayoutError(
                f"the model has {len(self.tensors)} tensors, and {len(arrays)} came",
                hint="the trainer's fit must return as many arrays as get_parameters",
            )
        for tensor, array in zip(self.tensors, arrays, strict=True):
            if array.shape != tensor.shape or array.dtype.name != tensor.dtype:
                raise LayoutError(
                    f"tensor {tensor.name!r} is {tensor.dtype} {tensor.shape}, "
                    f"and {array.dtype.name} {array.shape} came",
                    hint="the trainer's fit must return arrays like those of get_parameters: same shapes and dtypes",
                )

    def flatten(
        self, arrays: Sequence[NDArray[Any]], dtype: type[np.floating[Any]] = np.float64, room: int = 0
    ) -> NDArray[Any]:
        """Arrays to one vector in order, of shape (size + room,), its end left unset. Raises as ``check``."""
        self.check(arrays)
        vector = np.empty(self.size + room, dtype)
        at = 0
        for array in arrays:
            with np.errstate(over="ignore"):  # what does not fit becomes infinite, and is refused as that
                vector[at : at + array.size] = array.reshape(-1)
            at += array.size
        return vector

    def unflatten(self, vector: NDArray[np.floating[Any]]) -> Arrays:
        """One vector of shape (size,) to arrays of the layout's dtypes; whole numbers are rounded half to even."""
        arrays, at = [], 0
        for tensor in self.tensors:
            part = vector[at : at + tensor.size].reshape(tensor.shape)
            arrays.append((np.rint(part) if tensor.whole else part).astype(tensor.dtype))
            at += tensor.size
        return arrays

    def not_finite(self, arrays: Sequence[NDArray[Any]]) -> str | None:
        """Name of the first tensor that holds NaN or infinity, or None."""
        named = zip(self.tensors, arrays, strict=True)
        return next((tensor.name for tensor, array in named if not np.isfinite(array).all()), None)

    def widened(self) -> Layout:
        """The same tensors, kinds and all, as float64: means before they are rounded to a tensor's own type."""
        return Layout(tuple(msgspec.structs.replace(t, dtype="float64") for t in self.tensors), self.metrics)

    def locate(self, index: int) -> str:
        """The tensor that holds value ``index`` of the flat vector, for a message."""
        for tensor in self.tensors:
            if index < tensor.size:
                return f"tensor {tensor.name!r}, index {tuple(int(i) for i in np.unravel_index(index, tensor.shape))}"
            index -= tensor.size
        raise IndexError(index)

    def to_words(self, arrays: Sequence[NDArray[Any]]) -> NDArray[np.uint16]:
        """The arrays' exact bytes, little-endian, as 16-bit words: every dtype, no rounding."""
        self.check(arrays)
        parts = [np.ascontiguousarray(a).astype(a.dtype.newbyteorder("<"), copy=False).tobytes() for a in arrays]
        data = b"".join(parts)
        return np.frombuffer(data + bytes(len(data) % 2), "<u2").astype(np.uint16)

    def from_words(self, words: NDArray[np.uint16]) -> Arrays:
        """Inverse of to_words."""
        data, arrays, at = words.astype("<u2").tobytes(), [], 0
        for tensor in self.tensors:
            dtype = np.dtype(tensor.dtype)
            part = np.frombuffer(data, dtype.newbyteorder("<"), tensor.size, at)
            arrays.append(part.reshape(tensor.shape).astype(dtype))
            at += part.nbytes
        return arrays

    def difference(self, other: Layout) -> str | None:
        """The first difference between this layout ("here") and another client's ("there"), in words."""
        for i in range(max(len(self.tensors), len(other.tensors))):
            if i >= len(self.tensors):
                return f"tensor {other.tensors[i]} is there and not here"
            if i >= len(other.tensors):
                return f"tensor {self.tensors[i]} is here and not there"
            if self.tensors[i] != other.tensors[i]:
                return f"tensor {i + 1} is {self.tensors[i]} here and {other.tensors[i]} there"
        if self.metrics != other.metrics:
            return f"the metrics are {', '.join(self.metrics)} here and {', '.join(other.metrics)} there"
        return None


def describe(
    arrays: Sequence[NDArray[Any]],
    metrics: Sequence[str],
    names: Sequence[str] | None = None,
    kinds: Sequence[Kind | None] | None = None,
) -> Layout:
    """The layout of a model as its trainer hands it over.

    Args:
        arrays: The parameters.
        metrics: Names of the metrics beside them.
        names: One for each array; default "0", "1", ...
        kinds: One for each array; default (also for None): by dtype, floating tensors being parameters, and a whole
            number alone in its array a counter.

    Raises:
        LayoutError: A name stands twice, an array cannot be averaged, or there is nothing to average.
    """
    names = [str(i) for i in range(len(arrays))] if names is None else list(names)
    kinds = [None] * len(arrays) if kinds is None else list(kinds)
    if len(names) != len(arrays) or len(kinds) != len(arrays):
        raise LayoutError(
            f"{len(arrays)} arrays came with {len(names)} names and {len(kinds)} kinds", hint=_NAMES_AND_KINDS
        )
    twice = next((name for i, name in enumerate(names) if name in names[:i]), None)
    if twice is not None:
        raise LayoutError(f"two tensors are named {twice!r}", hint=_NAMES_AND_KINDS)
    if unknown := next((kind for kind in kinds if kind is not None and kind not in get_args(Kind)), None):
        raise LayoutError(
            f"a tensor's kind is one of {', '.join(get_args(Kind))}, got {unknown!r}", hint=_NAMES_AND_KINDS
        )
    if len(metrics) > MAX_METRICS:
        raise LayoutError(
            f"{len(metrics)} metrics are more than the {MAX_METRICS} that may travel",
            hint="let the trainer's evaluate return fewer",
        )
    tensors = []
    for name, kind, array in zip(names, kinds, arrays, strict=True):
        if array.dtype.kind not in "fiu" or array.dtype.itemsize > 8:
            raise LayoutError(
                f"tensor {name!r} is {array.dtype.name}; only floats and integers of up to 64 bits have a mean",
                hint="leave it out of get_parameters, or convert it",
            )
        whole = array.dtype.kind in "iu"
        if kind is None and whole and array.size > 1:
            raise LayoutError(
                f"tensor {name!r} is {array.dtype.name} {array.shape}: several whole numbers, which are not averaged",
                hint="the bytes of a boosted model have no mean: leave them out of get_parameters; if they are counts, "
                "state the kind 'integer': see hefl.models.trainer.Trainer",
            )
        if kind is not None and (kind == "integer") != whole:
            raise LayoutError(
                f"tensor {name!r} is {array.dtype.name} and cannot be of kind {kind!r}", hint=_NAMES_AND_KINDS
            )
        tensors.append(Tensor(name, array.dtype.name, array.shape, kind or ("integer" if whole else "parameter")))
    layout = Layout(tuple(tensors), tuple(metrics))
    if not 1 <= layout.size <= MAX_VALUES:
        raise LayoutError(
            f"the model has {layout.size} values; from 1 to {MAX_VALUES} can be averaged",
            hint="let the trainer's get_parameters return those that are trained",
        )
    return layout
