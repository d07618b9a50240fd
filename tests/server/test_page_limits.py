"""What strangers may take of the page's port: it shares the server's descriptors with the clients' port."""

from __future__ import annotations

import json
import resource
import socket
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from federation import Command, Federation
from raw_peer import dribbling, ended

from hefl.params import PAGE_CONNECTIONS

HEAD = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n"


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    return Federation(tmp_path_factory.mktemp("keys") / "fed", "alice", "bob")


class Page:
    """The page of a server that listens."""

    def __init__(self, server: Command) -> None:
        server.until('"page"')
        url = next(str(e["url"]) for e in server.events if e["event"] == "page")
        self._address = ("127.0.0.1", urlsplit(url).port or 0)

    def connect(self, receive_bytes: int | None = None) -> socket.socket:
        made = socket.socket()
        if receive_bytes:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        made.settimeout(60)
        made.connect(self._address)
        return made

    def ask(self, path: str, more: bytes = b"") -> bytes:
        with self.connect() as peer:
            peer.sendall(HEAD.replace(b"/healthz", path.encode()) + more + b"Connection: close\r\n\r\n")
            return ended(peer)


def files(server: Command) -> int:
    return len(list(Path(f"/proc/{server.child.pid}/fd").iterdir()))


def test_a_flood_of_silent_connections_to_the_page_leaves_the_clients_their_port(
    keys: Federation, tmp_path: Path
) -> None:
    """The process may open far fewer files than are asked of it; a page that is open stays open."""
    with keys, ExitStack() as stack:
        server = keys.serve(tmp_path / "server", "--rounds", "2", "--max-connections", "8", "--page-port", "0")
        page, most = Page(server), 2 * 8 + 128 + PAGE_CONNECTIONS
        resource.prlimit(server.child.pid, resource.RLIMIT_NOFILE, (most, most))
        open_page = stack.enter_context(page.connect())
        open_page.sendall(HEAD.replace(b"/healthz", b"/events") + b"\r\n")
        news = open_page.makefile()
        before = files(server)
        for _ in range(most + 100):
            stack.enter_context(page.connect())
        clients = [keys.client(name, tmp_path / name, "--connect-timeout", "10") for name in ("alice", "bob")]
        assert [c.wait() for c in (*clients, server)] == [0, 0, 0], clients[0].error + server.error
        assert before + PAGE_CONNECTIONS < most
        told = [json.loads(line.removeprefix("data: ")) for line in news if line.startswith("data: ")]
        assert told[-1]["now"]["phase"] == "ended"
    assert "no connection can be taken" not in server.error
    assert "Traceback" not in server.error


def test_who_is_silent_at_the_page_or_never_finishes_its_request_is_cut_off(keys: Federation, tmp_path: Path) -> None:
    with keys, ExitStack() as stack:
        server = keys.serve(tmp_path / "server", "--peer-timeout", "2", "--page-port", "0")
        page = Page(server)
        silent, half, slow = (stack.enter_context(page.connect()) for _ in range(3))
        half.sendall(HEAD)
        slow.sendall(HEAD)
        stack.enter_context(dribbling(slow, b"X-A: " + b"a" * 10_000))
        asked = stack.enter_context(page.connect())
        asked.sendall(HEAD + b"\r\n")
        assert [ended(each) for each in (silent, half, slow)] == [b"", b"", b""]
        assert ended(asked).startswith(b"HTTP/1.1 200 ")
        assert page.ask("/healthz").startswith(b"HTTP/1.1 200 ")
        assert "Traceback" not in server.error


def test_who_does_not_take_what_it_asked_of_the_page_is_cut_off(keys: Federation, tmp_path: Path) -> None:
    with keys, ExitStack() as stack:
        server = keys.serve(tmp_path / "server", "--peer-timeout", "2", "--page-port", "0")
        page = Page(server)
        peer = stack.enter_context(page.connect(receive_bytes=4096))
        for _ in range(400):
            peer.sendall(HEAD.replace(b"/healthz", b"/page.js") + b"\r\n")
        server.until("cut off a reader of the page, which takes its answer too slowly")
        assert page.ask("/healthz").startswith(b"HTTP/1.1 200 ")
        assert "Traceback" not in server.error


def test_a_browser_with_the_cookies_of_all_that_is_on_this_machine_is_let_in(keys: Federation, tmp_path: Path) -> None:
    """Cookies know no ports: whatever else serves on 127.0.0.1 has set some."""
    with keys:
        server = keys.serve(tmp_path / "server", "--page-port", "0")
        page = Page(server)
        assert page.ask("/", b"Cookie: a=" + b"b" * 6000 + b"\r\n").startswith(b"HTTP/1.1 200 ")
        heard = page.ask("/", b"Cookie: a=" + b"b" * 20_000 + b"\r\n")
        assert b" 400 " in heard.partition(b"\r\n")[0]
        assert b"X-Content-Type-Options: nosniff" in heard
        assert "Traceback" not in server.error
