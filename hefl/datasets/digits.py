"""A small convolutional network with batch normalisation for digits, pictures of 8x8."""

from __future__ import annotations

from torch import nn

from hefl.datasets.classifier import classifier, gradient_descent, initialised
from hefl.datasets.data import Split
from hefl.models.torch import TorchTrainer

EPOCHS = 1
BATCH_SIZE = 16
LEARNING_RATE = 0.1


def model() -> nn.Module:
    """Two convolutions of 16 and 32 channels, each halving the picture, and a linear layer: 6,186 parameters."""
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)),
        *(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(32 * 2 * 2, 10)),
    )


def digits(split: Split, *, seed: int) -> TorchTrainer:
    """The trainer of one client's part."""
    train = gradient_descent(split, epochs=EPOCHS, batch_size=BATCH_SIZE, learning_rate=LEARNING_RATE)
    return classifier(initialised(model, seed), split, train)
