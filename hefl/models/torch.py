"""A trainer for a PyTorch module. Only this module and the examples import torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hefl.models.layout import Arrays, Kind
from hefl.models.trainer import Config, training_seed

Train = Callable[[torch.nn.Module], None]
Evaluate = Callable[[torch.nn.Module], tuple[float, Mapping[str, float]] | tuple[float, int, Mapping[str, float]]]


class TorchTrainer:
    """Trains a module: its state dict is the model.

    Args:
        module: With its initial parameters.
        num_examples: Size of the training data.
        train: Trains the module in place, for one round; makes its own optimiser.
        evaluate: Returns the loss on the client's validation data, the number of its rows, and more metrics. Where it
            leaves the number out, they weigh by the training data's.
        deterministic: Compute in one thread, and with torch's deterministic algorithms, so that runs repeat bit for
            bit on one machine. Otherwise torch computes as it is set.

    torch's generators are seeded from (seed, client, round) before each call of ``train``. They and torch's settings
    are afterwards as they were.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        num_examples: int,
        train: Train,
        evaluate: Evaluate,
        *,
        deterministic: bool = False,
    ) -> None:
        self.num_examples = num_examples
        self.names = list(module.state_dict())
        trained = {name for name, _ in module.named_parameters()}
        self.kinds: list[Kind | None] = [
            "parameter" if name in trained else ("buffer" if tensor.is_floating_point() else "integer")
            for name, tensor in module.state_dict().items()
        ]
        self._module = module
        self._train = train
        self._evaluate = evaluate
        self._computing = _deterministic if deterministic else nullcontext

    def get_parameters(self, config: Config) -> Arrays:
        """Copies of the state dict's tensors, in its order."""
        return [t.detach().cpu().numpy().copy() for t in self._module.state_dict().values()]

    def set_parameters(self, parameters: list[NDArray[Any]]) -> None:
        """Load arrays in the state dict's order."""
        tensors = {n: torch.from_numpy(np.array(a)) for n, a in zip(self.names, parameters, strict=True)}
        self._module.load_state_dict(tensors)

    def fit(self, parameters: list[NDArray[Any]], config: Config) -> tuple[Arrays, int, dict[str, float]]:
        """Train from ``parameters``."""
        self.set_parameters(parameters)
        self._module.train()
        with self._computing(), _own_generators():
            torch.manual_seed(training_seed(config))
            self._train(self._module)
        return self.get_parameters(config), self.num_examples, {}

    def evaluate(self, parameters: list[NDArray[Any]], config: Config) -> tuple[float, int, dict[str, float]]:
        """Evaluate ``parameters``."""
        self.set_parameters(parameters)
        self._module.eval()
        with self._computing(), torch.inference_mode():
            loss, *rows, metrics = self._evaluate(self._module)
        return loss, rows[0] if rows else self.num_examples, dict(metrics)


@contextmanager
def _deterministic() -> Iterator[None]:
    """One thread and deterministic algorithms, and then again what was set before: it holds for the whole process."""
    threads, enabled = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(enabled, warn_only=warn_only)
        torch.set_num_threads(threads)


def _own_generators() -> AbstractContextManager[None]:
    """Whatever is drawn within, torch's generators go on after it where they stood before."""
    used = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return torch.random.fork_rng(range(torch.cuda.device_count()) if used else [])
