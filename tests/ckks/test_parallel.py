"""Order and memory of work in threads."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from hefl.ckks.parallel import ordered_map, usable_cores
from hefl.params import BLOCKS_AT_ONCE


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_results_come_in_the_items_order(threads: int) -> None:
    def slow_first(x: int) -> int:
        time.sleep(0.02 if x == 0 else 0)
        return x * x

    assert list(ordered_map(slow_first, range(50), threads)) == [x * x for x in range(50)]


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_few_items_are_taken_before_their_results_are(threads: int) -> None:
    taken = 0

    def items() -> Iterator[int]:
        nonlocal taken
        for i in range(100):
            taken += 1
            yield i

    for given, result in enumerate(ordered_map(lambda x: x, items(), threads)):
        assert result == given
        assert taken - given <= 2 * threads * (BLOCKS_AT_ONCE if threads > 1 else 1)


def test_an_error_ends_the_work_and_the_threads() -> None:
    before, done = threading.active_count(), []

    def work(x: int) -> int:
        if x == 3:
            raise OSError("broken")
        done.append(x)
        return x

    with pytest.raises(OSError, match="broken"):
        list(ordered_map(work, range(10_000), 2))
    assert threading.active_count() == before
    assert len(done) < 20


def test_there_is_a_core() -> None:
    assert usable_cores() >= 1
