"""TCP keep-alive, as the kernel tells of the connections of real processes."""

from __future__ import annotations

import os
import time
from pathlib import Path
from urllib.parse import urlsplit

from federation import Federation

from hefl.sockets import COUNT, EVERY_S, IDLE_S

ESTABLISHED, KEEPALIVE = "01", "02"


def timers(port: int) -> dict[str, list[float]]:
    """Seconds until the next probe of each open connection to a port, by the end that probes."""
    found: dict[str, list[float]] = {"server": [], "client": []}
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, remote, state, _, timer, *_ = line.split()
        kind, when = timer.split(":")
        for side, address in (("server", local), ("client", remote)):
            if int(address.split(":")[1], 16) == port and (state, kind) == (ESTABLISHED, KEEPALIVE):
                found[side].append(int(when, 16) / os.sysconf("SC_CLK_TCK"))
    return found


def test_both_ends_probe_a_connection_on_which_nothing_moves(tmp_path: Path) -> None:
    """The system's own default is two hours."""
    with Federation(tmp_path / "fed", "alice", "bob") as keys:
        server = keys.serve(tmp_path / "server")
        keys.client("alice", tmp_path / "alice")
        server.until("alice joined")
        seen: dict[str, list[float]] = {"server": [], "client": []}
        deadline = time.monotonic() + 30
        while not all(seen.values()):
            assert time.monotonic() < deadline
            for side, found in timers(urlsplit(keys.url).port or 0).items():
                seen[side] += found
        assert max(seen["server"] + seen["client"]) <= IDLE_S


def test_a_peer_that_is_gone_is_noticed_within_half_a_minute() -> None:
    assert IDLE_S + EVERY_S * COUNT <= 30
