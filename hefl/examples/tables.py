"""An MLP on tables, breast_cancer and wine: two hidden layers of 32, three epochs of gradient descent a round."""

from __future__ import annotations

from torch import nn

from hefl.examples.classifier import classifier, gradient_descent, initialised
from hefl.examples.data import Split
from hefl.torch_trainer import TorchTrainer

HIDDEN = 32
EPOCHS = 3
BATCH_SIZE = 16
LEARNING_RATE = 0.1
WEIGHT_DECAY = 0.01
"""Without it a long training on pooled data fits the noise of a few hundred rows, and gets worse."""


def model(columns: int, classes: int) -> nn.Module:
    """The model for so many features and labels."""
    return nn.Sequential(
        *(nn.Linear(columns, HIDDEN), nn.ReLU()),
        *(nn.Linear(HIDDEN, HIDDEN), nn.ReLU()),
        nn.Linear(HIDDEN, classes),
    )


def trainer(split: Split, *, seed: int) -> TorchTrainer:
    """The trainer of one client's part."""
    module = initialised(lambda: model(split.features.shape[1], split.classes), seed)
    train = gradient_descent(
        split, epochs=EPOCHS, batch_size=BATCH_SIZE, learning_rate=LEARNING_RATE, weight_decay=WEIGHT_DECAY
    )
    return classifier(module, split, train)
