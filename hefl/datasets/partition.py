"""Share training rows among clients: evenly, or with labels that differ by client."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from hefl.errors import UsageError
from hefl.params import MIN_CLIENTS

I64 = NDArray[np.int64]

MIN_EXAMPLES = 2
"""Every part has at least so many: batch normalisation has no variance of one."""

DRAWS = 1000
"""Partitions drawn before it is given up that every part has enough."""


@dataclass(frozen=True, slots=True)
class Partition:
    """A way to share rows.

    Attributes:
        alpha: Each label's rows are shared in proportions of a symmetric Dirichlet distribution of this concentration:
            0.1 gives each client few labels, 100 nearly equal mixtures. None shares evenly, whatever the labels.

    Source: Hsu, Qi, Brown 2019 (arXiv 1909.06335); label by label as in Yurochkin et al. 2019 (arXiv 1905.12022).
    """

    alpha: float | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``iid`` or ``dirichlet:ALPHA``.

        Raises:
            UsageError: The text has another form, or ALPHA is not a finite number above 0.
        """
        kind, colon, number = text.partition(":")
        if kind == "iid" and not colon:
            return cls()
        try:
            alpha = float(number) if kind == "dirichlet" else math.nan
        except ValueError:
            alpha = math.nan
        if not 0 < alpha < math.inf:
            raise UsageError(
                f"--partition takes iid, or dirichlet:ALPHA with a number ALPHA above 0, got {text!r}",
                hint="dirichlet:0.3 gives clients very different labels, dirichlet:100 nearly the same",
            )
        return cls(alpha)

    def __str__(self) -> str:
        return "iid" if self.alpha is None else f"dirichlet:{self.alpha!r}"

    def share(
        self, labels: I64, count: int, generator: np.random.RandomState, names: Mapping[int, str] | None = None
    ) -> list[I64]:
        """Share rows in ``count`` parts.

        Args:
            labels: Shape (n,), of the rows in their shuffled order.
            count: From 1.
            generator: Draws the proportions. A legacy one, whose stream stays the same for ever: clients that share a
                seed must find the same parts whatever numpy they have.
            names: Clients by the index of their part, from 1, for the message.

        Returns:
            Indices into ``labels``, ascending: each row in exactly one part.

        Raises:
            UsageError: Some part is left with fewer than MIN_EXAMPLES; names its client.
        """
        parts = np.array_split(np.arange(len(labels)), count)
        # Too many clients for even parts are too many for any.
        if self.alpha is not None and len(parts[-1]) >= MIN_EXAMPLES:
            for _ in range(DRAWS):
                owners = _draw(labels, count, self.alpha, generator)
                parts = [np.flatnonzero(owners == part) for part in range(count)]
                if min(map(len, parts)) >= MIN_EXAMPLES:
                    break
        short = [index for index, part in enumerate(parts, 1) if len(part) < MIN_EXAMPLES]
        if short:
            index = next((index for index in short if names and index in names), short[0])
            whose = f"part {index} of {count}"
            whose = f"client {names[index]} ({whose})" if names and index in names else whose
            raise UsageError(
                f"partition {self} of {len(labels)} training examples leaves {whose} {len(parts[index - 1])}; "
                f"every client needs at least {MIN_EXAMPLES}",
                hint=" or ".join(
                    (["share them among fewer clients"] if count > MIN_CLIENTS else [])
                    + ([] if self.alpha is None else ["take a larger ALPHA"])
                ),
            )
        return parts


def _draw(labels: I64, count: int, alpha: float, generator: np.random.RandomState) -> I64:
    """Each row's part, from 0."""
    owners = np.zeros(len(labels), np.int64)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        edges = np.floor(np.cumsum(_dirichlet(count, alpha, generator))[:-1] * len(rows))
        owners[rows] = np.searchsorted(edges, np.arange(len(rows)), side="right")
    return owners


def _dirichlet(count: int, alpha: float, generator: np.random.RandomState) -> NDArray[np.float64]:
    """One draw of the Dirichlet distribution: gamma variates over their sum.

    Gamma(alpha) is Gamma(alpha + 1) * U**(1 / alpha), here in logarithms: for a small alpha each of numpy's own
    variates may underflow, and proportions become 0/0.
    """
    powers = np.log(1 - generator.random_sample(count))
    with np.errstate(over="ignore"):  # minus infinity is the logarithm of no share
        powers = (powers - powers.max()) / alpha
    logarithms = powers + np.log(generator.gamma(alpha + 1, size=count))
    variates: NDArray[np.float64] = np.exp(logarithms - logarithms.max())
    variates /= variates.sum()
    return variates
