"""A peer of a server's that writes its requests by hand, over TLS or without, whole or in part."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any
from urllib.parse import urlsplit

import msgspec
from federation import Federation

from hefl.keys import folders
from hefl.protocol import messages

NONCE = "00112233445566778899aabbccddeeff"
JOIN = messages.Join(
    engine="tenseal",
    precision_bits=0,
    weighting="server",
    num_examples=4,
    join_nonce=NONCE,
    layout="ab" * 32,
    sealed_layout=b"sealed",
    values={"initial": 4, "training": 10, "closing": 4},
)


class Peer:
    """One client of a federation whose server listens."""

    def __init__(self, keys: Federation, name: str) -> None:
        self.folder = folders.read_client_folder(keys.folder / "clients" / name)
        self.headers = {"Host": "localhost", **messages.headers(self.folder.secret, NONCE)}
        self._address = ("127.0.0.1", urlsplit(keys.url).port or 0)
        self._context = self.folder.credentials.client_context()

    def plain(self, receive_bytes: int | None = None) -> socket.socket:
        """A connection on which TLS has not begun."""
        made = socket.socket()
        if receive_bytes:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        made.settimeout(60)
        made.connect(self._address)
        return made

    def tls(self, receive_bytes: int | None = None) -> ssl.SSLSocket:
        """A connection over which requests may go."""
        return self._context.wrap_socket(self.plain(receive_bytes), server_hostname="127.0.0.1")

    def head(self, method: str, path: str, headers: Mapping[str, str] | None = None) -> bytes:
        """A request's, with the headers that every request needs."""
        lines = [f"{method} {path} HTTP/1.1", *(f"{k}: {v}" for k, v in {**self.headers, **(headers or {})}.items())]
        return ("\r\n".join(lines) + "\r\n\r\n").encode(errors="surrogateescape")

    def ask(
        self, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> tuple[int, bytes]:
        """One request over a connection of its own; the answer's status and body."""
        with self.tls() as connection:
            length = {"Content-Length": str(len(body)), "Connection": "close"}
            connection.sendall(self.head(method, path, {**length, **(headers or {})}) + body)
            return answer(connection)

    def join(self, **changes: Any) -> None:
        """Join the run."""
        status, body = self.ask("POST", "/v1/join", msgspec.json.encode(msgspec.structs.replace(JOIN, **changes)))
        assert status == 200, body

    def view(self) -> messages.View:
        """The run, as the server shows it."""
        return msgspec.json.decode(self.ask("GET", "/v1/run")[1], type=messages.View)


def answer(connection: socket.socket, *, bodiless: bool = False) -> tuple[int, bytes]:
    """The next answer's status and body, where it has one."""
    heard = b""
    while b"\r\n\r\n" not in heard:
        chunk = connection.recv(1 << 16)
        if not chunk:
            raise ConnectionResetError(f"no answer, but {heard[:100]!r}")
        heard += chunk
    head, _, body = heard.partition(b"\r\n\r\n")
    lines = head.decode("latin-1").split("\r\n")
    fields = {k.lower(): v for k, _, v in (line.partition(": ") for line in lines[1:])}
    while not bodiless and len(body) < int(fields.get("content-length", "0")):
        chunk = connection.recv(1 << 16)
        if not chunk:
            raise ConnectionResetError("the answer is not whole")
        body += chunk
    return int(lines[0].split(" ")[1]), body


def ended(peer: socket.socket) -> bytes:
    """What a peer hears until the server ends the connection."""
    heard = b""
    peer.settimeout(60)
    with suppress(ConnectionError, ssl.SSLError):
        while chunk := peer.recv(1 << 16):
            heard += chunk
    return heard


@contextmanager
def dribbling(peer: socket.socket, data: bytes, every_s: float = 0.2) -> Iterator[None]:
    """Sends a byte at a time, until the server has had enough."""
    stopped = threading.Event()

    def dribble() -> None:
        with suppress(OSError):
            for i in range(len(data)):
                if stopped.wait(every_s):
                    return
                peer.sendall(data[i : i + 1])

    thread = threading.Thread(target=dribble)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()
