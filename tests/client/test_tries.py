"""How long an exchange is tried again, by a clock that a test moves."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from hefl.client.tries import LAST_DELAY_S, LEAST_TRIES, REMIND_S, Tries
from hefl.errors import UnreachableError


class Clock:
    """In place of time: it stands still but for what is slept."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        patch.setattr("hefl.client.tries.time.monotonic", lambda: self.now)
        patch.setattr("hefl.client.tries.asyncio.sleep", self.sleep)

    async def sleep(self, seconds: float) -> None:
        assert 0 < seconds <= LAST_DELAY_S
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def fail(
    clock: Clock, tries: Tries, limit_s: float, takes_s: float, then: Callable[[int], object] = lambda count: None
) -> tuple[int, float, str]:
    """Fail, each time after so long, until there is no more try; how often, how long after the first, what is said."""
    count, first = 0, 0.0

    async def run() -> None:
        nonlocal count, first
        while True:
            clock.now += takes_s
            then(count)
            count += 1
            first = first or clock.now
            await tries.wait("no route to host", limit_s, answers=False)

    with pytest.raises(UnreachableError) as caught:
        asyncio.run(run())
    return count, clock.now - first, caught.value.message


@pytest.mark.parametrize("takes_s", [0.0, 16.0, 500.0])
@pytest.mark.parametrize("limit_s", [0.0, 30.0, 360.0])
def test_patience_counts_from_the_first_failure_and_there_are_three_tries_at_least(
    clock: Clock, takes_s: float, limit_s: float
) -> None:
    """However long a single one hangs before it fails."""
    count, lasted_s, message = fail(clock, Tries("https://fl:1"), limit_s, takes_s)
    assert count >= LEAST_TRIES == 3
    assert lasted_s >= limit_s
    assert count == LEAST_TRIES or lasted_s < limit_s + takes_s + LAST_DELAY_S
    assert message == f"https://fl:1 did not answer for {lasted_s:.0f} s: no route to host"


def test_patience_begins_anew_whenever_a_file_has_come_further(clock: Clock) -> None:
    tries, times = Tries("https://fl:1"), list[float]()

    def move(count: int) -> None:
        if count < 20:
            tries.reach(100 * count + 100)
        elif count == 20:
            tries.reach(50)  # a try that comes less far than one before is no progress
        times.append(clock.now)

    count, _, message = fail(clock, tries, 30.0, 10.0, move)
    since = clock.now - times[19]
    assert count > 20
    assert since >= 30.0
    assert message == f"https://fl:1 did not answer for {since:.0f} s: no route to host"


def test_a_client_that_tries_again_says_so_at_once_and_every_minute(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", logger="hefl"):
        fail(clock, Tries("https://fl:1"), 360.0, 0.0)
    said = [record.getMessage() for record in caplog.records]
    assert said[0] == "https://fl:1 does not answer (no route to host); trying again, for up to 360 s"
    assert 1 + 360 / (REMIND_S + LAST_DELAY_S) <= len(said) + 1 <= 1 + 360 / REMIND_S + 1
    assert all("no route to host" in line for line in said)


def test_only_the_first_try_may_use_a_connection_that_is_open(clock: Clock) -> None:
    tries, damaged = Tries("https://fl:1"), Tries("https://fl:1")
    assert [t.over_new_connection for t in (tries, damaged)] == [False, False]
    asyncio.run(tries.wait("reset", 30.0, answers=False))
    assert [damaged.once_more("bad record mac") for _ in range(2)] == [True, False]
    assert [t.over_new_connection for t in (tries, damaged)] == [True, True]
