"""Data sets that scikit-learn ships, cut into a common validation set and a part for each client."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_iris

from hefl.errors import UsageError

MIN_EXAMPLES = 2
"""Fewer in a client's part are refused."""


@dataclass(frozen=True, slots=True)
class Split:
    """One client's data.

    Attributes:
        features, labels: For training; shapes (n, d) float32 and (n,) int64.
        validation_features, validation_labels: The same for every client.
    """

    features: NDArray[np.float32]
    labels: NDArray[np.int64]
    validation_features: NDArray[np.float32]
    validation_labels: NDArray[np.int64]


def iris(index: int, count: int, data_seed: int) -> Split:
    """The ``index``-th of ``count`` parts of Iris, from 1: 30 rows validate, and the parts share the other 120."""
    features, labels = load_iris(return_X_y=True)
    return _split(features, labels, index, count, data_seed)


def _split(features: NDArray[np.float64], labels: NDArray[np.int64], index: int, count: int, data_seed: int) -> Split:
    # Which rows train where is no secret: a legacy generator keeps the split the same for ever.
    order = np.random.RandomState(data_seed).permutation(len(labels))
    validation, training = np.split(order, [len(order) // 5])
    if len(training) // count < MIN_EXAMPLES:
        raise UsageError(
            f"{len(training)} examples cannot give {count} clients at least {MIN_EXAMPLES} each",
            hint="share the data among fewer clients",
        )
    part = np.array_split(training, count)[index - 1]
    return Split(
        features[part].astype(np.float32),
        labels[part].astype(np.int64),
        features[validation].astype(np.float32),
        labels[validation].astype(np.int64),
    )
