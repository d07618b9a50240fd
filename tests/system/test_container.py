"""Server and clients as in a container, by real processes: another user, nothing to write but a few volumes."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from builders import saved
from container import GROUP, USER, Container, as_secret, owned
from federation import Command, Federation, free_port
from trainers import Drift

import hefl
from hefl.ckks.jit import cache_folder
from hefl.keys import authority


@pytest.fixture
def container() -> Iterator[Container]:
    folder = Path(tempfile.mkdtemp(prefix="hefl-container-"))  # pytest's own is for root alone
    folder.chmod(0o755)
    made = Container(folder)
    if not made.works():
        shutil.rmtree(folder)
        pytest.skip("it takes root, who may make namespaces of mounts and run this Python as another user")
    yield made
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where kernels are kept that this process has compiled."""
    hefl.simulate({"alice": Drift(), "bob": Drift()}, rounds=1)
    found = cache_folder()
    assert found
    return found


def test_server_and_clients_train_from_secrets_on_a_read_only_file_system(
    container: Container, compiled: Path, tmp_path: Path
) -> None:
    """The list of clients is mounted anew meanwhile, bob has keygen's own folder, and nobody compiles."""
    baked = container.folder / "cache"
    shutil.copytree(compiled, baked / "hefl" / compiled.name)
    for path in owned(baked):
        path.chmod(0o755 if path.is_dir() else 0o644)  # as root leaves it in an image
    before, port = container.command(f"XDG_CACHE_HOME={baked}"), free_port()
    with Federation(tmp_path / "fed", "alice", "bob") as keys:
        secrets = container.folder / "secrets"
        server_keys = as_secret(keys.folder / "server", secrets / "server")
        flags = ("--state", container.state / "server", "--port", str(port), "--rounds", "1", "--json")
        server = Command("serve", server_keys, *flags, before=before)
        server.until("listening")
        authority.change(keys.folder, authority.Change(add=("carol",)))
        as_secret(keys.folder / "server", secrets / "server")
        server.until("clients.hefl has changed: carol may join now")
        own = container.folder / "bob"
        shutil.copytree(keys.folder / "clients/bob", own)
        for path in owned(own):
            os.chown(path, USER, USER)
        folders = {"alice": as_secret(keys.folder / "clients/alice", secrets / "alice"), "bob": own}
        clients = [
            Command(
                *("client", folder, "--trainer", "trainers:Drift", "--server", f"https://127.0.0.1:{port}"),
                *("--state", container.state / name, "--save", container.state / f"{name}.npz"),
                before=before,
            )
            for name, folder in folders.items()
        ]
        try:
            assert [c.wait() for c in (*clients, server)] == [0, 0, 0], [c.error for c in (*clients, server)]
        finally:
            for command in (*clients, server):
                command.stop()
    assert saved(container.state / "alice.npz") == saved(container.state / "bob.npz")
    assert (container.state / "alice.npz").stat().st_uid == USER
    assert not [line for command in (*clients, server) for line in command.err if "compil" in line]
    assert not list(container.tmp.glob("hefl-*"))


SERVE = ("--engine", "tenseal", "--port", "0")


@pytest.mark.parametrize(
    ("mode", "flags", "variables", "message", "hint"),
    [
        (0o444, (), (), "public.hefl may be read by others (mode 0444)", "mode 0440 for a group"),
        (0o400, (), (), "cannot be read: permission denied", f"runs as user {USER}, and the file is user 0's"),
        (0o440, (), (), "keys/state cannot be used: read-only file system", "name another with --state"),
        (0o440, ("--state", "{state}"), (), "state cannot be used: operation not permitted", "--state {state}/run"),
        (
            0o440,
            ("--state", "{state}/run", "--passphrase-file", "{outside}"),
            (),
            "words cannot be read: too many levels",
            "links are not followed",
        ),
        (0o440, ("--state", "{state}/run"), ("TMPDIR=/nowhere",), "no folder for temporary files", "TMPDIR"),
    ],
    ids=["for all", "for nobody", "no state", "another's state", "a link outside", "no temporary files"],
)
def test_what_cannot_work_in_a_container_is_refused_with_the_way_out(
    container: Container,
    tmp_path: Path,
    mode: int,
    flags: tuple[str, ...],
    variables: tuple[str, ...],
    message: str,
    hint: str,
) -> None:
    authority.create(tmp_path / "fed", ["alice", "bob"])
    keys = as_secret(tmp_path / "fed/server", container.folder / "keys", mode)
    (container.folder / "elsewhere").write_text("correct horse\n")
    (container.folder / "keys/words").symlink_to(container.folder / "elsewhere")
    places = {"state": container.state, "outside": container.folder / "keys/words"}
    given = [flag.format(**places) for flag in flags]
    command = Command("serve", keys, *SERVE, *given, before=container.command(*variables))
    assert command.wait() in (1, 3), command.error
    *_, said, way = command.err
    assert message in said
    assert hint.format(**places) in way


def test_a_secret_is_not_read_by_who_is_not_of_its_group(container: Container, tmp_path: Path) -> None:
    authority.create(tmp_path / "fed", ["alice", "bob"])
    keys = as_secret(tmp_path / "fed/server", container.folder / "keys")
    command = Command("serve", keys, *SERVE, before=container.command(group=GROUP + 1))
    assert command.wait() == 3
    assert "cannot be read: permission denied" in command.error


@pytest.mark.parametrize("user", [0, USER])
def test_a_secret_is_one_whole_folder_also_for_root_where_it_is_read_only(
    container: Container, tmp_path: Path, user: int
) -> None:
    authority.create(tmp_path / "fed", ["alice", "bob"])
    keys = as_secret(tmp_path / "fed/clients/alice", container.folder / "keys")
    looked = Command("inspect", keys, before=container.command(user=user))
    assert looked.wait() == 0, looked.error
    assert len([line for line in looked.out if "secret.hefl: secret keys" in line]) == 1
    assert looked.out[-1].startswith("together: federation")
    server = as_secret(tmp_path / "fed/server", container.folder / "server")
    command = Command("serve", server, *SERVE, "--state", container.state / "run", before=container.command(user=user))
    try:
        command.until("to join")
    finally:
        command.stop()
