from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from builders import Array, LeastSquares, diabetes, weighted_mean

import hefl
from hefl import RoundReport, simulate
from hefl.client.learner import Learner
from hefl.errors import EngineError, LayoutError, NotFiniteError, TrainerError, UsageError, UselessSumsError
from hefl.params import ENGINES
from hefl.protocol.records import Announcement
from hefl.rounds.schedule import announcement_of
from hefl.simulation import Simulation

ROUNDS = 3


def fedavg(parts: Sequence[LeastSquares], rounds: int) -> tuple[list[Array], list[float]]:
    """Federated averaging in plain numpy: the final model, and the mean loss of models 0 to ``rounds``."""
    model, losses, weights = parts[0].get_parameters({}), [], [len(p.y) for p in parts]
    for round_num in range(rounds + 1):
        losses.append(float(np.average([p.evaluate(model, {})[0] for p in parts], weights=weights)))
        if round_num < rounds:
            trained = [p.fit(model, {})[0] for p in parts]
            model = [weighted_mean(list(tensors), weights) for tensors in zip(*trained, strict=True)]
    return model, losses


def assert_equal(simulation: Simulation, model: Sequence[Array], tolerance: float = 1e-6) -> None:
    for array, expected in zip(simulation.arrays, model, strict=True):
        assert array.dtype == expected.dtype
        np.testing.assert_allclose(array, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("engine", ENGINES)
def test_an_encrypted_training_is_numpys_federated_averaging(engine: str) -> None:
    parts = diabetes(3)
    assert len({part.num_examples for part in parts}) == 3
    simulation = hefl.simulate(parts, ROUNDS, engine=engine)
    model, losses = fedavg(parts, ROUNDS)
    assert simulation.names == ("weight", "bias")
    assert_equal(simulation, model)
    assert [set(metrics) for metrics in simulation.metrics] == [{"loss", "mae"}] * (ROUNDS + 1)
    assert [metrics["loss"] for metrics in simulation.metrics] == pytest.approx(losses, abs=1e-5)
    assert losses[-1] < losses[0]


def test_trainers_may_be_named_and_the_first_by_name_starts() -> None:
    class Starting(LeastSquares):
        def get_parameters(self, config: Mapping[str, Any]) -> list[Array]:
            return [np.full(self.x.shape[1], 0.5), np.ones(1)]

    one, two = diabetes(2)
    first = Starting(one.x, one.y)
    simulation = hefl.simulate({"zoe": two, "adam": first}, 1)
    assert_equal(simulation, fedavg([first, two], 1)[0])


def test_a_trainer_that_works_in_place_does_not_disturb_the_global_model() -> None:
    parts = diabetes(2)
    in_place = [LeastSquares(part.x, part.y, in_place=True) for part in parts]
    assert_equal(hefl.simulate(in_place, 2), fedavg(parts, 2)[0])


def test_an_unmodified_flower_client_trains() -> None:
    with warnings.catch_warnings():
        # What Flower's own command line uses of click; nothing of its clients.
        warnings.filterwarnings("ignore", "'click", DeprecationWarning)
        from flwr.client import NumPyClient

    class Client(NumPyClient):
        def __init__(self, part: LeastSquares) -> None:
            self.part = part

        def get_parameters(self, config: dict[str, Any]) -> Any:
            return self.part.get_parameters(config)

        def fit(self, parameters: Any, config: dict[str, Any]) -> Any:
            return self.part.fit(parameters, config)

        def evaluate(self, parameters: Any, config: dict[str, Any]) -> Any:
            return self.part.evaluate(parameters, config)

    parts = diabetes(2)
    simulation = hefl.simulate([Client(part) for part in parts], 2)
    assert simulation.names == ("0", "1")
    assert_equal(simulation, fedavg(parts, 2)[0])


class Counting:
    """Two tensors that count: one of whole numbers, one of floats."""

    kinds = ("integer", None)

    def __init__(self, step: int, num_examples: int, loss: float = 1.0, dtype: str = "int64", rows: int = 1) -> None:
        self.step, self.num_examples, self.loss, self.dtype, self.rows = step, num_examples, loss, dtype, rows
        self.configs: list[Mapping[str, Any]] = []

    def get_parameters(self, config: Mapping[str, Any]) -> list[Array]:
        return [np.array([1000, -1000], self.dtype), np.array([0.5], np.float32)]

    def fit(self, parameters: list[Array], config: Mapping[str, Any]) -> tuple[list[Array], int, dict[str, Any]]:
        self.configs.append(config)
        return [parameters[0] + np.array(self.step, self.dtype), parameters[1] * 2], self.num_examples, {}

    def evaluate(self, parameters: list[Array], config: Mapping[str, Any]) -> tuple[float, int, dict[str, Any]]:
        return self.loss, self.rows, {}


@pytest.mark.parametrize("engine", ENGINES)
def test_whole_numbers_stay_whole_and_dtypes_stay(engine: str) -> None:
    counts, floats = hefl.simulate([Counting(3, 2), Counting(6, 1)], 2, engine=engine).arrays
    assert counts.dtype == np.int64
    assert counts.tolist() == [1008, -992]  # each round adds (2 * 3 + 6) / 3
    assert floats.dtype == np.float32
    assert floats.tolist() == pytest.approx([2.0])


@pytest.mark.parametrize("engine", ENGINES)
def test_metrics_weigh_by_the_rows_that_evaluate_states(engine: str) -> None:
    """As Flower's strategies do it; not by the rows of the training."""
    trainers = [Counting(1, 900, 0.1, rows=100), Counting(1, 100, 0.5, rows=900)]
    simulation = hefl.simulate(trainers, 1, engine=engine)
    assert [metrics["loss"] for metrics in simulation.metrics] == pytest.approx([0.46, 0.46], abs=1e-6)


def test_weights_that_had_to_be_rounded_do_not_round_what_metrics_weigh() -> None:
    """A client of 3 training rows beside one of a million weighs 1 in 65536."""
    trainers = [Counting(1, 1_000_000, 0.1, rows=7), Counting(1, 3, 0.5, rows=7)]
    assert hefl.simulate(trainers, 1).metrics == [{"loss": pytest.approx(0.3, abs=2**-32)}] * 2


@pytest.mark.parametrize("engine", ENGINES)
def test_a_loss_of_one_client_that_is_not_finite_is_told_to_all_once(
    engine: str, caplog: pytest.LogCaptureFixture
) -> None:
    trainers = {
        name: Scripted([1, 1, loss, loss, 1], num_examples)
        for name, num_examples, loss in (("alice", 3, 1.0), ("bob", 5, 1.0), ("carol", 2, math.inf))
    }
    simulation = hefl.simulate(trainers, 4, engine=engine)
    assert [metrics["loss"] for metrics in simulation.metrics] == pytest.approx([1.0] * 5, abs=1e-6)
    told = [record.getMessage() for record in caplog.records]
    assert told == [
        "model 2: metric 'loss' is no finite number and is left out of the averages",  # carol
        *["model 2: metric 'loss' leaves out clients with 20.0% of the weight: they have no finite number for it"] * 3,
    ]


def test_a_missing_metric_is_left_out_of_the_average(caplog: pytest.LogCaptureFixture) -> None:
    simulation = hefl.simulate([Counting(1, 3, 0.5), Counting(1, 5, float("nan")), Counting(1, 1, 2.5)], 1)
    assert [metrics["loss"] for metrics in simulation.metrics] == pytest.approx([1.5, 1.5], abs=1e-6)
    caplog.clear()
    simulation = hefl.simulate([Counting(1, 3, float("nan")), Counting(1, 5, float("nan"))], 1)
    assert [metrics["loss"] for metrics in simulation.metrics] == [None, None]
    assert [r.getMessage() for r in caplog.records if r.name == "hefl"][2:] == [
        "model 0: no client has a finite number for metric 'loss'"
    ] * 2


def test_trainers_are_told_their_name_the_round_and_the_seed() -> None:
    trainers = [Counting(1, 1), Counting(1, 1)]
    hefl.simulate(trainers, 2, seed=11)
    for i, trainer in enumerate(trainers, 1):
        told = [(c["client"], c["round"], c["server_round"], c["seed"]) for c in trainer.configs]
        assert told == [(f"client-{i}", n, n, 11) for n in (1, 2)]


def test_a_number_of_examples_that_changes_counts_from_the_next_round_on() -> None:
    class Growing(Counting):
        def fit(self, *arguments: Any) -> Any:
            arrays, _, metrics = super().fit(*arguments)
            return arrays, 3, metrics

    # Weights (1, 1) in the first round and (3, 1) in the second.
    counts, _ = hefl.simulate([Growing(4, 1), Counting(0, 1)], 2).arrays
    assert counts.tolist() == [1000 + 2 + 3, -1000 + 2 + 3]


def test_models_that_differ_are_refused_with_both_clients_and_the_first_tensor() -> None:
    with pytest.raises(LayoutError, match=r"client-1 .here. and client-2 .there. differ: tensor 1 is .*int64.*int32"):
        hefl.simulate([Counting(1, 1), Counting(1, 1, dtype="int32")], 1)


def test_a_client_that_diverges_stops_the_training_and_names_the_tensor() -> None:
    class Diverging(Counting):
        def fit(self, parameters: list[Array], config: Mapping[str, Any]) -> Any:
            return [parameters[0], parameters[1] * np.float32("nan")], 1, {}

    with pytest.raises(NotFiniteError, match="tensor '1'"):
        hefl.simulate([Counting(1, 1), Diverging(1, 1)], 1)


def test_a_trainer_that_fails_stops_the_training_and_names_the_method() -> None:
    class Failing(Counting):
        def fit(self, parameters: list[Array], config: Mapping[str, Any]) -> Any:
            raise RuntimeError("out of memory")

    with pytest.raises(TrainerError, match="fit failed: RuntimeError: out of memory"):
        hefl.simulate([Counting(1, 1), Failing(1, 1)], 1)


@pytest.mark.parametrize(("clients", "rounds"), [(0, 1), (1, 1), (2, 0), (2, -1)])
def test_too_few_trainers_or_rounds_are_a_usage_error(clients: int, rounds: int) -> None:
    with pytest.raises(UsageError, match=f"got {clients} and {rounds}"):
        hefl.simulate([Counting(1, 1) for _ in range(clients)], rounds)


def test_an_engine_that_does_not_exist_is_refused() -> None:
    with pytest.raises(EngineError):
        hefl.simulate([Counting(1, 1), Counting(1, 1)], 1, engine="paillier")


class Scripted(Counting):
    """Model k, which counts its rounds itself, has the k-th loss."""

    def __init__(self, losses: Sequence[float], num_examples: int = 3) -> None:
        super().__init__(1, num_examples)
        self.losses = losses

    def evaluate(self, parameters: list[Array], config: Mapping[str, Any]) -> tuple[float, int, dict[str, Any]]:
        return self.losses[int(parameters[0][0]) - 1000], 1, {}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("losses", "patience", "trained"),
    [
        ([3, 2, 2, 2, 1, 1], 2, 4),  # model 1 is the best, 2 and 3 are no better, 4 is trained before that is known
        ([3, 2, 2, 1, 1, 1], 3, 5),  # would stop after round 7
        ([1, 2, 3, 4, 5, 6], 1, 2),
        ([9, 8, 7, 6, 5, 4], 1, 5),
        ([math.nan, math.nan, 1, 2, 3, 4], 2, 2),
        ([-1, -2, -2, -2, -3, -3], 2, 4),
    ],
)
def test_a_simulation_stops_by_patience_and_counts_what_it_trained(
    engine: str, losses: list[float], patience: int, trained: int
) -> None:
    simulation = hefl.simulate([Scripted(losses) for _ in range(3)], 5, engine=engine, patience=patience)
    assert simulation.arrays[0][0] == 1000 + trained
    expected = [None if math.isnan(loss) else pytest.approx(loss, rel=1e-6) for loss in losses[: trained + 1]]
    assert [metrics["loss"] for metrics in simulation.metrics] == expected
    assert all(set(metrics) == {"loss"} for metrics in simulation.metrics)


def test_a_callback_is_told_each_round_as_it_ends() -> None:
    told: list[RoundReport] = []
    trainers = diabetes(2)
    simulation = hefl.simulate(trainers, 2, on_round=told.append)
    assert [(r.round, r.rounds, r.verified) for r in told] == [(n, 2, True) for n in range(4)]
    assert [r.metrics for r in told] == [{}, *simulation.metrics]
    assert all(min(r.bytes_up, r.bytes_down) > 1000 for r in told)
    assert {"train", "encrypt", "decrypt"} <= told[1].seconds.keys()


def test_a_callback_that_raises_ends_the_training_with_what_it_said() -> None:
    def failing(report: RoundReport) -> None:
        raise RuntimeError(f"no room for round {report.round}")

    with pytest.raises(TrainerError, match="on_round failed: RuntimeError: no room for round 0") as caught:
        hefl.simulate(diabetes(2), 2, on_round=failing)
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_a_patience_of_no_rounds_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="patience must be at least 1 round, got 0"):
        hefl.simulate(diabetes(2), 2, patience=0)


class Varying(LeastSquares):
    """Has one example more each time it trains."""

    fits = 0

    def fit(self, parameters: list[Array], config: Mapping[str, Any]) -> tuple[list[Array], int, dict[str, Any]]:
        self.fits += 1
        arrays, count, metrics = super().fit(parameters, config)
        return arrays, count + self.fits, metrics


def test_a_useless_sum_is_followed_by_the_very_same_one_and_the_third_ends_the_training(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    vector_of, announce = Learner._vector, announcement_of
    announced: list[Announcement] = []

    def spoiled(learner: Learner, announcement: Announcement) -> Any:
        vector = vector_of(learner, announcement)
        if learner.name == "client-3" and announcement.exchange == "training":
            vector[learner.layout.size] += 1  # the first tensor's range
        return vector

    def noted(*arguments: Any, **keywords: Any) -> Announcement:
        announced.append(announce(*arguments, **keywords))
        return announced[-1]

    monkeypatch.setattr(Learner, "_vector", spoiled)
    monkeypatch.setattr("hefl.simulation.announcement_of", noted)
    trainers = [Varying(part.x, part.y) for part in diabetes(3)]
    with pytest.raises(UselessSumsError, match="rounds 1, 2, 3 made no model") as caught:
        simulate(trainers, rounds=9)
    assert caught.value.exit_code == 1
    weights = [{p.name: p.num_examples for p in a.participants} for a in announced if a.exchange == "training"]
    assert weights == [weights[0]] * 3
    assert [trainer.fits for trainer in trainers] == [1, 1, 1]  # what was trained is sent again
