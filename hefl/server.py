"""The server: a thin shell over HTTPS around the round table and a sum. It holds no key.

State changes happen under one lock, in this order: look at the table, do the work, note the event.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from aiohttp import web

from hefl import protocol, rounds
from hefl.engine import Engine
from hefl.errors import (
    ConflictError,
    EngineError,
    HeflError,
    LayoutError,
    MalformedError,
    NameInUseError,
    PortInUseError,
    ProtocolError,
    StaleError,
    StateError,
    UnknownClientError,
    UsageError,
)
from hefl.files import create_private
from hefl.history import Announcement, genesis
from hefl.keys import tls
from hefl.keys.party import ServerFolder
from hefl.params import POLL_S, SILENT_S
from hefl.protocol import Join, View, Welcome
from hefl.rounds import Phase
from hefl.serverstate import ServerState
from hefl.timings import Timings
from hefl.updates import Summation, max_update_bytes
from hefl.wire import open_frame

log = logging.getLogger("hefl")

TICK_S = 0.1
REMIND_S = 15.0
"""How often a server that waits says for whom."""

Emit = Callable[[Mapping[str, Any]], None]
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """As ``hefl serve`` takes them; times in seconds."""

    rounds: int = 20
    min_clients: int = 2
    join_wait_s: float = 2.0
    round_timeout_s: float = 60.0
    host: str = "127.0.0.1"
    port: int = 8443
    insecure_http: bool = False


class Server:
    """Serves one run from its first join to its end.

    Args:
        folder: The server's keys.
        engine: Which clients must run too.
        settings: Limits and address.
        state: The run's folder, locked.
        emit: Is told every event, as a flat mapping.

    Raises:
        UsageError: The settings allow no round, or plain HTTP beyond this machine.
        EngineError: ``plaintext`` beyond this machine.
    """

    def __init__(
        self, folder: ServerFolder, engine: Engine, settings: ServerSettings, state: ServerState, emit: Emit
    ) -> None:
        _check_settings(folder, engine, settings)
        self._folder = folder
        self._identity = folder.public.identity
        self._engine = engine
        self._settings = settings
        self._state = state
        self._emit = emit
        self._run = rounds.Run(
            run=state.run,
            rounds=settings.rounds,
            min_clients=settings.min_clients,
            known=folder.clients,
            head=genesis(self._identity, state.run),
        )
        self._lock = asyncio.Lock()
        self._changed = asyncio.Condition()
        self._stopped = asyncio.Event()
        self._version = 0
        self._seen: dict[str, float] = {}
        self._phase_since = self._enough_since = self._reminded = time.monotonic()
        self._reference: Join | None = None
        self._summation: Summation | None = None
        self._timings = Timings()
        self._bytes_up = 0

    def stop(self) -> None:
        """Make ``serve`` return soon, wherever the run is."""
        self._stopped.set()

    async def serve(self) -> bool:
        """Listen until the run has ended or ``stop`` is called. Returns True where it has ended.

        Raises:
            PortInUseError: The port is taken.
            HeflError: The state folder failed.
        """
        app = web.Application(middlewares=[self._guard], client_max_size=protocol.MAX_JSON_BYTES)
        app.add_routes(
            [
                web.post("/v1/join", self._join),
                web.get("/v1/run", self._view),
                web.put(r"/v1/rounds/{round:\d+}/{attempt:\d+}/update", self._update, expect_handler=self._expect),
                web.get(r"/v1/rounds/{round:\d+}/aggregate", self._aggregate),
                web.post("/v1/fetched", self._fetched),
                web.post("/v1/leave", self._leave),
            ]
        )
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=2 * POLL_S)
        await runner.setup()
        try:
            url = await self._listen(runner)
            self._emit({"event": "listening", "url": url})
            self._remind()
            while not self._stopped.is_set() and self._run.phase is not Phase.ENDED:
                await self._tick()
                await asyncio.sleep(TICK_S)
            async with self._changed:
                self._changed.notify_all()
        finally:
            await runner.cleanup()
        return self._run.phase is Phase.ENDED

    async def _listen(self, runner: web.AppRunner) -> str:
        host, port, insecure = self._settings.host, self._settings.port, self._settings.insecure_http
        context = None if insecure else tls.server_context(self._folder.path)
        try:
            await web.TCPSite(runner, host, port, ssl_context=context, reuse_address=True).start()
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise PortInUseError(
                    f"port {port} of {host} is in use", hint="stop what listens there, or choose another with --port"
                ) from error
            raise UsageError(f"cannot listen on {host}:{port}: {error.strerror}", hint="see --host") from error
        shown = f"[{host}]" if ":" in host else host
        return f"{'http' if insecure else 'https'}://{shown}:{runner.addresses[0][1]}"

    # --- the run ------------------------------------------------------------------------------------------------------

    async def _apply(self, event: rounds.Event) -> None:
        before = self._run.phase
        self._run = rounds.advance(self._run, event)
        if self._run.phase is not before:
            self._phase_since = time.monotonic()
        if len(self._run.sessions) < self._settings.min_clients:
            self._enough_since = time.monotonic()
        self._version += 1
        async with self._changed:
            self._changed.notify_all()

    def _clock(self) -> rounds.Clock:
        now = time.monotonic()
        return rounds.Clock(
            silent=frozenset(n for n in self._run.sessions if now - self._seen.get(n, now) > SILENT_S),
            phase_s=now - self._phase_since,
            enough_s=now - self._enough_since,
            join_wait_s=self._settings.join_wait_s,
            round_timeout_s=self._settings.round_timeout_s,
        )

    async def _tick(self) -> None:
        async with self._lock:
            match rounds.decide(self._run, self._clock()):
                case rounds.Announce() as decision:
                    await self._announce(decision)
                case rounds.Close():
                    await self._publish()
                case rounds.Abandon(reason, culprits):
                    log.warning("round %d: %s; trying again", self._run.next_round, reason)
                    self._summation = None
                    self._emit({"event": "abandoned", "round": self._run.next_round, "reason": reason})
                    await self._apply(rounds.Abandoned(culprits))
                case rounds.Finish():
                    await self._apply(rounds.Finished())
                case rounds.End():
                    self._state.end()
                    await self._apply(rounds.Ended())
                    log.info("the run has ended after %d rounds", self._run.rounds)
                    self._emit({"event": "ended", "rounds": self._run.rounds})
        if time.monotonic() - self._reminded > REMIND_S:
            self._remind()

    def _remind(self) -> None:
        self._reminded = time.monotonic()
        if self._run.phase not in (Phase.GATHERING, Phase.COLLECTING) or not self._run.awaited:
            return
        names = ", ".join(self._run.awaited)
        if self._run.announcement:
            left = self._run.announcement.deadline_s - self._clock().phase_s
            log.info("round %d: waiting for %s, for %.0f s more", self._run.next_round, names, max(left, 0))
        else:
            here = len(self._run.sessions)
            log.info("waiting for %s to join (%d here, at least %d needed)", names, here, self._settings.min_clients)

    async def _announce(self, decision: rounds.Announce) -> None:
        if self._reference is None:
            raise StateError("an attempt without a layout")
        announcement = rounds.announcement_of(
            self._run,
            decision,
            values=self._reference.values[decision.exchange],
            engine=self._engine.name,
            deadline_s=self._settings.round_timeout_s,
        )
        self._summation = await asyncio.to_thread(Summation, self._folder.public, self._engine, announcement)
        self._bytes_up = 0
        await self._apply(rounds.Announced(announcement))
        what = {"initial": "initial parameters", "training": "training", "closing": "closing metrics"}
        log.info(
            "round %d, attempt %d: %s of %s",
            announcement.round,
            announcement.attempt,
            what[announcement.exchange],
            ", ".join(announcement.names),
        )
        self._emit(
            {
                "event": "announced",
                "round": announcement.round,
                "attempt": announcement.attempt,
                "exchange": announcement.exchange,
                "participants": list(announcement.names),
            }
        )

    async def _publish(self) -> None:
        """Close the attempt and write its aggregate."""
        await self._apply(rounds.Closed())
        summation, announcement = self._summation, self._run.announcement
        if summation is None or announcement is None:
            raise StateError("an attempt was closed without a sum")
        path = self._state.aggregate(announcement.round)
        with self._timings.phase("aggregate"):
            record = await asyncio.to_thread(self._state.write_aggregate, path, summation)
        self._summation = None
        await self._apply(rounds.Published(record))
        self._state.drop_aggregates_before(announcement.round - 1)
        names, seconds = [m.name for m in record.members], self._timings.take()
        log.info(
            "round %d: %d of %d in, %.1f kB up, aggregated in %.3f s",
            announcement.round,
            len(names),
            len(announcement.names),
            self._bytes_up / 1e3,
            seconds["aggregate"],
        )
        self._emit(
            {
                "event": "round",
                "round": announcement.round,
                "in": names,
                "missed": [n for n in announcement.names if n not in names],
                "bytes_up": self._bytes_up,
                "aggregate_bytes": path.stat().st_size,
                "seconds": seconds,
            }
        )

    # --- requests -----------------------------------------------------------------------------------------------------

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Answer every refusal as a Refusal; what was not foreseen is logged and tells the client nothing."""
        try:
            self._identify(request)
            return await handler(request)
        except HeflError as error:
            return _refuse(request, error)
        except (ConnectionError, asyncio.CancelledError, web.HTTPRequestEntityTooLarge):
            raise
        except web.HTTPException as error:
            return _refuse(request, ProtocolError(f"{request.method} {request.path}: {error.reason}"), error.status)
        except Exception:
            log.exception("a request of %s failed", request.get("name", "an unknown client"))
            return _refuse(request, HeflError("the server failed; its log says why"))

    def _identify(self, request: web.Request) -> str:
        """Who asks, as the certificate says. Stores the name in the request and notes that it lives."""
        if self._settings.insecure_http:
            name = request.headers.get(protocol.HEADER_CLIENT, "")
        else:
            der = request.transport and request.transport.get_extra_info("ssl_object").getpeercert(True)
            if not der:
                raise UnknownClientError("the request came without a certificate")
            holder = tls.holder_of_der(der, "the client's certificate")
            if not holder.is_client:
                raise UnknownClientError("the certificate is not a client's")
            if holder.identity != self._identity:
                raise UnknownClientError(f"the certificate is of {holder.identity}, and the server of {self._identity}")
            name = holder.name
        protocol.check_headers(dict(request.headers), self._identity)
        if name not in self._folder.clients:
            raise UnknownClientError(
                f"client {name!r} is not on the server's list",
                hint="copy server/ from the authority's folder to the server again, and restart it",
            )
        request["name"] = name
        return name

    def _session(self, request: web.Request) -> str:
        """The name of a client that has joined and was not replaced since."""
        name: str = request["name"]
        session = self._run.sessions.get(name)
        if session is None:
            raise StaleError(f"{name} has not joined this run")
        if session.join_nonce != request.headers.get(protocol.HEADER_SESSION):
            raise NameInUseError(f"another process has joined as {name} since")
        self._seen[name] = time.monotonic()
        return name

    async def _join(self, request: web.Request) -> web.Response:
        name: str = request["name"]
        join = protocol.decode(await request.read(), Join)
        async with self._lock:
            self._check_join(name, join)
            if self._reference is None or (self._run.next_round == 0 and not self._run.sessions):
                self._reference = join
            if join.layout != self._reference.layout or join.values != self._reference.values:
                error = LayoutError(f"{name}'s model has another layout than the other clients'")
                return _refuse(request, error, sealed_layout=self._reference.sealed_layout)
            await self._apply(rounds.Joined(name, join.num_examples, join.join_nonce))
            self._seen[name] = time.monotonic()
        log.info("%s joined with %d examples", name, join.num_examples)
        self._emit({"event": "joined", "client": name, "num_examples": join.num_examples})
        self._remind()
        return _json(Welcome(run=self._run.run, rounds=self._run.rounds))

    def _check_join(self, name: str, join: Join) -> None:
        if join.engine != self._engine.name:
            raise EngineError(
                f"the server runs engine {self._engine.name!r}, and client {name} engine {join.engine!r}",
                hint="give both the same --engine",
            )
        if join.weighting != "server":
            raise EngineError(f"the server weighs updates itself, and client {name} asks for {join.weighting!r}")
        session = self._run.sessions.get(name)
        silent_s = time.monotonic() - self._seen.get(name, 0.0)
        if session and session.join_nonce != join.join_nonce and silent_s < SILENT_S:
            raise NameInUseError(
                f"another client is here as {name}",
                hint=f"stop it first; one that crashed is let go after {SILENT_S:.0f} s of silence",
            )

    async def _view(self, request: web.Request) -> web.Response:
        name = self._session(request)
        try:
            after = int(request.query.get("after", "0"))
        except ValueError:
            raise MalformedError("'after' must be a whole number") from None
        async with self._changed:
            try:
                async with asyncio.timeout(POLL_S):
                    await self._changed.wait_for(lambda: self._version > after or self._stopped.is_set())
            except TimeoutError:
                pass
        run = self._run
        return _json(
            View(
                version=self._version,
                phase=run.phase.value,
                announcement=run.announcement if run.phase is Phase.COLLECTING else None,
                committed=name in run.committed,
                model=run.model,
                closing=run.closing,
            )
        )

    def _open_attempt(self, request: web.Request) -> tuple[str, Announcement, int]:
        """The client, the open attempt that its upload is for, and the upload's length. Raises what refuses it."""
        name, announcement = self._session(request), self._run.announcement
        asked = int(request.match_info["round"]), int(request.match_info["attempt"])
        if announcement is None or self._run.phase is not Phase.COLLECTING:
            raise StaleError(f"round {asked[0]}, attempt {asked[1]} is not open")
        if asked != (announcement.round, announcement.attempt):
            raise StaleError(
                f"an update for round {asked[0]}, attempt {asked[1]}, "
                f"and round {announcement.round}, attempt {announcement.attempt} is open"
            )
        mine = next((p for p in announcement.participants if p.name == name), None)
        if mine is None or mine.join_nonce != request.headers.get(protocol.HEADER_SESSION):
            raise ConflictError(f"{name} takes no part in this attempt")
        length, limit = request.content_length, max_update_bytes(self._engine, announcement)
        if length is None:
            raise MalformedError("an update must state its Content-Length")
        if length > limit:
            raise MalformedError(f"the update has {length} bytes, and none of this attempt has more than {limit}")
        return name, announcement, length

    async def _expect(self, request: web.Request) -> web.Response | None:
        """Refuse an upload before its bytes travel."""
        try:
            self._identify(request)
            self._open_attempt(request)
        except HeflError as error:
            return _refuse(request, error)
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0  # the answer itself has not begun
        return None

    async def _update(self, request: web.Request) -> web.Response:
        name, announcement, length = self._open_attempt(request)
        next_examples = protocol.num_examples_of(request.headers.get(protocol.HEADER_NUM_EXAMPLES, ""))
        part = self._state.new_upload(name)  # none outlives its request: who has a client's key could read it
        try:
            await self._receive(request, part, name, length)
            frame = await asyncio.to_thread(open_frame, part)
            async with self._lock:
                self._open_attempt(request)
                if self._summation is None:
                    raise StaleError(f"round {announcement.round} is not open")
                self._summation.check(frame, name)
                event = rounds.Committed(name, frame.digest.hex(), next_examples)
                rounds.advance(self._run, event)  # refuses a second, different update before it is added
                if name not in self._run.committed:
                    with self._timings.phase("aggregate"):
                        await asyncio.to_thread(self._summation.add, frame, name)
                    self._bytes_up += length
                await self._apply(event)
        finally:
            part.unlink(missing_ok=True)
        log.info("round %d: update of %s is in, %.1f kB", announcement.round, name, length / 1e3)
        return _json(Welcome(run=self._run.run, rounds=self._run.rounds))

    async def _receive(self, request: web.Request, part: Path, name: str, length: int) -> None:
        """Spool an upload. Raises MalformedError where its length is not the stated one."""
        received, failed = 0, None
        with create_private(part) as file:
            async for chunk in request.content.iter_any():
                self._seen[name] = time.monotonic()
                received += len(chunk)
                if received > length:
                    raise MalformedError(f"more than the stated {length} bytes came")
                try:
                    if failed is None:
                        file.write(chunk)
                except OSError as error:
                    failed = error  # read on, so that the client hears the reason instead of a reset
            try:
                file.flush()
                os.fsync(file.fileno())
            except OSError as error:
                failed = failed or error
        if failed:
            raise StateError(f"the server cannot store the update: {failed.strerror}") from failed
        if received != length:
            raise MalformedError(f"truncated: {received} of {length} bytes came")

    async def _aggregate(self, request: web.Request) -> web.StreamResponse:
        self._session(request)
        wanted = int(request.match_info["round"])
        for record in (self._run.model, self._run.closing):
            if record and record.announcement.round == wanted:
                return web.FileResponse(self._state.aggregate(wanted), chunk_size=1 << 20)
        raise StaleError(f"the aggregate of round {wanted} is not kept")

    async def _fetched(self, request: web.Request) -> web.Response:
        name = self._session(request)
        async with self._lock:
            await self._apply(rounds.Fetched(name))
        return web.Response()

    async def _leave(self, request: web.Request) -> web.Response:
        name = self._session(request)
        async with self._lock:
            if self._run.phase is not Phase.ENDED:
                await self._apply(rounds.Left(name))
                log.info("%s left", name)
                self._emit({"event": "left", "client": name})
        return web.Response()


def _check_settings(folder: ServerFolder, engine: Engine, settings: ServerSettings) -> None:
    if len(folder.clients) < settings.min_clients:
        raise UsageError(
            f"{folder.path} knows {len(folder.clients)} clients, and --min-clients is {settings.min_clients}",
            hint="a sum of fewer than 2 updates would show one of them",
        )
    loopback = protocol.is_loopback(settings.host)
    if settings.insecure_http and not loopback:
        raise UsageError(f"--insecure-http listens on loopback only, not on {settings.host}")
    if engine.name == "plaintext" and not loopback:
        raise EngineError(f"the engine 'plaintext' runs on loopback only, not on {settings.host}")


def _json(value: msgspec.Struct) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), content_type="application/json")


def _refuse(
    request: web.Request, error: HeflError, status: int | None = None, sealed_layout: bytes | None = None
) -> web.Response:
    log.warning(
        "refused %s %s of %s: %s", request.method, request.path, request.get("name", "an unknown client"), error
    )
    body = msgspec.json.encode(protocol.refusal_of(error, sealed_layout))
    return web.Response(body=body, status=status or error.http_status, content_type="application/json")
