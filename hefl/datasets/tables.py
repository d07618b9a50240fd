"""An MLP on tables, breast_cancer and wine: two hidden layers of 32, a few epochs of gradient descent a round."""

from __future__ import annotations

from torch import nn

from hefl.datasets.classifier import classifier, gradient_descent, initialised
from hefl.datasets.data import Split
from hefl.models.torch import TorchTrainer

HIDDEN = 32
BATCH_SIZE = 16
WEIGHT_DECAY = 0.01
"""Without it a long training on pooled data fits the noise of a few hundred rows, and gets worse."""


def model(columns: int, classes: int) -> nn.Module:
    """The model for so many features and labels."""
    return nn.Sequential(
        *(nn.Linear(columns, HIDDEN), nn.ReLU()),
        *(nn.Linear(HIDDEN, HIDDEN), nn.ReLU()),
        nn.Linear(HIDDEN, classes),
    )


def breast_cancer(split: Split, *, seed: int) -> TorchTrainer:
    """The trainer of one client's part."""
    return _trainer(split, seed, epochs=3, learning_rate=0.05)


def wine(split: Split, *, seed: int) -> TorchTrainer:
    """The trainer of one client's part: a third of the rows, and so more and longer steps."""
    return _trainer(split, seed, epochs=10, learning_rate=0.1)


def _trainer(split: Split, seed: int, *, epochs: int, learning_rate: float) -> TorchTrainer:
    module = initialised(lambda: model(split.features.shape[1], split.classes), seed)
    train = gradient_descent(
        split, epochs=epochs, batch_size=BATCH_SIZE, learning_rate=learning_rate, weight_decay=WEIGHT_DECAY
    )
    return classifier(module, split, train)
