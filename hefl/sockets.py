"""Keep TCP connections alive, and notice a peer that is gone."""

from __future__ import annotations

import socket

IDLE_S, EVERY_S, COUNT = 15, 5, 3
"""A connection on which nothing moves for so long is probed, so often, and given up after so many probes."""

_OPTIONS = (
    ("TCP_KEEPIDLE", IDLE_S),
    ("TCP_KEEPALIVE", IDLE_S),  # as macOS calls it
    ("TCP_KEEPINTVL", EVERY_S),
    ("TCP_KEEPCNT", COUNT),
)


def keep_alive(connection: socket.socket) -> None:
    """Let the system probe the peer of a TCP socket."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _OPTIONS:
        if option := getattr(socket, name, None):
            connection.setsockopt(socket.IPPROTO_TCP, option, value)
