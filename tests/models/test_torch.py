from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch

import hefl
from hefl.models.torch import TorchTrainer

CONFIG = {"round": 1, "seed": 0, "client": "alice"}
Settings = tuple[int, bool, bool]


def settings() -> Settings:
    return (
        torch.get_num_threads(),
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )


@pytest.fixture(params=[(2, False, False), (3, True, True)], ids=str)
def own(request: pytest.FixtureRequest) -> Iterator[Settings]:
    """What a user has set in the process."""
    before = settings()

    def put(threads: int, enabled: bool, warn_only: bool) -> None:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(enabled, warn_only=warn_only)

    put(*request.param)
    yield request.param
    put(*before)


class Watching(TorchTrainer):
    """Notes the settings that its training and its evaluation run under, and fails if it is told to."""

    def __init__(self, *, fails: bool = False, **options: Any) -> None:
        self.seen: list[Settings] = []
        self.fails = fails
        super().__init__(torch.nn.Linear(2, 1), 10, self._note, self._evaluated, **options)

    def _note(self, module: torch.nn.Module) -> None:
        self.seen.append(settings())
        torch.rand(1)
        if self.fails:
            raise RuntimeError("no data")

    def _evaluated(self, module: torch.nn.Module) -> tuple[float, dict[str, float]]:
        self._note(module)
        return 0.5, {}


def test_a_training_uses_the_threads_and_the_algorithms_that_the_user_has_set(own: Settings) -> None:
    trainer = Watching()
    arrays = trainer.get_parameters(CONFIG)
    trainer.fit(arrays, CONFIG)
    trainer.evaluate(arrays, CONFIG)
    assert trainer.seen == [own, own]


def test_a_deterministic_training_takes_one_thread_and_deterministic_algorithms(own: Settings) -> None:
    trainer = Watching(deterministic=True)
    arrays = trainer.get_parameters(CONFIG)
    trainer.fit(arrays, CONFIG)
    trainer.evaluate(arrays, CONFIG)
    assert trainer.seen == [(1, True, False)] * 2


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("deterministic", [False, True])
def test_a_training_leaves_the_process_as_it_was(own: Settings, deterministic: bool, fails: bool) -> None:
    trainer = Watching(deterministic=deterministic, fails=fails)
    arrays, generator = trainer.get_parameters(CONFIG), torch.get_rng_state()
    for call in (trainer.fit, trainer.evaluate):
        with pytest.raises(RuntimeError) if fails else nullcontext():
            call(arrays, CONFIG)
        assert settings() == own
        if call == trainer.fit:  # what evaluate draws is the user's own
            assert torch.equal(torch.get_rng_state(), generator)
    assert len(trainer.seen) == 2


def test_each_call_of_train_draws_from_its_own_seed() -> None:
    drawn: list[float] = []
    trainer = TorchTrainer(
        torch.nn.Linear(2, 1), 10, lambda module: drawn.append(torch.rand(1).item()), lambda module: (0.5, {})
    )
    arrays = trainer.get_parameters(CONFIG)
    for change in ({}, {}, {"round": 2}, {"seed": 1}, {"client": "bob"}):
        trainer.fit(arrays, {**CONFIG, **change})
    assert drawn[0] == drawn[1]
    assert len(set(drawn)) == 4


def test_a_federation_trains_in_the_threads_that_the_user_has_set(own: Settings) -> None:
    trainers = [Watching(), Watching()]
    hefl.simulate(trainers, 1)
    assert {seen for trainer in trainers for seen in trainer.seen} == {own}


def test_a_state_dict_comes_back_as_it_was_handed_in() -> None:
    trainer = Watching()
    arrays = [np.full_like(a, 0.25) for a in trainer.get_parameters(CONFIG)]
    trained, count, _ = trainer.fit(arrays, CONFIG)
    assert count == 10
    assert all((a == b).all() and a.dtype == b.dtype for a, b in zip(trained, arrays, strict=True))


@pytest.mark.parametrize(
    ("found", "told"),
    [((0.5, {"accuracy": 0.75}), (0.5, 10, {"accuracy": 0.75})), ((0.5, 4, {}), (0.5, 4, {}))],
)
def test_metrics_weigh_by_the_rows_that_evaluate_states_or_else_by_those_of_the_training(found: Any, told: Any) -> None:
    trainer = TorchTrainer(torch.nn.Linear(2, 1), 10, lambda module: None, lambda module: found)
    assert trainer.evaluate(trainer.get_parameters(CONFIG), CONFIG) == told
