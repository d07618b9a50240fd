"""The server's HTTP routes around a Coordinator. It holds no key."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable
from typing import ClassVar

import msgspec
from aiohttp import web

from hefl.engines.engine import Engine
from hefl.errors import (
    ConflictError,
    DiskFullError,
    EngineError,
    HeflError,
    MalformedError,
    StateError,
    TooSlowError,
    UsageError,
)
from hefl.files import storing
from hefl.keys.folders import ServerFolder
from hefl.params import MIN_CLIENTS, POLL_S
from hefl.protocol import messages
from hefl.protocol.compact_records import encode_records
from hefl.protocol.messages import Confirmation, Held, Join, MetricsReport, Noted, Welcome
from hefl.protocol.records import Announcement
from hefl.protocol.updates import max_update_bytes
from hefl.rounds import views
from hefl.rounds.run import Phase, Run
from hefl.rounds.schedule import Clock, RunSettings
from hefl.server.authentication import Authenticator
from hefl.server.coordinator import Coordinator
from hefl.server.events import Emit, Refusals, say_who_lacks
from hefl.server.journal import Journal
from hefl.server.limits import Limits, Turns
from hefl.server.listener import BUFFER_BYTES, Listener, refused
from hefl.server.spool import Spool, Upload, Writing

log = logging.getLogger("hefl")

TICK_S = 0.1
"""How late a deadline, or a signal, may be noticed."""

GOODBYE_S = 0.25
"""Closing a TLS connection takes an exchange of messages."""

READ_BYTES = 1 << 17
"""Of an aggregate, read at once, which takes a thread; it goes out in pieces that fit a connection's buffers."""

UPDATE_PATH = r"/v1/rounds/{round:\d+}/{attempt:\d+}/update"

CLIENT = web.RequestKey("client", str)
"""Who asks."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Server:
    """Serves one run.

    Args:
        folder: The server's keys.
        engine: Which clients must run too.
        settings: The operator's.
        journal, spool: The run's, in a folder that is locked.
        emit: Is told every event, as a flat mapping.
        host, port: Where to listen; port 0 takes any.
        insecure_http: Plain HTTP, on loopback.
        limits: What peers may take.

    Raises:
        UsageError: The settings allow no round, or plain HTTP beyond this machine.
        EngineError: ``plaintext`` beyond this machine.
    """

    coordinator_type: ClassVar[type[Coordinator]] = Coordinator

    def __init__(
        self,
        folder: ServerFolder,
        engine: Engine,
        settings: RunSettings,
        journal: Journal,
        spool: Spool,
        emit: Emit,
        *,
        host: str = "127.0.0.1",
        port: int = 8443,
        insecure_http: bool = False,
        limits: Limits | None = None,
    ) -> None:
        if (known := len(folder.clients)) < settings.min_clients:
            fewer = f", or take part with fewer: --min-clients {known}" if known >= MIN_CLIENTS else ""
            raise UsageError(
                f"{folder.path} knows {', '.join(folder.clients)} only, and --min-clients is {settings.min_clients}",
                hint=f"make keys for more clients{fewer}; at least {MIN_CLIENTS} make a sum",
            )
        loopback = messages.is_loopback(host)
        if insecure_http and not loopback:
            raise UsageError(
                f"--insecure-http listens on loopback only, not on {host}",
                hint="leave it out: 'hefl keygen' has made certificates for HTTPS",
            )
        if engine.loopback_only and not loopback:
            raise EngineError(
                f"the engine {engine.name!r} runs on loopback only, not on {host}",
                hint="between machines: --engine packed",
            )
        self._folder = folder
        self._emit = emit
        self._host, self._port, self._insecure_http = host, port, insecure_http
        self._stopped = asyncio.Event()
        self._limits = limits or Limits()
        self._listener: Listener | None = None
        self._turns, self._refusals = Turns(), Refusals(emit)
        self._authenticator = Authenticator(folder, insecure_http=insecure_http)
        self._reported = -1
        self._coordinator = self.coordinator_type(folder.public, engine, settings, journal, spool, emit)

    def stop(self) -> None:
        """Make ``serve`` return soon, wherever the run is."""
        self._stopped.set()

    def look(self) -> tuple[Run, Clock]:
        """The run as it stands, and its clock."""
        return self._coordinator.look()

    async def serve(self) -> None:
        """Listen until the run has ended or ``stop`` is called.

        Raises:
            PortInUseError: The port is taken.
            HeflError: The state folder failed.
        """
        app = web.Application(middlewares=[self._guard])
        app.add_routes(
            [
                web.post("/v1/join", self._join),
                web.get("/v1/run", self._view),
                web.put(UPDATE_PATH, self._update, expect_handler=self._expect),
                web.get(UPDATE_PATH, self._held, allow_head=False),
                web.post(r"/v1/rounds/{round:\d+}/{attempt:\d+}/enough", self._enough),
                web.post(r"/v1/rounds/{round:\d+}/useless", self._useless),
                web.get(r"/v1/rounds/{round:\d+}/aggregate", self._aggregate),
                web.get("/v1/records", self._records),
                web.post("/v1/metrics", self._metrics),
                web.post("/v1/fetched", self._fetched),
                web.post("/v1/leave", self._leave),
            ]
        )
        runner = web.AppRunner(app, shutdown_timeout=2 * POLL_S)
        await runner.setup()
        context = None if self._insecure_http else self._folder.credentials.server_context()
        self._listener = Listener(runner, self._limits, context, self._refuse)
        try:
            url = await self._listen(self._listener)
            # Only now: a server that cannot listen must not have begun anything.
            await self._coordinator.resume(self._authenticator.known())
            self._listener.accept()
            self._emit({"event": "listening", "url": url})
            await self._coordinator.know(self._authenticator.known())
            self._coordinator.remind()
            while not self._stopped.is_set() and not self._coordinator.ended:
                await self._coordinator.know(self._authenticator.known())
                await self._coordinator.tick(TICK_S)
            await self._coordinator.stop()
            if self._coordinator.run.phase is Phase.FINISHING:
                say_who_lacks(self._coordinator.run)
        finally:
            await self._listener.close()
            await runner.cleanup()
            await asyncio.sleep(GOODBYE_S)
            self._listener.abort()
            await asyncio.sleep(0)

    async def _listen(self, listener: Listener) -> str:
        """Open the port; returns the URL."""
        self._limits.allow_files()
        host, port = self._host, await listener.open(self._host, self._port)
        shown = f"[{host}]" if ":" in host else host
        return f"{'http' if self._insecure_http else 'https'}://{shown}:{port}"

    # --- who asks -----------------------------------------------------------------------------------------------------

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Answer every refusal as a Refusal; what was not foreseen is logged and tells the client nothing."""
        try:
            request[CLIENT] = name = self._authenticator.client_of(request)
            if self._listener:
                self._listener.identified(request, name)
            return await handler(request)
        except HeflError as error:
            return self._refuse(request, error)
        except (ConnectionError, asyncio.CancelledError):
            raise
        except web.HTTPException as error:
            return self._refuse(request, refused(request, error), error.status)
        except Exception:
            log.exception("a request of %s failed", request.get(CLIENT, "an unknown client"))
            return self._refuse(request, HeflError("the server failed", hint="its log says why: ask who runs it"))

    def _joined(self, request: web.Request) -> tuple[str, str]:
        """Name and join nonce of a client that has joined and was not replaced since. Raises as heard_of."""
        name, nonce = request[CLIENT], request.headers.get(messages.HEADER_SESSION, "")
        self._coordinator.heard_of(name, nonce)
        return name, nonce

    def _refuse(self, request: web.BaseRequest, error: HeflError, status: int | None = None) -> web.Response:
        who, status = request.get(CLIENT), status or error.http_status
        self._refusals.tell(request.method, request.path, who, error, status)
        body = msgspec.json.encode(messages.refusal_of(error))
        response = web.Response(body=body, status=status, content_type="application/json")
        if isinstance(error, TooSlowError):
            response.force_close()
        return response

    # --- requests -----------------------------------------------------------------------------------------------------

    async def _join(self, request: web.Request) -> web.Response:
        join = messages.decode(await self._limits.read(request, messages.MAX_JSON_BYTES), Join)
        self._turns.take(request[CLIENT])
        await self._coordinator.join(request[CLIENT], join)
        return _json(Welcome(run=self._coordinator.run.run))

    async def _view(self, request: web.Request) -> web.Response:
        name, _ = self._joined(request)
        after = messages.whole_number(request.query.get("after", "0"), "after")
        return _json(await self._coordinator.view(name, after))

    def _open_attempt(self, request: web.Request) -> Announcement:
        """The open attempt, if a request means it. Raises as answers.open_attempt."""
        name, nonce = self._joined(request)
        return views.open_attempt(self._coordinator.run, name, nonce, *_attempt_of(request))

    def _announced_upload(self, request: web.Request) -> tuple[Announcement, str]:
        """The open attempt that an upload is for, and the upload's digest.

        Raises:
            StaleError, ConflictError: As answers.open_attempt.
            MalformedError: The digest is missing.
        """
        announcement = self._open_attempt(request)
        digest = request.headers.get(messages.HEADER_DIGEST, "")
        if not re.fullmatch(r"[0-9a-f]{64}", digest):
            raise MalformedError(f"an update must bear its digest in {messages.HEADER_DIGEST}")
        return announcement, digest

    def _check_upload(self, request: web.Request) -> tuple[Announcement, str, int, int]:
        """The open attempt, the upload's digest, the offset at which it goes on, and its whole length.

        Raises:
            StaleError, ConflictError: As answers.open_attempt.
            MalformedError: The length is missing, or more than any update of this attempt has.
        """
        announcement, digest = self._announced_upload(request)
        length, limit = request.content_length, max_update_bytes(self._coordinator.engine, announcement)
        if length is None:
            raise MalformedError("an update must state its Content-Length")
        offset = messages.whole_number(request.headers.get(messages.HEADER_OFFSET, "0"), messages.HEADER_OFFSET)
        total = offset + length
        if total > limit:
            raise MalformedError(f"oversized: the update has {total} bytes, and none of this attempt has over {limit}")
        return announcement, digest, offset, total

    async def _expect(self, request: web.Request) -> web.Response | None:
        """Leave it to ``_update`` to say that the bytes may travel, where that is not in vain."""
        return None

    async def _held(self, request: web.Request) -> web.Response:
        name = self._joined(request)[0]
        if views.was_taken(self._coordinator.run, name, *_attempt_of(request)):
            return _json(Held(bytes=0, committed=True))
        _, digest = self._announced_upload(request)
        committed = views.is_committed(self._coordinator.run, name, digest)
        return _json(Held(bytes=self._coordinator.spool.held_bytes(name, digest), committed=committed))

    async def _update(self, request: web.Request) -> web.Response:
        announcement, digest, offset, total = self._check_upload(request)
        next_examples = messages.whole_number(request.headers.get(messages.HEADER_NUM_EXAMPLES, ""), "num_examples", 1)
        name, spool = request[CLIENT], self._coordinator.spool
        views.check_num_examples(name, next_examples, self._coordinator.engine, self._coordinator.settings)
        if views.is_committed(self._coordinator.run, name, digest):
            return web.Response()
        whole = request.headers.get(messages.HEADER_WHOLE) == "yes"
        upload = spool.upload(name, digest)
        if "Expect" in request.headers:
            await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            request.writer.output_size = 0  # the answer itself has not begun
        await self._receive(request, upload, offset, total)
        with upload.whole():
            try:
                await self._coordinator.commit(name, announcement, upload, next_examples, whole=whole)
            except DiskFullError:
                raise  # it is here, and need not travel again
            except HeflError:
                spool.drop(name, upload)
                raise
        response = web.Response()
        response.force_close()  # until the next upload it would take room and do nothing
        return response

    async def _receive(self, request: web.Request, upload: Upload, offset: int, total: int) -> None:
        """Take an upload's bytes, from an offset on; what came before a connection broke off stays for the next.

        Raises:
            MalformedError: Its length is not the stated one.
            DiskFullError, StateError: It cannot be stored; what there was of it has made room.
        """
        try:
            with storing("the update"), upload.receive(offset) as writing:
                await self._spool(request, writing)
        except StateError:
            self._coordinator.spool.drop(request[CLIENT], upload)
            async for _ in self._limits.body(request):
                pass  # let it pass, so that the client hears the reason instead of a reset
            raise
        if upload.held_bytes != total:
            raise MalformedError(f"truncated: {upload.held_bytes} of {total} bytes came")

    async def _spool(self, request: web.Request, writing: Writing) -> None:
        async for chunk in self._limits.body(request):
            self._joined(request)
            writing.write(chunk)
        await asyncio.to_thread(writing.sync)

    async def _enough(self, request: web.Request) -> web.Response:
        announcement = self._open_attempt(request)
        self._turns.take(request[CLIENT])
        await self._coordinator.enough(request[CLIENT], announcement)
        return web.Response()

    async def _useless(self, request: web.Request) -> web.Response:
        name, _ = self._joined(request)
        self._turns.take(name)
        number = messages.whole_number(request.match_info["round"], "round")
        return _json(Noted(version=await self._coordinator.useless(name, number)))

    async def _aggregate(self, request: web.Request) -> web.StreamResponse:
        self._joined(request)
        number = messages.whole_number(request.match_info["round"], "round")
        path = self._coordinator.aggregate(number)
        size_bytes = path.stat().st_size
        self._emit({"event": "download", "round": number, "client": request[CLIENT], "bytes": size_bytes})
        response = web.StreamResponse()
        response.content_length = size_bytes
        await response.prepare(request)
        with path.open("rb") as file:
            while read := await asyncio.to_thread(file.read, READ_BYTES):
                for at in range(0, len(read), BUFFER_BYTES):
                    await response.write(memoryview(read)[at : at + BUFFER_BYTES])
        return response

    async def _records(self, request: web.Request) -> web.Response:
        text = request.query.get("after")
        after = -1 if text is None else messages.whole_number(text, "after")
        records = await asyncio.to_thread(self._coordinator.records, after)
        return web.Response(body=encode_records(records), content_type="application/msgpack")

    async def _metrics(self, request: web.Request) -> web.Response:
        """Pass on what a client chooses to tell of a model; of several who tell of one, the first is believed."""
        name, _ = self._joined(request)
        report = messages.decode(await self._limits.read(request, messages.MAX_SHORT_BYTES), MetricsReport)
        model = self._coordinator.run.model
        if model is None or report.round > model.announcement.round:
            raise ConflictError(f"there is no model {report.round} yet to have metrics of")
        if report.round > self._reported:
            self._reported = report.round
            self._emit({"event": "metrics", "round": report.round, "client": name, "metrics": report.metrics})
        return web.Response()

    async def _fetched(self, request: web.Request) -> web.Response:
        name, _ = self._joined(request)
        confirmation = messages.decode(await self._limits.read(request, messages.MAX_SHORT_BYTES), Confirmation)
        self._turns.take(name)
        await self._coordinator.fetched(name, confirmation.mac)
        return web.Response()

    async def _leave(self, request: web.Request) -> web.Response:
        name, _ = self._joined(request)
        self._turns.take(name)
        await self._coordinator.leave(name)
        return web.Response()


def _attempt_of(request: web.Request) -> tuple[int, int]:
    """Round and attempt, as the path has them. Raises MalformedError."""
    return (
        messages.whole_number(request.match_info["round"], "round"),
        messages.whole_number(request.match_info["attempt"], "attempt"),
    )


def _json(value: msgspec.Struct) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), content_type="application/json")
