"""Answer clients from the state of a run: what they are shown, which updates may come."""

from __future__ import annotations

from hefl.engines.engine import Engine, check_terms
from hefl.errors import ConflictError, LayoutError, NameInUseError, NumExamplesError, StaleError, UselessSumsError
from hefl.params import MAX_VALUES, SILENT_S
from hefl.protocol.messages import Join, View
from hefl.protocol.records import Announcement
from hefl.rounds.run import Phase, Run
from hefl.rounds.schedule import RunSettings


def check_join(name: str, join: Join, engine: Engine, settings: RunSettings) -> None:
    """See that a client's terms, weight and size fit this server.

    Raises:
        EngineError, NumExamplesError, LayoutError: They do not.
    """
    check_terms(engine, join.terms, f"client {name}")
    check_num_examples(name, join.num_examples, engine, settings)
    # Initial arrays are 16-bit words, up to four to a value.
    values, most = max(join.values["training"], -(-max(join.values.values()) // 4)), settings.max_values
    if values > most:
        raise LayoutError(
            f"client {name}'s model has {values} values, and this server takes at most {most}",
            hint="is it the right model? "
            + ("If so, the server needs a higher --max-values" if values <= MAX_VALUES else "There is no larger one"),
        )


def check_num_examples(name: str, num_examples: int, engine: Engine, settings: RunSettings) -> None:
    """See that this server may scale an update by so many examples. Raises NumExamplesError."""
    hint = "state fewer with --num-examples, in the same proportion at every client"
    if num_examples > engine.max_num_examples:
        raise NumExamplesError(
            f"client {name} has {num_examples} examples, "
            f"and engine {engine.name!r} scales by at most {engine.max_num_examples}",
            hint=hint,
        )
    if num_examples > settings.max_num_examples:
        raise NumExamplesError(
            f"client {name} has {num_examples} examples, and this server takes at most {settings.max_num_examples}: "
            "the weights of clients with few examples would all be rounded to the same",
            hint=f"{hint}; or ask who runs the server for a higher --max-num-examples",
        )


def check_place(run: Run, name: str, join_nonce: str, silent_s: float) -> None:
    """See that nobody else is here under a client's name. Raises NameInUseError."""
    session = run.sessions.get(name)
    if session and session.join_nonce != join_nonce and silent_s < SILENT_S:
        raise NameInUseError(
            f"another client is here as {name}",
            hint=f"stop it first; one that crashed is let go after {SILENT_S:.0f} s of silence",
        )


def holder_of_layout(run: Run, silent: frozenset[str]) -> tuple[str, bool] | None:
    """Whose layout a newcomer's must equal; None where the newcomer's may become the run's.

    Until a round is over the layout is that of those who are here. Everybody who has joined and not left has it.

    Args:
        run: Without the newcomer.
        silent: Who is taken for dead.

    Returns:
        The first to join of those who are here, and whether the layout stays whoever leaves. Where nobody is here, a
        client that has sent a model of that layout, or is asked for it.
    """
    here = next((name for name in run.sessions if name not in silent), None)
    if run.model:
        return here or run.model.members[0].name, True
    if run.announcement:
        return here or run.announcement.participants[0].name, False
    return (here, False) if here else None


def check_session(run: Run, name: str, join_nonce: str) -> None:
    """See that a client has joined, and was not replaced since.

    Raises:
        StaleError: It has not joined.
        NameInUseError: Another process has joined under its name since.
    """
    session = run.sessions.get(name)
    if session is None:
        raise StaleError(f"{name} has not joined this run")
    if session.join_nonce != join_nonce:
        raise NameInUseError(
            f"another process has joined as {name} since", hint="run one client with each client's folder"
        )


def open_attempt(run: Run, name: str, join_nonce: str, round_num: int, attempt: int) -> Announcement:
    """The open attempt, if it is the one that a participant means.

    Raises:
        StaleError: Another attempt is open, or none.
        ConflictError: The client takes no part in it.
    """
    announcement = run.announcement
    if announcement is None or run.phase is not Phase.COLLECTING:
        raise StaleError(f"round {round_num}, attempt {attempt} is not open")
    if (round_num, attempt) != (announcement.round, announcement.attempt):
        raise StaleError(
            f"an update for round {round_num}, attempt {attempt}, "
            f"and round {announcement.round}, attempt {announcement.attempt} is open"
        )
    if not any(p.name == name and p.join_nonce == join_nonce for p in announcement.participants):
        raise ConflictError(f"{name} takes no part in this attempt")
    return announcement


def check_open(run: Run, announcement: Announcement) -> None:
    """See that an attempt is still open. Raises StaleError."""
    if run.phase is not Phase.COLLECTING or run.announcement != announcement:
        raise StaleError(f"round {announcement.round}, attempt {announcement.attempt} is not open")


def is_committed(run: Run, name: str, digest: str) -> bool:
    """Whether this update of a client's is in the open attempt's sum.

    Raises:
        ConflictError: Another one of this client is.
    """
    committed = run.committed.get(name)
    if committed not in (None, digest):
        raise ConflictError(f"another update of {name} is committed in this attempt already")
    return committed is not None


def was_taken(run: Run, name: str, round_num: int, attempt: int) -> bool:
    """Whether a client's update is in the sum of an attempt that was published last.

    Its answer may have been lost, and the attempt is over when the client asks.
    """
    return any(
        (record.announcement.round, record.announcement.attempt) == (round_num, attempt)
        and any(member.name == name for member in record.members)
        for record in (run.model, run.closing)
        if record
    )


def view_of(run: Run, name: str, version: int, silent: frozenset[str]) -> View:
    """The run as one client needs to see it; of the others, some are silent."""
    return View(
        version=version,
        rounds=run.last_training,
        phase=run.phase.value,
        announcement=run.announcement if run.phase is Phase.COLLECTING else None,
        committed=name in run.committed,
        model=run.model,
        closing=run.closing,
        confirmations=dict(run.confirmations),
        settled=_is_settled(run, silent),
    )


def shown(run: Run) -> tuple[object, ...]:
    """What of a run its clients wait for; of confirmations, that those of all members are there."""
    last = max((r for r in (run.model, run.closing) if r), key=lambda r: r.announcement.round, default=None)
    confirmed = last is not None and {m.name for m in last.members} <= run.confirmations.keys()
    settled = _is_settled(run, frozenset())
    return run.phase, run.announcement, run.last_training, run.model, run.closing, confirmed, settled


def useless_sums(run: Run) -> UselessSumsError:
    """Why a run stops after sum after sum has made no model."""
    numbers, members = run.useless_rounds, run.model.members if run.model else ()
    return UselessSumsError(
        f"the sums of rounds {', '.join(map(str, numbers))} made no model, all from the same one; in each were "
        f"{', '.join(member.name for member in members)}",
        hint="one of them sends what hefl never sends: find out which before you start again",
    )


def describe(run: Run) -> str:
    """Where a run is, in words."""
    if run.is_over:
        return f"{run.phase.value} after round {run.model_round}"
    if run.announcement is None:
        return f"before round {run.next_round} ({run.phase.value})"
    committed, asked = len(run.committed), len(run.announcement.names)
    attempt = f"in round {run.next_round}, attempt {run.attempt}"
    return f"{attempt}: {committed} of {asked} updates are in"


def length(run: Run) -> str:
    """How long a run is to be, in words."""
    if not run.closing_rounds:
        return "1 round" if run.rounds == 1 else f"{run.rounds} rounds"
    return f"{run.rounds} trainings, the last in round {run.last_training}"


def _is_settled(run: Run, silent: frozenset[str]) -> bool:
    """Whether no confirmation is to come any more, since all who are not silent have told theirs."""
    return run.is_over and not set(run.awaited) - silent
