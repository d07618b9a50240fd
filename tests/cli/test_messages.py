"""What a person reads after a mistake: the error, and below it the way out, to the word."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from federation import Command, Federation

from hefl.keys import file_format

MISTAKES: list[tuple[str, int, str, str]] = [
    # commands and options
    ("serv", 2, "there is no command 'serv'", "did you mean 'hefl serve'?"),
    ("trainn", 2, "there is no command 'trainn'", "see 'hefl --help'"),
    ("--verison", 2, "hefl has no option --verison", "did you mean --version?"),
    ("serve", 2, "serve needs DIR/server", "as in: hefl serve [OPTIONS] DIR/server; see 'hefl serve --help'"),
    ("serve fed/server --round 3", 2, "serve has no option --round", "did you mean --rounds?"),
    (
        "serve fed/server --rounds three",
        2,
        "--rounds takes a whole number from 1 to 1000000, got 'three'",
        "see 'hefl serve --help'",
    ),
    (
        "serve fed/server --rounds",
        2,
        "--rounds takes a whole number from 1 to 1000000, and nothing follows it",
        "see 'hefl serve --help'",
    ),
    (
        "serve fed/server --port 99999",
        2,
        "--port takes a whole number from 0 to 65535, got 99999",
        "see 'hefl serve --help'",
    ),
    ("serve fed/server --join-wait -1", 2, "--join-wait takes a number from 0, got -1.0", "see 'hefl serve --help'"),
    (
        "serve fed/server --round-timeout inf",
        2,
        "--round-timeout takes a number above 0, got inf",
        "see 'hefl serve --help'",
    ),
    (
        "client fed/clients/alice --data iris:alice --precision 41",
        2,
        "--precision takes a whole number from 8 to 40, and at most 30 with --weighting client, got 41",
        "see 'hefl client --help'",
    ),
    (
        "serve fed/server more",
        2,
        "serve takes no further argument, got more",
        "as in: hefl serve [OPTIONS] DIR/server; see 'hefl serve --help'",
    ),
    (
        "serve fed/server --engine Packed",
        2,
        "--engine takes one of packed, tenseal, plaintext, got 'Packed'",
        "did you mean packed?",
    ),
    (
        "export fed/clients/alice",
        2,
        "export needs --to",
        "FILE: where to; see 'hefl export --help'",
    ),
    (
        "plan --values 10 --clients 3 --weights 1,2",
        2,
        "--weights takes 3 whole numbers from 1 on, one for each of --clients, got '1,2'",
        "separate them by commas: --weights 10,20,30",
    ),
    # folders
    ("serve nowhere", 3, "nowhere is not a folder", "name DIR/server as 'hefl keygen' made it"),
    ("serve fed", 3, "fed/public.hefl is missing", "did you mean fed/server?"),
    (
        "serve fed/clients/alice",
        3,
        "fed/clients/alice/secret.hefl is a secret file, and a server may not hold one: it holds the secret keys of "
        "client alice, of {identity}; it is not the only one: 2 are here",
        "did you mean fed/server?",
    ),
    (
        "client fed/server --data iris:alice",
        3,
        "fed/server/secret.hefl is missing",
        "did you mean fed/clients/alice or fed/clients/bob?",
    ),
    (
        "client fed/clients/alce --data iris:alice",
        3,
        "fed/clients/alce is not a folder",
        "did you mean fed/clients/alice?",
    ),
    ("keygen file --client alice --client bob", 1, "file exists and is not a folder", "name another for the keys"),
    ("serve fed/server --state file", 1, "the folder file cannot be used: file exists", "name another with --state"),
    (
        "serve fed/server --min-clients 3",
        2,
        "fed/server knows alice, bob only, and --min-clients is 3",
        "make keys for more clients, or take part with fewer: --min-clients 2; at least 2 make a sum",
    ),
    # where the server is
    (
        "client fed/clients/alice --data iris:alice --server 127.0.0.1:8443",
        2,
        "--server takes https://HOST:PORT, got '127.0.0.1:8443'",
        "such as https://127.0.0.1:8443",
    ),
    (
        "client fed/clients/alice --data iris:alice --server http://127.0.0.1:8443",
        2,
        "plain HTTP to http://127.0.0.1:8443 is refused",
        "use https://; only to loopback does --insecure-http allow it",
    ),
    (
        "client fed/clients/alice --data iris:alice --server https://127.0.0.1:{free} --connect-timeout 0",
        5,
        "https://127.0.0.1:{free} did not answer for 0 s: connection refused",
        "is the server running, and is its address right? See --server and --connect-timeout; "
        "for a run that is over see 'hefl serve --linger' and 'hefl export'",
    ),
    (
        "serve fed/server --port {taken}",
        1,
        "port {taken} of 127.0.0.1 is in use",
        "stop what listens there, or choose another with --port; 0 takes any",
    ),
    (
        "serve fed/server --host 192.0.2.1 --port {free}",
        2,
        "cannot listen on 192.0.2.1:{free}: cannot assign requested address",
        "--host is an address of this machine; 0.0.0.0 is all that it has",
    ),
    # data and trainers
    ("client fed/clients/alice", 2, "name either --data or --trainer", "for a first try: --data iris:alice"),
    (
        "client fed/clients/alice --trainer mymodel",
        2,
        "--trainer takes package.module:factory, got 'mymodel'",
        "mymodel:Trainer, say, for the class Trainer in mymodel.py",
    ),
    (
        "client fed/clients/alice --trainer mymodel.py:Trainer",
        2,
        "--trainer mymodel.py:Trainer: No module named 'mymodel.py'; 'mymodel' is not a package",
        "name the module, not its file: mymodel:Trainer",
    ),
    (
        "client fed/clients/alice --trainer mymodle:Trainer",
        2,
        "--trainer mymodle:Trainer: No module named 'mymodle'",
        "run the command in the folder that holds the module, or install it beside hefl",
    ),
    (
        "client fed/clients/alice --trainer mymodel:Trainr",
        2,
        "--trainer mymodel:Trainr: module 'mymodel' has no attribute 'Trainr'",
        "did you mean mymodel:Trainer?",
    ),
    (
        "client fed/clients/alice --trainer needy:Trainer",
        2,
        "--trainer needy:Trainer: No module named 'not_installed'",
        "needy imports not_installed, which is not installed where hefl runs",
    ),
    (
        "client fed/clients/alice --trainer mymodel:Trainer",
        1,
        "mymodel:Trainer gives a Trainer, which has no get_parameters, fit and evaluate",
        "a Flower NumPyClient has them; see hefl.models.trainer.Trainer",
    ),
    # models
    (
        "client fed/clients/alice --data iris:alice --save no/such/model.npz",
        2,
        "the folder of --save no/such/model.npz does not exist",
        "make it first: mkdir -p {here}/no/such",
    ),
    (
        "client fed/clients/alice --data iris:alice --save-best file.npz",
        1,
        "file.npz exists already",
        "name another file for --save-best, or add --force",
    ),
    (
        "client fed/clients/alice --data iris:alice --save m.npz --save-best m.npz",
        2,
        "--save and --save-best both name m.npz",
        "name two files",
    ),
    (
        "client fed/clients/alice --data iris:alice --save model.pt",
        2,
        "a model's file ends in .npz or .safetensors, got 'model.pt'",
        "such as model.npz; hefl reads and writes no other kind, and no pickle",
    ),
    (
        "client fed/clients/alice --data iris:alice --init model.npz",
        2,
        "model.npz does not exist",
        "name a model that --save wrote",
    ),
    (
        "client fed/clients/alice --data iris:alice --init file.npz",
        1,
        "file.npz is no .npz file of numeric arrays: No data left in file",
        "name a model that --save wrote, or one of plain arrays under the model's own names",
    ),
    # settings
    (
        "--config typo.toml serve fed/server",
        2,
        "typo.toml: [serve] round is no setting of 'hefl serve'",
        "did you mean rounds?",
    ),
    ("--config no.toml serve fed/server", 2, "no.toml does not exist", "name a file of settings after --config"),
]


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("here")
    Federation(folder / "fed", "alice", "bob")
    (folder / "file").touch()
    (folder / "file.npz").touch()
    (folder / "typo.toml").write_text("[serve]\nround = 50\n")
    (folder / "mymodel.py").write_text("class Trainer: pass\n")
    (folder / "needy.py").write_text("import not_installed\n")
    return folder


@pytest.fixture(scope="module")
def ports() -> Iterator[dict[str, int]]:
    """One that something listens on, and one that nothing does."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        with socket.create_server(("127.0.0.1", 0)) as free:
            numbers = {"taken": taken.getsockname()[1], "free": free.getsockname()[1]}
        yield numbers


@pytest.mark.parametrize(("line", "code", "message", "hint"), MISTAKES, ids=[m[0] for m in MISTAKES])
def test_a_mistake_is_answered_as_a_colleague_would(
    here: Path, ports: dict[str, int], line: str, code: int, message: str, hint: str
) -> None:
    identity = file_format.read(here / "fed/server/public.hefl").identity
    line, message, hint = (text.format(here=here, identity=identity, **ports) for text in (line, message, hint))
    command = Command(*line.split(), cwd=here)
    try:
        assert command.wait() == code, command.error
    finally:
        command.stop()
    assert command.err[-2:] == [f"hefl: {message}", f"hefl: hint: {hint}"]
    assert all(row.startswith("hefl: ") for row in command.err)
    assert command.out == []
