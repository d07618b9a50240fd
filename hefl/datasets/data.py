"""Load data sets that scikit-learn ships, and split them among clients.

Features are scaled by constants, never by statistics of the rows: clients that each used their own would train
different models, and common ones would have to be collected first, in the open. Iris stays raw; a pixel of digits has
16 levels; the tables' columns have the ranges that the data sets' descriptions publish, and become square roots in -1
to 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import sklearn.datasets
from numpy.typing import NDArray

from hefl.datasets.partition import I64, Partition

Ranges = tuple[tuple[float, float], ...]

BREAST_CANCER_RANGES: Ranges = (
    *((6.981, 28.11), (9.71, 39.28), (43.79, 188.5), (143.5, 2501.0), (0.053, 0.163)),
    *((0.019, 0.345), (0.0, 0.427), (0.0, 0.201), (0.106, 0.304), (0.05, 0.097)),
    *((0.112, 2.873), (0.36, 4.885), (0.757, 21.98), (6.802, 542.2), (0.002, 0.031)),
    *((0.002, 0.135), (0.0, 0.396), (0.0, 0.053), (0.008, 0.079), (0.001, 0.03)),
    *((7.93, 36.04), (12.02, 49.54), (50.41, 251.2), (185.2, 4254.0), (0.071, 0.223)),
    *((0.027, 1.058), (0.0, 1.252), (0.0, 0.291), (0.156, 0.664), (0.055, 0.208)),
)
"""Least and largest value of each column, from the table in ``load_breast_cancer().DESCR``."""

WINE_RANGES: Ranges = (
    *((11.0, 14.8), (0.74, 5.80), (1.36, 3.23), (10.6, 30.0), (70.0, 162.0), (0.98, 3.88), (0.34, 5.08)),
    *((0.13, 0.66), (0.41, 3.58), (1.3, 13.0), (0.48, 1.71), (1.27, 4.00), (278.0, 1680.0)),
)
"""The same from ``load_wine().DESCR``."""

_RANGES = {"breast_cancer": BREAST_CANCER_RANGES, "wine": WINE_RANGES}


@dataclass(frozen=True, slots=True)
class Split:
    """One client's data.

    Attributes:
        features, labels: For training; shapes (n, d) float32 and (n,) int64.
        validation_features, validation_labels: The same for every client.
        classes: Number of labels, from 0 up, of the whole data set: a part may lack some.
    """

    features: NDArray[np.float32]
    labels: I64
    validation_features: NDArray[np.float32]
    validation_labels: I64
    classes: int


def load_parts(
    name: str,
    count: int,
    partition: Partition,
    *,
    data_seed: int = 42,
    names: Mapping[int, str] | None = None,
) -> list[Split]:
    """A data set for ``count`` clients: a fifth of its shuffled rows validates, and the partition shares the rest.

    Args:
        name: One of params.DATA_SETS.
        count: From 1.
        partition: How the training rows are shared.
        data_seed: For the order of the rows and the partition, 0 to 2**32 - 1.
        names: Clients by the index of their part, from 1, for a message.

    Raises:
        UsageError: Some part is left with too few examples.
    """
    features, labels = _load(name)
    # Which rows train where is no secret: a legacy generator keeps the split the same for ever.
    generator = np.random.RandomState(data_seed)
    validation, training = np.split(generator.permutation(len(labels)), [len(labels) // 5])
    parts = [training[part] for part in partition.share(labels[training], count, generator, names)]
    classes = int(labels.max()) + 1
    return [Split(features[p], labels[p], features[validation], labels[validation], classes) for p in parts]


def _load(name: str) -> tuple[NDArray[np.float32], I64]:
    """All rows, scaled."""
    features, labels = getattr(sklearn.datasets, f"load_{name}")(return_X_y=True)
    if name == "digits":
        features /= 16
    if name in _RANGES:
        # The root, because most columns crowd at their low end; a few values lie below the range as it is printed.
        least, largest = np.array(_RANGES[name]).T
        features = 2 * np.sqrt(np.maximum((features - least) / (largest - least), 0)) - 1
    return features.astype(np.float32), labels.astype(np.int64)
