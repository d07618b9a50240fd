"""Models on real data that scikit-learn ships: for the demo, the README and a first try."""

from __future__ import annotations

import re

from hefl.errors import UsageError
from hefl.trainer import Trainer

VALIDATION_ROWS = {"iris": 30}
"""Examples by name, with the size of the validation set."""

_NAMED_PARTS = {"alice": (1, 2), "bob": (2, 2)}


def load_example(spec: str, *, seed: int, data_seed: int = 42) -> Trainer:
    """The trainer for ``NAME:PART``, such as ``iris:alice`` (``iris:1/2``), ``iris:bob`` or ``iris:2/3``.

    Args:
        spec: NAME is one of VALIDATION_ROWS; PART i/k is the i-th of k.
        seed: For the initial parameters and the training.
        data_seed: For the split into validation and parts.

    Raises:
        UsageError: There is no such example or part.
    """
    name, _, part = spec.partition(":")
    found = re.fullmatch(r"([1-9]\d{0,3})/([1-9]\d{0,3})", part)
    if name not in VALIDATION_ROWS or not (found or part in _NAMED_PARTS):
        raise UsageError(
            f"--data takes NAME:PART with NAME one of {', '.join(VALIDATION_ROWS)}, got {spec!r}",
            hint="PART is alice, bob, or the i-th of k parts as i/k: iris:alice, iris:2/3",
        )
    index, count = (int(found[1]), int(found[2])) if found else _NAMED_PARTS[part]
    if index > count:
        raise UsageError(f"--data {spec}: there is no part {index} of {count}")
    from hefl.examples import iris

    return iris.trainer(index, count, seed=seed, data_seed=data_seed)
