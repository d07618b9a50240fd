"""Limit what peers may take of a server: connections, time, requests."""

from __future__ import annotations

import asyncio
import resource
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

from aiohttp import web

from hefl.errors import MalformedError, TooManyError, TooSlowError, UsageError
from hefl.params import (
    LEAST_CONNECTIONS,
    MAX_CONNECTIONS,
    MAX_CONNECTIONS_OF_CLIENT,
    MIN_BYTES_PER_S,
    PAGE_CONNECTIONS,
    PATIENCE_S,
    TURNS_AT_ONCE,
    TURNS_PER_S,
)

SPARE_FILES = 128 + PAGE_CONNECTIONS
"""Beside two for a client's connection, its own and the upload's, a process needs so many descriptors."""


class Allowance:
    """How often each of several parties may do something: so many times at once, and then so many a second."""

    def __init__(self, at_once: float, per_s: float) -> None:
        self._at_once, self._per_s = at_once, per_s
        self._left: dict[str, tuple[float, float]] = {}  # by name: how many, and when there were so many

    def take(self, name: str) -> bool:
        """Take one of a party's; False where it has none left."""
        now = time.monotonic()
        left, since = self._left.get(name, (self._at_once, now))
        left = min(self._at_once, left + (now - since) * self._per_s)
        self._left[name] = (left - 1, now) if left >= 1 else (left, now)
        return left >= 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What peers may take of a server.

    Attributes:
        max_connections: At once, of all together.
        max_of_client: At once, of one client.
        max_line_bytes: Of a request's first line, and of each of its headers.
        patience_s: For TLS, for a request's head, and for a connection without a request.
        min_bytes_per_s: A body comes at least so fast over patience_s, and an answer is taken so fast.
    """

    max_connections: int = MAX_CONNECTIONS
    max_of_client: int = MAX_CONNECTIONS_OF_CLIENT
    max_line_bytes: int = 2048
    patience_s: float = PATIENCE_S
    min_bytes_per_s: float = MIN_BYTES_PER_S

    def allow_files(self) -> None:
        """Let this process open as many files as it may need.

        Raises:
            UsageError: The system does not; says how many connections it does allow.
        """
        needed = 2 * self.max_connections + SPARE_FILES
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if hard != resource.RLIM_INFINITY and hard < needed:
            most = (hard - SPARE_FILES) // 2
            fewer = f"--max-connections {most}, or " if most >= LEAST_CONNECTIONS else ""
            raise UsageError(
                f"{self.max_connections} connections need {needed} open files, and this process may have {hard}",
                hint=f"{fewer}raise the limit, see ulimit -n",
            )
        if soft != resource.RLIM_INFINITY and soft < needed:
            resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))

    async def body(self, request: web.Request) -> AsyncIterator[bytes]:
        """A request's body, as it comes.

        Raises:
            TooSlowError: It comes too slowly.
        """
        began, received = asyncio.get_running_loop().time(), 0
        while True:
            due = began + self.patience_s + received / self.min_bytes_per_s
            try:
                async with asyncio.timeout_at(due):
                    chunk = await request.content.readany()
            except TimeoutError as error:
                raise TooSlowError(
                    f"{received} bytes came in {due - began:.0f} s, where {self.min_bytes_per_s:g} a second are due",
                    hint="try again over a faster line, or ask who runs the server for a lower --min-rate",
                ) from error
            if not chunk:
                return
            received += len(chunk)
            yield chunk

    async def read(self, request: web.Request, most: int) -> bytes:
        """A whole body.

        Raises:
            TooSlowError: As body.
            MalformedError: It has over ``most`` bytes.
        """
        body = bytearray()
        async for chunk in self.body(request):
            body += chunk
            if len(body) > most:
                raise MalformedError(f"oversized: the request has over {most} bytes")
        return bytes(body)


class Turns:
    """How often one client may ask for what is written to the journal."""

    def __init__(self) -> None:
        self._allowance = Allowance(TURNS_AT_ONCE, TURNS_PER_S)

    def take(self, name: str) -> None:
        """Take one of a client's turns. Raises TooManyError where it has none left."""
        if not self._allowance.take(name):
            raise TooManyError(
                f"client {name} asks for more than {TURNS_PER_S:g} changes a second", hint="try again in a moment"
            )
