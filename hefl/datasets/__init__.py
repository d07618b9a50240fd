"""Models on real data that scikit-learn ships: for the demo, the README and a first try."""

from __future__ import annotations

import importlib
import logging
import re
from typing import TYPE_CHECKING

from hefl.errors import UsageError
from hefl.params import DATA_SETS

if TYPE_CHECKING:
    from hefl.models.torch import TorchTrainer

log = logging.getLogger("hefl")

_NAMED_PARTS = {"alice": (1, 2), "bob": (2, 2), "": (1, 1)}
_MODULES = {"iris": "iris", "digits": "digits", "breast_cancer": "tables", "wine": "tables"}
"""Each has a function of the data set's name, which makes the trainer."""


def load_example(
    spec: str, *, seed: int, data_seed: int = 42, partition: str = "iid", client: str | None = None
) -> TorchTrainer:
    """The trainer for ``NAME[:PART]``, such as ``iris:alice`` (``iris:1/2``), ``iris:bob`` or ``digits:2/5``.

    Args:
        spec: NAME is one of params.DATA_SETS; PART i/k is the i-th of k. Without a PART, all of the training
            rows, and the log says so.
        seed: For the initial parameters.
        data_seed: For the split into validation and parts.
        partition: ``iid`` or ``dirichlet:ALPHA``; see partition.Partition.
        client: Whose part it is, for a message.

    Raises:
        UsageError: There is no such example, part or partition, or some part has too few examples.
    """
    from hefl.datasets.data import load_parts
    from hefl.datasets.partition import Partition

    name, index, count = parse_spec(spec)
    if ":" not in spec:
        log.warning("--data %s names no part: this client trains on all of the training rows", spec)
    names = {index: client} if client else None
    split = load_parts(name, count, Partition.parse(partition), data_seed=data_seed, names=names)[index - 1]
    module = importlib.import_module(f"hefl.datasets.{_MODULES[name]}")
    made: TorchTrainer = getattr(module, name)(split, seed=seed)
    return made


def parse_spec(spec: str) -> tuple[str, int, int]:
    """The name, the index of the part and the number of parts.

    Raises:
        UsageError: There is no such example or part.
    """
    name, colon, part = spec.partition(":")
    found = re.fullmatch(r"([1-9]\d{0,3})/([1-9]\d{0,3})", part)
    if name not in DATA_SETS or not (found or part in _NAMED_PARTS) or (colon and not part):
        raise UsageError(
            f"--data takes NAME or NAME:PART with NAME one of {', '.join(DATA_SETS)}, got {spec!r}",
            hint="PART is alice, bob, or the i-th of k parts as i/k: iris:alice, digits:2/5",
        )
    index, count = (int(found[1]), int(found[2])) if found else _NAMED_PARTS[part]
    if index > count:
        raise UsageError(f"--data {spec}: there is no part {index} of {count}")
    return name, index, count
