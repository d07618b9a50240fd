"""A small MLP on Iris: 4-32-32-3, ReLU, raw features, ten full-batch epochs of Adam a round."""

from __future__ import annotations

import math

import torch
from torch import nn

from hefl.datasets.classifier import classifier
from hefl.datasets.data import Split
from hefl.models.torch import TorchTrainer

EPOCHS = 10
LEARNING_RATE = 1e-3


def model(seed: int) -> nn.Module:
    """The initial model: weights ``randn(in, out) / sqrt(in * out)``, biases zero."""
    generator = torch.Generator().manual_seed(seed)
    layers: list[nn.Module] = []
    for inputs, outputs in ((4, 32), (32, 32), (32, 3)):
        linear = nn.Linear(inputs, outputs)
        with torch.no_grad():
            linear.weight.copy_(torch.randn(inputs, outputs, generator=generator).T / math.sqrt(inputs * outputs))
            linear.bias.zero_()
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def iris(split: Split, *, seed: int) -> TorchTrainer:
    """The trainer of one client's part."""
    features, labels = torch.from_numpy(split.features), torch.from_numpy(split.labels)

    def train(module: nn.Module) -> None:
        optimiser = torch.optim.Adam(module.parameters(), lr=LEARNING_RATE)
        for _ in range(EPOCHS):
            optimiser.zero_grad()
            nn.functional.cross_entropy(module(features), labels).backward()  # type: ignore[no-untyped-call]
            optimiser.step()

    return classifier(model(seed), split, train)
