"""Decide how often and how long a request is tried again."""

from __future__ import annotations

import asyncio
import logging
import random
import time

from hefl.errors import UnreachableError

log = logging.getLogger("hefl")

FIRST_DELAY_S, LAST_DELAY_S = 0.1, 5.0
LEAST_TRIES = 3
"""So often an exchange is tried at least: a single one may meet a connection that went dead long ago."""
REMIND_S = 60.0
"""How often a client that tries again says so."""


class Tries:
    """One exchange, over all of its tries.

    Args:
        where: The server, in words.
        over_new_connection: The first try does not trust a connection that is open already.

    Attributes:
        over_new_connection: The next try does not.
    """

    def __init__(self, where: str, *, over_new_connection: bool = False) -> None:
        self.over_new_connection = over_new_connection
        self._where = where
        self._reached_bytes = 0
        self._damaged = False
        self._said_at: float | None = None
        self._begin()

    def _begin(self) -> None:
        """Nothing has failed since something moved."""
        self._failed, self._failing_since, self._delay_s = 0, 0.0, FIRST_DELAY_S

    def reach(self, position: int) -> None:
        """The file that is transferred has come to this byte."""
        if position > self._reached_bytes:
            self._reached_bytes = position
            self._begin()

    def once_more(self, reason: str) -> bool:
        """Whether to try once more what failed as it does where bytes were damaged on the way: the first time only."""
        if self._damaged:
            return False
        self._damaged = self.over_new_connection = True
        log.info("what came from %s may be damaged (%s); asking once more over a new connection", self._where, reason)
        return True

    async def wait(self, reason: str, limit_s: float, *, answers: bool) -> None:
        """Wait before the next try.

        Args:
            reason: Why the last one failed.
            limit_s: How long to go on after the first failure, or the first since something moved. A try that hangs
                before it fails does not count.
            answers: The server does answer, and cannot do it now.

        Raises:
            UnreachableError: It has failed for so long, and LEAST_TRIES times.
        """
        now = time.monotonic()
        if not self._failed:
            self._failing_since = now
        self._failed += 1
        failing_s = now - self._failing_since
        if failing_s >= limit_s and self._failed >= LEAST_TRIES:
            did_not = "could not do it" if answers else "did not answer"
            raise UnreachableError(
                f"{self._where} {did_not} for {failing_s:.0f} s: {reason}",
                hint="is the server running, and is its address right? See --server and --connect-timeout; "
                "for a run that is over see 'hefl serve --linger' and 'hefl export'",
            )
        left_s = max(limit_s - failing_s, 0.0)
        if self._said_at is None or now - self._said_at >= REMIND_S:
            self._said_at = now
            does_not = "cannot do it now" if answers else "does not answer"
            log.info("%s %s (%s); trying again, for up to %.0f s", self._where, does_not, reason, left_s)
        # Clients that lost one server should not all come back at once. Not cryptography.
        jittered_s = self._delay_s * random.uniform(0.5, 1.0)  # noqa: S311
        self._delay_s = min(2 * self._delay_s, LAST_DELAY_S)
        self.over_new_connection = True
        await asyncio.sleep(min(jittered_s, left_s) if left_s else jittered_s)
