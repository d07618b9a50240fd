"""Log a run's events and pass them to the caller."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from hefl.engines.engine import Engine
from hefl.errors import HeflError
from hefl.params import LINES_AT_ONCE, LINES_PER_S
from hefl.protocol.messages import OtherLayoutError
from hefl.protocol.records import Announcement, Record
from hefl.rounds.kept_settings import KeptSettings, changes
from hefl.rounds.run import Phase, Run
from hefl.rounds.schedule import Clock
from hefl.server.limits import Allowance

log = logging.getLogger("hefl")

Emit = Callable[[Mapping[str, Any]], None]

SAY_AGAIN_S = 60.0
"""A client with another layout than the others' waits and asks again. The log says so so often."""

EXCHANGES = {"initial": "initial parameters", "training": "training", "closing": "closing metrics"}


class News:
    """Tells it.

    Args:
        emit: Is told every event.
        engine: May warn of an attempt, which is logged once.
    """

    def __init__(self, emit: Emit, engine: Engine) -> None:
        self._emit = emit
        self._engine = engine
        self._warned: str | None = None

    def joined(self, name: str, num_examples: int) -> None:
        """A client is here."""
        log.info("%(client)s joined with %(num_examples)d examples", {"client": name, "num_examples": num_examples})
        self._emit({"event": "joined", "client": name, "num_examples": num_examples})

    def left(self, name: str, why: str = "") -> None:
        """A client is gone."""
        log.info("%(client)s left%(why)s", {"client": name, "why": why and f": {why}"})
        self._emit({"event": "left", "client": name})

    def announced(self, announcement: Announcement) -> None:
        """An attempt is open."""
        warning = self._engine.warning(announcement.as_attempt())
        if warning and warning != self._warned:
            log.warning("%s", warning)
            self._warned = warning
        names, number, attempt = announcement.names, announcement.round, announcement.attempt
        log.info(
            "round %(round)d, attempt %(attempt)d: %(what)s of %(participants)s",
            {
                "round": number,
                "attempt": attempt,
                "what": EXCHANGES[announcement.exchange],
                "participants": ", ".join(names),
            },
        )
        self._emit(
            {
                "event": "announced",
                "round": number,
                "attempt": attempt,
                "exchange": announcement.exchange,
                "participants": list(names),
            }
        )

    def update(self, number: int, name: str, size_bytes: int) -> None:
        """A participant's update is committed."""
        log.info("round %(round)d: update of %(client)s is in", {"round": number, "client": name})
        self._emit({"event": "update", "round": number, "client": name, "bytes": size_bytes})

    def abandoned(self, run: Run, reason: str) -> None:
        """An attempt at the next round came to nothing."""
        number, closing = run.next_round, run.exchange == "closing"
        so = "the metrics of the last model stay unknown" if closing else "trying again"
        log.warning("round %(round)d: %(reason)s; %(so)s", {"round": number, "reason": reason, "so": so})
        self._emit({"event": "abandoned", "round": number, "reason": reason})

    def published(self, record: Record, bytes_up: int, seconds: Mapping[str, float]) -> None:
        """A round is over."""
        announcement, names = record.announcement, [m.name for m in record.members]
        log.info(
            "round %(round)d: %(in)d of %(of)d in, %(kilobytes_up).1f kB up, aggregated in %(aggregate_s).3f s",
            {
                "round": announcement.round,
                "in": len(names),
                "of": len(announcement.names),
                "kilobytes_up": bytes_up / 1e3,
                "aggregate_s": seconds["aggregate"],
            },
        )
        self._emit(
            {
                "event": "round",
                "round": announcement.round,
                "in": names,
                "missed": [n for n in announcement.names if n not in names],
                "bytes_up": bytes_up,
                "seconds": seconds,
            }
        )

    def useless(self, run: Run, name: str) -> None:
        """A client says that the last sum made no model."""
        number, members = run.model_round, [member.name for member in run.model.members] if run.model else []
        hint = "one of them sends what hefl never sends; the others train again, for the very same sum"
        log.warning(
            "round %(round)d made no model, says %(client)s; in it were %(members)s",
            {"round": number, "client": name, "members": ", ".join(members)},
            extra={"hint": hint},
        )
        self._emit({"event": "useless", "round": number, "client": name})

    def stopped(self, run: Run) -> None:
        """The clients had enough."""
        last, planned = run.model_round, run.last_training
        log.info("stopped after round %d of %d: the clients had enough", last, planned)
        self._emit({"event": "stopped", "round": last, "rounds": planned})

    def settled(self, before: KeptSettings | None, after: KeptSettings) -> None:
        """The run has other settings than before; None where it is begun."""
        for change in changes(before or after, after):
            log.info("%s", change)

    def extended(self, before: Run, run: Run) -> None:
        """The run is to have more trainings."""
        numbers = (before.rounds, run.rounds, run.next_round, run.last_training)
        hint = "its clients had enough (--patience), and where they still have, nothing is trained: see --init"
        log.info(
            "the run goes on from %d to %d trainings, rounds %d to %d",
            *numbers,
            extra={"hint": hint} if before.stopped else None,
        )

    def ended(self, run: Run) -> None:
        """The run is over."""
        log.info("the run has ended after round %(round)d", {"round": run.model_round})
        say_who_lacks(run)
        self._emit(ended(run))

    def awaited(self, run: Run, clock: Clock, min_clients: int) -> None:
        """Whom the run waits for, if for anybody."""
        if run.announcement and run.awaited and run.phase is Phase.COLLECTING:
            left_s = max(run.announcement.deadline_s - clock.phase_s, 0)
            log.info(
                "round %(round)d: waiting for %(awaited)s, for %(deadline_s).0f s more",
                {"round": run.next_round, "awaited": ", ".join(run.awaited), "deadline_s": left_s},
            )
        here = run.sessions.keys() - clock.silent
        if run.phase is Phase.GATHERING and run.again is not None and (absent := sorted(run.again.keys() - here)):
            log.info(
                "waiting for %s: after the useless sum of round %d only its members train again, and all of them",
                ", ".join(absent),
                run.model_round,
            )
            return
        if run.phase is Phase.GATHERING and (absent := [name for name in run.known if name not in here]):
            names = ", ".join(absent)
            log.info("waiting for %s to join (%d here, at least %d needed)", names, len(here), min_clients)
        left_s = clock.linger_s - clock.phase_s
        if run.phase is Phase.FINISHING and run.unconfirmed and left_s > 0:
            log.info("serving the result to %s, for %.0f s more", ", ".join(run.unconfirmed), left_s)


class Lines:
    """How many lines of the log may be about one client: a flood of refusals must not fill a disk."""

    def __init__(self, at_once: float = LINES_AT_ONCE, per_s: float = LINES_PER_S) -> None:
        self._allowance = Allowance(at_once, per_s)
        self._left_out: Counter[str] = Counter()

    def take(self, name: str) -> int | None:
        """How many were left out before this one; None where this one is to be left out too."""
        if self._allowance.take(name):
            return self._left_out.pop(name, 0)
        self._left_out[name] += 1
        return None


class Refusals:
    """Tells what was refused to whom.

    Args:
        emit: Is told of each.
    """

    def __init__(self, emit: Emit) -> None:
        self._emit = emit
        self._lines = Lines()
        self._lines_of_waiting = Lines(1, 1 / SAY_AGAIN_S)

    def tell(self, method: str, path: str, client: str | None, error: HeflError, status: int) -> None:
        """A request was refused."""
        fields = {"client": client, "reason": type(error).__name__, "status": status}
        who = client or "an unknown client"
        lines = self._lines_of_waiting if isinstance(error, OtherLayoutError) else self._lines
        left_out = lines.take(who)
        if left_out is not None:
            text = "refused %(method)s %(path)s of %(who)s: %(why)s"
            if left_out:
                text += " (and %(left_out)d more before that)"
            shown = {"method": method, "path": path, "who": who, "why": error, "left_out": left_out}
            log.warning(text, shown | fields)
        self._emit({"event": "refused", **fields})


def ended(run: Run) -> dict[str, Any]:
    """The event that a run is over."""
    return {"event": "ended", "rounds": run.model_round, "lacking": list(run.unconfirmed)}


def say_who_lacks(run: Run) -> None:
    """Log who may not have the result of a run that is over, if anybody."""
    if run.unconfirmed:
        hint = "the same command with --linger 600 serves it for ten minutes to who comes late"
        log.warning("not known to have the result: %s", ", ".join(run.unconfirmed), extra={"hint": hint})
