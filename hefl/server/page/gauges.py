"""Metrics of a run for Prometheus.

Labels take few values: phases of the round table, classes of errors, and the clients that the server knows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector

from hefl.rounds.run import Phase, Run
from hefl.rounds.schedule import Clock
from hefl.server.page.watch import Watch, awaited, deadline_s
from hefl.version import __version__

BUCKETS_S = (0.01, 0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600)

Look = Callable[[], tuple[Run, Clock]]
"""The run as it stands, and its clock."""


class Gauges:
    """Counts events, and reads the round table when it is asked.

    Args:
        look: Shows the run.
        watch: Has seen every event that ``see`` is shown.

    Attributes:
        registry: What to expose.
    """

    def __init__(self, look: Look, watch: Watch) -> None:
        self.registry = registry = CollectorRegistry()
        self._watch = watch
        ProcessCollector(registry=registry)
        run, _ = look()
        Info("hefl", "Version of hefl, and id of the run.", registry=registry).info(
            {"version": __version__, "run": run.run}
        )
        phases = Gauge("hefl_phase", "1 for the phase that the run is in.", ["phase"], registry=registry)
        for phase in Phase:
            phases.labels(phase.value).set_function(partial(_is_in, phase, look))
        gauges: dict[str, tuple[str, Callable[[Run, Clock], float]]] = {
            "hefl_round": (
                "Round that is open or comes next; at the end the last model's.",
                lambda run, clock: run.shown_round,
            ),
            "hefl_rounds": ("Round of the last training.", lambda run, clock: run.last_training),
            "hefl_clients_known": ("Clients that may join.", lambda run, clock: len(run.known)),
            "hefl_clients_joined": ("Clients that are here.", lambda run, clock: len(run.sessions)),
            "hefl_clients_awaited": (
                "Clients whose update, or whose last request, is awaited.",
                lambda run, clock: len(awaited(run, clock)),
            ),
            "hefl_clients_silent": ("Clients not heard of for too long.", lambda run, clock: len(clock.silent)),
            "hefl_deadline_seconds": (
                "Seconds until the open attempt closes; NaN where none is open.",
                lambda run, clock: float("nan") if (left := deadline_s(run, clock)) is None else left,
            ),
        }
        for name, (text, value) in gauges.items():
            Gauge(name, text, registry=registry).set_function(partial(_read, value, look))
        self._updates = Counter("hefl_updates", "Updates that went into a sum.", ["client"], registry=registry)
        for client in run.known:
            self._updates.labels(client)
        self._received = Counter("hefl_bytes_received", "Bytes of updates received.", registry=registry)
        self._sent = Counter("hefl_bytes_sent", "Bytes of aggregates sent.", registry=registry)
        self._abandoned = Counter("hefl_attempts_abandoned", "Attempts that came to nothing.", registry=registry)
        self._refused = Counter("hefl_requests_refused", "Refused requests.", ["reason"], registry=registry)
        self._seconds = Histogram(
            "hefl_round_seconds", "Seconds of a round in each phase.", ["phase"], buckets=BUCKETS_S, registry=registry
        )

    def see(self, event: Mapping[str, Any]) -> None:
        """Count one event."""
        match event:
            case {"event": "update", "client": name, "bytes": size}:
                self._updates.labels(name).inc()
                self._received.inc(size)
            case {"event": "download", "bytes": size}:
                self._sent.inc(size)
            case {"event": "abandoned"}:
                self._abandoned.inc()
            case {"event": "refused", "reason": reason}:
                self._refused.labels(reason).inc()
            case {"event": "round", "round": number}:
                for phase, seconds in (self._watch.rows[number].seconds or {}).items():
                    self._seconds.labels(phase).observe(seconds)


def _is_in(phase: Phase, look: Look) -> float:
    return look()[0].phase is phase


def _read(value: Callable[[Run, Clock], float], look: Look) -> float:
    return value(*look())
