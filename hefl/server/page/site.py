"""Serve the page on loopback: plain HTTP, GET only.

/                 the page, with /page.css, /page.js, /icon.svg
/events           server-sent events: the run as it stands, and the rows that have changed
/metrics          for Prometheus
/healthz          200 while the server runs
"""

from __future__ import annotations

import asyncio
import math
import os
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, replace
from importlib import resources
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import msgspec
from aiohttp import web
from prometheus_client.aiohttp import make_aiohttp_handler

from hefl.errors import HeflError
from hefl.params import PAGE_CONNECTIONS
from hefl.protocol.messages import is_loopback
from hefl.protocol.records import Record
from hefl.rounds.run import Phase
from hefl.server.limits import Limits
from hefl.server.listener import Listener
from hefl.server.page.gauges import Gauges, Look
from hefl.server.page.watch import Watch, deadline_s, describe

HOST = "127.0.0.1"

MAX_STREAMS = 32
"""Pages that may be open at once."""

PAUSE_S, LOOK_S, BEAT_S = 0.1, 1.0, 15.0
"""How often to look for events; for what is none, such as silence; and how often to say something at least, so that a
page that has gone is noticed."""

READER = "a reader of the page"
"""Whoever has asked for something; where there are too many connections, those are cut off first that have not."""

MAX_LINE_BYTES = 8192
"""A browser sends along the cookies of whatever else is served on this machine."""

RETRY_MS = 1000
"""After so long a page that has lost the server tries again."""

FILES = {
    "/": ("index.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Page:
    """Shows one run on a port of its own, while it is entered.

    Args:
        look: Shows the run and its clock.
        port: On loopback; 0 takes any.
        records: The run's last, from before a restart.
        limits: What the server's peers may take; readers get the same time, and PAGE_CONNECTIONS.

    Attributes:
        url: Where it is, once entered.

    Raises:
        PortInUseError: The port is taken.
    """

    def __init__(self, look: Look, port: int, records: Iterable[Record], limits: Limits) -> None:
        self.url = ""
        self._look = look
        self._port = port
        self._watch = Watch(look()[0], records)
        self._gauges = Gauges(look, self._watch)
        self._process = os.urandom(4).hex()
        self._stopped = False
        self._streams = 0
        self._limits = replace(
            limits,
            max_connections=PAGE_CONNECTIONS,
            max_of_client=PAGE_CONNECTIONS,
            max_line_bytes=MAX_LINE_BYTES,
        )
        self._listener: Listener | None = None
        app = web.Application(middlewares=[self._guard])
        for path, (name, kind) in FILES.items():
            app.router.add_get(path, _file(name, kind), allow_head=False)
        app.router.add_get("/events", self._events, allow_head=False)
        app.router.add_get("/metrics", make_aiohttp_handler(self._gauges.registry), allow_head=False)
        app.router.add_get("/healthz", self._health, allow_head=False)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)

    def see(self, event: Mapping[str, Any]) -> None:
        """Take in an event of the server's."""
        self._watch.see(event)
        self._gauges.see(event)

    async def __aenter__(self) -> Self:
        await self._runner.setup()
        self._listener = Listener(self._runner, self._limits, None, _refuse)
        try:
            port = await self._listener.open(HOST, self._port, "--page-port")
        except BaseException:
            await self._runner.cleanup()
            raise
        self._listener.accept()
        self.url = f"http://{HOST}:{port}"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Tell every page how it ended."""
        self._stopped = True
        if self._listener:
            await self._listener.close()
            await self._runner.cleanup()
            self._listener.abort()

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Answer to a loopback name only, which no page of another site can make a browser send; and GET only."""
        try:
            host = urlsplit(f"//{request.headers.get('Host', '')}").hostname or ""
        except ValueError:
            host = ""
        if not is_loopback(host):
            response = web.Response(status=421, text="this page answers to 127.0.0.1 and localhost only\n")
        elif request.method != "GET":
            response = web.Response(status=405, text="this page is read only\n", headers={"Allow": "GET"})
        else:
            if self._listener:
                self._listener.identified(request, READER)
            try:
                answer = await handler(request)
            except web.HTTPException as error:
                return web.Response(status=error.status, text=error.text, headers=HEADERS)
            if not answer.prepared:
                answer.headers.update(HEADERS)
            return answer
        response.headers.update(HEADERS)
        return response

    async def _health(self, request: web.Request) -> web.Response:
        run, _ = self._look()
        return _json({"status": "ok", "phase": run.phase.value, "round": run.shown_round, "rounds": run.last_training})

    async def _events(self, request: web.Request) -> web.StreamResponse:
        if self._streams >= MAX_STREAMS:
            raise web.HTTPServiceUnavailable(text=f"{MAX_STREAMS} pages are open already\n")
        self._streams += 1
        try:
            response = web.StreamResponse(headers={"Content-Type": "text/event-stream", **HEADERS})
            await response.prepare(request)
            with suppress(ConnectionError):  # whoever closes the page says no goodbye
                await self._stream(response, self._seen(request.headers.get("Last-Event-ID", "")))
            return response
        finally:
            self._streams -= 1

    def _seen(self, last_id: str) -> int:
        """What a page that comes back has seen already."""
        process, _, seq = last_id.partition("-")
        return int(seq) if process == self._process and re.fullmatch(r"\d{1,18}", seq, re.ASCII) else -1

    async def _stream(self, response: web.StreamResponse, seen: int) -> None:
        """Send what is new until the run is over; ``seen`` is what the other side has."""
        loop, looked, shown = asyncio.get_running_loop(), -1, None
        looked_s = sent_s = -math.inf
        while True:
            stopped = self._stopped
            if looked != self._watch.seq or loop.time() - looked_s > LOOK_S or stopped:
                looked, looked_s = self._watch.seq, loop.time()
                run, clock = self._look()
                now = describe(run, clock, self._watch) | {"interrupted": stopped and run.phase is not Phase.ENDED}
                rows = [asdict(row) for row in self._watch.changed_since(seen)]
                if rows or now != shown:
                    shown, seen, sent_s = now, looked, looked_s
                    message = {"now": now | {"deadline_s": deadline_s(run, clock)}, "rows": rows}
                    text = msgspec.json.encode(message).decode()
                    await response.write(f"retry: {RETRY_MS}\nid: {self._process}-{seen}\ndata: {text}\n\n".encode())
                elif looked_s - sent_s > BEAT_S:
                    sent_s = looked_s
                    await response.write(b":\n\n")
            if stopped:
                return
            await asyncio.sleep(PAUSE_S)


def _refuse(request: web.BaseRequest, error: HeflError, status: int | None) -> web.Response:
    return web.Response(status=status or error.http_status, text=f"{error.message}\n", headers=HEADERS)


def _file(name: str, kind: str) -> Handler:
    body = resources.files("hefl.server.page").joinpath("static", name).read_bytes()

    async def handler(request: web.Request) -> web.Response:
        return web.Response(body=body, content_type=kind, charset="utf-8")

    return handler


def _json(value: Mapping[str, Any]) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), content_type="application/json")
