"""scikit-learn's logistic regression on breast_cancer: alice's half and bob's, for ``--trainer``.

    hefl client DIR/clients/alice --trainer hefl.datasets.scikit:alice

A trainer of your own is a function like these, in a module of your own.
"""

from __future__ import annotations

from sklearn.linear_model import LogisticRegression

from hefl.datasets.data import load_parts
from hefl.datasets.partition import Partition
from hefl.models.sklearn import SklearnTrainer

ITERATIONS = 5


def alice() -> SklearnTrainer:
    """Trains on the first half."""
    return _trainer(1)


def bob() -> SklearnTrainer:
    """Trains on the second half."""
    return _trainer(2)


def _trainer(index: int) -> SklearnTrainer:
    split = load_parts("breast_cancer", 2, Partition())[index - 1]
    return SklearnTrainer(
        LogisticRegression(max_iter=ITERATIONS),
        *(split.features, split.labels, split.validation_features, split.validation_labels),
        classes=range(split.classes),
        deterministic=True,
    )
