from __future__ import annotations

import hashlib
import math
import sys
import warnings
from collections.abc import Callable, Mapping
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import Array

from hefl.errors import LayoutError, NumExamplesError, TrainerError, UsageError
from hefl.models.trainer import CheckedTrainer, Trainer, check_num_examples, load_trainer


class Constant:
    """A trainer whose every answer is an attribute."""

    def __init__(self, **answers: Any) -> None:
        self.configs: list[Mapping[str, Any]] = []
        self.initial: Any = [np.zeros((2, 2), np.float32), np.array(3)]
        self.fitted: Any = ([np.ones((2, 2), np.float32), np.array(4)], 7, {})
        self.evaluated: Any = (0.5, 7, {"accuracy": 0.75})
        for name, value in answers.items():
            setattr(self, name, value)

    def get_parameters(self, config: Mapping[str, Any]) -> Any:
        self.configs.append(config)
        return self._answer(self.initial)

    def fit(self, parameters: list[Array], config: Mapping[str, Any]) -> Any:
        self.configs.append(config)
        return self._answer(self.fitted)

    def evaluate(self, parameters: list[Array], config: Mapping[str, Any]) -> Any:
        self.configs.append(config)
        return self._answer(self.evaluated)

    def _answer(self, answer: Any) -> Any:
        if isinstance(answer, Exception):
            raise answer
        return answer


def guarded(fixed: Any = None, **answers: Any) -> CheckedTrainer:
    return CheckedTrainer(Constant(**answers), "alice", 3, fixed)


# --- sample weights ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [1, 2**40, np.int64(5), np.uint8(5)])
def test_a_positive_whole_number_is_a_weight(value: Any) -> None:
    checked = check_num_examples(value)
    assert type(checked) is int
    assert checked == value


@pytest.mark.parametrize(
    "value",
    [0, -1, True, False, np.True_, 1.5, 0.0, -3.0, math.nan, math.inf, 2**40 + 1, 10**400, "5", None, [5], 5j],
)
def test_anything_else_is_no_weight(value: Any) -> None:
    with pytest.raises(NumExamplesError, match="whole number from 1") as caught:
        check_num_examples(value)
    assert caught.value.exit_code == 3


@pytest.mark.parametrize(
    ("trainer", "expected"),
    [
        (guarded(9, num_examples=8), (9, "--num-examples")),
        (guarded(num_examples=8), (8, "the trainer")),
        (guarded(num_examples=lambda: 8), (8, "the trainer")),
        (guarded(), (7, "one fit that was thrown away")),
    ],
    ids=["given", "stated", "method", "fit"],
)
def test_the_weight_is_the_given_one_or_the_trainers_or_what_one_fit_says(
    trainer: CheckedTrainer, expected: tuple[int, str]
) -> None:
    assert trainer.num_examples(trainer.initial()) == expected


@pytest.mark.parametrize("bad", [0, -1, True, 1.5, math.nan])
def test_a_weight_that_cannot_weigh_is_refused_wherever_it_comes_from(bad: Any) -> None:
    arrays: list[Array] = []
    for trainer in (guarded(bad), guarded(num_examples=bad), guarded(num_examples=lambda: bad)):
        with pytest.raises(NumExamplesError):
            trainer.num_examples(arrays)
    with pytest.raises(NumExamplesError):
        guarded(fitted=([np.zeros(1)], bad, {})).fit(arrays, 1)


def test_a_given_weight_stands_whatever_fit_says() -> None:
    assert guarded(9).fit([], 1)[1] == 9
    assert guarded().fit([], 1)[1] == 7


# --- calls ------------------------------------------------------------------------------------------------------------


def test_every_call_is_told_round_seed_and_client() -> None:
    trainer = Constant()
    calls = CheckedTrainer(trainer, "alice", 3)
    calls.initial()
    calls.fit([], 5)
    calls.evaluate([], 4)
    assert trainer.configs == [{"round": n, "server_round": n, "seed": 3, "client": "alice"} for n in (0, 5, 4)]


class InPlace(Constant):
    """Ruins whatever it is given."""

    def fit(self, parameters: list[Array], config: Mapping[str, Any]) -> Any:
        for array in parameters:
            array += 1
        return parameters, 1, {}

    def evaluate(self, parameters: list[Array], config: Mapping[str, Any]) -> Any:
        for array in parameters:
            array[...] = 9
        parameters.clear()
        return 0.0, 1, {}


def test_a_trainer_that_works_in_place_does_not_touch_the_callers_arrays() -> None:
    trainer, arrays = CheckedTrainer(InPlace(), "alice", 0), [np.zeros(2), np.zeros(())]
    trained, _ = trainer.fit(arrays, 1)
    trainer.evaluate(arrays, 1)
    assert [a.tolist() for a in arrays] == [[0, 0], 0]
    assert [a.tolist() for a in trained] == [[1, 1], 1]


def test_a_trainer_that_keeps_its_arrays_cannot_change_what_it_returned() -> None:
    kept = [np.zeros(2)]
    trainer = guarded(initial=kept, fitted=(kept, 1, {}))
    initial, (trained, _) = trainer.initial(), trainer.fit([], 1)
    kept[0][:] = 9
    assert initial[0].tolist() == trained[0].tolist() == [0, 0]


NO_NUMBERS = {"note": "text", "array": np.zeros(2), "one": np.ones(1), "none": None, "word": np.array("0.5 and more")}


@pytest.mark.parametrize("loss", [0.25, np.float64(0.25), np.array(0.25), torch.tensor(0.25, requires_grad=True)])
def test_metrics_are_the_loss_and_every_other_number_also_in_an_array_without_dimensions(loss: Any) -> None:
    numbers = {
        "accuracy": np.float32(0.5),
        "count": 3,
        "right": np.True_,
        "array of none": np.array(0.75),
        "tensor": torch.tensor([0.0, 1.0]).mean(),
        "fraction": Fraction(1, 8),
        "loss": 9.0,
    }
    found = guarded(evaluated=(loss, 4, {**numbers, **NO_NUMBERS})).evaluate([], 1)
    assert found.metrics == {
        "loss": 0.25,
        "accuracy": 0.5,
        "count": 3.0,
        "right": 1.0,
        "array of none": 0.75,
        "tensor": 0.5,
        "fraction": 0.125,
    }
    assert {type(value) for value in found.metrics.values()} == {float}
    assert found.rows == 4


def warnings_of(trainer: CheckedTrainer, inner: Constant, caplog: pytest.LogCaptureFixture, told: Any) -> list[str]:
    """What evaluating once more says."""
    inner.evaluated = told
    caplog.clear()
    trainer.evaluate([], 3)
    return [record.getMessage() for record in caplog.records]


def test_what_is_left_out_of_the_averages_is_named_once(caplog: pytest.LogCaptureFixture) -> None:
    inner = Constant(evaluated=(0.5, 7, {"accuracy": 0.75, **NO_NUMBERS}))
    trainer = CheckedTrainer(inner, "alice", 3)
    assert trainer.layout(trainer.initial()).metrics == ("loss", "accuracy")
    assert [record.getMessage() for record in caplog.records] == [
        f"model 0: metric {name!r} is no number and is left out of the averages" for name in sorted(NO_NUMBERS)
    ]
    say = partial(warnings_of, trainer, inner, caplog)
    out = "is left out of the averages"
    assert say((0.5, 7, {"accuracy": 0.75, **NO_NUMBERS})) == []
    assert say((math.inf, 7, {"accuracy": 0.75})) == [f"model 3: metric 'loss' is no finite number and {out}"]
    assert say((math.nan, 7, {"accuracy": 0.75})) == []
    assert say((0.5, 7, {"accuracy": None})) == [f"model 3: metric 'accuracy' is no number and {out}"]
    assert say((0.5, 7, {})) == [f"model 3: metric 'accuracy' is missing and {out}"]
    assert say((0.5, 7, {"accuracy": 0.5})) == []
    assert say((math.inf, 7, {"accuracy": 0.5})) == [f"model 3: metric 'loss' is no finite number and {out}"]
    late = f"model 3: metric 'f1' was no number of the initial model's and {out}"
    assert say((0.5, 7, {"accuracy": 0.5, "f1": 0.5})) == [late]
    assert say((0.5, 0, {"accuracy": 0.5})) == [
        "model 3: evaluate had no rows, and its metrics are left out of the averages"
    ]


def test_metrics_of_no_rows_are_none() -> None:
    found = guarded(evaluated=(0.5, 0, {"accuracy": 0.5, "note": ""})).evaluate([], 1)
    assert found.metrics.keys() == {"loss", "accuracy"}
    assert not np.isfinite(list(found.metrics.values())).any()
    assert found.rows == 1


@pytest.mark.parametrize("rows", [-1, 1.5, math.nan, 2**40 + 1, None, "5", True])
def test_a_number_of_rows_that_cannot_weigh_is_refused(rows: Any) -> None:
    with pytest.raises(NumExamplesError, match="evaluate's num_examples must be a whole number from 0 to"):
        guarded(evaluated=(0.5, rows, {})).evaluate([], 1)


def test_a_layout_has_the_loss_first_and_the_trainers_names_and_kinds() -> None:
    trainer = guarded(evaluated=(0.5, 7, {"b": 1.0, "a": 2.0}), names=["weight", "steps"], kinds=["buffer", None])
    layout = trainer.layout(trainer.initial())
    assert layout.metrics == ("loss", "a", "b")
    assert [(t.name, t.kind) for t in layout.tensors] == [("weight", "buffer"), ("steps", "integer")]


def test_a_model_that_cannot_be_averaged_is_refused_by_name() -> None:
    trainer = guarded(initial=[np.zeros(2, bool)], names=["mask"])
    with pytest.raises(LayoutError, match="'mask' is bool"):
        trainer.layout(trainer.initial())


# --- trainers of the oldest form -------------------------------------------------------------------------------------


class WithoutConfig:
    def __init__(self) -> None:
        self.calls: list[str] = []

    def get_parameters(self) -> Any:
        return [np.zeros(2), np.zeros(3)]

    def fit(self, parameters: Any) -> Any:
        self.calls.append(f"fit {len(parameters)}")
        return parameters, 1, {}

    def evaluate(self, parameters: Any, config: Any = None) -> Any:
        self.calls.append(f"evaluate {config['round']}")
        return 0.5, 1, {}


def test_a_method_without_config_is_called_without_it() -> None:
    inner: Any = WithoutConfig()
    trainer = CheckedTrainer(inner, "alice", 0)
    initial = trainer.initial()
    assert [a.shape for a in initial] == [(2,), (3,)]
    trainer.fit(initial, 1)
    trainer.evaluate(initial, 7)
    assert inner.calls == ["fit 2", "evaluate 7"]


class Flat:
    """Gives one bare array; evaluate takes and fit gives what it is told to, and what was handed is noted."""

    def __init__(self, *, bare: bool) -> None:
        self.bare = bare
        self.seen: list[Any] = []

    def get_parameters(self, config: Any) -> Any:
        return np.zeros(3)

    def _take(self, parameters: Any) -> Any:
        self.seen.append(type(parameters))
        if isinstance(parameters, list) is self.bare:
            raise RuntimeError(f"cannot take a {type(parameters).__name__}")
        return parameters if self.bare else parameters[0]

    def fit(self, parameters: Any, config: Any) -> Any:
        array = self._take(parameters) + 1
        return array if self.bare else [array], 1, {}

    def evaluate(self, parameters: Any, config: Any) -> Any:
        self._take(parameters)[:] = 9
        return 0.5, 1, {}


@pytest.mark.parametrize("bare", [True, False])
def test_one_flat_array_is_handed_as_the_trainer_takes_it_which_the_first_call_shows(bare: bool) -> None:
    inner = Flat(bare=bare)
    trainer = CheckedTrainer(inner, "alice", 0)
    initial = trainer.initial()
    assert [a.tolist() for a in initial] == [[0, 0, 0]]
    for number in (1, 2):
        trained, _ = trainer.fit(initial, number)
        trainer.evaluate(initial, number)
        assert [a.tolist() for a in trained] == [[1, 1, 1]]
        assert [a.tolist() for a in initial] == [[0, 0, 0]]
    tries = [np.ndarray] if bare else [np.ndarray, list]
    assert inner.seen == [*tries, *tries, tries[-1], tries[-1]]


def test_a_trainer_of_one_flat_array_that_fails_with_both_forms_is_blamed_for_the_first() -> None:
    class Failing(Flat):
        def _take(self, parameters: Any) -> Any:
            raise RuntimeError(f"no data for a {type(parameters).__name__}")

    trainer = CheckedTrainer(Failing(bare=True), "alice", 0)
    with pytest.raises(TrainerError, match="fit failed: RuntimeError: no data for a ndarray"):
        trainer.fit(trainer.initial(), 1)


def test_a_trainer_of_a_list_is_called_once_though_it_fails() -> None:
    calls = []

    class Failing(Constant):
        def evaluate(self, parameters: list[Array], config: Mapping[str, Any]) -> Any:
            calls.append(parameters)
            raise RuntimeError("no data")

    trainer = CheckedTrainer(Failing(initial=[np.zeros(3)]), "alice", 0)
    with pytest.raises(TrainerError, match="no data"):
        trainer.evaluate(trainer.initial(), 1)
    assert len(calls) == 1


# --- trainers that fail -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answers", "method"),
    [
        ({"initial": RuntimeError("no data")}, "get_parameters"),
        ({"fitted": RuntimeError("no data")}, "fit"),
        ({"evaluated": RuntimeError("no data")}, "evaluate"),
    ],
)
def test_what_a_trainer_raises_names_the_method_and_keeps_its_cause(answers: dict[str, Any], method: str) -> None:
    trainer = guarded(**answers)
    calls: dict[str, Callable[[], object]] = {
        "get_parameters": trainer.initial,
        "fit": lambda: trainer.fit([], 1),
        "evaluate": lambda: trainer.evaluate([], 1),
    }
    with pytest.raises(TrainerError, match=f"{method} failed: RuntimeError: no data") as caught:
        calls[method]()
    assert isinstance(caught.value.__cause__, RuntimeError)
    assert caught.value.exit_code == 1


@pytest.mark.parametrize(("stop", "seen"), [(KeyboardInterrupt, KeyboardInterrupt), (SystemExit, TrainerError)])
def test_an_interruption_is_not_the_trainers_fault_and_leaving_is(
    stop: type[BaseException], seen: type[BaseException]
) -> None:
    class Interrupted(Constant):
        def fit(self, parameters: list[Array], config: Mapping[str, Any]) -> Any:
            raise stop

    with pytest.raises(seen):
        CheckedTrainer(Interrupted(), "alice", 0).fit([], 1)


@pytest.mark.parametrize("returned", [None, [], ([np.zeros(1)], 1), [[np.zeros(1)], 1, {}], np.zeros(3)])
def test_a_fit_of_another_form_is_refused(returned: Any) -> None:
    with pytest.raises(TrainerError, match=r"\(parameters, num_examples, metrics\)"):
        guarded(fitted=returned).fit([], 1)


@pytest.mark.parametrize("returned", [None, 0.5, (0.5, 1), (None, 1, {}), (0.5, 1, None), ("high", 1, {})])
def test_an_evaluate_of_another_form_is_refused(returned: Any) -> None:
    with pytest.raises(TrainerError, match="evaluate"):
        guarded(evaluated=returned).evaluate([], 1)


@pytest.mark.parametrize("returned", [None, np.zeros((3, 1)), np.array(1.0), {"weight": np.zeros(3)}, 3])
def test_parameters_that_are_no_list_of_arrays_are_refused(returned: Any) -> None:
    with pytest.raises(TrainerError, match="get_parameters must give a list"):
        guarded(initial=returned).initial()
    with pytest.raises(TrainerError, match="fit must give a list"):
        guarded(fitted=(returned, 1, {})).fit([], 1)


# --- trainers by name -------------------------------------------------------------------------------------------------

MODULE = """
import numpy as np

class Model:
    def get_parameters(self, config): return [np.zeros(2)]
    def fit(self, parameters, config): return parameters, 1, {}
    def evaluate(self, parameters, config): return 0.0, 1, {}

class Outer:
    Inner = Model

def make(): return Model()
def make_with(argument): return Model()
def broken(): raise RuntimeError("no data")

ready = Model()
number = 3
nothing = lambda: None
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """A module of a name of its own, in the current folder."""
    name = f"models_{hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:16]}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return name


@pytest.mark.parametrize("attribute", ["Model", "make", "ready", "Outer.Inner"])
def test_a_class_a_function_or_an_object_of_the_current_folder_is_a_trainer(folder: str, attribute: str) -> None:
    trainer = load_trainer(f"{folder}:{attribute}")
    assert isinstance(trainer, Trainer)
    assert trainer.get_parameters({})[0].tolist() == [0, 0]


@pytest.mark.parametrize("spec", ["", ":", "models", "models:", ":make"])
def test_a_name_of_another_form_is_a_usage_error(spec: str) -> None:
    with pytest.raises(UsageError, match="module:factory") as caught:
        load_trainer(spec)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("spec", ["no_such_module_here:make", "{}:absent", "{}:Outer.absent"])
def test_a_name_that_cannot_be_found_is_a_usage_error(folder: str, spec: str) -> None:
    with pytest.raises(UsageError, match="--trainer"):
        load_trainer(spec.format(folder))


@pytest.mark.parametrize(
    ("attribute", "message"),
    [
        ("number", "could not be called"),
        ("make_with", "could not be called"),
        ("broken", "no data"),
        ("nothing", "NoneType"),
        ("Outer", "Outer, which has no get_parameters"),
    ],
)
def test_a_name_that_gives_no_trainer_is_the_trainers_fault(folder: str, attribute: str, message: str) -> None:
    with pytest.raises(TrainerError, match=message):
        load_trainer(f"{folder}:{attribute}")


FLOWERS = """
import warnings

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "'click", DeprecationWarning)
    from flwr.client import ClientApp, NumPyClient
    from flwr.common import Context

class Client(NumPyClient):
    def get_parameters(self, config): return []

def client_fn(context: Context): return Client().to_client()
def oldest(cid): return Client()
def make(): return ClientApp(client_fn)
def wrapped(): return Client().to_client()

app = ClientApp(client_fn)
"""


@pytest.mark.parametrize("attribute", ["app", "make", "client_fn", "oldest", "wrapped"])
def test_what_makes_a_client_for_flower_is_refused_with_the_way_to_name_the_client(
    folder: str, attribute: str, tmp_path: Path
) -> None:
    (tmp_path / f"{folder}.py").write_text(FLOWERS)
    with pytest.raises(TrainerError, match=f"{folder}:{attribute} ") as caught:
        load_trainer(f"{folder}:{attribute}")
    hint = "leave out .to_client()" if attribute == "wrapped" else "function without arguments that returns the NumPy"
    assert hint in str(caught.value.hint)
    assert isinstance(load_trainer(f"{folder}:Client"), Trainer)


def test_flowers_numpy_client_is_a_trainer_as_it_is() -> None:
    with warnings.catch_warnings():
        # What Flower's own command line uses of click; nothing of its clients.
        warnings.filterwarnings("ignore", "'click", DeprecationWarning)
        from flwr.client import NumPyClient

    class Client(NumPyClient):
        pass

    assert isinstance(Client(), Trainer)
