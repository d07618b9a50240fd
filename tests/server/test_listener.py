"""Peers that are slow, never finish, or come in floods: others do not notice, and what they hold is bounded."""

from __future__ import annotations

import socket
import ssl
import time
import zlib
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path

import msgspec
import pytest
from federation import Command, Federation
from raw_peer import JOIN, Peer, answer, dribbling, ended

from hefl.params import MAX_CONNECTIONS_OF_CLIENT
from hefl.protocol import messages


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    return Federation(tmp_path_factory.mktemp("keys") / "fed", "alice", "bob", "mallory")


def rss_bytes(server: Command) -> int:
    status = Path(f"/proc/{server.child.pid}/status").read_text()
    return 1024 * int(status.split("VmRSS:")[1].split()[0])


def files(server: Command) -> int:
    return len(list(Path(f"/proc/{server.child.pid}/fd").iterdir()))


def quiet(server: Command) -> int:
    """How many files it has once nothing is going on."""
    before = -1
    while (now := files(server)) != before:
        before = now
        time.sleep(1)
    return now


def until(holds: Callable[[], bool], limit_s: float = 60.0) -> None:
    deadline = time.monotonic() + limit_s
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_two_honest_clients_complete_a_run_among_slow_and_never_finishing_peers(
    keys: Federation, tmp_path: Path
) -> None:
    """And each of those is cut off, while the run goes on or after it."""
    with keys, ExitStack() as stack:
        server = keys.serve(
            tmp_path / "server", "--rounds", "3", "--join-wait", "60", "--peer-timeout", "3", "--min-clients", "3"
        )
        mallory = Peer(keys, "mallory")
        silent = [stack.enter_context(mallory.plain()) for _ in range(20)]  # no TLS at all
        half = [stack.enter_context(mallory.plain()) for _ in range(5)]
        for each in half:
            each.sendall(b"\x16\x03\x01\x02\x00\x01")  # the beginning of a TLS handshake
        mute = [stack.enter_context(mallory.tls()) for _ in range(5)]  # TLS, and no request
        heads = [stack.enter_context(mallory.tls()) for _ in range(5)]
        for each in heads:
            each.sendall(b"GET /v1/run HTTP/1.1\r\nHost: x\r\nX-A: ")
        slow_head = stack.enter_context(mallory.tls())
        stack.enter_context(dribbling(slow_head, b"GET /v1/run HTTP/1.1\r\nHost: x\r\nX-A: " + b"a" * 10_000))
        bodies = [stack.enter_context(mallory.tls()) for _ in range(2)]
        for each in bodies:
            each.sendall(mallory.head("POST", "/v1/join", {"Content-Length": "1000"}) + b'{"engine":')
        slow_body = stack.enter_context(mallory.tls())
        slow_body.sendall(mallory.head("POST", "/v1/join", {"Content-Length": "100000"}))
        stack.enter_context(dribbling(slow_body, b" " * 100_000))
        clients = [keys.client(name, tmp_path / name) for name in ("alice", "bob")]
        server.until("bob joined")
        server.until("alice joined")
        third = keys.client("mallory", tmp_path / "mallory")
        for each in [*silent, *half, *mute, *heads, slow_head]:
            assert ended(each) == b""
        for each in [*bodies, slow_body]:
            heard = ended(each)
            assert heard.startswith(b"HTTP/1.1 408 ")
            assert b"TooSlowError" in heard
        assert [c.wait() for c in (*clients, third, server)] == [0, 0, 0, 0], server.error
    assert [e["in"] for e in server.events if e["event"] == "round"][1:] == [["alice", "bob", "mallory"]] * 4
    assert "Traceback" not in server.error


def test_a_flood_of_strangers_keeps_nobody_out_and_holds_a_bounded_number_of_connections(
    keys: Federation, tmp_path: Path
) -> None:
    with keys, ExitStack() as stack:
        server = keys.serve(tmp_path / "server", "--rounds", "2", "--max-connections", "40", "--min-clients", "3")
        mallory = Peer(keys, "mallory")
        before = files(server)
        clients = [keys.client(name, tmp_path / name) for name in ("alice", "bob")]
        server.until("alice joined")
        server.until("bob joined")
        most = 0
        for _ in range(300):
            stack.enter_context(mallory.plain())
            most = max(most, files(server))
        assert most <= before + 40 + 20  # a few more while they are being closed
        third = keys.client("mallory", tmp_path / "mallory")
        assert [c.wait() for c in (*clients, third, server)] == [0, 0, 0, 0], server.error
    assert "Traceback" not in server.error


def test_a_client_holds_no_more_connections_than_it_may(keys: Federation, tmp_path: Path) -> None:
    with keys, ExitStack() as stack:
        keys.serve(tmp_path / "server", "--engine", "tenseal")
        mallory = Peer(keys, "mallory")
        mallory.join()
        made = []
        for _ in range(MAX_CONNECTIONS_OF_CLIENT + 3):
            peer = stack.enter_context(mallory.tls())
            peer.sendall(mallory.head("GET", "/v1/records"))
            assert peer.recv(1 << 16).startswith(b"HTTP/1.1 200 ")
            made.append(peer)
        for each in made[:3]:
            assert ended(each) == b""
        made[3].sendall(mallory.head("GET", "/v1/records"))
        assert made[3].recv(1 << 16).startswith(b"HTTP/1.1 200 ")


def asking_much(first: Peer, other: Peer) -> bytes:
    """A request of the other's that is answered by a refusal that bears the first one's layout, which is long."""
    long = msgspec.structs.replace(JOIN, sealed_layout=bytes(4 << 20))
    assert first.ask("POST", "/v1/join", msgspec.json.encode(long))[0] == 200
    join = msgspec.json.encode(msgspec.structs.replace(JOIN, layout="cd" * 32))
    return other.head("POST", "/v1/join", {"Content-Length": str(len(join))}) + join


def test_who_does_not_take_its_answer_is_cut_off(keys: Federation, tmp_path: Path) -> None:
    """The client's socket takes next to nothing, and the answers that it asks for are long."""
    with keys, ExitStack() as stack:
        server = keys.serve(tmp_path / "server", "--engine", "tenseal", "--peer-timeout", "2")
        alice, mallory = Peer(keys, "alice"), Peer(keys, "mallory")
        asked = asking_much(alice, mallory)
        peer = stack.enter_context(mallory.tls(receive_bytes=4096))
        for _ in range(8):
            peer.sendall(asked)
        server.until("cut off mallory")
        assert alice.ask("GET", "/v1/records")[0] == 200
        assert "Traceback" not in server.error


@pytest.mark.parametrize("goodbye", [True, False], ids=["goodbye", "end"])
def test_who_says_that_it_is_done_and_takes_no_answer_does_not_stay(
    keys: Federation, tmp_path: Path, goodbye: bool
) -> None:
    """Below TLS such a connection would wait for ever, and count for no limit."""
    with keys, ExitStack() as stack:
        server = keys.serve(tmp_path / "server", "--engine", "tenseal", "--peer-timeout", "2")
        alice, mallory = Peer(keys, "alice"), Peer(keys, "mallory")
        asked = asking_much(alice, mallory)
        before = quiet(server)
        for _ in range(4):
            peer = stack.enter_context(mallory.tls(receive_bytes=4096))
            peer.sendall(asked)
            if goodbye:
                peer.settimeout(0)
                with suppress(ssl.SSLError, BlockingIOError):
                    peer.unwrap()
            else:
                peer.shutdown(socket.SHUT_WR)
        until(lambda: files(server) <= before)
        assert alice.ask("GET", "/v1/records")[0] == 200


def test_who_goes_away_before_an_answer_is_no_fault_of_the_servers(keys: Federation, tmp_path: Path) -> None:
    with keys:
        server = keys.serve(tmp_path / "server", "--engine", "tenseal", "--join-wait", "0")
        alice, bob = Peer(keys, "alice"), Peer(keys, "bob")
        alice.join()
        bob.join()
        server.until("round 0, attempt 1")
        upload = {"Content-Length": "1000", "Expect": "100-continue", messages.HEADER_DIGEST: "ab" * 32}
        head = alice.head("PUT", "/v1/rounds/0/1/update", upload | {messages.HEADER_NUM_EXAMPLES: "4"})
        for _ in range(10):
            peer = alice.tls()
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)  # what it says and its end arrive at once
            peer.sendall(head)
            peer.close()
        server.until("alice has gone")
        assert alice.ask("GET", "/v1/records")[0] == 200
        assert "Traceback" not in server.error


def test_a_compressed_body_does_not_grow(keys: Federation, tmp_path: Path) -> None:
    """A body's length is what is bounded, so it must be what is read."""
    bomb = zlib.compress(b" " * (64 << 20))
    with keys:
        server = keys.serve(tmp_path / "server", "--engine", "tenseal")
        mallory = Peer(keys, "mallory")
        before = rss_bytes(server)
        status, body = mallory.ask("POST", "/v1/join", bomb, {"Content-Encoding": "deflate"})
        assert (status, msgspec.json.decode(body)["error"]) == (400, "MalformedError")
        alice, bob = Peer(keys, "alice"), Peer(keys, "bob")
        alice.join()
        bob.join()
        server.until("round 0, attempt 1: initial parameters of alice")
        headers = {"Content-Encoding": "deflate", messages.HEADER_DIGEST: "d1" * 32, messages.HEADER_NUM_EXAMPLES: "4"}
        status, _ = alice.ask("PUT", "/v1/rounds/0/1/update", bomb, headers)
        assert status == 400
        assert rss_bytes(server) - before < 32 << 20


def test_a_body_longer_than_any_honest_one_is_refused(keys: Federation, tmp_path: Path) -> None:
    with keys:
        keys.serve(tmp_path / "server", "--engine", "tenseal")
        alice = Peer(keys, "alice")
        alice.join()
        for path, most in (
            ("/v1/join", messages.MAX_JSON_BYTES),
            ("/v1/metrics", messages.MAX_SHORT_BYTES),
            ("/v1/fetched", messages.MAX_SHORT_BYTES),
        ):
            status, body = alice.ask("POST", path, b" " * (most + 1))
            assert (status, msgspec.json.decode(body)["error"]) == (400, "MalformedError")
            assert f"over {most} bytes" in msgspec.json.decode(body)["message"]


def test_who_asks_for_one_change_after_another_hears_429(keys: Federation, tmp_path: Path) -> None:
    with keys:
        server = keys.serve(tmp_path / "server", "--engine", "tenseal")
        mallory = Peer(keys, "mallory")
        statuses = [
            mallory.ask("POST", "/v1/join", msgspec.json.encode(msgspec.structs.replace(JOIN, num_examples=n)))[0]
            for n in range(1, 200)
        ]
        assert set(statuses) == {200, 429}
        Peer(keys, "alice").join()
        assert server.child.poll() is None


def test_a_model_larger_than_the_operator_allows_is_refused(keys: Federation, tmp_path: Path) -> None:
    with keys:
        keys.serve(tmp_path / "server", "--engine", "tenseal", "--max-values", "9")
        status, body = Peer(keys, "mallory").ask("POST", "/v1/join", msgspec.json.encode(JOIN))
        refusal = msgspec.json.decode(body, type=messages.Refusal)
        assert (status, refusal.error) == (409, "LayoutError")
        assert "has 10 values, and this server takes at most 9" in refusal.message
        smaller = msgspec.structs.replace(JOIN, values={"initial": 40, "training": 9, "closing": 4})
        assert Peer(keys, "alice").ask("POST", "/v1/join", msgspec.json.encode(smaller))[0] == 409  # 40 / 4 = 10
        fits = msgspec.structs.replace(JOIN, values={"initial": 36, "training": 9, "closing": 4})
        assert Peer(keys, "alice").ask("POST", "/v1/join", msgspec.json.encode(fits))[0] == 200


def test_more_connections_than_the_system_has_descriptors_for_are_refused_at_the_start(
    keys: Federation, tmp_path: Path
) -> None:
    with keys:
        server = keys.start_server(tmp_path / "server", "--max-connections", "65536", port=0)
        assert server.wait() == 2
        assert "65536 connections need 131264 open files, and this process may have" in server.error
        assert "--max-connections" in server.err[-1]


# --- what is no request -----------------------------------------------------------------------------------------------


NO_REQUESTS = (
    b"nonsense\r\n\r\n",
    b"GET / HTTP/9.9\r\n\r\n",
    b"GET /" + b"a" * 5000 + b" HTTP/1.1\r\n\r\n",
    b"GET / HTTP/1.1\r\nX: " + b"a" * 5000 + b"\r\n\r\n",
    b"GET / HTTP/1.1\r\n" + b"X: a\r\n" * 100 + b"\r\n",
    b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
    b"POST /v1/join HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
)


def test_bytes_that_are_no_request_are_refused_as_anything_else(keys: Federation, tmp_path: Path) -> None:
    with keys:
        server = keys.serve(tmp_path / "server")
        for data in NO_REQUESTS:
            with Peer(keys, "mallory").tls() as peer:
                peer.sendall(data)
                status, body = answer(peer)
            assert status == 400, data
            assert msgspec.json.decode(body, type=messages.Refusal).error == "MalformedError"
        assert "Traceback" not in server.error


def test_text_that_is_no_text_is_refused(keys: Federation, tmp_path: Path) -> None:
    with keys:
        server = keys.serve(tmp_path / "server", "--engine", "tenseal")
        mallory = Peer(keys, "mallory")
        mallory.join()
        for name in (messages.HEADER_PROTOCOL, messages.HEADER_FEDERATION, messages.HEADER_GENERATION):
            status, body = mallory.ask("GET", "/v1/run", headers={name: "\udcff\udc80"})
            assert 400 <= status < 500
            assert "\\udcff" in msgspec.json.decode(body, type=messages.Refusal).message
        status, body = mallory.ask("POST", "/v1/fetched", b'{"mac": "\xff"}')
        assert (status, msgspec.json.decode(body)["error"]) == (400, "MalformedError")
        status, body = mallory.ask("GET", "/v1/run", headers={"Expect": "something"})
        assert (status, msgspec.json.decode(body)["error"]) == (417, "ProtocolError")
        status, body = mallory.ask("GET", "/v1/run", headers={"Expect": "\udcff"})
        assert (status, msgspec.json.decode(body)["error"]) == (400, "MalformedError")
        assert "Traceback" not in server.error
        assert not any("\udcff" in line for line in server.err)


def test_a_join_that_does_not_state_every_length_is_refused(keys: Federation, tmp_path: Path) -> None:
    with keys:
        keys.serve(tmp_path / "server", "--engine", "tenseal")
        join = msgspec.json.decode(msgspec.json.encode(JOIN)) | {"values": {"training": 10}}
        status, body = Peer(keys, "mallory").ask("POST", "/v1/join", msgspec.json.encode(join))
        assert (status, msgspec.json.decode(body)["error"]) == (400, "MalformedError")
        assert "values must be stated for each of initial, training, closing" in msgspec.json.decode(body)["message"]
