"""``hefl plan`` says what the engine then does."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from federation import Command

import hefl
from hefl.protocol import frames


def facts(*arguments: str) -> dict[str, object]:
    command = Command("plan", *arguments, "--json")
    assert command.wait() == 0, command.error
    found: dict[str, object] = json.loads(command.out[0])
    return found


@pytest.mark.parametrize("weights", [(30, 10), (512, 733, 1201)])
def test_the_bytes_that_are_announced_are_those_that_are_sent(weights: tuple[int, ...]) -> None:
    secret = hefl.generate_secret()
    names = [f"client-{i}" for i in range(len(weights))]
    attempt = hefl.announce(secret.public(), dict(zip(names, weights, strict=True)), values=5000)
    update = frames.open_frame(hefl.encrypt([0.25] * 5000, secret, attempt, names[0]))
    sent = sum(map(len, update.blocks())) + len(update.trailer.seed) + len(update.trailer.tag)
    told = facts(
        "--values", str(attempt.values), "--clients", str(len(weights)), "--weights", ",".join(map(str, weights))
    )
    assert told["bytes_up"] == sent
    assert told["blocks"] == update.header.block_count


def test_a_million_and_a_half_values_cost_less_than_float32_with_equal_weights() -> None:
    assert int(str(facts("--values", "1663370", "--clients", "3")["bytes_up"])) <= 3.65 * 1_663_370
    unequal = facts("--values", "1663370", "--clients", "3", "--weights", "512,733,1201")
    assert int(str(unequal["bytes_up"])) <= 5.3 * 1_663_370


def test_a_server_takes_little_more_for_each_client_but_its_update_on_disk() -> None:
    ten, hundred = (facts("--values", "1663370", "--clients", n) for n in ("10", "100"))
    grown = {key: int(str(hundred[key])) - int(str(ten[key])) for key in ("server_memory_bytes", "server_disk_bytes")}
    assert 0 < grown["server_memory_bytes"] <= 90 * 500_000
    assert grown["server_disk_bytes"] > 90 * int(str(ten["bytes_up"]))


def test_the_first_round_counts_where_it_takes_more_than_a_training() -> None:
    """With 8 bits of precision a lane carries 4 bits of an initial float32: eight for a value."""
    low, high = (
        int(str(facts("--values", "1663370", "--clients", "2", "--precision", p)["server_memory_bytes"]))
        for p in ("8", "24")
    )
    assert low > high


def test_rounded_weights_are_said() -> None:
    command = Command(
        "plan", "--values", "10", "--clients", "2", "--weights", "100001,99999", cwd=Path(__file__).parent
    )
    assert command.wait() == 0
    assert "rounded to a total of" in command.out[2]


@pytest.mark.parametrize("weights", ["1", "1,0", "1,x", "1,2,3"])
def test_weights_that_do_not_fit_are_refused(weights: str) -> None:
    command = Command("plan", "--values", "10", "--clients", "2", "--weights", weights)
    assert command.wait() == 2
    assert "2 whole numbers from 1 on" in command.error


def test_a_bare_plan_runs_as_the_readme_writes_it_and_says_for_what() -> None:
    written = re.findall(r"`hefl (plan[^`]*)`", (Path(__file__).parents[2] / "cli/README.md").read_text())
    assert written
    for words in written:
        command = Command(*words.split())
        assert command.wait() == 0, command.error
        assert command.out[0] == "for:     1,663,370 values (--values), 3 clients (--clients)"


def test_weights_say_how_many_clients_there_are() -> None:
    assert facts("--weights", "30,10,25,5") == facts("--weights", "30,10,25,5", "--clients", "4")
