"""A hint that names an option or a value can be followed: what it names is accepted in the very situation."""

from __future__ import annotations

import ast
import re
import resource
import socket
from pathlib import Path

import click
import msgspec
import numpy as np
import pytest
from builders import JOIN

import hefl
from hefl import errors
from hefl.ckks.context import SecretContext
from hefl.cli.main import COMMANDS, cli
from hefl.cli.usage import expects, explain
from hefl.client.client import _way_to_more
from hefl.client.kept_models import read_model
from hefl.client.route import _check_url
from hefl.datasets.partition import MIN_EXAMPLES, Partition
from hefl.demo.training import FORK_CLIENTS
from hefl.engines.load import load_engine
from hefl.errors import HeflError, LayoutError, OutOfRangeError, StateError, UsageError
from hefl.keys import authority
from hefl.models.file import check_suffix
from hefl.params import MAX_VALUES
from hefl.rounds.schedule import RunSettings
from hefl.rounds.views import check_join
from hefl.server.limits import SPARE_FILES, Limits

ROOT = Path(__file__).parents[2]


def said(*arguments: str | Path) -> tuple[str, str]:
    """What a command says, run in this process: an error and the way out; nothing where it ends well."""
    try:
        cli.main([*map(str, arguments)], prog_name="hefl", standalone_mode=False)
    except click.ClickException as error:
        return explain(error, None)
    except HeflError as error:
        return error.message, error.hint or ""
    return "", ""


def option(command: str, flag: str) -> click.Option:
    found = cli.get_command(click.Context(cli), command)
    assert found
    return next(p for p in found.params if isinstance(p, click.Option) and flag in p.opts)


def named(flag: str, hint: str) -> list[str]:
    """Values that a hint names for a flag."""
    return re.findall(rf"{flag} ([^\s,;]+)", hint)


def hints() -> list[tuple[str, str]]:
    """Every text in the code that is a hint or part of one, and where."""
    found = []
    for folder in ("hefl", "keys", "cli"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                is_named = isinstance(node, ast.Assign) and any("hint" in ast.dump(target) for target in node.targets)
                if is_named or (isinstance(node, ast.keyword) and node.arg == "hint"):
                    parts = [part.value for part in ast.walk(node) if isinstance(part, ast.Constant)]
                    found.append((path.name, " ".join(part for part in parts if isinstance(part, str))))
    return found


def test_every_flag_that_a_hint_names_exists() -> None:
    known = {"--help"}
    for name in COMMANDS:
        command = cli.get_command(click.Context(cli), name)
        assert command
        known |= {flag for param in command.params for flag in param.opts}
    known |= {flag for param in cli.params for flag in param.opts}
    of_hints = {(place, flag) for place, text in hints() for flag in re.findall(r"(?<![\w-])--[a-z][a-z-]*", text)}
    assert len(of_hints) > 40
    assert [(place, flag) for place, flag in sorted(of_hints) if flag not in known] == []


def test_the_bounds_that_a_message_names_are_accepted() -> None:
    checked = 0
    for name in COMMANDS:
        command = cli.get_command(click.Context(cli), name)
        assert command
        for param in command.params:
            kind = param.type
            if isinstance(kind, click.IntRange | click.FloatRange):
                text = expects(param)
                for number in re.findall(r"(?:from|to|at most) (\d+)", text):
                    assert kind.convert(number, param, None) == float(number), (name, param.name, text)
                    checked += 1
            elif isinstance(kind, click.Choice):
                assert [kind.convert(choice, param, None) for choice in kind.choices] == list(kind.choices)
    assert checked > 30


@pytest.mark.parametrize("hard", [100, *(SPARE_FILES + more for more in (1, 3, 4, 5)), 500, 2000])
def test_as_many_connections_as_a_hint_names_are_allowed(monkeypatch: pytest.MonkeyPatch, hard: int) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (hard, hard))
    with pytest.raises(UsageError, match="open files") as caught:
        Limits(max_connections=1024).allow_files()
    for number in named("--max-connections", caught.value.hint or ""):
        most = option("serve", "--max-connections").type.convert(number, None, None)
        Limits(max_connections=most).allow_files()
    assert bool(named("--max-connections", caught.value.hint or "")) == (hard >= SPARE_FILES + 4)


@pytest.mark.parametrize("clients", [1, 2, 3])
def test_a_server_waits_for_as_many_clients_as_a_hint_names(tmp_path: Path, clients: int) -> None:
    """The port is taken: so far it gets where the number is right."""
    authority.create(tmp_path / "fed", ["alice", "bob", "carol"][:clients])
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        serve = ("serve", tmp_path / "fed/server", "--port", str(port), "--engine", "plaintext", "--insecure-plaintext")
        message, hint = said(*serve, "--min-clients", "4")
        assert "and --min-clients is 4" in message
        for number in named("--min-clients", hint):
            assert "is in use" in said(*serve, "--min-clients", number)[0]
    assert bool(named("--min-clients", hint)) == (clients >= 2)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_client_takes_part_with_as_few_as_a_hint_names(count: int) -> None:
    hint = _way_to_more(count, 4)
    for flag, command in (("--min-participants", "client"), ("--min-clients", "serve")):
        for number in named(flag, hint):
            assert option(command, flag).type.convert(number, None, None) <= max(count, 4)
    assert bool(named("--min-participants", hint)) == (count >= 2)


@pytest.mark.parametrize("values", [11, MAX_VALUES, MAX_VALUES + 1])
def test_a_higher_limit_of_values_is_named_only_where_there_is_one(values: int) -> None:
    join = msgspec.structs.replace(JOIN, values={**JOIN.values, "training": values})
    with pytest.raises(LayoutError, match="at most 10") as caught:
        check_join("alice", join, load_engine("packed"), RunSettings(max_values=10))
    allowed = True
    try:
        option("serve", "--max-values").type.convert(values, None, None)
    except click.BadParameter:
        allowed = False
    assert ("--max-values" in (caught.value.hint or "")) == allowed


@pytest.mark.parametrize("clients", ["2", "3", "5", "6", "40"])
def test_plan_takes_the_weights_that_it_gives_as_an_example(clients: str) -> None:
    plan = ("plan", "--values", "10", "--clients", clients)
    hint = said(*plan, "--weights", "7")[1]
    for weights in re.findall(r"--weights (\S+)", hint):
        assert said(*plan, "--weights", weights) == ("", "")
    assert ("--weights" in hint) == (int(clients) <= 5)


@pytest.mark.parametrize("value", [1.5, 2.0, 100.0, 2.0**50 * (1 + 2**-52), 2.0**64])
def test_the_value_range_that_a_hint_names_holds_the_value(secret: SecretContext, value: float) -> None:
    attempt = hefl.announce(secret.public(), {"alice": 1, "bob": 1}, values=1)
    with pytest.raises(OutOfRangeError) as caught:
        hefl.encrypt([-value], secret, attempt, "alice")
    found = re.search(r"here (?:(\d+)$|2\.0\*\*(\d+)$)", caught.value.hint or "")
    assert found
    hefl.encrypt([-value], secret, attempt, "alice", value_range=float(found[1] or 2.0 ** int(found[2])))


def test_no_value_range_is_named_where_none_holds_the_value(secret: SecretContext) -> None:
    attempt = hefl.announce(secret.public(), {"alice": 1, "bob": 1}, values=1)
    with pytest.raises(OutOfRangeError) as caught:
        hefl.encrypt([2.0**65], secret, attempt, "alice")
    assert "no value_range is above 2**64" in (caught.value.hint or "")


@pytest.mark.parametrize(
    "url", ["127.0.0.1:8443", "[::1]:8443", "fl.example.org:99999", "fl.example.org:8443/x", "fl", ""]
)
@pytest.mark.parametrize("insecure_http", [False, True])
def test_a_client_takes_the_url_that_a_hint_names(url: str, insecure_http: bool) -> None:
    with pytest.raises(UsageError) as caught:
        _check_url(url, insecure_http=insecure_http)
    found = re.search(r"such as (\S+)", caught.value.hint or "")
    assert found
    _check_url(found[1], insecure_http=insecure_http)


@pytest.mark.parametrize("path", ["model", "model.", "a.pt", ".npz", ".", "..", "/", "tests"])
def test_a_model_can_be_saved_under_the_name_that_a_hint_names(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises(UsageError) as caught:
        check_suffix(Path(path))
    found = re.match(r"such as (.+?); hefl reads", caught.value.hint or "")
    assert found
    check_suffix(Path(found[1]))
    assert not Path(found[1]).is_dir()


@pytest.mark.parametrize(
    ("spec", "meant"),
    [
        ("mine.py:Trainer", "mine:Trainer"),
        ("./pack/mine.py:Trainer", "pack.mine:Trainer"),
        ("{cwd}/pack/mine.py:Trainer", "pack.mine:Trainer"),
        ("../mine.py:Trainer", "mine:Trainer"),
        ("/elsewhere/mine.py:Trainer", "mine:Trainer"),
    ],
)
def test_a_trainers_file_is_answered_by_its_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spec: str, meant: str
) -> None:
    monkeypatch.chdir(tmp_path)
    authority.create(tmp_path / "fed", ["alice", "bob"])
    hint = said("client", "fed/clients/alice", "--trainer", spec.format(cwd=tmp_path))[1]
    assert hint.endswith(f"not its file: {meant}")
    assert ("run the command in" in hint) == ("pack" not in spec and spec != "mine.py:Trainer")


def test_a_file_of_settings_is_not_told_to_hold_what_it_may_not(tmp_path: Path) -> None:
    config = tmp_path / "x.toml"
    for key in ("forc", "revok", "rotat", "insecure-htp"):
        config.write_text(f"[{'serve' if 'htp' in key else 'keygen'}]\n{key} = true\n")
        message, hint = said("--config", config, "plan")
        assert "is no setting of" in message
        for meant in re.findall(r"did you mean (\S+)\?", hint):
            config.write_text(f"[{'serve' if 'htp' in key else 'keygen'}]\n{meant} = true\n")
            assert "is not taken from a file" not in said("--config", config, "plan")[0]


def test_a_client_that_a_hint_names_can_be_revoked(tmp_path: Path) -> None:
    fed = tmp_path / "fed"
    authority.create(fed, ["alice", "bob"])
    assert said("keygen", fed, "--revoke", "carol")[1] == "its clients: alice, bob"
    assert said("keygen", fed, "--revoke", "alice") == ("", "")
    assert "at least one must remain" in said("keygen", fed, "--revoke", "carol")[1]


def test_a_passphrase_is_given_in_the_way_that_a_hint_names(tmp_path: Path) -> None:
    fed, words = tmp_path / "fed", tmp_path / "words"
    authority.create(fed, ["alice", "bob"])
    words.touch(0o600)
    words.write_text("correct horse\n")
    hint = said("keygen", fed, "--renew", "--passphrase-file", words)[1]
    assert "--rotate" in hint
    assert "--passphrase" not in hint
    assert said("keygen", fed, "--rotate", "--passphrase-file", words) == ("", "")


@pytest.mark.parametrize(("kept", "others"), [([3], []), ([1, 2, 3], ["1, 2"])])
def test_export_names_other_rounds_than_the_one_that_is_damaged(
    tmp_path: Path, secret: SecretContext, kept: list[int], others: list[str]
) -> None:
    (tmp_path / "aggregates").mkdir()
    for number in kept:
        for suffix in (".agg", ".json"):
            (tmp_path / "aggregates" / f"{number:010}{suffix}").write_bytes(b"torn")
    with pytest.raises(StateError, match="is damaged") as caught:
        read_model(tmp_path, secret)
    assert re.findall(r"--round: (.+)$", caught.value.hint or "") == others


@pytest.mark.parametrize("flags", [(), ("--tamper", "fork")])
def test_the_demo_takes_the_engine_that_a_hint_names(tmp_path: Path, flags: tuple[str, ...]) -> None:
    """It ends before it trains: the report is there."""
    hint = said("demo", "--engine", "plaintext", *flags)[1]
    (tmp_path / "report.json").touch()
    for engine in re.findall(r"packed|tenseal", hint):
        message, way = said("demo", "--engine", engine, "--out", tmp_path, *flags)
        assert "exists already" in message or named("--clients", way) == [str(FORK_CLIENTS)]


@pytest.mark.parametrize(
    ("partition", "clients", "hint"),
    [
        ("iid", 9, "share them among fewer clients"),
        ("dirichlet:0.1", 9, "share them among fewer clients or take a larger ALPHA"),
        ("dirichlet:1e-9", 2, "take a larger ALPHA"),
    ],
)
def test_fewer_clients_are_named_only_where_fewer_make_a_federation(partition: str, clients: int, hint: str) -> None:
    labels = np.zeros(MIN_EXAMPLES * 2, np.int64)
    with pytest.raises(UsageError) as caught:
        Partition.parse(partition).share(labels, clients, np.random.RandomState(1))
    assert caught.value.hint == hint


def test_hints_of_classes_can_be_followed() -> None:
    """They name one flag, and no value."""
    classes = [c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, HeflError)]
    flags = {flag for c in classes for flag in re.findall(r"--[a-z-]+", c.way_out or "")}
    assert flags == {"--engine", "--state"}
