"""How often one exchange with a server is tried, and how long."""

from __future__ import annotations

import asyncio
import logging
import random
import time

from hefl.errors import UnreachableError

log = logging.getLogger("hefl")

FIRST_DELAY_S, LAST_DELAY_S = 0.1, 5.0


class Tries:
    """One exchange, over all of its tries.

    Args:
        url: The server's.
        over_new_connection: The first try does not trust a connection that is open already.

    Attributes:
        over_new_connection: The next try does not.
    """

    def __init__(self, url: str, *, over_new_connection: bool = False) -> None:
        self.over_new_connection = over_new_connection
        self._url = url
        self._moved_at = time.monotonic()  # before anything moved, when it began
        self._reached_bytes = 0
        self._damaged = False
        self._delay_s = FIRST_DELAY_S

    def reach(self, position: int) -> None:
        """The file that is transferred has come to this byte."""
        if position > self._reached_bytes:
            self._reached_bytes, self._moved_at = position, time.monotonic()

    def once_more(self, reason: str) -> bool:
        """Whether to try once more what failed as it does where bytes were damaged on the way: the first time only."""
        if self._damaged:
            return False
        self._damaged = self.over_new_connection = True
        log.info("what came from %s may be damaged (%s); asking once more over a new connection", self._url, reason)
        return True

    async def wait(self, reason: str, limit_s: float, *, answers: bool) -> None:
        """Wait before the next try.

        Args:
            reason: Why the last one failed.
            limit_s: How long to try, since something moved.
            answers: The server does answer, and cannot do it now.

        Raises:
            UnreachableError: It has been tried for so long.
        """
        waited_s = time.monotonic() - self._moved_at
        if waited_s >= limit_s:
            did_not = "could not do it" if answers else "did not answer"
            raise UnreachableError(
                f"{self._url} {did_not} for {waited_s:.0f} s: {reason}",
                hint="is the server running, and is its address right? See --server and --connect-timeout; "
                "for a run that is over see 'hefl serve --linger' and 'hefl export'",
            )
        if self._delay_s == FIRST_DELAY_S:
            does_not = "cannot do it now" if answers else "does not answer"
            log.info("%s %s (%s); trying again", self._url, does_not, reason)
        # Clients that lost one server should not all come back at once. Not cryptography.
        jittered_s = self._delay_s * random.uniform(0.5, 1.0)  # noqa: S311
        self._delay_s = min(2 * self._delay_s, LAST_DELAY_S)
        self.over_new_connection = True
        await asyncio.sleep(min(jittered_s, limit_s - waited_s))
