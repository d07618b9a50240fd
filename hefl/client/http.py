"""Send requests to the server, retry them, and say whose fault an error is."""

from __future__ import annotations

import asyncio
import http.client
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import aiohttp

from hefl.client.route import Route, shown
from hefl.client.tries import Tries
from hefl.errors import CertificateError, HeflError, MalformedError, ProtocolError, UnreachableError, reason_of
from hefl.files import replacing, storing
from hefl.keys.credentials import server_fault
from hefl.keys.folders import ClientFolder
from hefl.params import POLL_S
from hefl.protocol import messages
from hefl.sockets import keep_alive

log = logging.getLogger("hefl")

READ_TIMEOUT_S = 4 * POLL_S
"""A connection on which nothing moves for so long is given up. A server that lives answers each poll after POLL_S."""
IDLE_S = 0.75 * READ_TIMEOUT_S
"""One that nobody has used for so long is not trusted with a request."""
CONNECT_S = 10.0
"""So long may TCP take, and so long TLS, or a proxy."""
CHUNK_BYTES, PIECE_BYTES = 1 << 20, 1 << 17
"""Of a file that comes, and of one that goes: a slow line takes a piece in READ_TIMEOUT_S."""
AGAIN = (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE)
"""Refusals after which it is worth trying again."""
PROXY_REFUSES = (
    HTTPStatus.BAD_REQUEST,
    HTTPStatus.UNAUTHORIZED,
    HTTPStatus.FORBIDDEN,
    HTTPStatus.METHOD_NOT_ALLOWED,
    HTTPStatus.PROXY_AUTHENTICATION_REQUIRED,
)
"""Answers of a proxy that trying again does not change."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Rest:
    """A file that is streamed from an offset on."""

    path: Path
    offset: int
    tries: Tries


Body = bytes | Rest | None
"""Nothing, JSON, or a file."""


class _Unavailable(Exception):  # noqa: N818 - not an error of hefl's: it is waited out
    """The server cannot do it just now, as its refusal says."""


class Connection:
    """Requests to one server, as one client.

    Args:
        folder: The client's keys.
        url: https://HOST:PORT.
        join_nonce: This session's.
        connect_timeout_s: How long to try again where nobody answers.
        insecure_http: Allow plain HTTP, to loopback.
        proxy: http://[USER:PASSWORD@]HOST:PORT, through which TLS goes; None goes straight.

    Attributes:
        connect_timeout_s: As given, until somebody changes it.

    Raises:
        UsageError: A URL has another form, or plain HTTP is not allowed.
    """

    def __init__(
        self,
        folder: ClientFolder,
        url: str,
        join_nonce: str,
        connect_timeout_s: float,
        *,
        insecure_http: bool,
        proxy: str | None = None,
    ) -> None:
        self._route = Route(url, proxy, insecure_http=insecure_http)
        self.url = url
        self.connect_timeout_s = connect_timeout_s
        self._folder = folder
        self._headers = messages.headers(folder.secret, join_nonce)
        if insecure_http:
            self._headers[messages.HEADER_CLIENT] = folder.name
        self._insecure_http = insecure_http
        self._answered = False

    async def __aenter__(self) -> Self:
        self._context = None if self._insecure_http else self._folder.credentials.client_context()
        context = self._context or True
        connector = aiohttp.TCPConnector(ssl=context, keepalive_timeout=IDLE_S, socket_factory=_socket)
        self._http = self._session(connector)
        self._http_anew = self._session(aiohttp.TCPConnector(ssl=context, force_close=True, socket_factory=_socket))
        return self

    def _session(self, connector: aiohttp.BaseConnector) -> aiohttp.ClientSession:
        timeout = aiohttp.ClientTimeout(connect=2 * CONNECT_S, sock_connect=CONNECT_S, sock_read=READ_TIMEOUT_S)
        # A server has nothing to compress, and a little that is compressed may be much.
        return aiohttp.ClientSession(
            self.url,
            connector=connector,
            timeout=timeout,
            proxy=self._route.proxy,
            auto_decompress=False,
            skip_auto_headers=["Accept-Encoding"],
            cookie_jar=aiohttp.DummyCookieJar(),
        )

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.close()
        await self._http_anew.close()

    async def call(self, method: str, path: str, body: Body = None, headers: Mapping[str, str] | None = None) -> bytes:
        """One request and its answer's body. Raises as ``ask``."""
        return await self.ask(method, path, bytes, body, headers)

    async def ask(
        self,
        method: str,
        path: str,
        parse: Callable[[bytes], T],
        body: Body = None,
        headers: Mapping[str, str] | None = None,
    ) -> T:
        """One request and what its answer means, tried again while nobody answers.

        What may have been damaged on the way is asked for once more, over a new connection: an answer that does not
        parse, and a connection that TLS gave up.

        Raises:
            UnreachableError: Nobody answered for connect_timeout_s, and nothing moved.
            CertificateError: TLS refused one side's certificate; says which.
            MalformedError: The answer does not parse, as ``parse`` says.
            HeflError: What the server refused, as it says.
        """

        async def once(tries: Tries) -> T:
            async with self._request(method, path, tries, body, headers) as response:
                return parse(await _read(response))

        return await self._patiently(once)

    async def upload(self, path: str, file: Path, size: int, headers: Mapping[str, str], patience_s: float) -> None:
        """Send an update's file; after a break, only what the server does not have yet.

        Args:
            path: Where to.
            file: The update.
            size: Its length in bytes.
            headers: Beside those of every request; they say the update's digest.
            patience_s: How long to try again, where that is longer than connect_timeout_s, while the server answers and
                cannot store it.

        Raises:
            HeflError: As ``call``.
        """
        first = True

        async def once(tries: Tries) -> None:
            nonlocal first
            offset = 0
            if not first:
                async with self._request("GET", path, tries, headers=headers) as response:
                    held = messages.decode(await _read(response), messages.Held)
                if held.committed:
                    return
                offset = min(held.bytes, size)
                log.info("the upload goes on at byte %d of %d", offset, size)
            first = False
            more = {messages.HEADER_OFFSET: str(offset), "Content-Length": str(size - offset)}
            rest = Rest(file, offset, tries)
            async with self._request("PUT", path, tries, rest, {**headers, **more}) as response:
                await _read(response)

        await self._patiently(once, patience_s)

    async def download(self, path: str, target: Path, limit_bytes: int, *, over_new_connection: bool = False) -> int:
        """Fetch an answer's body into a file, whole or not at all; returns its size in bytes.

        Args:
            path: Where from.
            target: The file.
            limit_bytes: It is no longer.
            over_new_connection: What came over one that is open was damaged.

        Raises:
            MalformedError: It is longer than the limit.
            StateError: It cannot be stored.
            HeflError: As ``call``.
        """

        async def once(tries: Tries) -> int:
            async with self._request("GET", path, tries) as response:
                return await _store(response.content.iter_chunked(CHUNK_BYTES), target, limit_bytes, tries)

        return await self._patiently(once, over_new_connection=over_new_connection)

    @asynccontextmanager
    async def _request(
        self,
        method: str,
        path: str,
        tries: Tries,
        body: Body = None,
        headers: Mapping[str, str] | None = None,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        session = self._http_anew if tries.over_new_connection else self._http
        whole = {**self._headers, **(headers or {})}  # a session's own would be said to a proxy as well
        # The server refuses a hopeless upload before its bytes travel.
        expect = isinstance(body, Rest)
        # aiohttp waits for ever for the word that an upload may begin, and for a line that takes nothing more of it.
        async with asyncio.timeout(2 * CONNECT_S + READ_TIMEOUT_S if expect else None) as limit:
            data = _pieces(body, limit) if isinstance(body, Rest) else body
            async with session.request(
                method, path, data=data, headers=whole, expect100=expect, allow_redirects=False
            ) as response:
                limit.reschedule(None)
                self._answered = True
                if response.status in AGAIN:
                    raise _Unavailable(str(messages.error_of(await _read(response), response.status)))
                if response.status != HTTPStatus.OK:
                    raise messages.error_of(await _read(response), response.status)
                yield response

    async def leave(self) -> None:
        """Say goodbye once; a server that does not listen notices by itself."""
        with suppress(aiohttp.ClientError, OSError, TimeoutError):
            async with asyncio.timeout(2), self._http.post("/v1/leave", headers=self._headers):
                pass

    async def _patiently(
        self, exchange: Callable[[Tries], Awaitable[T]], patience_s: float = 0.0, *, over_new_connection: bool = False
    ) -> T:
        tries = Tries(str(self._route), over_new_connection=over_new_connection)
        while True:
            try:
                return await exchange(tries)
            except ProtocolError as error:
                # Damage looks like these two. All others are whole: they say what the server says.
                if type(error) not in (ProtocolError, MalformedError) or not tries.once_more(error.message):
                    raise
            except (aiohttp.ClientError, OSError, TimeoutError, _Unavailable) as error:
                if isinstance(error, aiohttp.ClientConnectorCertificateError):
                    raise await asyncio.to_thread(self._server_certificate_error, error) from error
                if isinstance(error, aiohttp.ClientHttpProxyError) and error.status in PROXY_REFUSES:
                    raise self._proxy_error(error) from error
                if self._may_be_refused(error):
                    if tries.once_more(_reason(error)):
                        continue
                    await self._raise_if_refused(error)
                answers = isinstance(error, _Unavailable)
                limit_s = max(self.connect_timeout_s, patience_s if answers else 0.0)
                await tries.wait(_reason(error), limit_s, answers=answers)

    def _proxy_error(self, error: aiohttp.ClientHttpProxyError) -> UnreachableError:
        return UnreachableError(
            f"the proxy {shown(self._route.proxy or '')} does not let this client through to {self.url}: "
            f"{error.status} {error.message}",
            hint="does it want a user and a password, as in --proxy http://USER:PASSWORD@HOST:PORT? Else ask who runs "
            "it to allow CONNECT to this server and port; NO_PROXY=HOST calls a server without it",
        )

    def _may_be_refused(self, error: Exception) -> bool:
        """Whether one side may have refused the other in TLS: damaged bytes look the same, once."""
        if isinstance(error, aiohttp.ClientConnectorSSLError):
            return True
        broken = isinstance(error, aiohttp.ClientConnectionError) and not isinstance(
            error, (aiohttp.ClientConnectorError, aiohttp.ServerTimeoutError)
        )
        return broken and not self._answered and not self._insecure_http

    async def _raise_if_refused(self, error: Exception) -> None:
        """Raise what trying again has not mended."""
        if isinstance(error, aiohttp.ClientConnectorSSLError):
            raise CertificateError(
                f"{self.url} does not speak TLS 1.3 as hefl does: {error}",
                hint="is a 'hefl serve' there, without --insecure-http, and is the port right?",
            ) from error
        if self._context and (refusal := await asyncio.to_thread(self._route.refusal, self._context)):
            raise CertificateError(
                f"{self.url} refuses the certificate in {self._folder.path}: {refusal}",
                hint="is it of the server's federation, and has it expired? The server's log may say more",
            ) from error

    def _server_certificate_error(self, error: Exception) -> HeflError:
        """Say what is wrong with the certificate that the server showed."""
        try:
            der = self._route.certificate()
        except (OSError, http.client.HTTPException):
            mine = self._folder.secret.identity
            return CertificateError(
                f"{self.url} shows a certificate that is not of {mine}: {error}", hint="is it the right server?"
            )
        return server_fault(self.url, der, self._folder.credentials)


def _reason(error: Exception) -> str:
    """Why nobody answered, in a person's words."""
    if isinstance(error, aiohttp.ClientHttpProxyError):
        return f"the proxy answers {error.status} {error.message}"
    if isinstance(error, TimeoutError) and not str(error):
        return "nothing moved"
    cause = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
    reason = reason_of(cause) if isinstance(cause, OSError) else str(cause) or type(cause).__name__
    return f"the proxy: {reason}" if isinstance(error, aiohttp.ClientProxyConnectionError) else reason


def _socket(address: aiohttp.AddrInfoType) -> socket.socket:
    family, kind, protocol_number, *_ = address
    made = socket.socket(family, kind, protocol_number)
    keep_alive(made)
    return made


async def _read(response: aiohttp.ClientResponse) -> bytes:
    """An answer's body. Raises MalformedError where it is longer than any that a server of hefl's gives."""
    body = bytearray()
    async for chunk in response.content.iter_any():
        body += chunk
        if len(body) > messages.MAX_ANSWER_BYTES:
            raise MalformedError(f"oversized: the server's answer has more than {messages.MAX_ANSWER_BYTES} bytes")
    return bytes(body)


async def _store(chunks: AsyncIterator[bytes], target: Path, limit_bytes: int, tries: Tries) -> int:
    received = 0
    with storing("the aggregate"), replacing(target) as file:
        async for chunk in chunks:
            received += len(chunk)
            if received > limit_bytes:
                raise MalformedError(f"oversized: the aggregate has more than {limit_bytes} bytes")
            file.write(chunk)
            tries.reach(received)
    return received


async def _pieces(rest: Rest, limit: asyncio.Timeout) -> AsyncIterator[bytes]:
    """A file as it goes out. While it does, each piece has READ_TIMEOUT_S."""
    loop = asyncio.get_running_loop()
    with rest.path.open("rb") as file, suppress(RuntimeError):  # which a limit raises once its request is over
        file.seek(rest.offset)
        while piece := file.read(PIECE_BYTES):
            limit.reschedule(loop.time() + READ_TIMEOUT_S)
            yield piece
            rest.tries.reach(file.tell())
        limit.reschedule(None)  # from here on the answer is waited for, which aiohttp does
