"""Settings of a server that its run keeps over restarts."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

import msgspec

from hefl.engines.engine import Terms, Weighting
from hefl.errors import EngineError, MismatchError, ParametersError
from hefl.identity import Identity
from hefl.params import (
    DEFAULT_ENGINE,
    JOIN_WAIT_S,
    MAX_VALUES,
    MIN_CLIENTS,
    PRECISION_BITS,
    ROUND_TIMEOUT_S,
    SERVED_NUM_EXAMPLES,
)

ELSEWHERE = "name another folder with --state, or remove this one"


class KeptSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an operator decides of a run; a later start that says nothing of it goes on with it. Times in seconds.

    Attributes:
        min_clients: Fewer than this in a sum is refused.
        join_wait_s: How long to wait for the other known clients once there are enough.
        round_timeout_s: After so long a round closes with whoever is in.
        max_values: No model has more.
        max_num_examples: No client has more.
    """

    min_clients: int = MIN_CLIENTS
    join_wait_s: float = JOIN_WAIT_S
    round_timeout_s: float = ROUND_TIMEOUT_S
    max_values: int = MAX_VALUES
    max_num_examples: int = SERVED_NUM_EXAMPLES

    def with_given(self, **given: float | None) -> KeptSettings:
        """The same but for what is given: what is None stays."""
        return msgspec.structs.replace(self, **{name: value for name, value in given.items() if value is not None})


FLAGS = {
    "min_clients": "--min-clients",
    "join_wait_s": "--join-wait",
    "round_timeout_s": "--round-timeout",
    "max_values": "--max-values",
    "max_num_examples": "--max-num-examples",
}
"""As 'hefl serve' takes them."""


def changes(before: KeptSettings, after: KeptSettings) -> list[str]:
    """What another start changes, in words."""
    pairs = ((flag, getattr(before, name), getattr(after, name)) for name, flag in FLAGS.items())
    return [f"{flag} is {new:.12g} from now on, and was {old:.12g}" for flag, old, new in pairs if old != new]


def terms_of(run: Terms | None, engine: str | None, precision: int | None, weighting: Weighting | None) -> Terms:
    """Engine, precision and weighting of a start: what is asked for, else what the run has, else the defaults."""
    engine = engine or (run.engine if run else DEFAULT_ENGINE)
    kept = run if run and run.engine == engine else Terms(engine, PRECISION_BITS)
    return Terms(engine, precision or kept.precision_bits, weighting or kept.weighting)


def refuse_another(
    folder: Path, run: tuple[Identity, Terms, int], identity: Identity, terms: Terms, rounds: int | None
) -> NoReturn:
    """Say in what the run in a folder, with its terms and number of rounds, is not the one that was asked for.

    Raises:
        MismatchError: It is another federation's or generation's run.
        EngineError: It has another engine, precision or weighting.
        ParametersError: It has more rounds.
    """
    found, agreed, more = run
    if found != identity:
        raise MismatchError(f"{folder} holds a run of {found}, and the keys are of {identity}", hint=ELSEWHERE)
    for what, here, there in zip(("engine", "precision", "weighting"), agreed, terms, strict=True):
        if here != there:
            raise EngineError(
                f"{folder} holds a run with {what} {here!r}, and not {there!r}",
                hint=f"start the server with --{what} {here} again, or {ELSEWHERE}",
            )
    raise ParametersError(
        f"{folder} holds an unfinished run of {more} rounds, and not {rounds}",
        hint=f"start the server with --rounds {more} again, or more; or {ELSEWHERE}",
    )
