"""Train and evaluate a PyTorch classifier: what the data sets' models share."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from hefl.datasets.data import Split
from hefl.models.torch import TorchTrainer, Train


def classifier(module: nn.Module, split: Split, train: Train) -> TorchTrainer:
    """A trainer that evaluates cross entropy and accuracy on a split's validation rows, and repeats bit for bit."""
    features, labels = torch.from_numpy(split.validation_features), torch.from_numpy(split.validation_labels)

    def evaluate(module: nn.Module) -> tuple[float, int, dict[str, float]]:
        scores = module(features)
        right = (scores.argmax(dim=1) == labels).float().mean()
        return float(nn.functional.cross_entropy(scores, labels)), len(labels), {"accuracy": float(right)}

    return TorchTrainer(module, len(split.labels), train, evaluate, deterministic=True)


def gradient_descent(
    split: Split, *, epochs: int, batch_size: int, learning_rate: float, weight_decay: float = 0.0
) -> Train:
    """Plain stochastic gradient descent on cross entropy, in shuffled batches.

    Without momentum, and in few epochs: the further clients with different labels go before they are averaged, the
    further apart they are.
    """
    features, labels = torch.from_numpy(split.features), torch.from_numpy(split.labels)
    # Batches of nearly equal size: none of a single row, which has no variance to normalise by.
    batches = -(-len(labels) // batch_size)

    def train(module: nn.Module) -> None:
        optimiser = torch.optim.SGD(module.parameters(), lr=learning_rate, weight_decay=weight_decay)
        for _ in range(epochs):
            for rows in torch.randperm(len(labels)).tensor_split(batches):
                optimiser.zero_grad()
                nn.functional.cross_entropy(module(features[rows]), labels[rows]).backward()  # type: ignore[no-untyped-call]
                optimiser.step()

    return train


def initialised(make: Callable[[], nn.Module], seed: int) -> nn.Module:
    """A module with torch's own initial parameters, from a seed; torch's generator stays as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()
