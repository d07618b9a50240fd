"""Thousands of inputs that are almost right: each is refused by an error of hefl's or understood, and nothing else.

The ordinary suite tries some of each kind, always the same; the slow one tries many, others each time. Every test
counts what its inputs reached, so that one whose inputs all fail at the first check does not pass.
"""

from __future__ import annotations

import hashlib
import io
import ssl
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import pytest
from builders import JOIN, announcement, record, summed, update
from cryptography.hazmat.primitives import serialization
from federation import Federation
from hypothesis import strategies as st
from mutation import damaged, damaged_frame, damaged_json, memory_within, try_many

from hefl.ckks.context import PublicContext, SecretContext
from hefl.engines.engine import Terms
from hefl.engines.packed import PackedEngine
from hefl.errors import HeflError, KeysError, MalformedError, MismatchError, ProtocolError
from hefl.identity import Identity
from hefl.keys import credentials, keyfile, tls
from hefl.protocol import frames, messages
from hefl.protocol.records import Announcement, Record, Value, canonical
from hefl.protocol.updates import Aggregation, read_aggregate
from hefl.rounds.events import Joined
from hefl.server.journal import FILE, Journal, read_moment

SIZES = [pytest.param(1, id="some"), pytest.param(50, id="many", marks=[pytest.mark.slow, pytest.mark.timeout(1800)])]
sizes = pytest.mark.parametrize("size", SIZES)
MANY = 3000
MEMORY = 48 << 20
"""What any of these may need beside what was there before; the longest input has some hundred kilobytes."""


def reached_all(reached: Counter[str], *names: str) -> None:
    """Many inputs reach everything; a few at random reach most."""
    missing = set(names) - reached.keys()
    assert len(missing) <= (len(names) // 3 if reached.total() < MANY else 0), (missing, reached)


# --- frames -----------------------------------------------------------------------------------------------------------

VALUES = 20_000
"""Several blocks."""


@pytest.fixture(scope="module")
def updates(secret: SecretContext) -> dict[str, bytes]:
    return {
        name: update(PackedEngine(), secret, FRAMES, name, np.arange(VALUES, dtype=np.int64) % 100)
        for name in ("alice", "bob")
    }


FRAMES = announcement(engine="packed", values=VALUES)


@sizes
def test_an_update_is_refused_whole_or_taken_whole(public: PublicContext, updates: dict[str, bytes], size: int) -> None:
    """And the sum of the honest ones is the same as if nobody had tried."""
    engine, reached = PackedEngine(), Counter[str]()
    alice = updates["alice"]
    aggregation = Aggregation(public, engine, FRAMES)
    _, expected = summed(engine, public, FRAMES, updates)

    def check(draw: st.DataObject) -> None:
        nonlocal aggregation
        data = damaged_frame(draw, alice, [updates["bob"]])
        try:
            frame = aggregation.open(data, "alice")
            reached["opened"] += 1
            aggregation.add(frame, "alice")
        except HeflError as error:
            reached[type(error).__name__] += 1
            reached.update(word for word in ("residue", "truncated", "too many", "digest") if word in str(error))
        else:
            reached["taken"] += 1
            aggregation = Aggregation(public, engine, FRAMES)

    with memory_within(MEMORY):
        try_many(300 * size, check)
    for name, data in updates.items():
        aggregation.add(aggregation.open(data, name), name)
    assert aggregation.finish(io.BytesIO()) == expected
    deep = ("opened", "taken", "residue", "truncated", "too many", "digest")
    reached_all(
        reached, *deep, "StaleError", "ConflictError", "MismatchError", "EngineError", "VersionError", "MalformedError"
    )


@sizes
def test_an_aggregate_that_is_another_is_refused(
    secret: SecretContext, public: PublicContext, updates: dict[str, bytes], size: int
) -> None:
    engine, reached = PackedEngine(), Counter[str]()
    good, made = summed(engine, public, FRAMES, updates)

    def check(draw: st.DataObject) -> None:
        data = damaged_frame(draw, good)
        # A server that lies has a record that goes with it.
        lie = msgspec.structs.replace(made, digest=data[-32:].hex().rjust(64, "0"))
        try:
            read_aggregate(data, secret, engine, FRAMES, lie)
        except ProtocolError as error:
            reached[error.check] += 1
        except HeflError as error:
            reached[type(error).__name__] += 1
        else:
            assert data == good
            reached["same"] += 1

    with memory_within(MEMORY):
        try_many(100 * size, check)
    reached_all(reached, "form", "tag", "attempt", "EngineError")


@sizes
def test_the_beginning_of_a_frame_is_read_or_refused(updates: dict[str, bytes], size: int) -> None:
    reached = Counter[str]()

    def check(draw: st.DataObject) -> None:
        data = damaged_frame(draw, updates["alice"][:600])
        for read in (frames.read_header, frames.open_frame):
            try:
                read(data)
                reached["read"] += 1
            except HeflError as error:
                reached[type(error).__name__] += 1

    with memory_within(MEMORY):
        try_many(200 * size, check)
    reached_all(reached, "read", "MalformedError", "VersionError")


# --- what is said in JSON ---------------------------------------------------------------------------------------------

SAID: tuple[Value, ...] = (
    JOIN,
    messages.Welcome(run="00" * 16),
    messages.View(
        version=7,
        rounds=20,
        phase="collecting",
        announcement=FRAMES,
        committed=False,
        model=record(FRAMES),
        closing=None,
        confirmations={"alice": "c0" * 32},
    ),
    FRAMES,
    record(FRAMES),
    messages.Held(bytes=7, committed=False),
    messages.MetricsReport(round=3, metrics={"accuracy": 0.5, "loss": None}),
    messages.Confirmation(mac="c0" * 32),
)


@sizes
def test_what_is_said_is_understood_to_the_letter_or_refused(size: int) -> None:
    reached = Counter[str]()

    def check(draw: st.DataObject) -> None:
        said = draw.draw(st.sampled_from(SAID))
        kind = type(said)
        data = damaged_json(draw, msgspec.json.encode(said))
        try:
            found = messages.decode(data, kind)
        except MalformedError as error:
            reached[f"{kind.__name__} refused"] += 1
            assert str(error).startswith(f"not a {kind.__name__}: ")
            messages.error_of(msgspec.json.encode(messages.refusal_of(error)), 400)
            return
        reached[f"{kind.__name__} understood"] += 1
        assert messages.decode(msgspec.json.encode(found), kind) == found
        canonical(found)
        if isinstance(found, Announcement):
            assert len(found.ctx) == 32
            assert found.as_attempt().weights
        if isinstance(found, Record):
            assert len(found.head) == 64
            assert all(len(m.seed) == 32 for m in found.as_members())

    with memory_within(MEMORY):
        try_many(600 * size, check)
    reached_all(reached, *(f"{type(s).__name__} {what}" for s in SAID for what in ("refused", "understood")))


@sizes
def test_a_refusal_is_an_error_whatever_it_says(size: int) -> None:
    reached = Counter[str]()
    reference = messages.ReferenceLayout(client="alice", sealed=b"sealed", settled=False)
    error = messages.OtherLayoutError("a model's layout differs", reference)
    seeds = [
        msgspec.json.encode(messages.refusal_of(e)) for e in (error, MalformedError("x"), MismatchError("x", hint="y"))
    ]
    kinds = ["OtherLayoutError", "HeflError", "TamperError", "SystemExit", "KeyError", "LayoutError", "HTTPError", ""]

    def check(draw: st.DataObject) -> None:
        data = draw.draw(st.sampled_from(seeds))
        if draw.draw(st.booleans()):
            told = msgspec.json.decode(data) | {"error": draw.draw(st.sampled_from(kinds))}
            data = msgspec.json.encode({k: v for k, v in told.items() if draw.draw(st.integers(0, 5)) or k == "error"})
        else:
            data = damaged_json(draw, data)
        found = messages.error_of(data, 400)
        assert isinstance(found, HeflError)
        f"{found.message}{found.hint}".encode()
        assert len(found.message) <= 2100
        reached[type(found).__name__] += 1

    try_many(200 * size, check)
    reached_all(reached, "OtherLayoutError", "ProtocolError", "MalformedError", "MismatchError", "TamperError")


# --- keys and certificates --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Federation(tmp_path_factory.mktemp("fuzz") / "fed", "alice", "bob").folder


def rechecked(data: bytes) -> bytes:
    """The same lines under a checksum that is right."""
    head, found, _ = data.rpartition(b"checksum: ")
    return head + found + hashlib.sha256(head).hexdigest().encode() + b"\n" if found else data


ODD_VALUES = (b"", b"-", b"0", b"9" * 9, b"9" * 6000, b"AAAA", b"A", b"alice alice", b"\xff")


def damaged_keyfile(draw: st.DataObject, data: bytes, others: Sequence[bytes]) -> bytes:
    if draw.draw(st.booleans(), label="a line"):
        lines = data.splitlines(keepends=True)
        at = draw.draw(st.integers(0, len(lines) - 1))
        name, colon, value = lines[at].partition(b": ")
        odd = draw.draw(st.sampled_from(ODD_VALUES))
        near = damaged(draw, value[:-1])
        whole = [b"", lines[at] * 2, name + colon + odd + b"\n", name + colon + near + b"\n"]
        lines[at] = draw.draw(st.sampled_from(whole))
        changed = b"".join(lines)
    else:
        changed = damaged(draw, data, others)
    return rechecked(changed) if draw.draw(st.integers(0, 3)) else changed


@sizes
def test_a_key_file_is_read_to_the_letter_or_refused(folders: Path, tmp_path: Path, size: int) -> None:
    reached = Counter[str]()
    readers = {
        folders / "clients/alice/secret.hefl": keyfile.read_secret,
        folders / "server/public.hefl": keyfile.read_public,
        folders / "server/clients.hefl": keyfile.read_clients,
        folders / "clients/alice/address.hefl": keyfile.read_address,
    }
    seeds = {path: path.read_bytes() for path in readers}

    def check(draw: st.DataObject) -> None:
        path = draw.draw(st.sampled_from(list(readers)))
        data = damaged_keyfile(draw, seeds[path], list(seeds.values()))
        there = tmp_path / path.name
        there.touch(0o600)
        there.write_bytes(data)
        try:
            readers[path](there)  # type: ignore[operator]
            reached[f"{path.name} read"] += 1
        except KeysError as error:
            assert str(there) in str(error) or "context" in str(error), error
            reached[f"{path.name} refused"] += 1
            if "not in form" not in str(error) and "belong" not in str(error):
                reached["deeper"] += 1

    with memory_within(3 * MEMORY):  # SEAL's
        try_many(200 * size, check)
    reached_all(reached, "deeper", "secret.hefl read", "clients.hefl read", *(f"{p.name} refused" for p in readers))


@pytest.mark.filterwarnings("ignore:Parsed a serial number")  # it goes on, and the signature is refused
@sizes
def test_a_certificate_or_a_key_is_one_of_hefls_or_refused(folders: Path, tmp_path: Path, size: int) -> None:
    reached = Counter[str]()
    names = ("clients/alice/client.crt", "clients/alice/ca.crt", "clients/alice/client.key", "server/server.crt")
    seeds = {name: (folders / name).read_bytes() for name in names}

    def check(draw: st.DataObject) -> None:
        name = draw.draw(st.sampled_from(names))
        pem = seeds[name]
        if draw.draw(st.booleans()):  # within what the armour holds
            der = damaged(draw, ssl.PEM_cert_to_DER_cert(pem.decode()) if "crt" in name else key_der(pem))
            kind = "CERTIFICATE" if "crt" in name else "PRIVATE KEY"
            pem = ssl.DER_cert_to_PEM_cert(der).replace("CERTIFICATE", kind).encode()
        else:
            der = damaged(draw, pem)
            pem = der
        there = tmp_path / "there"
        there.touch(0o600)
        there.write_bytes(pem)
        try:
            if "key" in name:
                credentials.parse_key(there, pem)
            else:
                found = credentials.read_root(there) if "ca" in name else credentials.read_certificate(there)
                tls.holder_of(found, there)
            reached[f"{name} read"] += 1
        except KeysError:
            reached[f"{name} refused"] += 1
        try:
            tls.holder_of(tls.from_der(der, "it"), "it")
            reached["der read"] += 1
        except KeysError:
            reached["der refused"] += 1
        try:
            credentials.check_server(der, Identity("ab" * 16, 1))
        except ssl.SSLCertVerificationError:
            reached["server refused"] += 1

    with memory_within(MEMORY):
        try_many(200 * size, check)
    reached_all(reached, *(f"{n} refused" for n in names), "der refused", "der read", "server refused")


def key_der(pem: bytes) -> bytes:
    return serialization.load_pem_private_key(pem, None).private_bytes(
        serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


# --- the journal ------------------------------------------------------------------------------------------------------


@sizes
def test_a_damaged_journal_is_refused_or_says_what_it_said(tmp_path: Path, size: int) -> None:
    reached = Counter[str]()
    identity, terms, names = Identity("ab" * 16, 1), Terms("packed", 24), ("alice", "bob")
    good = tmp_path / "good"
    good.mkdir()
    journal = Journal(good, identity, terms, rounds=3, min_clients=2, known=names)
    assert isinstance(SAID[0], messages.Join)
    journal.refer(SAID[0])
    for name in names:
        journal.append(Joined(name, 4, "00" * 16))
    before = journal.now
    journal.close()
    data = (good / FILE).read_bytes()

    def check(draw: st.DataObject) -> None:
        there = tmp_path / "there"
        there.mkdir(exist_ok=True)
        for old in there.iterdir():
            old.unlink(missing_ok=True)
        found = damaged(draw, data)
        (there / FILE).write_bytes(found)
        try:
            opened = Journal(there, identity, terms, rounds=3, min_clients=2, known=names)
        except HeflError as error:
            reached[type(error).__name__] += 1
            return
        try:
            # Empty is a start that was killed; all else is the run that was written.
            if opened.resumed:
                reached["resumed"] += 1
                assert (opened.now, opened.reference) == (before, SAID[0])
                assert read_moment(there).run == before.run
            else:
                reached["begun"] += 1
                assert not found
        finally:
            opened.close()

    with memory_within(MEMORY):
        try_many(100 * size, check)
    reached_all(reached, "resumed", "StateError")
