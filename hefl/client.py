"""The client: a thin shell over HTTPS around a Learner."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import random
import ssl
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import get_args
from urllib.parse import urlsplit

import aiohttp
import msgspec

from hefl import protocol
from hefl.codec import Exchange, Metrics
from hefl.errors import (
    CertificateError,
    ConflictError,
    EngineError,
    HeflError,
    KeysError,
    LayoutError,
    MalformedError,
    StaleError,
    StateError,
    UnreachableError,
    UsageError,
)
from hefl.files import replacing
from hefl.history import Announcement, Record
from hefl.keys import tls
from hefl.keys.party import ClientFolder
from hefl.layout import unseal
from hefl.learner import Learner
from hefl.protocol import Join, View, Welcome
from hefl.updates import max_aggregate_bytes

log = logging.getLogger("hefl")

READ_TIMEOUT_S = 60.0
CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundReport:
    """One finished round, as this client saw it.

    Attributes:
        round: Its number; one more than the last training's is the closing exchange of metrics.
        rounds: How many trainings the run has.
        metrics: Averages over the clients, of the model that the round started from; empty in round 0.
        verified: The aggregate proved that it is the announced sum.
        bytes_up, bytes_down: Sizes of this client's update and of the aggregate.
        seconds: By phase; see timings.PHASES.
    """

    round: int
    rounds: int
    metrics: Metrics
    verified: bool
    bytes_up: int
    bytes_down: int
    seconds: Mapping[str, float]


class Client:
    """Takes part in one run, from joining to the last record.

    Args:
        folder: The client's keys.
        learner: Its model and data.
        state: A private folder, locked by the caller.
        url: The server's; default: the folder's.
        connect_timeout_s: How long to try again where nobody answers.
        insecure_http: Allow plain HTTP, to loopback.
        on_round: Is told each finished round.

    Raises:
        UsageError: Plain HTTP that is not allowed.
        EngineError: ``plaintext`` beyond this machine.
    """

    def __init__(
        self,
        folder: ClientFolder,
        learner: Learner,
        state: Path,
        *,
        url: str | None = None,
        connect_timeout_s: float = 30.0,
        insecure_http: bool = False,
        on_round: Callable[[RoundReport], None] = lambda report: None,
    ) -> None:
        self._url = (url or folder.url).rstrip("/")
        _check_url(self._url, learner.engine.name, insecure_http=insecure_http)
        self._folder = folder
        self._learner = learner
        self._state = state
        self._connect_timeout_s = connect_timeout_s
        self._on_round = on_round
        self._nonce = _join_nonce(state)
        self._headers = protocol.headers(folder.secret.identity, self._nonce)
        if insecure_http:
            self._headers[protocol.HEADER_CLIENT] = folder.name
        self._welcome: Welcome | None = None
        self._view: View | None = None
        self._news = asyncio.Event()
        self._done: tuple[int, int] = (-1, 0)
        self._taken = -1
        self._bytes_up = 0

    async def run(self) -> None:
        """Join, take part in every round, and return when the run has ended and its model is here.

        Raises:
            UnreachableError: Nobody answered for connect_timeout_s.
            HeflError: Anything that this client or the server refused.
        """
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=READ_TIMEOUT_S)
        secure = tls.client_context(self._folder.path) if self._url.startswith("https:") else False
        connector = aiohttp.TCPConnector(ssl=secure)
        async with aiohttp.ClientSession(
            self._url, connector=connector, headers=self._headers, timeout=timeout
        ) as http:
            self._http = http
            await self._join()
            poll = asyncio.create_task(self._poll())
            try:
                await self._take_part(poll)
            finally:
                poll.cancel()
                with suppress(asyncio.CancelledError, HeflError):
                    await poll
                await self._leave()

    # --- the run ------------------------------------------------------------------------------------------------------

    async def _join(self) -> None:
        learner = self._learner
        join = Join(
            engine=learner.engine.name,
            weighting="server",
            num_examples=learner.num_examples,
            join_nonce=self._nonce,
            layout=learner.layout.commitment(self._folder.secret),
            sealed_layout=learner.layout.seal(self._folder.secret),
            values={exchange: learner.values(exchange) for exchange in get_args(Exchange)},
        )
        body = await self._call("POST", "/v1/join", msgspec.json.encode(join))
        welcome = protocol.decode(body, Welcome)
        if self._welcome and welcome.run != self._welcome.run:
            raise ConflictError("the server has begun another run", hint="start this client again to join it")
        if self._welcome is None:
            log.info("joined %s as %s with %d examples", self._url, self._folder.name, learner.num_examples)
        self._welcome = welcome

    async def _poll(self) -> None:
        """Keep the newest view, and show the server that this client lives."""
        while True:
            after = self._view.version if self._view else 0
            try:
                view = protocol.decode(await self._call("GET", f"/v1/run?after={after}"), View)
            except StaleError:
                await self._join()
                continue
            self._view = view
            self._news.set()

    async def _next_view(self, poll: asyncio.Task[None], after: int) -> View:
        """Wait for a view newer than ``after``; raises what ended the polling."""
        while self._view is None or self._view.version <= after:
            self._news.clear()
            waiting = asyncio.create_task(self._news.wait())
            await asyncio.wait([waiting, poll], return_when=asyncio.FIRST_COMPLETED)
            waiting.cancel()
            if poll.done():
                poll.result()
        return self._view

    async def _take_part(self, poll: asyncio.Task[None]) -> None:
        version = -1
        while True:
            view = await self._next_view(poll, version)
            version = view.version
            await self._take_records(view)
            if view.phase in ("draining", "ended"):
                await self._call("POST", "/v1/fetched")
                return
            announcement = view.announcement
            if announcement and self._is_asked(announcement) and not view.committed:
                await self._answer(announcement)

    def _is_asked(self, announcement: Announcement) -> bool:
        if (announcement.round, announcement.attempt) <= self._done:
            return False
        if announcement.engine != self._learner.engine.name:
            raise EngineError(
                f"the server announces engine {announcement.engine!r}, "
                f"and this client runs {self._learner.engine.name!r}"
            )
        return any(p.name == self._folder.name and p.join_nonce == self._nonce for p in announcement.participants)

    async def _answer(self, announcement: Announcement) -> None:
        """Do what is asked, and upload it; an attempt that is over by then was missed."""
        path = self._state / "update.bin"
        try:
            size = await asyncio.to_thread(self._write_update, path, announcement)
            with self._learner.timings.phase("upload"):
                await self._upload(path, size, announcement)
            self._bytes_up = size
        except StaleError as error:
            log.warning("round %d was missed: %s", announcement.round, error)
        finally:
            path.unlink(missing_ok=True)
        self._done = (announcement.round, announcement.attempt)

    def _write_update(self, path: Path, announcement: Announcement) -> int:
        """Spool the update; returns its size in bytes."""
        try:
            with replacing(path) as file:
                self._learner.write_update(file, announcement)
                return file.tell()
        except OSError as error:
            raise StateError(f"the update cannot be stored: {error.strerror}", hint="make room on the disk") from error

    async def _upload(self, path: Path, size: int, announcement: Announcement) -> None:
        where = f"/v1/rounds/{announcement.round}/{announcement.attempt}/update"
        headers = {
            protocol.HEADER_NUM_EXAMPLES: str(self._learner.num_examples),
            "Content-Length": str(size),
        }
        await self._call("PUT", where, path, headers=headers)
        log.info("round %d: sent %.1f kB", announcement.round, size / 1e3)

    async def _take_records(self, view: View) -> None:
        """Fetch and accept each record that is news."""
        for record in (view.model, view.closing):
            if record is None or record.announcement.round <= self._taken:
                continue
            path = self._state / "aggregate.bin"
            with self._learner.timings.phase("download"):
                if not await self._download(path, record):
                    return
            metrics = await asyncio.to_thread(self._learner.accept, path, record)
            self._taken = record.announcement.round
            self._report(record, metrics, path.stat().st_size)
            path.unlink()

    def _report(self, record: Record, metrics: Metrics, bytes_down: int) -> None:
        if self._welcome is None:
            raise StateError("a record before a welcome")
        mine = any(m.name == self._folder.name for m in record.members)
        self._on_round(
            RoundReport(
                round=record.announcement.round,
                rounds=self._welcome.rounds,
                metrics=metrics,
                verified=self._learner.engine.verifies,
                bytes_up=self._bytes_up if mine else 0,
                bytes_down=bytes_down,
                seconds=self._learner.timings.take(),
            )
        )

    async def _download(self, path: Path, record: Record) -> bool:
        """Fetch a record's aggregate; False where the server has gone on and does not keep it."""
        limit = max_aggregate_bytes(self._learner.engine, record.announcement)
        try:
            async with self._request("GET", f"/v1/rounds/{record.announcement.round}/aggregate") as response:
                with replacing(path) as file:
                    received = 0
                    async for chunk in response.content.iter_chunked(CHUNK_BYTES):
                        received += len(chunk)
                        if received > limit:
                            raise MalformedError(f"the aggregate has more than {limit} bytes")
                        file.write(chunk)
        except StaleError:
            return False
        except OSError as error:
            raise StateError(
                f"the aggregate cannot be stored: {error.strerror}", hint="make room on the disk"
            ) from error
        return True

    async def _leave(self) -> None:
        """Say goodbye once; a server that does not listen notices by itself."""
        with suppress(HeflError, aiohttp.ClientError, OSError, TimeoutError):
            async with asyncio.timeout(2), self._http.post("/v1/leave"):
                pass

    # --- requests -----------------------------------------------------------------------------------------------------

    async def _call(
        self, method: str, path: str, body: bytes | Path | None = None, headers: Mapping[str, str] | None = None
    ) -> bytes:
        """One request and its answer's body. Raises as _request."""
        async with self._request(method, path, body, headers) as response:
            return await response.read()

    @asynccontextmanager
    async def _request(
        self, method: str, path: str, body: bytes | Path | None = None, headers: Mapping[str, str] | None = None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Send a request, again and again while nobody answers.

        Raises:
            UnreachableError: Nobody answered for connect_timeout_s.
            CertificateError: TLS refused one side's certificate; says which.
            HeflError: What the server refused, as it says.
        """
        began, delay_s = time.monotonic(), 0.1
        while True:
            try:
                response = await self._send(method, path, body, headers)
                break
            except (aiohttp.ClientError, OSError, TimeoutError) as error:
                await self._check_tls(error)
                waited = time.monotonic() - began
                if waited >= self._connect_timeout_s:
                    raise UnreachableError(
                        f"{self._url} did not answer for {waited:.0f} s: {_reason(error)}",
                        hint="is the server running, and is its address right? See --server and --connect-timeout",
                    ) from error
                if delay_s == 0.1:
                    log.info("%s does not answer (%s); trying again", self._url, _reason(error))
                # Clients that lost one server should not all come back at once. Not cryptography.
                await asyncio.sleep(min(delay_s * random.uniform(0.5, 1.0), self._connect_timeout_s - waited))  # noqa: S311
                delay_s = min(2 * delay_s, 5.0)
        async with response:
            if response.status != 200:
                refused = protocol.raise_refusal(await response.read(), response.status)
                raise self._layout_error(refused)
            yield response

    async def _send(
        self, method: str, path: str, body: bytes | Path | None, headers: Mapping[str, str] | None
    ) -> aiohttp.ClientResponse:
        if isinstance(body, Path):
            # The server refuses a hopeless upload before its bytes travel.
            return await self._http.request(method, path, data=_chunks(body), headers=headers, expect100=True)
        return await self._http.request(method, path, data=body, headers=headers)

    def _layout_error(self, refused: protocol.Refusal) -> HeflError:
        """Name the first difference, which only a client can read."""
        theirs = unseal(refused.sealed_layout or b"", self._folder.secret)
        difference = self._learner.layout.difference(theirs)
        return LayoutError(
            f"this client's model differs from the other clients': {difference}",
            hint="all clients train the same model: same tensors, same order, same metrics",
        )

    async def _check_tls(self, error: Exception) -> None:
        """Raise what trying again cannot mend."""
        if isinstance(error, aiohttp.ClientConnectorCertificateError):
            raise await asyncio.to_thread(self._server_certificate_error, error)
        if isinstance(error, aiohttp.ClientConnectorSSLError):
            raise CertificateError(f"{self._url} does not speak TLS 1.3: {error}") from error
        reset = isinstance(error, (aiohttp.ServerDisconnectedError, ConnectionResetError, ssl.SSLError)) or (
            isinstance(error, aiohttp.ClientOSError) and not isinstance(error, aiohttp.ClientConnectorError)
        )
        if reset and self._welcome is None:
            # With TLS 1.3 a server refuses a certificate only after the handshake: all that shows is this.
            raise CertificateError(
                f"{self._url} closed the connection at the first request",
                hint=f"the server refuses the certificate in {self._folder.path}: is it of the server's federation, "
                "and has it expired? The server's log may say more",
            ) from error

    def _server_certificate_error(self, error: Exception) -> HeflError:
        """Say whose certificate the server showed."""
        parts, mine = urlsplit(self._url), self._folder.secret.identity
        try:
            pem = ssl.get_server_certificate((parts.hostname or "", parts.port or 443), timeout=5)
            holder = tls.holder_of_der(ssl.PEM_cert_to_DER_cert(pem), "the server's certificate")
        except (OSError, KeysError):
            return CertificateError(f"{self._url} shows a certificate that is not of {mine}: {error}")
        if holder.identity.federation != mine.federation:
            return CertificateError(
                f"the server at {self._url} is of {holder.identity}, and this client of {mine}",
                hint="is it the right server? If so, copy this client's folder from the authority again",
            )
        return CertificateError(f"{self._url} shows a certificate of {holder.identity} that does not hold: {error}")


async def _chunks(path: Path) -> AsyncIterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__


def _join_nonce(state: Path) -> str:
    """The nonce by which a server knows a restarted client; kept in the client's state."""
    path = state / "session.json"
    try:
        saved = json.loads(path.read_bytes())["join_nonce"]
        if isinstance(saved, str) and len(bytes.fromhex(saved)) == 16:
            return saved
        raise ValueError("not a nonce")
    except FileNotFoundError:
        nonce = os.urandom(16).hex()
        with replacing(path) as file:
            file.write(json.dumps({"join_nonce": nonce}).encode())
        return nonce
    except (ValueError, KeyError, TypeError) as error:
        raise StateError(f"{path} is damaged: {error}", hint="remove it; the client then joins as a new one") from error


def _check_url(url: str, engine: str, *, insecure_http: bool) -> None:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise UsageError(f"--server {url}: {error}") from error
    plain = parts.scheme == "http"
    if parts.scheme not in ("https", "http") or not parts.hostname or parts.path or parts.query or port == 0:
        raise UsageError(f"--server takes https://HOST:PORT, got {url!r}")
    loopback = protocol.is_loopback(parts.hostname)
    if plain and not (insecure_http and loopback):
        raise UsageError(
            f"plain HTTP to {url} is refused", hint="https:// it is; to loopback, --insecure-http allows plain HTTP"
        )
    if insecure_http and not plain:
        raise UsageError(f"--insecure-http goes with an http:// URL, got {url}")
    if engine == "plaintext" and not loopback:
        raise EngineError(f"the engine 'plaintext' talks to loopback only, not to {parts.hostname}")
