"""A trainer as the oldest tutorials write it: no base class, no config for get_parameters, one flat array."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from builders import Array

import hefl
from hefl.datasets import load_example
from hefl.datasets.data import Split, load_parts
from hefl.datasets.iris import EPOCHS, LEARNING_RATE, model
from hefl.datasets.partition import Partition

ROUNDS = 3


class Client:
    """The network of 4-32-32-3 on iris, with its parameters in one array that np.append has made."""

    def __init__(self, split: Split) -> None:
        self.net = model(seed=0)
        self.split = split

    def get_parameters(self) -> Array:
        flat = np.array([])
        for p in self.net.parameters():
            flat = np.append(flat, p.detach().numpy().flatten())
        return flat

    def set_parameters(self, flat: Array) -> None:
        at = 0
        with torch.no_grad():
            for p in self.net.parameters():
                p.copy_(torch.tensor(flat[at : at + p.numel()].reshape(tuple(p.shape))))
                at += p.numel()

    def fit(self, parameters: Array, config: dict[str, Any]) -> tuple[Any, int, dict[str, Any]]:
        self.set_parameters(parameters)
        features, labels = torch.from_numpy(self.split.features), torch.from_numpy(self.split.labels)
        optimiser = torch.optim.Adam(self.net.parameters(), lr=LEARNING_RATE)
        for _ in range(EPOCHS):
            optimiser.zero_grad()
            torch.nn.functional.cross_entropy(self.net(features), labels).backward()  # type: ignore[no-untyped-call]
            optimiser.step()
        return self.get_parameters(), len(labels), {}

    def evaluate(self, parameters: Array, config: dict[str, Any]) -> tuple[float, int, dict[str, Any]]:
        self.set_parameters(parameters)
        labels = torch.from_numpy(self.split.validation_labels)
        with torch.no_grad():
            scores = self.net(torch.from_numpy(self.split.validation_features))
        right = (scores.argmax(dim=1) == labels).float().mean()
        return torch.nn.functional.cross_entropy(scores, labels).item(), len(labels), {"accuracy": right}


class TakesAList(Client):
    """Takes and gives the array as the only entry of a list."""

    def set_parameters(self, flat: Any) -> None:
        super().set_parameters(flat[0])

    def fit(self, parameters: Any, config: dict[str, Any]) -> tuple[Any, int, dict[str, Any]]:
        array, count, metrics = super().fit(parameters, config)
        return [array], count, metrics


class Mixed(Client):
    """Trains from a list's only entry and evaluates a bare array, and has no config anywhere."""

    def fit(self, parameters: Any) -> tuple[Any, int, dict[str, Any]]:  # type: ignore[override]
        return super().fit(parameters[0], {})

    def evaluate(self, parameters: Any) -> tuple[float, int, dict[str, Any]]:  # type: ignore[override]
        return super().evaluate(parameters, {})


class GivesAList(TakesAList):
    def get_parameters(self) -> Any:
        return [super().get_parameters()]

    def fit(self, parameters: Any, config: dict[str, Any]) -> tuple[Any, int, dict[str, Any]]:
        (array,), count, metrics = Client.fit(self, parameters, config)
        return array, count, metrics


@pytest.fixture(scope="module")
def expected() -> hefl.Simulation:
    """What the example's own trainers come to."""
    return hefl.simulate([load_example(f"iris:{i}/2", seed=0) for i in (1, 2)], ROUNDS)


@pytest.mark.parametrize("form", [Client, TakesAList, Mixed, GivesAList])
def test_the_network_trains_as_the_examples_own_trainer_does(form: type[Any], expected: hefl.Simulation) -> None:
    parts = load_parts("iris", 2, Partition())
    simulation = hefl.simulate([form(part) for part in parts], ROUNDS)
    assert [a.shape for a in simulation.arrays] == [(1315,)]
    flat = np.concatenate([array.reshape(-1) for array in expected.arrays])
    np.testing.assert_allclose(simulation.arrays[0], flat, atol=1e-3)
    for found, wanted in zip(simulation.metrics, expected.metrics, strict=True):
        assert found == pytest.approx(wanted, abs=1e-3)
    losses = [metrics["loss"] for metrics in simulation.metrics]
    assert losses == sorted(losses, reverse=True)  # type: ignore[type-var]
