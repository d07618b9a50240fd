"""Accept connections within limits of number and time, and answer bytes that are not HTTP.

A connection is a stranger's until one of its requests has said which client asks. Where there are too many, the oldest
stranger's makes room, and then the oldest of the client that has most: so a newcomer always gets in, and who floods
cuts off itself first.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import logging
import socket
import ssl
import struct
import termios
from asyncio.sslproto import SSLProtocol
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import cast

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from hefl.errors import HeflError, MalformedError, PortInUseError, ProtocolError, UsageError, reason_of
from hefl.protocol.messages import is_loopback
from hefl.server.limits import Limits
from hefl.sockets import keep_alive

log = logging.getLogger("hefl")

BACKLOG = 1024
"""Connections that wait to be taken."""
GONE = 499
"""No answer: nobody hears it."""
FULL_S = 0.1
"""How long nobody is taken in where the system has no descriptor left."""
BUFFER_BYTES = 1 << 15
"""Of a connection's bytes, in each place where they wait: encrypted and decrypted, coming and going."""
MAX_HEADERS = 64
"""No honest request has more."""

Refuse = Callable[[web.BaseRequest, HeflError, int | None], web.Response]


class Listener:
    """Takes connections in for an application that is set up.

    Args:
        runner: The application's; its server hears the requests.
        limits: What peers may take.
        context: For TLS; None for plain HTTP.
        refuse: Answers what is no request, or none for a handler.
    """

    def __init__(self, runner: web.AppRunner, limits: Limits, context: ssl.SSLContext | None, refuse: Refuse) -> None:
        if runner.server is None:
            raise ValueError("the application is not set up")
        self.limits = limits
        self.refuse = refuse
        self._server = runner.server
        self._context = context
        self._sockets: list[socket.socket] = []
        self._accepting: list[asyncio.Task[None]] = []
        self._connections: dict[Connection, None] = {}  # in the order in which they came

    async def open(self, host: str, port: int, flag: str = "--port") -> int:
        """Listen on all addresses of a host, where callers then wait; returns the port of the first.

        Args:
            host: An address or a name of this machine's.
            port: 0 takes any.
            flag: Which chooses the port.

        Raises:
            PortInUseError: The port is taken.
            UsageError: It is no host of this machine's.
        """
        loop = asyncio.get_running_loop()
        try:
            found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
            for family, *_, address in dict.fromkeys(found):
                listening = socket.create_server(address, family=family, backlog=BACKLOG)
                listening.setblocking(False)
                self._sockets.append(listening)
        except OSError as error:
            self._close_sockets()
            if error.errno == errno.EADDRINUSE:
                raise PortInUseError(
                    f"port {port} of {host} is in use",
                    hint=f"stop what listens there, or choose another with {flag}; 0 takes any",
                ) from error
            raise UsageError(
                f"cannot listen on {host}:{port}: {reason_of(error)}",
                hint="--host 127.0.0.1 is always there"
                if is_loopback(host)
                else "--host is an address of this machine; 0.0.0.0 is all that it has",
            ) from error
        return int(self._sockets[0].getsockname()[1])

    def accept(self) -> None:
        """Take callers in from now on."""
        self._accepting = [asyncio.create_task(self._accept(listening)) for listening in self._sockets]

    async def close(self) -> None:
        """Take nobody in any more; who is in stays."""
        for task in self._accepting:
            task.cancel()
        await asyncio.gather(*self._accepting, return_exceptions=True)
        self._close_sockets()
        for connection in [c for c in self._connections if not c.carried]:
            connection.cut()

    def abort(self) -> None:
        """Cut off whoever is in."""
        for connection in list(self._connections):
            connection.cut()

    def identified(self, request: web.BaseRequest, name: str) -> None:
        """A request has said which client asks."""
        connection = request.protocol
        if not isinstance(connection, Connection) or connection.client == name:
            return
        connection.client = name
        its = [c for c in self._connections if c.client == name]
        for oldest in its[: -self.limits.max_of_client]:
            oldest.cut()

    def gone(self, connection: Connection) -> None:
        """A connection has ended."""
        self._connections.pop(connection, None)

    async def _accept(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                taken, _ = await loop.sock_accept(listening)
            except ConnectionError:
                continue  # the caller has gone
            except OSError as error:
                log.error("no connection can be taken: %s", error.strerror)
                self._make_room()
                await asyncio.sleep(FULL_S)
                continue
            if len(self._connections) >= self.limits.max_connections:
                self._make_room()
            connection = Connection(self, self._server)
            self._connections[connection] = None
            connection.shake_hands(taken, self._context)

    def _make_room(self) -> None:
        if not self._connections:
            return
        strangers = (c for c in self._connections if c.client is None)
        most = Counter(c.client for c in self._connections).most_common(1)[0][0]
        oldest = next(strangers, None) or next(c for c in self._connections if c.client == most)
        oldest.cut()

    def _close_sockets(self) -> None:
        for listening in self._sockets:
            listening.close()


class LeanTLS(SSLProtocol):
    """TLS for one of many connections: what it holds does not depend on how fast its peer is.

    uvloop's own lets half a megabyte wait, and keeps room for it until the connection ends. asyncio's does the same
    work, and how much it reads at a time can be set.
    """

    max_size = BUFFER_BYTES

    def __init__(
        self,
        taken: socket.socket,
        context: ssl.SSLContext,
        above: asyncio.Protocol,
        ready: asyncio.Future[None],
        limit_s: float,
    ) -> None:
        self._taken = taken
        super().__init__(
            asyncio.get_running_loop(),
            above,
            context,
            ready,
            server_side=True,
            ssl_handshake_timeout=limit_s,  # type: ignore[arg-type] # asyncio takes a float too
            ssl_shutdown_timeout=limit_s,
        )
        self._set_read_buffer_limits(BUFFER_BYTES)  # type: ignore[attr-defined] # it is there

    def _on_handshake_complete(self, handshake_exc: BaseException | None) -> None:
        if handshake_exc:  # asyncio drops the alert by which TLS says why
            with suppress(OSError):
                self._taken.send(self._outgoing.read())  # type: ignore[attr-defined] # it is there
        super()._on_handshake_complete(handshake_exc)


class Connection(web.RequestHandler):
    """One connection, from the moment it is taken: before TLS it has no transport, and before a request no client."""

    __slots__ = ("_below", "_carrier", "_ending", "_listener", "_shaking", "_stalled", "client")

    def __init__(self, listener: Listener, server: web.Server) -> None:
        super().__init__(
            server,
            loop=asyncio.get_running_loop(),
            access_log=None,  # type: ignore[arg-type] # as AppRunner has it
            # Also of a connection that never asks, and of a head that never ends.
            keepalive_timeout=listener.limits.patience_s,
            # What is compressed may be more than its length says.
            auto_decompress=False,
            max_line_size=listener.limits.max_line_bytes,
            max_field_size=listener.limits.max_line_bytes,
            max_headers=MAX_HEADERS,
            read_bufsize=BUFFER_BYTES,
        )
        self.client: str | None = None
        self._listener = listener
        self._shaking: asyncio.Task[None] | None = None
        self._carrier: asyncio.Transport | None = None
        self._below: asyncio.Transport | None = None  # TLS
        self._stalled: asyncio.TimerHandle | None = None
        self._ending: asyncio.TimerHandle | None = None

    def shake_hands(self, taken: socket.socket, context: ssl.SSLContext | None) -> None:
        """Do TLS over a new connection, within the limits."""
        self._shaking = asyncio.create_task(self._shake_hands(taken, context))

    async def _shake_hands(self, taken: socket.socket, context: ssl.SSLContext | None) -> None:
        loop, ready = self._loop, self._loop.create_future()
        try:
            taken.setblocking(False)
            keep_alive(taken)
            if context is None:
                await loop.connect_accepted_socket(lambda: self, taken)
                return
            tls = LeanTLS(taken, context, self, ready, self._listener.limits.patience_s)
            self._below, _ = await loop.connect_accepted_socket(lambda: tls, taken)
            try:
                await ready
            except BaseException:
                self._below.abort()
                raise
        except (OSError, asyncio.CancelledError):
            taken.close()
            self._listener.gone(self)

    @property
    def carried(self) -> bool:
        """TLS has begun, or is not wanted."""
        return self._carrier is not None

    def cut(self) -> None:
        """End it at once."""
        self._listener.gone(self)
        # One that TLS has closed already may still wait, below it, for a peer that takes nothing.
        if carrier := self._below or self._carrier:
            carrier.abort()
        elif self._shaking:
            self._shaking.cancel()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """TLS has begun, or is not wanted."""
        # The base class forgets its own while it says goodbye, which may take a peer that does not answer for ever.
        self._carrier = cast(asyncio.Transport, transport)
        self._carrier.set_write_buffer_limits(BUFFER_BYTES)
        super().connection_made(transport)

    def eof_received(self) -> None:
        """The peer says no more; that it does not take what it is still told must not keep it here."""
        super().eof_received()
        self._ending = self._loop.call_later(self._listener.limits.patience_s, self.cut)

    def connection_lost(self, exc: BaseException | None) -> None:
        """It has ended."""
        self._listener.gone(self)
        if self._ending:
            self._ending.cancel()
        self._let_go()
        super().connection_lost(exc)

    # --- answers that are not taken -----------------------------------------------------------------------------------

    def pause_writing(self) -> None:
        """The peer takes an answer slower than it is made."""
        super().pause_writing()
        self._watch(self._unsent_bytes())

    def resume_writing(self) -> None:
        """The peer has taken most of what waited."""
        super().resume_writing()
        self._let_go()

    def _watch(self, unsent_bytes: int) -> None:
        limits = self._listener.limits
        self._stalled = self._loop.call_later(limits.patience_s, self._look, unsent_bytes)

    def _look(self, before_bytes: int) -> None:
        """Cut off who has taken too little of an answer since the last look: while writing pauses, nothing is added."""
        limits, unsent_bytes = self._listener.limits, self._unsent_bytes()
        if before_bytes - unsent_bytes < limits.min_bytes_per_s * limits.patience_s:
            log.warning("cut off %s, which takes its answer too slowly", self.client or "an unknown client")
            self.cut()
        else:
            self._watch(unsent_bytes)

    def _unsent_bytes(self) -> int:
        """Here and in the kernel, as far as it says."""
        if self._carrier is None:
            return 0
        waiting = self._carrier.get_write_buffer_size()
        with suppress(OSError):
            number = self._carrier.get_extra_info("socket").fileno()
            waiting += struct.unpack("i", fcntl.ioctl(number, termios.TIOCOUTQ, bytes(4)))[0]
        return waiting

    def _let_go(self) -> None:
        if self._stalled:
            self._stalled.cancel()

    # --- what no handler sees -----------------------------------------------------------------------------------------

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer bytes that are no request, and nobody where a peer went away before its answer."""
        if isinstance(exc, ConnectionError):
            log.info("%s has gone before its answer", self.client or "an unknown client")
            unheard = web.Response(status=GONE)
            unheard.force_close()
            return unheard
        if isinstance(exc, HttpProcessingError):
            said = exc.message.partition("\n")[0].rstrip(":")
        elif isinstance(exc, UnicodeError):  # aiohttp answers an Expect that it does not know by quoting it
            said = "a header is not UTF-8"
        else:
            return super().handle_error(request, status, exc, message)
        response = self._listener.refuse(request, MalformedError(f"not a request: {said}"), None)
        response.force_close()
        return response

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Let a refusal that comes from no handler look as all others."""
        if isinstance(resp, web.HTTPException):
            resp = self._listener.refuse(request, refused(request, resp), resp.status)
        return await super().finish_response(request, resp, start_time)


def refused(request: web.BaseRequest, error: web.HTTPException) -> ProtocolError:
    """What aiohttp refuses, as an error of hefl's."""
    return ProtocolError(f"{request.method} {request.path}: {error.reason}")
