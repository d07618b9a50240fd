"""A client against a server with a good certificate that answers what it likes."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from federation import Federation
from mutation import memory_within
from proxy import Fault, Flip, Proxy

from hefl.client.http import READ_TIMEOUT_S, Connection
from hefl.errors import CertificateError, HeflError, MalformedError, ProtocolError, UnreachableError
from hefl.keys import folders
from hefl.params import CONNECT_TIMEOUT_S, POLL_S
from hefl.protocol import messages
from hefl.protocol.compact_records import decode_records
from hefl.protocol.messages import Welcome, parser

Ask = Callable[[Connection], Awaitable[Any]]

Answer = bytes | list[bytes]
"""An answer; or pieces of one, a fifth of a second apart, after which the connection breaks off."""


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    return Federation(tmp_path_factory.mktemp("keys") / "fed", "alice", "bob")


def answer(body: bytes, status: str = "200 OK", *headers: str, length: int | None = None) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body) if length is None else length}", *headers]
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + body


def refusal(status: str, **fields: Any) -> bytes:
    return answer(json.dumps({"error": "MalformedError", "message": "no", **fields}).encode(), status)


async def _asked(
    keys: Federation, answers: Sequence[Answer], ask: Ask, fault: Callable[[int], Fault]
) -> tuple[Any, int]:
    """What a client makes of such answers, one a request, the last one for ever; and how often it asked.

    ``fault`` says what becomes of each of its connections on the way.
    """
    credentials = folders.read_server_folder(keys.folder / "server").credentials
    count = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal count
        try:
            while await reader.readuntil(b"\r\n\r\n"):
                count += 1
                answer = answers[min(count, len(answers)) - 1]
                for piece in answer if isinstance(answer, list) else [answer]:
                    writer.write(piece)
                    await writer.drain()
                    await asyncio.sleep(0.2 * isinstance(answer, list))
                if isinstance(answer, list):
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0, ssl=credentials.server_context()) as server:
        folder = folders.read_client_folder(keys.folder / "clients/alice")
        with Proxy(server.sockets[0].getsockname()[1], fault) as proxy:
            url = f"https://127.0.0.1:{proxy.port}"
            async with Connection(folder, url, "00" * 16, 1.0, insecure_http=False) as connection:
                try:
                    found = await ask(connection)
                except HeflError as error:
                    found = error
        return found, count


def asked(
    keys: Federation,
    *answers: Answer,
    ask: Ask | None = None,
    fault: Callable[[int], Fault] = lambda number: Fault(),
) -> tuple[Any, int]:
    return asyncio.run(_asked(keys, answers, ask or (lambda c: c.call("GET", "/v1/run")), fault))


def test_an_answer_longer_than_any_honest_one_is_refused(keys: Federation) -> None:
    long = messages.MAX_ANSWER_BYTES + (1 << 20)
    for body in (answer(b"x" * long), answer(b"x" * long, "400 Bad Request")):
        with memory_within(5 * messages.MAX_ANSWER_BYTES):  # the test's own copies among it
            error, _ = asked(keys, body)
        assert isinstance(error, MalformedError)
        assert "oversized" in str(error)


def test_an_aggregate_longer_than_any_honest_one_is_refused_and_not_kept(keys: Federation, tmp_path: Path) -> None:
    target = tmp_path / "aggregate"
    error, _ = asked(keys, answer(b"x" * 3000), ask=lambda c: c.download("/v1/rounds/1/aggregate", target, 1000))
    assert isinstance(error, MalformedError)
    assert not list(tmp_path.iterdir())


def test_a_compressed_answer_does_not_grow(keys: Federation) -> None:
    bomb = gzip.compress(bytes(1 << 20))
    found, _ = asked(keys, answer(bomb, "200 OK", "Content-Encoding: gzip"))
    assert found == bomb
    with pytest.raises(MalformedError):
        messages.decode(found, messages.View)


def test_a_client_is_not_sent_elsewhere(keys: Federation) -> None:
    error, count = asked(keys, answer(b"", "307 Temporary Redirect", "Location: /v1/elsewhere"))
    assert (type(error), count) == (ProtocolError, 2)


@pytest.mark.parametrize("kind", ["OtherLayoutError", "SystemExit", "KeyError", "Connection"])
def test_a_refusal_by_a_name_that_is_no_error_of_its_own_is_a_protocol_error(keys: Federation, kind: str) -> None:
    error, _ = asked(keys, refusal("400 Bad Request", error=kind))
    assert (type(error), str(error)) == (ProtocolError, "no")


def test_a_refusal_says_no_more_than_a_person_reads(keys: Federation) -> None:
    error, _ = asked(keys, refusal("400 Bad Request", message="a" * 100_000, hint="b" * 100_000))
    assert (len(error.message), len(error.hint)) == (messages.MAX_TEXT, messages.MAX_TEXT)


@pytest.mark.parametrize("status", ["408 Request Timeout", "429 Too Many Requests", "503 Service Unavailable"])
def test_what_may_pass_is_tried_again_and_not_for_ever(keys: Federation, status: str) -> None:
    found, count = asked(keys, refusal(status), answer(b"at last"))
    assert (found, count) == (b"at last", 2)
    error, count = asked(keys, refusal(status))
    assert isinstance(error, UnreachableError)
    assert count > 1


def test_a_transfer_that_breaks_off_late_is_tried_again_as_long_as_it_comes_further(
    keys: Federation, tmp_path: Path
) -> None:
    """The connection gives up after a second without progress, and each try takes longer."""
    target, whole = tmp_path / "aggregate", bytes(5000)
    broken = [answer(whole[:500], length=5000), *[bytes(500)] * 6]
    again = [answer(whole[:500], length=5000), *[bytes(500)] * 7]
    found, count = asked(keys, broken, again, answer(whole), ask=lambda c: c.download("/v1/x", target, 5000))
    assert (found, count) == (5000, 3)
    assert target.read_bytes() == whole
    error, count = asked(keys, broken, ask=lambda c: c.download("/v1/x", target, 5000))
    assert isinstance(error, UnreachableError)
    assert count == 3


NO_ANSWERS = (
    b"nonsense\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
    b"HTTP/1.1 200 OK\r\n" + b"a" * 99_999,
)


@pytest.mark.parametrize("data", NO_ANSWERS, ids=["nonsense", "length", "long"])
def test_bytes_that_are_no_answer_are_an_error_of_hefls(keys: Federation, data: bytes) -> None:
    error, _ = asked(keys, data)
    assert isinstance(error, HeflError)


# --- what was damaged on the way --------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["up", "down"])
def test_one_wrong_bit_anywhere_in_a_tls_connection_is_survived(keys: Federation, way: str) -> None:
    """In the handshake, in a certificate, in the request and in the answer."""
    flips: list[Flip] = []

    def fault(number: int) -> Fault:
        if number > 0:
            return Fault()
        return Fault(up=flips[-1]) if way == "up" else Fault(down=flips[-1])

    while not flips or flips[-1].done:
        flips.append(Flip(83 * len(flips)))
        assert asked(keys, answer(b"fine"), fault=fault)[0] == b"fine", len(flips)
    assert len(flips) > 20


@pytest.mark.parametrize("at", [11, 200, 1000])
def test_a_tls_connection_that_is_damaged_every_time_ends_a_client_with_a_certificate_error(
    keys: Federation, at: int
) -> None:
    numbers = []

    def fault(number: int) -> Fault:
        numbers.append(number)
        return Fault(down=Flip(at))

    error, count = asked(keys, answer(b"fine"), fault=fault)
    assert (type(error), error.exit_code, count) == (CertificateError, 3, 0)
    assert "does not speak TLS 1.3 as hefl does" in error.message
    assert numbers == [0, 1]


WELCOME = answer(b'{"run": "' + b"ab" * 16 + b'"}')
DAMAGED = {
    "JSON": (WELCOME.replace(b'"run"', b'"ruo"'), WELCOME, parser(Welcome)),
    "MessagePack": (answer(b"\x91"), answer(b"\x90"), decode_records),
    "refusal": (answer(b'{"errnr": "StaleError", "message": "no"}', "410 Gone"), WELCOME, parser(Welcome)),
    "refusal's name": (refusal("410 Gone", error="StameError"), WELCOME, parser(Welcome)),
    "status": (answer(b"{}", "210 OK"), WELCOME, parser(Welcome)),
}


@pytest.mark.parametrize("what", DAMAGED)
def test_an_answer_that_does_not_parse_is_asked_for_once_more_over_a_new_connection(
    keys: Federation, what: str
) -> None:
    damaged, whole, parse = DAMAGED[what]
    connections = []

    def fault(number: int) -> Fault:
        connections.append(number)
        return Fault()

    async def ask(connection: Connection) -> Any:
        return await connection.ask("GET", "/v1/x", parse)

    found, count = asked(keys, damaged, whole, ask=ask, fault=fault)
    assert (found, count) == (parse(whole.partition(b"\r\n\r\n")[2]), 2)
    assert connections == [0, 1]
    error, count = asked(keys, damaged, ask=ask)
    assert isinstance(error, ProtocolError)
    assert (error.exit_code, count) == (4, 2)


@pytest.mark.parametrize("kind", ["StaleError", "ConflictError", "TamperError", "UploadError", "LayoutError"])
def test_what_a_server_says_clearly_is_not_asked_for_again(keys: Federation, kind: str) -> None:
    error, count = asked(keys, refusal("409 Conflict", error=kind))
    assert (type(error).__name__, count) == (kind, 1)


# --- connections that are dead without a word -------------------------------------------------------------------------


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hefl.client.http.READ_TIMEOUT_S", 0.5)
    monkeypatch.setattr("hefl.client.http.CONNECT_S", 0.5)


async def silent_at(keys: Federation, silent: Callable[[int], bytes | None], ask: Ask) -> tuple[Any, int]:
    """What a client makes of a server that answers a connection's requests with b"fine", unless ``silent`` says what
    it says on the n-th one, from 1, before it falls silent; and how many connections there were."""
    credentials = folders.read_server_folder(keys.folder / "server").credentials
    count, over = 0, asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal count
        count += 1
        said = silent(count)
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while await reader.readuntil(b"\r\n\r\n"):
                writer.write(answer(b"fine") if said is None else said)
                await writer.drain()
                if said is not None:
                    await over.wait()
                    break
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0, ssl=credentials.server_context()) as server:
        url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        folder = folders.read_client_folder(keys.folder / "clients/alice")
        async with asyncio.timeout(60), Connection(folder, url, "00" * 16, 0.1, insecure_http=False) as connection:
            try:
                found = await ask(connection)
            except HeflError as error:
                found = error
        over.set()
        await asyncio.sleep(0)
    return found, count


def test_a_request_that_hangs_on_a_dead_connection_is_made_again_over_a_new_one(keys: Federation, hasty: None) -> None:
    """Though it hangs longer than --connect-timeout."""
    found, count = asyncio.run(
        silent_at(keys, lambda number: b"" if number < 3 else None, lambda c: c.call("GET", "/v1/run"))
    )
    assert (found, count) == (b"fine", 3)


HANGS = {"before it may begin": b"", "while it is sent": b"HTTP/1.1 100 Continue\r\n\r\n"}


@pytest.mark.parametrize("when", HANGS)
def test_an_upload_that_hangs_is_made_again_over_a_new_connection(
    keys: Federation, tmp_path: Path, hasty: None, when: str
) -> None:
    update = tmp_path / "update"
    update.write_bytes(bytes(20 << 20))  # more than the system takes for a peer that reads nothing

    def silent(number: int) -> bytes | None:
        if number == 1:
            return HANGS[when]
        return answer(b'{"bytes": 0, "committed": true}')

    async def upload(connection: Connection) -> str:
        await connection.upload("/v1/x", update, 20 << 20, {}, 0.0)
        return "sent"

    assert asyncio.run(silent_at(keys, silent, upload)) == ("sent", 2)


def test_a_server_that_never_answers_is_given_up_after_three_tries(keys: Federation, hasty: None) -> None:
    error, count = asyncio.run(silent_at(keys, lambda _: b"", lambda c: c.call("GET", "/v1/run")))
    assert (type(error), error.exit_code, count) == (UnreachableError, 5, 3)
    assert "did not answer for" in error.message
    assert "timeout on reading data" in error.message


def test_a_connection_is_given_up_well_before_a_client_and_after_more_than_a_poll() -> None:
    assert 2 * POLL_S < READ_TIMEOUT_S <= CONNECT_TIMEOUT_S / 10
    assert CONNECT_TIMEOUT_S > 5 * 60  # people who start server and clients do so within five minutes
