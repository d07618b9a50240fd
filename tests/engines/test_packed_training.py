"""Training through the packed engine is plaintext fixed-point federated averaging, bit for bit."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import hefl
from hefl.ckks.sampling import Streams, draw_noise
from hefl.datasets import load_example
from hefl.engines import load as engines
from hefl.engines import packed
from hefl.engines.engine import Attempt
from hefl.engines.packed import PackedEngine

Arrays = list[NDArray[Any]]
ROUNDS = 20


class Walk:
    """Shrinks its tensors and adds noise that depends on client, round and tensor; the second one grows."""

    def __init__(self, name: int, num_examples: int) -> None:
        self.name = name
        self.num_examples = num_examples

    def get_parameters(self, config: dict[str, Any]) -> Arrays:
        return [np.linspace(-0.3, 0.7, 12, dtype=np.float32).reshape(3, 4), np.full(3, 0.2), np.array(5, np.int64)]

    def fit(self, parameters: Arrays, config: dict[str, Any]) -> tuple[Arrays, int, dict[str, Any]]:
        rng = np.random.default_rng([self.name, config["round"]])
        weight, bias, steps = parameters
        grown = bias * 1.5 + rng.normal(0, 0.5, bias.shape)
        return (
            [(weight * 0.9 + rng.normal(0, 0.3, weight.shape)).astype(np.float32), grown, steps + self.name],
            self.num_examples,
            {},
        )

    def evaluate(self, parameters: Arrays, config: dict[str, Any]) -> tuple[float, int, dict[str, Any]]:
        return float(np.abs(parameters[0]).mean()), 5, {}


def fixed_point_fedavg(trainers: Mapping[str, Any], weights: dict[str, int], precision: int) -> Arrays:
    """The oracle: exact fractions, and the rule for ranges as the documents have it."""
    model = [np.array(a) for a in next(iter(trainers.values())).get_parameters({})]
    exponents = [max(0, int(np.frexp(np.abs(a).max())[1]) + 2) if a.any() else 0 for a in model]
    total = sum(weights.values())
    for round_num in range(1, ROUNDS + 1):
        trained = {
            name: t.fit([a.copy() for a in model], {"round": round_num, "seed": 0, "client": name})[0]
            for name, t in trainers.items()
        }
        averages: Arrays = []
        for k, tensor in enumerate(model):
            arrays = {name: a[k] for name, a in trained.items()}
            if tensor.dtype.kind == "i":
                counted = Fraction(sum(weights[name] * int(a) for name, a in arrays.items()), total)
                averages.append(np.array(round(counted), tensor.dtype))
                continue
            step, top = Fraction(2) ** (exponents[k] - precision + 1), 2 ** (precision - 1) - 1
            sums, largest = [], 0
            for i in np.ndindex(tensor.shape):
                cells = {name: round(Fraction(float(a[i])) / step) for name, a in arrays.items()}
                largest = max(largest, *(abs(c) for c in cells.values()))
                sums.append(sum(weights[name] * min(max(c, -top), top) for name, c in cells.items()))
            mean = np.array([float(s * step / total) for s in sums]).astype(tensor.dtype).reshape(tensor.shape)
            averages.append(mean)
            magnitude, exponent = max(Fraction(abs(s), total) for s in sums), 0
            while 2**exponent < 4 * -(-magnitude.numerator // magnitude.denominator) * step:
                exponent += 1
            change = 1 if largest > top else 0 if 2 * largest > top else -1
            exponents[k] = max(exponent, exponents[k] + change)
        model = averages
    return model


def same_bits(ours: Arrays, theirs: Arrays) -> bool:
    return [(a.dtype, a.shape, a.tobytes()) for a in ours] == [(a.dtype, a.shape, a.tobytes()) for a in theirs]


def test_the_demos_model_after_twenty_rounds_is_fixed_point_fedavg_bit_for_bit() -> None:
    def trainers() -> dict[str, Any]:
        return {name: load_example(f"iris:{name}", seed=0) for name in ("alice", "bob")}

    result = hefl.simulate(trainers(), ROUNDS, engine="packed")
    assert same_bits(result.arrays, fixed_point_fedavg(trainers(), {"alice": 1, "bob": 1}, 24))
    accuracy = result.metrics[-1]["accuracy"]
    assert accuracy is not None
    assert round(accuracy * 30) >= 29


def test_batch_norms_statistics_and_counters_survive() -> None:
    """Running statistics have 40 bits, and counters are exact: beside them, the parameters' 24 bits would show."""
    import torch

    from hefl.models.torch import TorchTrainer

    def trainer(shift: float, examples: int) -> TorchTrainer:
        torch.manual_seed(0)
        module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
        data = torch.linspace(-1, 1, 30).reshape(10, 3) * 100 + shift

        def train(m: torch.nn.Module) -> None:
            with torch.no_grad():
                m(data)

        return TorchTrainer(module, examples, train, lambda m: (0.5, {}))

    made = {"alice": trainer(1.0, 1), "bob": trainer(-3.0, 3)}
    assert made["alice"].kinds == ["parameter"] * 4 + ["buffer", "buffer", "integer"]
    result = hefl.simulate(made, 1, engine="packed")
    named = dict(zip(result.names, result.arrays, strict=True))
    initial = trainer(1.0, 1).get_parameters({})
    trained = [trainer(*args).fit(initial, {"seed": 0, "client": "x", "round": 1})[0] for args in ((1.0, 1), (-3.0, 3))]
    for name, k in (("1.running_mean", 4), ("1.running_var", 5)):
        mean = (trained[0][k].astype(np.float64) + 3 * trained[1][k].astype(np.float64)) / 4
        np.testing.assert_allclose(named[name], mean.astype(np.float32), rtol=2e-7)
    assert named["1.num_batches_tracked"] == 1
    assert named["1.num_batches_tracked"].dtype == np.int64


def test_weights_that_had_to_be_rounded_are_said() -> None:
    engine = PackedEngine()
    assert engine.warning(Attempt(bytes(32), 1, {"alice": 300, "bob": 100})) is None
    said = engine.warning(Attempt(bytes(32), 1, {"alice": 1_000_001, "bob": 999_983}))
    assert said
    assert "rounded to a total of 65536" in said


@pytest.mark.parametrize("precision", [12, 24, 40])
def test_twenty_rounds_are_fixed_point_fedavg_bit_for_bit(precision: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "load_engine", lambda name, **flags: PackedEngine(precision))
    monkeypatch.setattr("hefl.simulation.load_engine", lambda name, **flags: PackedEngine(precision))
    trainers = {"alice": Walk(1, 30), "bob": Walk(2, 50), "carol": Walk(4, 20)}
    result = hefl.simulate(trainers, ROUNDS, engine="packed")
    expected = fixed_point_fedavg(trainers, {"alice": 3, "bob": 5, "carol": 2}, precision)
    assert any(np.abs(a).max() > 100 for a in expected[:2])  # ranges had to grow
    assert same_bits(result.arrays, expected)
    assert all(m["loss"] is not None for m in result.metrics)


def test_a_useless_round_counts_and_the_model_stays(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    trainers = {"alice": Walk(1, 1), "bob": Walk(2, 1)}
    before = hefl.simulate(trainers, 1, engine="packed")
    real, calls = draw_noise, 0

    def sometimes_wide(streams: Streams, block: int, degree: int) -> NDArray[np.int32]:
        nonlocal calls
        calls += 1
        # One update of one block each: the initial one, two of round 1, two of round 2, two closing.
        return np.full(degree, 43, np.int32) if calls == 4 else real(streams, block, degree)

    monkeypatch.setattr(packed, "draw_noise", sometimes_wide)
    with caplog.at_level(logging.ERROR, "hefl"):
        after = hefl.simulate(trainers, 2, engine="packed")
    assert [r.getMessage()[:24] for r in caplog.records] == ["round 2 changes nothing:"] * 2
    for a, b in zip(before.arrays, after.arrays, strict=True):
        assert (a == b).all()
