"""hefl's commands as child processes, as the demo and the benchmarks run them."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest
from federation import HERE

from hefl.demo.processes import ChildFailedError, Children, run_federation
from hefl.errors import UnreachableError
from hefl.keys import authority


def test_a_server_that_has_gone_is_noticed_long_before_a_client_would_give_it_up(tmp_path: Path) -> None:
    """It ends as one that was told to, which is no failure of its own."""
    authority.create(tmp_path / "keys", ["alice", "bob"], ("127.0.0.1",))
    shutil.copy(HERE / "trainers.py", tmp_path)
    clients = {name: ["--trainer", "trainers:Drift"] for name in ("alice", "bob")}
    with pytest.raises(ChildFailedError, match="did not answer for") as caught, Children(tmp_path) as children:
        for name, event in run_federation(children, tmp_path / "keys", ["--rounds", "1000"], clients):
            if (name, event["event"]) == ("server", "round"):
                os.kill(children.pid("server"), signal.SIGTERM)
                break
        list(children.events())
    assert caught.value.name in clients
    assert caught.value.code == UnreachableError.exit_code
