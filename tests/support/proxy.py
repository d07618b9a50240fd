"""A network between clients and a server that cuts, delays, truncates and damages connections, as a test says."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Self

Change = Callable[[bytes], bytes]
"""What becomes of each piece that goes one way over a connection, one after another."""


def unchanged(piece: bytes) -> bytes:
    return piece


class Flip:
    """One wrong bit: of the byte at this place on its way over the connection, or so far behind where some bytes begin.

    Attributes:
        done: How often it has struck, over all connections that it is used for.
    """

    def __init__(self, at: int, behind: bytes = b"", times: int = 1) -> None:
        self.done = 0
        self._at, self._behind, self._times = at, behind, times
        self._passed = 0

    def __call__(self, piece: bytes) -> bytes:
        found = piece.find(self._behind)
        at = self._at + found if self._behind else self._at - self._passed
        self._passed += len(piece)
        if self.done == self._times or (self._behind and found < 0) or not 0 <= at < len(piece):
            return piece
        self.done += 1
        return piece[:at] + bytes([piece[at] ^ 1 << self._at % 8]) + piece[at + 1 :]


@dataclass(frozen=True)
class Fault:
    """What becomes of one connection.

    Attributes:
        up_bytes, down_bytes: After so many to the server, or from it, the connection ends; None lets all pass.
        reset: It ends by a reset; otherwise as if the peer had said all that it had to say.
        delay_s: Before each piece.
        up, down: Change what passes.
    """

    up_bytes: int | None = None
    down_bytes: int | None = None
    reset: bool = True
    delay_s: float = 0.0
    up: Change = unchanged
    down: Change = unchanged


class Proxy:
    """Passes bytes on to a port of this machine; ``fault`` says what the n-th connection, from 0, meets."""

    def __init__(self, port: int = 0, fault: Callable[[int], Fault] = lambda number: Fault()) -> None:
        self.port = 0
        self.cuts = 0
        self._target = port
        self._forgotten = 0
        self._fault = fault
        self._count = 0
        self._ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        self._ready.wait()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
        self._loop.close()

    def forget(self) -> None:
        """Let the connections that are open carry nothing more, and stay open, as a router does that forgot them."""
        self._forgotten = self._count

    def _run(self) -> None:
        self._loop.run_until_complete(self._serve())

    async def _serve(self) -> None:
        self._stop = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stop.wait()
        server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        number, self._count = self._count, self._count + 1
        fault = self._fault(number)
        far: asyncio.StreamWriter | None = None
        try:
            port = await self._target_of(reader, writer)
            far_reader, far = await asyncio.open_connection("127.0.0.1", port)
            up = asyncio.create_task(self._pump(number, reader, far, fault.up, fault.up_bytes, fault.delay_s))
            down = asyncio.create_task(
                self._pump(number, far_reader, writer, fault.down, fault.down_bytes, fault.delay_s)
            )
            done, left = await asyncio.wait([up, down], return_when=asyncio.FIRST_COMPLETED)
            self.cuts += any(pump.result() for pump in done)
            for pump in left:
                pump.cancel()
                with suppress(asyncio.CancelledError):
                    await pump
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            for end in (writer, far):
                if end and fault.reset:
                    end.transport.abort()
                elif end:
                    end.close()

    async def _target_of(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> int:
        """The port to which a connection goes on."""
        return self._target

    async def _pump(
        self,
        number: int,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        change: Change,
        limit: int | None,
        delay_s: float,
    ) -> bool:
        """Pass bytes on; returns whether the limit ended it."""
        with suppress(OSError):
            while chunk := await reader.read(1 << 14):
                if number < self._forgotten:
                    await self._stop.wait()
                chunk = change(chunk)
                if delay_s:
                    await asyncio.sleep(delay_s)
                if limit is not None:
                    chunk = chunk[:limit]
                    limit -= len(chunk)
                writer.write(chunk)
                await writer.drain()
                if limit == 0:
                    return True
        return False


class ConnectProxy(Proxy):
    """An HTTP proxy that makes tunnels, to whatever host, which is this machine.

    Args:
        status: What it answers in place of 200; None makes tunnels.

    Attributes:
        heads: Of the requests that it got.
        carried: What has gone up through its tunnels.
    """

    def __init__(self, status: str | None = None) -> None:
        self.heads: list[str] = []
        self.carried = bytearray()
        self._status = status
        super().__init__(fault=lambda _: Fault(up=self._note))

    def _note(self, piece: bytes) -> bytes:
        self.carried += piece
        return piece

    async def _target_of(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> int:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        self.heads.append(head)
        method, address, _ = head.split(" ", 2)
        if self._status or method != "CONNECT":
            writer.write(f"HTTP/1.1 {self._status or '405 Method Not Allowed'}\r\nContent-Length: 0\r\n\r\n".encode())
            await writer.drain()
            await reader.read()  # until the client has had enough
            raise ConnectionRefusedError
        writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        return int(address.rpartition(":")[2])
