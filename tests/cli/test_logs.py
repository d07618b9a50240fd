"""What commands say on stderr, to a person and to a machine."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from federation import Command, Federation

from hefl.cli.logs import JsonFormatter, TextFormatter


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    return Federation(tmp_path_factory.mktemp("keys") / "fed", "alice", "bob")


def objects(command: Command) -> list[dict[str, Any]]:
    """Every line of stderr, which must be an object."""
    lines = [json.loads(line) for line in command.err]
    for line in lines:
        assert list(line)[:3] == ["time", "level", "message"]
        assert line["level"] in {"info", "warning", "error"}
        assert datetime.now(UTC) - datetime.fromisoformat(line["time"]) < timedelta(minutes=2)
    return lines


def record(message: str, *arguments: Any, **extra: Any) -> logging.LogRecord:
    return logging.getLogger("hefl").makeRecord("hefl", logging.INFO, "", 0, message, arguments, None, extra=extra)


def test_a_whole_run_is_logged_as_json_with_fields_and_no_model(keys: Federation, tmp_path: Path) -> None:
    form = ("--log-format", "json")
    with keys:
        server = keys.serve(tmp_path / "server", "--rounds", "2", *form)
        clients = [
            keys.client(name, tmp_path / name, *form, "--report-metrics", STEP=step)
            for name, step in (("alice", "0.7310585"), ("bob", "0.7310585"))
        ]
        assert [c.wait() for c in (*clients, server)] == [0, 0, 0], server.error
    said = objects(server)
    assert {"alice", "bob"} <= {line["client"] for line in said if line["message"].endswith(" is in")}
    closed = [line for line in said if "aggregate_s" in line]
    assert [line["round"] for line in closed] == [0, 1, 2, 3]
    assert [(line["in"], line["of"]) for line in closed] == [(1, 1), *[(2, 2)] * 3]
    assert any(line["message"] == "the run has ended after round 2" and line["round"] == 2 for line in said)
    for line in objects(clients[0]):
        assert line["level"] == "info"
    assert [line["round"] for line in objects(clients[0]) if "kilobytes" in line and line["round"]] == [1, 2, 3]
    # STEP is in every parameter, and a tenth of it is the accuracy
    assert not any(digits in c.error for c in (server, *clients) for digits in ("73105", "0.0731", "accuracy", "loss"))


@pytest.mark.parametrize(
    ("arguments", "code", "error"),
    [
        (["serve", "nowhere"], 3, "KeyFileError"),
        (["client", "nowhere", "--data", "iris:alice"], 3, "KeyFileError"),
        (["serve", "nowhere", "--rounds", "0"], 2, "UsageError"),
        (["client"], 2, "UsageError"),
    ],
)
def test_an_error_is_one_object_with_its_hint_and_exit_code(
    tmp_path: Path, arguments: list[str], code: int, error: str
) -> None:
    command = Command(*arguments, "--log-format", "json", cwd=tmp_path)
    assert command.wait() == code
    (line,) = objects(command)
    assert (line["level"], line["error"], line["exit_code"]) == ("error", error, code)
    assert line["hint"]


def test_fields_come_from_a_mapping_or_from_extra_and_never_hide_the_message() -> None:
    arguments = {"client": "bob", "message": "forged", "why": ValueError("odd"), "none": None}
    line = json.loads(JsonFormatter().format(record("%(client)s left: %(why)s", arguments, hint="wait")))
    assert line["message"] == "bob left: odd"
    assert {k: line[k] for k in line if k not in ("time", "level", "message")} == {
        "client": "bob",
        "why": "odd",
        "hint": "wait",
    }


def test_a_peer_cannot_forge_a_line_nor_write_to_the_terminal() -> None:
    message = "refused /v1/\nhefl: all is well\x1b[2J \u2028 \x9b of %s"
    text = TextFormatter().format(record(message, "bob\r"))
    assert text == r"hefl: refused /v1/\nhefl: all is well\x1b[2J \u2028 \x9b of bob\r"
    assert JsonFormatter().format(record(message, "bob\r")).isprintable()


def test_a_traceback_stays_whole_in_text_and_is_one_field_in_json() -> None:
    try:
        raise RuntimeError("the disk is gone")
    except RuntimeError:
        failed = record("a request failed")
        failed.exc_info = sys.exc_info()
    assert TextFormatter().format(failed).splitlines()[-1] == "RuntimeError: the disk is gone"
    (line,) = JsonFormatter().format(failed).splitlines()
    assert json.loads(line)["traceback"].endswith("RuntimeError: the disk is gone")
