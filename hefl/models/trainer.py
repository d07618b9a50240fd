"""The trainer's interface: what a user's model must do, and how hefl calls it.

A trainer is what Flower calls a NumPyClient: an existing one runs unchanged, also one of the oldest form, which has
one flat array and no ``config``. It may also state ``num_examples``, and ``names`` and ``kinds`` of its tensors; see
``Trainer``.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import math
import numbers
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from hefl.errors import HeflError, NumExamplesError, TrainerError, UsageError
from hefl.models.layout import Arrays, Kind, Layout, describe
from hefl.models.remarks import Remarks
from hefl.params import MAX_NUM_EXAMPLES

_SEE = "hefl.models.trainer.Trainer says what each method returns; a Flower NumPyClient does that"
_NAME_THE_CLIENT = (
    "hefl calls get_parameters, fit and evaluate itself: name the NumPyClient's class, or a function without arguments "
    "that returns the NumPyClient"
)

Config = dict[str, Any]
"""What every call is told: ``round`` and ``server_round`` (Flower's name for it), ``seed``, ``client``."""


@runtime_checkable
class Trainer(Protocol):
    """A model with its data.

    ``fit`` must depend on its parameters and on config's seed, client and round only: seed your generators from them
    at each call and make a new optimiser, so that a run can be repeated bit for bit.

    Where ``fit`` returns another number of examples than was announced, that number weighs from the next round on.

    A method may lack ``config``. A model may be one flat array in place of a list: ``get_parameters`` and ``fit``
    return it, and ``fit`` and ``evaluate`` get it bare, or, where they fail with that, as the only entry of a list.

    Optional attributes:
        num_examples: Size of the training data: the sample weight. Without it hefl asks ``--num-examples``, or calls
            ``fit`` once and throws the result away.
        names: One for each array, as a saved model names them.
        kinds: ``"parameter"``, ``"buffer"`` or ``"integer"`` for each array; default (also for None) by dtype. Several
            whole numbers in one array are averaged only where their kind is stated.
    """

    def get_parameters(self, config: Config) -> Sequence[NDArray[Any]]:
        """The initial arrays."""

    def fit(
        self, parameters: list[NDArray[Any]], config: Config
    ) -> tuple[Sequence[NDArray[Any]], int, Mapping[str, Any]]:
        """Train from ``parameters``; returns the new arrays, the number of examples, and metrics (ignored)."""

    def evaluate(self, parameters: list[NDArray[Any]], config: Config) -> tuple[float, int, Mapping[str, Any]]:
        """Evaluate on the client's own validation data.

        Returns:
            The loss; the number of validation rows, by which the loss and all metrics weigh in their averages; and
            more metrics by name. What is no number, or no finite one, is left out of the averages; with 0 rows all are.
        """


def training_seed(config: Config) -> int:
    """A generator's seed for one call, 0 to 2**56 - 1: from config's seed, client and round."""
    text = f"{config['seed']}/{config['client']}/{config['round']}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")


def load_trainer(spec: str) -> Trainer:
    """The trainer that ``package.module:factory`` names: a class, a function without arguments, or the object itself.

    The current folder is searched first.

    Raises:
        UsageError: The text has another form, or nothing of that name can be imported.
        TrainerError: What it names is no trainer, or fails when it is made.
    """
    module_name, colon, attribute = spec.partition(":")
    if not (module_name and colon and attribute):
        raise UsageError(
            f"--trainer takes package.module:factory, got {spec!r}",
            hint="mymodel:Trainer, say, for the class Trainer in mymodel.py",
        )
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        factory: Any = importlib.import_module(module_name)
        for part in attribute.split("."):
            factory = getattr(factory, part)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise UsageError(f"--trainer {spec}: {error}", hint=_way_to_import(spec, error)) from error
    except Exception as error:
        raise TrainerError(
            f"--trainer {spec}: importing {module_name} failed: {error}", hint="the traceback above ends in the place"
        ) from error
    if isinstance(factory, type) or not isinstance(factory, Trainer):
        try:
            factory = factory()
        except Exception as error:
            way = "name a class or a function that takes none and returns the trainer"
            raise TrainerError(
                f"{spec} could not be called without arguments: {error}",
                hint=_NAME_THE_CLIENT if _makes_flowers_clients(factory) else way,
            ) from error
    if not isinstance(factory, Trainer):
        way = "a Flower NumPyClient has them; see hefl.models.trainer.Trainer"
        raise TrainerError(
            f"{spec} gives a {type(factory).__name__}, which has no get_parameters, fit and evaluate",
            hint=_NAME_THE_CLIENT if _makes_flowers_clients(factory) else way,
        )
    if _is_flowers(factory, "Client"):
        raise TrainerError(
            f"{spec} gives a Flower Client, whose methods take messages",
            hint="give the NumPyClient itself: leave out .to_client()",
        )
    return factory


def _is_flowers(value: Any, name: str) -> bool:
    """Whether it is an object of a class of Flower's, which need not be installed."""
    return any(c.__name__ == name and c.__module__.split(".")[0] == "flwr" for c in type(value).__mro__)


def _makes_flowers_clients(factory: Any) -> bool:
    """A ClientApp, or a client_fn, which takes a client's number or a context."""
    if _is_flowers(factory, "ClientApp"):
        return True
    code = getattr(factory, "__code__", None)
    return code is not None and code.co_varnames[: code.co_argcount] in (("cid",), ("context",))


def _way_to_import(spec: str, error: Exception) -> str:
    """What to do where a trainer could not be imported."""
    module_name, _, attribute = spec.partition(":")
    if module_name.endswith(".py"):
        file = Path(module_name).with_suffix("")
        parts = file.relative_to(Path.cwd()).parts if file.is_relative_to(Path.cwd()) else file.parts
        if (file.anchor and parts == file.parts) or ".." in parts:
            return f"run the command in {file.parent}, and name the module, not its file: {file.name}:{attribute}"
        return f"name the module, not its file: {'.'.join(parts)}:{attribute}"
    if isinstance(error, AttributeError) and (meant := get_close_matches(attribute, vars(sys.modules[module_name]), 1)):
        return f"did you mean {module_name}:{meant[0]}?"
    missing = error.name if isinstance(error, ModuleNotFoundError) else None
    if missing and not f"{module_name}.".startswith(f"{missing}."):
        return f"{module_name} imports {missing}, which is not installed where hefl runs"
    return "run the command in the folder that holds the module, or install it beside hefl"


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What a client found of a model on its validation rows.

    Attributes:
        metrics: By name; not finite where there is none.
        rows: How many they are of, at least 1.
    """

    metrics: dict[str, float]
    rows: int

    def shares(self, weight: int) -> dict[str, Fraction]:
        """As codec.Shares, where the engine multiplies by ``weight``."""
        return dict.fromkeys(self.metrics, Fraction(self.rows, weight))


class CheckedTrainer:
    """Calls a trainer, and checks what it returns.

    Args:
        trainer: The user's.
        client: The client's name, for its config.
        seed: For its config.
        num_examples: Overrides the trainer's own.
        limit: The largest number of examples that the engine can scale by.
    """

    def __init__(
        self, trainer: Trainer, client: str, seed: int, num_examples: int | None = None, limit: int = MAX_NUM_EXAMPLES
    ) -> None:
        self._trainer = trainer
        self._client = client
        self._seed = seed
        self._fixed = num_examples
        self._limit = limit
        self._flat = False
        self._takes_bare: dict[str, bool] = {}
        self._metrics: frozenset[str] | None = None
        self._remarks = Remarks()

    def _config(self, round_num: int) -> Config:
        return {"round": round_num, "server_round": round_num, "seed": self._seed, "client": self._client}

    def initial(self) -> Arrays:
        """The initial arrays."""
        with blaming("the trainer's get_parameters"):
            returned = _call(self._trainer.get_parameters, self._config(0))
            self._flat = isinstance(returned, np.ndarray)
            return _arrays(returned, "get_parameters")

    def num_examples(self, initial: Arrays) -> tuple[int, str]:
        """The sample weight before the first round, and where it comes from.

        Raises:
            NumExamplesError: It is not a whole number from 1 on.
        """
        if self._fixed is not None:
            return check_num_examples(self._fixed, self._limit), "--num-examples"
        with blaming("the trainer's num_examples"):
            stated = getattr(self._trainer, "num_examples", None)
            stated = stated() if callable(stated) else stated
        if stated is not None:
            return check_num_examples(stated, self._limit), "the trainer"
        return self.fit(initial, 0)[1], "one fit that was thrown away"

    def layout(self, initial: Arrays) -> Layout:
        """The model's layout; its metrics are those of one evaluation of the initial arrays."""
        metrics = self.evaluate(initial, 0).metrics
        self._metrics = frozenset(metrics)
        names: Sequence[str] | None = getattr(self._trainer, "names", None)
        kinds: Sequence[Kind | None] | None = getattr(self._trainer, "kinds", None)
        return describe(initial, ["loss", *sorted(metrics.keys() - {"loss"})], names, kinds)

    def fit(self, parameters: Arrays, round_num: int) -> tuple[Arrays, int]:
        """Train; returns the new arrays and the number of examples, checked."""
        with blaming("the trainer's fit"):
            returned = self._ask("fit", parameters, self._config(round_num))
            if not isinstance(returned, tuple) or len(returned) != 3:
                raise TrainerError("the trainer's fit must return (parameters, num_examples, metrics)", hint=_SEE)
            arrays = _arrays(returned[0], "fit")
        return arrays, self._fixed if self._fixed is not None else check_num_examples(returned[1], self._limit)

    def evaluate(self, parameters: Arrays, round_num: int) -> Evaluation:
        """Loss and every other metric that is a number; what is left out of the averages is said.

        Raises:
            NumExamplesError: The number of rows is none.
        """
        with blaming("the trainer's evaluate"):
            returned = self._ask("evaluate", parameters, self._config(round_num))
            if not isinstance(returned, tuple) or len(returned) != 3:
                raise TrainerError("the trainer's evaluate must return (loss, num_examples, metrics)", hint=_SEE)
            loss, rows, more = returned
            told = {str(name): _number(value) for name, value in more.items()}
            told["loss"] = float(loss) if (number := _number(loss)) is None else number
        count = _whole(rows, 0, MAX_NUM_EXAMPLES)
        if count is None:
            raise NumExamplesError(
                f"evaluate's num_examples must be a whole number from 0 to {MAX_NUM_EXAMPLES}, got {rows!r}",
                hint="it is the number of validation rows, by which the loss and the metrics weigh",
            )
        metrics = {name: value for name, value in told.items() if value is not None}
        if not count:
            self._remarks.make(round_num, ["evaluate had no rows, and its metrics are left out of the averages"])
            return Evaluation(dict.fromkeys(metrics, math.nan), 1)
        self._remarks.make(round_num, self._left_out(told))
        return Evaluation(metrics, count)

    def _ask(self, name: str, parameters: Arrays, config: Config) -> Any:
        """Call ``fit`` or ``evaluate`` with copies, because a trainer may work in place.

        Whether a trainer of one flat array takes it bare or in a list, the method's first call shows.
        """
        method = getattr(self._trainer, name)

        def answer(bare: bool) -> Any:
            copies = [a.copy() for a in parameters]
            return _call(method, copies[0] if bare else copies, config)

        if not self._flat or name in self._takes_bare:
            return answer(self._takes_bare.get(name, False))
        try:
            returned, bare = answer(bare=True), True
        except Exception as error:
            try:
                returned, bare = answer(bare=False), False
            except Exception:
                raise error from None
        self._takes_bare[name] = bare
        return returned

    def _left_out(self, told: Mapping[str, float | None]) -> list[str]:
        """What to say of metrics that are not averaged."""
        known = self._metrics if self._metrics is not None else told.keys()
        reasons = {
            name: "is no number" if value is None else "is no finite number" if not math.isfinite(value) else None
            for name, value in told.items()
        }
        reasons |= dict.fromkeys(known - told.keys(), "is missing")
        reasons |= {n: "was no number of the initial model's" for n in told.keys() - known if reasons[n] is None}
        return [f"metric {n!r} {why} and is left out of the averages" for n, why in sorted(reasons.items()) if why]


def check_num_examples(value: Any, limit: int = MAX_NUM_EXAMPLES) -> int:
    """A sample weight as a plain int.

    Raises:
        NumExamplesError: It is not a whole number from 1 to ``limit``.
    """
    number = _whole(value, 1, limit)
    if number is None:
        raise NumExamplesError(
            f"num_examples must be a whole number from 1 to {limit}, got {value!r}",
            hint="it is the size of the client's training data, and its weight in the mean",
        )
    return number


def _whole(value: Any, least: int, most: int) -> int | None:
    number = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
    return int(value) if number and least <= value <= most and value % 1 == 0 else None


def _number(value: Any) -> float | None:
    """A number, also one in an array or tensor without dimensions, as a float."""
    if getattr(value, "ndim", None) == 0:
        value = value.item() if hasattr(value, "item") else float(value)
    return float(value) if isinstance(value, numbers.Real) else None


def _call(method: Callable[..., Any], *arguments: Any) -> Any:
    """Call a trainer's method without the last argument, its config, where it has no place for it."""
    try:
        inspect.signature(method).bind(*arguments)
    except TypeError:
        arguments = arguments[:-1]
    except ValueError:  # compiled code may have no signature
        pass
    return method(*arguments)


def _arrays(returned: Any, method: str) -> Arrays:
    flat = isinstance(returned, np.ndarray) and returned.ndim == 1
    if not flat and (isinstance(returned, np.ndarray) or not isinstance(returned, Sequence)):
        raise TrainerError(
            f"the trainer's {method} must give a list of arrays, or one flat array, got a {type(returned).__name__}",
            hint=_SEE,
        )
    return [np.array(a) for a in ([returned] if flat else returned)]


class blaming:  # noqa: N801 - reads as a statement
    """Turns whatever a user's code raises into a TrainerError that names it; the traceback stays attached."""

    def __init__(self, what: str) -> None:
        self._what = what

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if isinstance(error, (Exception, SystemExit)) and not isinstance(error, HeflError):
            raise TrainerError(
                f"{self._what} failed: {type(error).__name__}: {error}", hint="the traceback above ends in the place"
            ) from error
