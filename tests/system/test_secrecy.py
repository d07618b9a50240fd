"""The server's process cannot decrypt: its files, its memory and its API hold no secret, and no plaintext value."""

from __future__ import annotations

import base64
import re
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
import tenseal as ts
from federation import Federation

from hefl.ckks.context import SecretContext
from hefl.keys import folders
from hefl.protocol import frames, messages
from hefl.protocol.messages import Held
from hefl.server import app

# A parameter that stands out and that every engine holds as it is: each client adds it, and so every model has it.
PARAMETER = 0.28125 + 2.0**-20
STEP = 3 * PARAMETER

ENGINES = ["packed", "tenseal"]


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    return Federation(tmp_path_factory.mktemp("keys") / "fed", "alice", "bob")


def memory(pid: int) -> Iterator[bytes]:
    """Every readable byte of a process."""
    with Path(f"/proc/{pid}/maps").open() as maps, Path(f"/proc/{pid}/mem").open("rb", 0) as mem:
        for line in maps:
            found = re.match(r"([0-9a-f]+)-([0-9a-f]+) r", line)
            if not found or line.endswith(("[vvar]\n", "[vsyscall]\n")):
                continue
            begin, end = (int(x, 16) for x in found.groups())
            try:
                mem.seek(begin)
                yield mem.read(end - begin)
            except (OSError, ValueError, OverflowError):
                continue


def secrets_of(secret: SecretContext) -> dict[str, bytes]:
    middle = secret.ckks[len(secret.ckks) // 2 :][:48]
    return {
        "the group key": secret.group_key,
        "the group key in base64": base64.b64encode(secret.group_key),
        "the CKKS secret key": middle,
        "the CKKS secret key in base64": base64.b64encode(secret.ckks)[len(secret.ckks) // 2 :][:48],
    }


def found_in(pid: int, needles: dict[str, bytes]) -> set[str]:
    return {name for chunk in memory(pid) for name, needle in needles.items() if needle in chunk}


@pytest.mark.parametrize("engine", ENGINES)
def test_a_running_servers_memory_holds_no_key_and_no_value_and_a_clients_does(
    keys: Federation, tmp_path: Path, engine: str
) -> None:
    secret = folders.read_client_folder(keys.folder / "clients/alice").secret
    needles = secrets_of(secret) | {
        "a parameter": struct.pack("<d", PARAMETER) * 4,
        "a tensor's name": b"layer.weight",
    }
    with keys:
        # Started anew: what others are forked from has loaded modules that a server never loads.
        server = keys.serve(tmp_path / "server", "--rounds", "2", "--engine", engine, anew=True)
        flags = ("--engine", engine)
        alice = keys.client("alice", tmp_path / "a", *flags, trainer="trainers:Slow", STEP=str(STEP), SLEEP="30")
        bob = keys.client("bob", tmp_path / "b", *flags, STEP=str(STEP))
        server.until("round 2: update of bob is in")
        assert found_in(alice.child.pid, needles) >= {"the group key", "a parameter", "a tensor's name"}
        assert found_in(bob.child.pid, needles) >= {"the group key", "a parameter", "a tensor's name"}
        assert found_in(server.child.pid, needles) == set()
        libraries = Path(f"/proc/{server.child.pid}/maps").read_text()
        assert "torch" not in libraries
        assert "sklearn" not in libraries


@pytest.mark.parametrize("engine", ENGINES)
def test_nothing_that_the_server_has_on_disk_decrypts_an_aggregate(
    keys: Federation, tmp_path: Path, engine: str
) -> None:
    with keys:
        server = keys.serve(tmp_path / "server", "--rounds", "1", "--engine", engine)
        clients = [keys.client(n, tmp_path / n, "--engine", engine, STEP=str(STEP)) for n in ("alice", "bob")]
        assert [c.wait() for c in (*clients, server)] == [0, 0, 0]
    folder = folders.read_server_folder(keys.folder / "server")
    files = [p for where in (tmp_path / "server", folder.path) for p in where.rglob("*") if p.is_file()]
    secret = folders.read_client_folder(keys.folder / "clients/alice").secret
    for path in files:
        data = path.read_bytes()
        assert not any(needle in data for needle in secrets_of(secret).values()), path
        assert struct.pack("<d", PARAMETER) not in data
    assert not list((tmp_path / "server/uploads").iterdir())

    if engine == "packed":
        return  # its sums need the group key, which is nowhere in these files
    paths = [p for p in files if p.parent.name == "aggregates"]
    path = next(p for p in paths if frames.read_header(p).round == 1)
    (block,) = frames.open_frame(path).blocks()
    with pytest.raises(ValueError, match="secret_key"):
        ts.ckks_vector_from(ts.context_from(folder.public.ckks), block).decrypt()
    assert ts.ckks_vector_from(ts.context_from(secret.ckks), block).decrypt()[12] == pytest.approx(PARAMETER, abs=1e-6)


def test_the_api_gives_no_upload_back() -> None:
    """Each route is named in the protocol's table; an update is put, and of what is there only its length is told."""
    text = messages.__doc__ or ""
    routes = re.findall(r"(GET|PUT|POST) +(/v1/\S+)", text)
    source = Path(app.__file__).read_text()
    served = re.findall(r"web\.(get|put|post)\((?:r?\"(/v1/[^\"]+)\"|UPDATE_PATH), self\.(\w+)", source)
    assert len(routes) == len(served) == 11
    assert [(method, answer) for method, path, answer in served if not path] == [("put", "_update"), ("get", "_held")]
    gets = {path.rpartition("/")[2] for method, path, _ in served if method == "get"}
    assert gets == {"run", "", "aggregate", "records"}
    assert set(Held.__struct_fields__) == {"bytes", "committed"}
