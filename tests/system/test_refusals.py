"""What must be refused, by the real commands: the exit code, a message that says which is which, and nothing lost."""

from __future__ import annotations

import base64
import dataclasses
import http.client
import io
import json
import re
import shutil
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec
import numpy as np
import pytest
from builders import rewritten
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from federation import Command, Federation

from hefl.engines.engine import Trailer
from hefl.engines.tenseal import SlotsEngine
from hefl.identity import Identity
from hefl.keys import folders, keyfile, tls
from hefl.protocol import frames, messages
from hefl.protocol.updates import write_update

Answer = tuple[int, messages.Refusal | None]


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    return Federation(tmp_path_factory.mktemp("keys") / "fed", "alice", "bob", "carol")


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    return Federation(tmp_path_factory.mktemp("stranger") / "fed", "alice", "bob")


def refused(command: Command, code: int, *texts: str) -> None:
    """The command ended with this code, and its error says all of these, without a traceback."""
    assert command.wait() == code, command.error
    for text in texts:
        assert text in command.error
    assert "Traceback" not in command.error
    assert all(line.startswith("hefl: ") for line in command.err)


# --- keys and certificates --------------------------------------------------------------------------------------------


def test_a_client_of_another_federation_hears_which_is_which(
    keys: Federation, stranger: Federation, tmp_path: Path
) -> None:
    with keys, stranger:
        keys.serve(tmp_path / "server")
        stranger.url = keys.url
        client = stranger.client("alice", tmp_path / "alice")
        refused(client, 3, f"is of {keys.made.identity}", f"this client of {stranger.made.identity}")


def test_another_federations_certificate_in_a_clients_folder_is_refused(
    keys: Federation, stranger: Federation, tmp_path: Path
) -> None:
    mixed = keys.copy(tmp_path / "fed")
    for file in ("client.crt", "client.key", "ca.crt"):
        shutil.copy(stranger.folder / "clients/alice" / file, mixed.folder / "clients/alice" / file)
    with mixed:
        client = mixed.client("alice", tmp_path / "alice", "--server", "https://127.0.0.1:1")
        refused(client, 3, "secret.hefl", str(keys.made.identity), "client.crt", str(stranger.made.identity))


def test_the_files_of_two_generations_do_not_mix(keys: Federation, tmp_path: Path) -> None:
    mixed = keys.copy(tmp_path / "fed")
    path = mixed.folder / "clients/alice/address.hefl"
    rewritten(path, "generation: 1", "generation: 2")
    with mixed:
        client = mixed.client("alice", tmp_path / "alice", "--server", "https://127.0.0.1:1")
        refused(client, 3, "key generation 1", "key generation 2", "address.hefl")


def test_a_client_of_another_generation_hears_which_is_which(keys: Federation, tmp_path: Path) -> None:
    """The same authority signed both: only the generation differs."""
    newer = keys.copy(tmp_path / "fed")
    folder, authority = newer.folder / "clients/alice", newer.folder / "authority"
    identity = Identity(keys.made.identity.federation, 2)
    _, secret = keyfile.read_secret(folder / "secret.hefl")
    for file in folder.iterdir():
        file.unlink()
    keyfile.write_secret(
        folder / "secret.hefl", type(secret)(identity, secret.ckks, secret.rings, secret.group_key), "alice"
    )
    keyfile.write_address(folder / "address.hefl", identity, "alice", keys.made.urls)
    key = serialization.load_pem_private_key((authority / "ca.key").read_bytes(), None)
    root = tls.CertificateAuthority(x509.load_pem_x509_certificate((authority / "ca.crt").read_bytes()), key)  # type: ignore[arg-type]
    root.issue(folder, "client", tls.Holder(identity, "alice", is_client=True), 1)
    with keys, newer:
        keys.serve(tmp_path / "server")
        newer.url = keys.url
        refused(newer.client("alice", tmp_path / "alice"), 3, "key generation 1", "key generation 2")


def test_another_clients_certificate_is_refused(keys: Federation, tmp_path: Path) -> None:
    mixed = keys.copy(tmp_path / "fed")
    for file in ("client.crt", "client.key"):
        shutil.copy(keys.folder / "clients/bob" / file, mixed.folder / "clients/alice" / file)
    with mixed:
        client = mixed.client("alice", tmp_path / "alice", "--server", "https://127.0.0.1:1")
        refused(client, 3, "issued to alice", "client.crt to bob")


def test_a_key_of_another_certificate_is_refused(keys: Federation, tmp_path: Path) -> None:
    mixed = keys.copy(tmp_path / "fed")
    shutil.copy(keys.folder / "clients/bob/client.key", mixed.folder / "clients/alice/client.key")
    with mixed:
        client = mixed.client("alice", tmp_path / "alice", "--server", "https://127.0.0.1:1")
        refused(client, 3, "client.key is not the key of", "client.crt")


def test_an_unknown_client_is_refused_by_the_server(keys: Federation, tmp_path: Path) -> None:
    smaller = keys.copy(tmp_path / "fed")
    path = smaller.folder / "server/clients.hefl"
    rewritten(path, "alice bob carol", "alice bob")
    with smaller:
        smaller.serve(tmp_path / "server")
        refused(smaller.client("carol", tmp_path / "carol"), 3, "'carol' is not on the server's list")


def test_a_caller_without_a_clients_certificate_gets_nothing(keys: Federation, tmp_path: Path) -> None:
    with keys:
        server = keys.serve(tmp_path / "server")
        address = ("127.0.0.1", urlsplit(keys.url).port or 0)
        context = ssl.create_default_context(cafile=keys.folder / "server/ca.crt")
        with socket.create_connection(address) as raw, context.wrap_socket(raw, server_hostname="127.0.0.1") as caller:
            caller.sendall(b"GET /v1/run HTTP/1.1\r\nHost: localhost\r\n\r\n")
            try:
                answer = caller.recv(1)
            except (ssl.SSLError, ConnectionError):
                answer = b""
            assert answer == b""
        assert server.child.poll() is None


def test_tls_below_1_3_is_refused(keys: Federation, tmp_path: Path) -> None:
    with keys:
        keys.serve(tmp_path / "server")
        context = folders.read_client_folder(keys.folder / "clients/alice").credentials.client_context()
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_2
        address = ("127.0.0.1", urlsplit(keys.url).port or 0)
        with socket.create_connection(address) as raw, pytest.raises(ssl.SSLError):
            context.wrap_socket(raw, server_hostname="127.0.0.1")


def test_a_clients_certificate_cannot_serve(keys: Federation, tmp_path: Path) -> None:
    """A client who pretends to be the server is found out by the others."""
    port = 0
    with socket.socket() as listener:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        folder = keys.folder / "clients/bob"
        context.load_cert_chain(folder / "client.crt", folder / "client.key")
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        with keys:
            client = keys.client("alice", tmp_path / "alice", "--server", f"https://127.0.0.1:{port}")
            listener.settimeout(30)
            for _ in range(2):  # the connection, and the look at whose certificate it was
                connection, _address = listener.accept()
                try:
                    context.wrap_socket(connection, server_side=True).close()
                except OSError:
                    connection.close()
            refused(client, 3, "certificate")


# --- secrets at the server --------------------------------------------------------------------------------------------


def test_the_server_refuses_to_start_from_a_clients_folder(keys: Federation, tmp_path: Path) -> None:
    with keys:
        server = keys.run("serve", keys.folder / "clients/alice", "--state", tmp_path / "state")
        refused(server, 3, "secret.hefl is a secret file", "a server may not hold one")
    assert not (tmp_path / "state").exists()


def test_the_server_refuses_a_secret_file_in_the_public_ones_place(keys: Federation, tmp_path: Path) -> None:
    mixed = keys.copy(tmp_path / "fed")
    shutil.copy(keys.folder / "clients/alice/secret.hefl", mixed.folder / "server/public.hefl")
    with mixed:
        refused(mixed.run("serve", mixed.folder / "server"), 3, "public.hefl is a secret file")


def test_the_server_refuses_a_secret_context_in_a_public_file(keys: Federation, tmp_path: Path) -> None:
    mixed = keys.copy(tmp_path / "fed")
    secret = re.search(r"^ckks: (.*)$", (keys.folder / "clients/alice/secret.hefl").read_text(), re.MULTILINE)
    assert secret
    path = mixed.folder / "server/public.hefl"
    rewritten(path, "^ckks: .*$", f"ckks: {secret[1]}")
    with mixed:
        refused(mixed.run("serve", mixed.folder / "server"), 3, "holds a secret key")


def test_a_context_of_another_seal_version_is_refused(keys: Federation, tmp_path: Path) -> None:
    mixed = keys.copy(tmp_path / "fed")
    path = mixed.folder / "server/public.hefl"
    text = path.read_text()
    found = re.search(r"^ckks: (.*)$", text, re.MULTILINE)
    assert found
    data = bytearray(base64.b64decode(found[1]))
    at = data.index(b"\x5e\xa1\x10")
    data[at + 3 : at + 5] = bytes([3, 7])
    rewritten(path, "^ckks: .*$", f"ckks: {base64.b64encode(bytes(data)).decode()}")
    with mixed:
        refused(mixed.run("serve", mixed.folder / "server"), 3, "made with SEAL 3.7", "this machine runs SEAL")


# --- names, layouts, engines ------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_second_live_client_of_one_name_is_refused_and_the_first_goes_on(keys: Federation, tmp_path: Path) -> None:
    with keys:
        server = keys.serve(tmp_path / "server", "--rounds", "1", "--join-wait", "0")
        alice = keys.client("alice", tmp_path / "alice")
        server.until("alice joined")
        refused(keys.client("alice", tmp_path / "other"), 1, "another client is here as alice")
        refused(keys.client("alice", tmp_path / "alice"), 1, "another client is using")
        bob = keys.client("bob", tmp_path / "bob")
        assert [c.wait() for c in (alice, bob, server)] == [0, 0, 0]


@pytest.mark.slow
def test_a_name_is_free_again_after_silence_and_the_open_attempt_starts_anew(keys: Federation, tmp_path: Path) -> None:
    with keys:
        server = keys.serve(tmp_path / "server", "--rounds", "2")
        others = [keys.client(n, tmp_path / n) for n in ("alice", "bob")]
        carol = keys.client("carol", tmp_path / "carol", trainer="trainers:Slow", SLEEP="60")
        server.until("round 2, attempt 1")
        carol.child.kill()
        refused(keys.client("carol", tmp_path / "new"), 1, "another client is here as carol", "10 s of silence")
        time.sleep(10)
        back = keys.client("carol", tmp_path / "new")
        assert [c.wait() for c in (*others, back, server)] == [0, 0, 0, 0], back.error
    assert "carol came back without its state" in server.error
    assert {e["round"]: e["in"] for e in server.events if e["event"] == "round"}[2] == ["alice", "bob", "carol"]


def test_a_layout_that_differs_is_refused_naming_the_first_difference(keys: Federation, tmp_path: Path) -> None:
    with keys:
        server = keys.serve(tmp_path / "server", "--rounds", "1", "--join-wait", "0")
        alice = keys.client("alice", tmp_path / "alice")
        server.until("alice joined")
        wide = keys.client("bob", tmp_path / "bob", "--connect-timeout", "1", WIDTH="5")
        refused(
            wide,
            3,
            "this client's model differs from alice's, who joined before",
            "'layer.weight' float32 (3, 5) (parameter) here",
            "'layer.weight' float32 (3, 4) (parameter) there",
        )
        bob = keys.client("bob", tmp_path / "bob")
        assert [c.wait() for c in (alice, bob, server)] == [0, 0, 0]
    assert "layer" not in server.error  # the server learns that they differ, and not how


def test_a_client_of_another_engine_is_refused(keys: Federation, tmp_path: Path) -> None:
    with keys:
        keys.serve(tmp_path / "server", "--engine", "plaintext", "--insecure-plaintext")
        client = keys.client("alice", tmp_path / "alice")
        refused(client, 3, "client alice uses engine 'packed', and this side engine 'plaintext'", "--engine")


def test_plaintext_needs_an_explicit_word_on_both_sides_and_loopback(keys: Federation, tmp_path: Path) -> None:
    with keys:
        refused(keys.run("serve", keys.folder / "server", "--engine", "plaintext"), 3, "--insecure-plaintext")
        far = keys.run(
            "serve", keys.folder / "server", "--engine", "plaintext", "--insecure-plaintext", "--host", "192.0.2.1"
        )
        refused(far, 3, "loopback only")
        flags = ("--server", "https://192.0.2.1:8443", "--engine", "plaintext")
        refused(keys.client("alice", tmp_path / "a", *flags), 3, "--insecure-plaintext")
        refused(keys.client("alice", tmp_path / "a", *flags, "--insecure-plaintext"), 3, "loopback only")


def test_plain_http_is_refused_beyond_loopback_and_without_the_flag(keys: Federation, tmp_path: Path) -> None:
    with keys:
        refused(keys.run("serve", keys.folder / "server", "--insecure-http", "--host", "192.0.2.1"), 2, "loopback only")
        refused(keys.client("alice", tmp_path / "a", "--server", "http://127.0.0.1:8443"), 2, "plain HTTP")
        far = keys.client("alice", tmp_path / "a", "--server", "http://192.0.2.1:8443", "--insecure-http")
        refused(far, 2, "plain HTTP")


# --- updates ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("engine", "poison", "text"),
    [
        ("packed", "nan", "NaN or infinity"),
        ("packed", "-inf", "NaN or infinity"),
        ("packed", "33", "a value beyond +-32"),
        ("tenseal", "nan", "NaN or infinity"),
        ("tenseal", "262144", "a value of magnitude 262144 or more"),
    ],
)
def test_an_update_that_cannot_be_encrypted_is_refused_at_the_client_and_the_others_go_on(
    keys: Federation, tmp_path: Path, engine: str, poison: str, text: str
) -> None:
    flags = ("--engine", engine)
    with keys:
        server = keys.serve(tmp_path / "server", "--rounds", "3", *flags)
        others = [keys.client(n, tmp_path / n, *flags) for n in ("alice", "bob")]
        carol = keys.client("carol", tmp_path / "carol", *flags, trainer="trainers:Broken", POISON=poison)
        refused(carol, 1, text, "tensor 'layer.bias', index (1,)", "nothing was sent")
        assert [c.wait() for c in (*others, server)] == [0, 0, 0]
    assert {e["round"]: e["in"] for e in server.events if e["event"] == "round"}[2] == ["alice", "bob"]


@pytest.mark.parametrize("weight", ["0", "-3"])
def test_a_weight_below_one_is_refused(keys: Federation, tmp_path: Path, weight: str) -> None:
    with keys:
        client = keys.client("alice", tmp_path / "alice", "--server", "https://127.0.0.1:1", EXAMPLES=weight)
        refused(client, 3, f"from 1 to 1099511627776, got {weight}")
        flag = keys.client("alice", tmp_path / "alice", "--server", "https://127.0.0.1:1", "--num-examples", weight)
        refused(flag, 3, f"got {weight}")


def test_a_client_that_weighs_its_own_update_has_at_most_1024_examples(keys: Federation, tmp_path: Path) -> None:
    with keys:
        flags = ("--server", "https://127.0.0.1:1", "--weighting", "client")
        client = keys.client("alice", tmp_path / "alice", *flags, EXAMPLES="1025")
        refused(client, 3, "from 1 to 1024, got 1025")


def test_a_trainer_that_fails_is_named_with_its_traceback(keys: Federation, tmp_path: Path) -> None:
    with keys:
        server = keys.serve(tmp_path / "server", "--rounds", "1")
        others = [keys.client(n, tmp_path / n) for n in ("alice", "bob")]
        carol = keys.client("carol", tmp_path / "carol", trainer="trainers:Failing")
        assert carol.wait() == 1
        assert "trainer's fit failed: RuntimeError: the disk with the scans is not mounted" in carol.error
        assert 'trainers.py", line' in carol.error
        assert [c.wait() for c in (*others, server)] == [0, 0, 0]


@pytest.fixture
def raw(keys: Federation) -> Iterator[Callable[[str], Raw]]:
    """Makes clients that speak HTTP by hand, and hangs up at the end."""
    made: list[Raw] = []

    def make(name: str) -> Raw:
        made.append(Raw(keys, name))
        return made[-1]

    yield make
    for each in made:
        each.connection.close()


def digest_of(update: bytes) -> dict[str, str]:
    """The header that names an update: its last 32 bytes."""
    return {messages.HEADER_DIGEST: update[-32:].hex().ljust(64, "0")}


class Raw:
    """A client of the federation's that speaks HTTP by hand: it has joined, and uploads what it likes."""

    def __init__(self, keys: Federation, name: str) -> None:
        self.folder = folders.read_client_folder(keys.folder / "clients" / name)
        self.nonce = "00112233445566778899aabbccddeeff"
        self.headers = messages.headers(self.folder.secret, self.nonce)
        self.url = keys.url
        address = urlsplit(keys.url)
        context = self.folder.credentials.client_context()
        self.connection = http.client.HTTPSConnection(str(address.hostname), address.port, context=context, timeout=20)

    def ask(self, method: str, path: str, body: bytes | None = None, **headers: str) -> Answer:
        self.connection.request(method, path, body, {**self.headers, **headers})
        answer = self.connection.getresponse()
        data = answer.read()
        return answer.status, msgspec.json.decode(data, type=messages.Refusal) if answer.status != 200 else None

    def join(self, layout: messages.Join) -> None:
        status, refusal = self.ask("POST", "/v1/join", msgspec.json.encode(layout))
        assert status == 200, refusal

    def held(self, path: str, headers: dict[str, str]) -> messages.Held:
        """What the server has of an upload, over a connection of its own."""
        url = urlsplit(self.url)
        connection = http.client.HTTPSConnection(
            str(url.hostname), url.port, context=self.folder.credentials.client_context(), timeout=20
        )
        with closing(connection):
            connection.request("GET", path, headers={**self.headers, **headers})
            return msgspec.json.decode(connection.getresponse().read(), type=messages.Held)

    def view(self) -> messages.View:
        self.connection.request("GET", "/v1/run", headers=self.headers)
        return msgspec.json.decode(self.connection.getresponse().read(), type=messages.View)


@pytest.fixture(scope="module")
def join() -> messages.Join:
    return messages.Join(
        engine="tenseal",
        precision_bits=0,
        weighting="server",
        num_examples=4,
        join_nonce="00112233445566778899aabbccddeeff",
        layout="ab" * 32,
        sealed_layout=b"sealed",
        values={"initial": 4, "training": 10, "closing": 4},
    )


def test_uploads_that_do_not_fit_are_refused_and_change_nothing(
    keys: Federation, tmp_path: Path, join: messages.Join, raw: Callable[[str], Raw]
) -> None:
    with keys:
        server = keys.serve(tmp_path / "server", "--join-wait", "0", "--engine", "tenseal")
        alice, bob = raw("alice"), raw("bob")
        alice.join(join)
        bob.join(join)
        server.until("round 0, attempt 1: initial parameters of alice")
        announcement = alice.view().announcement
        assert announcement
        engine, secret = SlotsEngine(), alice.folder.secret

        def made(**changes: object) -> bytes:
            file, changed = io.BytesIO(), msgspec.structs.replace(announcement, **changes)
            write_update(file, np.arange(changed.values, dtype=float), secret, engine, changed, "alice")
            return file.getvalue()

        def headed(**changes: Any) -> bytes:
            """A frame in form, whose header says something else, and whose block is no ciphertext."""
            header = frames.Header.of("update", secret.identity, announcement, 1, "alice")
            file = io.BytesIO()
            writer = frames.Writer(file, dataclasses.replace(header, **changes))
            writer.block(b"no ciphertext")
            writer.finish(Trailer())
            return file.getvalue()

        good, where = made(), "/v1/rounds/0/1/update"
        examples = {messages.HEADER_NUM_EXAMPLES: "4"}

        def refusal(
            status: int,
            kind: str,
            body: bytes,
            path: str = where,
            sender: Raw = alice,
            headers: dict[str, str] | None = None,
        ) -> str:
            found, answer = sender.ask("PUT", path, body, **(examples | digest_of(body) | (headers or {})))
            assert answer
            assert (found, answer.error) == (status, kind), answer
            return answer.message

        assert "truncated" in refusal(400, "MalformedError", good[:-1])
        assert "truncated" in refusal(400, "MalformedError", good[:1000])
        assert "too many" in refusal(400, "MalformedError", good + b"x")
        assert "oversized" in refusal(400, "MalformedError", bytes(10 << 20))
        assert "digest" in refusal(400, "MalformedError", good[:5000] + bytes([good[5000] ^ 1]) + good[5001:])
        assert "not start" in refusal(400, "MalformedError", b"nonsense" * 100)
        assert "round 7" in refusal(410, "StaleError", good, "/v1/rounds/7/1/update")
        assert "attempt 2" in refusal(410, "StaleError", good, "/v1/rounds/0/2/update")
        assert "of round 3" in refusal(410, "StaleError", made(round=3, exchange="training"))
        assert "another run" in refusal(410, "StaleError", made(nonce="00" * 32))
        assert "engine 'plaintext'" in refusal(409, "EngineError", headed(engine="plaintext"))
        assert "11 values" in refusal(400, "MalformedError", headed(values=11))
        assert "bear its digest" in refusal(400, "MalformedError", good, headers={messages.HEADER_DIGEST: "d1"})
        assert "was announced" in refusal(400, "MalformedError", good, headers={messages.HEADER_DIGEST: "d1" * 32})
        assert "0 bytes are here" in refusal(409, "ConflictError", good, headers={messages.HEADER_OFFSET: "9"})
        assert "of client 'bob'" in refusal(409, "ConflictError", headed(name="bob"))
        assert str(Identity("ab" * 16, 1)) in refusal(403, "MismatchError", headed(identity=Identity("ab" * 16, 1)))
        assert "a ciphertext" in refusal(400, "MalformedError", headed())
        assert "no part" in refusal(409, "ConflictError", good, sender=bob)
        assert "num_examples" in refusal(400, "MalformedError", good, headers={messages.HEADER_NUM_EXAMPLES: "0"})
        assert "speaks version" in refusal(409, "VersionError", good, headers={messages.HEADER_PROTOCOL: "9"})
        assert "generation 5" in refusal(403, "MismatchError", good, headers={messages.HEADER_GENERATION: "5"})
        assert "not the same" in refusal(403, "MismatchError", good, headers={messages.HEADER_KEYS: "00-00"})
        assert "joined as alice since" in refusal(
            409, "NameInUseError", good, headers={messages.HEADER_SESSION: "ff" * 16}
        )
        assert "Not Found" in refusal(404, "ProtocolError", b"", "/v1/updates")
        view = alice.view()
        assert view.announcement == announcement
        assert not view.committed
        assert not list((tmp_path / "server/uploads").iterdir())

        assert alice.ask("PUT", where, good, **examples, **digest_of(good)) == (200, None)
        server.until('"event": "round"')
        assert not list((tmp_path / "server/uploads").iterdir())
        assert "round 0, attempt 1" in refusal(410, "StaleError", good)  # whether round 1 is open yet or not
        assert server.child.poll() is None
        assert "Traceback" not in server.error


def test_an_upload_that_breaks_off_changes_nothing_and_goes_on_where_it_stopped(
    keys: Federation, tmp_path: Path, join: messages.Join, raw: Callable[[str], Raw]
) -> None:
    with keys:
        server = keys.serve(tmp_path / "server", "--join-wait", "0", "--engine", "tenseal")
        alice, bob = raw("alice"), raw("bob")
        alice.join(join)
        bob.join(join)
        server.until("round 0, attempt 1")
        announcement = alice.view().announcement
        assert announcement
        file, where = io.BytesIO(), "/v1/rounds/0/1/update"
        write_update(file, np.arange(4.0), alice.folder.secret, SlotsEngine(), announcement, "alice")
        update = file.getvalue()
        headers = {messages.HEADER_NUM_EXAMPLES: "4", **digest_of(update)}
        half = len(update) // 2
        alice.connection.putrequest("PUT", where)
        for name, value in {**alice.headers, **headers, "Content-Length": str(len(update))}.items():
            alice.connection.putheader(name, value)
        alice.connection.endheaders(update[:half])
        while alice.held(where, headers).bytes < half:
            time.sleep(0.02)
        alice.connection.close()
        assert alice.view().phase == "collecting"
        assert not alice.view().committed
        assert alice.held(where, headers) == messages.Held(bytes=half, committed=False)
        assert alice.held(where, digest_of(b"another")) == messages.Held(bytes=0, committed=False)
        rest = {**headers, messages.HEADER_OFFSET: str(half)}
        assert alice.ask("PUT", where, update[half:], **rest) == (200, None)
        server.until('"event": "round"')
        assert not list((tmp_path / "server/uploads").iterdir())
        assert not list((tmp_path / "server/updates").iterdir())


def test_who_has_had_enough_means_one_attempt_of_a_training_and_takes_part_in_it(
    keys: Federation, tmp_path: Path, join: messages.Join, raw: Callable[[str], Raw]
) -> None:
    with keys:
        server = keys.serve(tmp_path / "server", "--join-wait", "0", "--engine", "tenseal")
        alice, bob, carol = raw("alice"), raw("bob"), raw("carol")
        for client in (alice, bob):
            client.join(join)
        server.until("round 0, attempt 1: initial parameters of alice")
        for client, path, status, name, text in (
            (alice, "/v1/rounds/0/1/enough", 409, "ConflictError", "cannot have had enough in round 0 (initial)"),
            (alice, "/v1/rounds/0/2/enough", 410, "StaleError", "attempt 1 is open"),
            (alice, "/v1/rounds/9/1/enough", 410, "StaleError", "attempt 1 is open"),
            (bob, "/v1/rounds/0/1/enough", 409, "ConflictError", "takes no part"),
            (carol, "/v1/rounds/0/1/enough", 410, "StaleError", "has not joined"),
        ):
            answer, refusal = client.ask("POST", path)
            assert refusal
            assert (answer, refusal.error) == (status, name)
            assert text in refusal.message
        assert alice.view().phase == "collecting"


# --- ports and outputs ------------------------------------------------------------------------------------------------


def test_a_port_in_use_is_named(keys: Federation, tmp_path: Path) -> None:
    with keys:
        keys.serve(tmp_path / "first")
        port = str(urlsplit(keys.url).port)
        second = keys.run("serve", keys.folder / "server", "--port", port, "--state", tmp_path / "second")
        refused(second, 1, f"port {port} of 127.0.0.1 is in use", "--port")


def test_a_port_that_nobody_answers_is_tried_until_the_timeout(keys: Federation, tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound, and not listening: connections are refused
        url = f"https://127.0.0.1:{unused.getsockname()[1]}"
        with keys:
            client = keys.client("alice", tmp_path / "alice", "--server", url, "--connect-timeout", "1")
            refused(client, 5, f"{url} did not answer for", "trying again", "--connect-timeout")


def test_a_client_that_is_early_waits_for_its_server(keys: Federation, tmp_path: Path) -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        port = reserved.getsockname()[1]
    with keys:
        keys.url = f"https://127.0.0.1:{port}"
        early = keys.client("alice", tmp_path / "alice")
        early.until("trying again")
        flags = ("--port", str(port), "--rounds", "1", "--join-wait", "0")
        server = keys.run("serve", keys.folder / "server", "--state", tmp_path / "server", *flags)
        bob = keys.client("bob", tmp_path / "bob")
        assert [c.wait() for c in (early, bob, server)] == [0, 0, 0], server.error


def test_a_server_that_goes_away_ends_its_clients_with_5(keys: Federation, tmp_path: Path) -> None:
    with keys:
        server = keys.serve(tmp_path / "server")
        client = keys.client("alice", tmp_path / "alice", "--connect-timeout", "1")
        server.until("alice joined")
        server.child.kill()
        refused(client, 5, "did not answer")


def test_existing_output_is_not_replaced_without_force(keys: Federation, tmp_path: Path) -> None:
    (tmp_path / "model.npz").write_bytes(b"precious")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/report.json").write_bytes(b"precious")
    before = (keys.folder / "authority/secret.hefl").read_bytes()
    with keys:
        client = keys.client(
            "alice", tmp_path / "alice", "--server", "https://127.0.0.1:1", "--save", tmp_path / "model.npz"
        )
        refused(client, 1, "model.npz exists already", "--force")
        refused(keys.run("keygen", keys.folder, "--client", "alice"), 1, "keys already", "--force")
        refused(keys.run("demo", "--out", tmp_path / "out"), 1, "report.json exists already", "--force")
    assert (tmp_path / "model.npz").read_bytes() == (tmp_path / "out/report.json").read_bytes() == b"precious"
    assert (keys.folder / "authority/secret.hefl").read_bytes() == before


def test_a_model_that_could_not_be_saved_is_noticed_before_the_training(keys: Federation, tmp_path: Path) -> None:
    with keys:
        flags = ("--server", "https://127.0.0.1:1", "--save", "/proc/model.npz")
        refused(keys.client("alice", tmp_path / "alice", *flags), 1, "/proc/model.npz cannot be stored")


def test_a_damaged_state_is_refused_with_the_way_out(keys: Federation, tmp_path: Path) -> None:
    (tmp_path / "session.json").write_text(json.dumps({"join_nonce": "short"}))
    (tmp_path / "journal.sqlite").write_text("not a database, and longer than the header of one" * 10)
    with keys:
        refused(keys.client("alice", tmp_path, "--server", "https://127.0.0.1:1"), 1, "session.json is damaged")
        server = keys.run("serve", keys.folder / "server", "--state", tmp_path, "--port", "0")
        refused(server, 1, "journal.sqlite is damaged", "--state")
