"""``hefl inspect`` says what each file is and what is wrong with it, and never a secret."""

from __future__ import annotations

import base64
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from builders import announcement, update
from federation import Command

from hefl.engines.load import load_engine
from hefl.inspection.describe import inspect
from hefl.keys import authority, keyfile
from hefl.keys.passphrase import Passphrase


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two federations, one and other, of the same names."""
    folder = tmp_path_factory.mktemp("federations")
    for name in ("one", "other"):
        authority.create(folder / name, ("alice", "bob"), ("127.0.0.1:9000",))
    return folder


@pytest.fixture
def fed(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made / "one", tmp_path / "fed")
    return tmp_path / "fed"


def problems(*paths: Path) -> dict[str, list[str]]:
    return {f.path.name: [p.message for p in f.problems] for f in inspect(paths) if f.problems}


def test_a_whole_federation_fits_and_every_file_is_known(fed: Path) -> None:
    findings = inspect([fed])
    assert {f.path for f in findings} == {p for p in fed.rglob("*") if p.is_file()}
    assert not [f for f in findings if f.problems or f.notices or f.what.startswith("no file")]
    assert all(f.audience for f in findings)
    assert {f.references.holder for f in findings if f.path.name != "ca.crt"} == {
        "authority",
        "server",
        "alice",
        "bob",
        "",
    }


def test_the_command_prints_no_secret(fed: Path) -> None:
    shown = Command("inspect", fed)
    assert shown.wait() == 0, shown.error
    as_json = Command("inspect", fed, "--json")
    assert as_json.wait() == 0
    assert len(as_json.events) == len([p for p in fed.rglob("*") if p.is_file()])
    text = "\n".join([*shown.out, *shown.err, *as_json.out])
    for path in [*fed.rglob("secret.hefl"), *fed.rglob("*.key")]:
        for word in re.findall(r"[A-Za-z0-9+/=]{40,}", path.read_text()):
            if not re.fullmatch(r"[0-9a-f]{64}", word):  # a fingerprint may be seen
                assert word not in text
                assert base64.b64encode(base64.b64decode(word[:40])).decode() not in text
    assert "nothing is wrong" in shown.out[-1]


def edit(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path, Path], None]:
    def apply(fed: Path, other: Path) -> None:
        (fed / name).write_bytes(change((fed / name).read_bytes()))

    return apply


def put(target: str, source: str) -> Callable[[Path, Path], None]:
    """Replace a file by another, from this federation or (other:) from the other."""

    def apply(fed: Path, other: Path) -> None:
        origin = other / source.removeprefix("other:") if source.startswith("other:") else fed / source
        shutil.copy(origin, fed / target)

    return apply


def loose(name: str) -> Callable[[Path, Path], None]:
    return lambda fed, other: (fed / name).chmod(0o750 if (fed / name).is_dir() else 0o640)


def removed(name: str) -> Callable[[Path, Path], None]:
    return lambda fed, other: (fed / name).unlink()


ALICE = "clients/alice/"
WRONG = {
    "truncated": (edit("server/public.hefl", lambda d: d[:-9]), "public.hefl", "is damaged|truncated"),
    "a bit flipped": (
        edit(ALICE + "secret.hefl", lambda d: d[:900] + bytes([d[900] ^ 1]) + d[901:]),
        "secret.hefl",
        "",
    ),
    "empty": (edit("server/clients.hefl", lambda d: b""), "clients.hefl", "is an empty file"),
    "another version": (edit(ALICE + "address.hefl", lambda d: b"hefl/v9" + d[7:]), "address.hefl", "hefl/v9"),
    "loose": (loose(ALICE + "secret.hefl"), "secret.hefl", "may be read by others"),
    "a loose folder": (loose("server"), "server", "may be entered by others"),
    "another federation's": (put(ALICE + "secret.hefl", "other:" + ALICE + "secret.hefl"), "secret.hefl", "is of"),
    "another party's": (put(ALICE + "address.hefl", "clients/bob/address.hefl"), "address.hefl", "issued to bob"),
    "another's key": (put(ALICE + "client.key", "clients/bob/client.key"), "client.key", "is not the key of"),
    "another's root": (put(ALICE + "ca.crt", "other:" + ALICE + "ca.crt"), "ca.crt", "is of"),
    "under another name": (put("server/public.hefl", "server/clients.hefl"), "public.hefl", "holds what clients.hefl"),
    "a secret at the server": (put("server/secret.hefl", ALICE + "secret.hefl"), "server", "in a server's folder"),
    "a backup of it": (put("server/notes.txt", ALICE + "secret.hefl"), "server", "notes.txt is a secret file"),
    "missing": (removed(ALICE + "client.crt"), "alice", "client.crt is missing"),
    "not a certificate": (edit("server/server.crt", lambda d: d[:400]), "server.crt", "does not parse"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_is_said_of_the_file_that_it_is_wrong_with(fed: Path, made: Path, what: str) -> None:
    change, name, text = WRONG[what]
    change(fed, made / "other")
    found = problems(fed)
    assert re.search(text, " ".join(found[name])), found


def test_the_command_fails_with_exit_code_3_and_a_hint_where_something_is_wrong(fed: Path) -> None:
    (fed / ALICE / "secret.hefl").chmod(0o644)
    shown = Command("inspect", fed / ALICE)
    assert shown.wait() == 3
    assert any("chmod 600" in line for line in shown.out)
    assert "secret.hefl" in shown.error


def test_a_client_that_is_not_on_the_servers_list_is_noticed(fed: Path) -> None:
    path = fed / "server/clients.hefl"
    identity = keyfile.read_clients(path)[0].identity
    path.unlink()
    keyfile.write_clients(path, identity, "server", ("alice",), ("bob",))
    assert "does not list it" in problems(fed / "server", fed / "clients")["client.crt"][0]


def test_an_address_that_the_servers_certificate_does_not_name_is_noticed(fed: Path) -> None:
    path = fed / ALICE / "address.hefl"
    identity = keyfile.read_address(path)[0].identity
    path.unlink()
    keyfile.write_address(path, identity, "alice", ("https://fl.example.org:8443",))
    assert "does not name it" in problems(fed)["address.hefl"][0]


def test_sealed_files_are_told_without_the_passphrase(fed: Path) -> None:
    path = fed / ALICE / "secret.hefl"
    file, secret = keyfile.read_secret(path)
    path.unlink()
    keyfile.write_secret(path, secret, "alice", Passphrase(lambda _: "correct horse"))
    (finding,) = inspect([path])
    assert (finding.references.identity, finding.references.holder) == (file.identity, "alice")
    assert not finding.problems
    assert "with a passphrase" in dict(finding.details)["sealed"]
    assert not problems(fed)


def test_updates_and_models_are_told(fed: Path, tmp_path: Path) -> None:
    _, secret = keyfile.read_secret(fed / ALICE / "secret.hefl")
    engine = load_engine("packed")
    frame = update(engine, secret, announcement(engine="packed"), "alice", np.array([1, 2, 3]))
    (tmp_path / "update.bin").write_bytes(frame)
    np.savez(tmp_path / "model.npz", weight=np.zeros((2, 3), np.float32), bias=np.zeros(3))
    (tmp_path / "cut.npz").write_bytes((tmp_path / "model.npz").read_bytes()[:-30])
    (tmp_path / "notes.txt").write_text("nothing of hefl's")
    sent, model, cut, notes = inspect([tmp_path / n for n in ("update.bin", "model.npz", "cut.npz", "notes.txt")])
    assert "update of client alice, round 1, attempt 1" in sent.what
    assert sent.references.identity == secret.identity
    assert dict(model.details) == {
        "values": "9 in 2 tensors",
        "weight": "float32 (2, 3)",
        "bias": "float64 (3,)",
    }
    assert "numeric arrays" in cut.problems[0].message
    assert notes.what.startswith("no file")
    (tmp_path / "cut.bin").write_bytes(frame[:-40])
    assert "truncated" in problems(tmp_path / "cut.bin")["cut.bin"][0]
    stranger = fed.with_name("stranger")
    authority.create(stranger, ("alice", "bob"), ("127.0.0.1",))
    assert "is of federation" in problems(tmp_path / "update.bin", stranger / "server")["update.bin"][0]


def test_what_an_earlier_key_generation_encrypted_may_lie_about(fed: Path) -> None:
    _, secret = keyfile.read_secret(fed / ALICE / "secret.hefl")
    frame = update(load_engine("packed"), secret, announcement(engine="packed"), "alice", np.array([1, 2, 3]))
    authority.change(fed, authority.Change(rotate=True))
    (fed / ALICE / "state").mkdir()
    (fed / ALICE / "state/update.bin").write_bytes(frame)
    assert not problems(fed)


def test_a_path_that_does_not_exist_is_a_wrong_call(tmp_path: Path) -> None:
    shown = Command("inspect", tmp_path / "nowhere")
    assert shown.wait() == 2
    assert "does not exist" in shown.error
    assert Command("inspect", tmp_path).wait() == 2
