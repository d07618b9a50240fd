"""Small numpy trainers for clients that run as processes of their own; what they do comes from the environment."""

from __future__ import annotations

import os
import time
from typing import Any

import numpy as np

Config = dict[str, Any]


class Drift:
    """Moves every tensor by a fixed amount of its own each round, so that FedAvg is easy to compute by hand."""

    def __init__(self) -> None:
        self.num_examples = int(os.environ.get("EXAMPLES", "10"))
        self.step = float(os.environ.get("STEP", "1"))
        self.width = int(os.environ.get("WIDTH", "4"))
        self.rows = int(os.environ.get("ROWS", "5"))
        self.names = ["layer.weight", "layer.bias", "steps"]

    def get_parameters(self, config: Config) -> list[Any]:
        return [np.full((3, self.width), 0.5, np.float32), np.zeros(self.width), np.array(7, np.int64)]

    def fit(self, parameters: list[Any], config: Config) -> tuple[list[Any], int, dict[str, Any]]:
        weight, bias, steps = parameters
        return (
            [weight * np.float32(0.5) + np.float32(self.step), bias + self.step / 3, steps + 1],
            self.num_examples,
            {},
        )

    def evaluate(self, parameters: list[Any], config: Config) -> tuple[float, int, dict[str, Any]]:
        return float(parameters[0].mean()), self.rows, {"accuracy": np.array(self.step / 10)}


class Broken(Drift):
    """Puts the value that POISON names into the bias in round 2."""

    def fit(self, parameters: list[Any], config: Config) -> tuple[list[Any], int, dict[str, Any]]:
        arrays, count, metrics = super().fit(parameters, config)
        if config["round"] == 2:
            arrays[1][1] = float(os.environ["POISON"])
        return arrays, count, metrics


class Slow(Drift):
    """Takes a while in round 2."""

    def fit(self, parameters: list[Any], config: Config) -> tuple[list[Any], int, dict[str, Any]]:
        if config["round"] == 2:
            time.sleep(float(os.environ["SLEEP"]))
        return super().fit(parameters, config)


class Growing(Drift):
    """Finds three more examples in each round."""

    def fit(self, parameters: list[Any], config: Config) -> tuple[list[Any], int, dict[str, Any]]:
        self.num_examples += 3
        return super().fit(parameters, config)


class Scripted(Drift):
    """Has the validation losses that LOSSES lists, for models 0, 1, ...: the model counts its rounds itself.

    In round 3, or GATE_ROUND, it waits for the file that GATE names.
    """

    def fit(self, parameters: list[Any], config: Config) -> tuple[list[Any], int, dict[str, Any]]:
        gated = config["round"] == int(os.environ.get("GATE_ROUND", "3")) and "GATE" in os.environ
        while gated and not os.path.exists(os.environ["GATE"]):  # noqa: PTH110
            time.sleep(0.02)
        return super().fit(parameters, config)

    def evaluate(self, parameters: list[Any], config: Config) -> tuple[float, int, dict[str, Any]]:
        losses = os.environ["LOSSES"].split(",")
        return float(losses[int(parameters[2]) - 7]), self.rows, {"accuracy": 0.5}


class Failing(Drift):
    """Raises in its first fit."""

    def fit(self, parameters: list[Any], config: Config) -> tuple[list[Any], int, dict[str, Any]]:
        raise RuntimeError("the disk with the scans is not mounted")


def no_trainer() -> object:
    return object()
