from __future__ import annotations

import time

import pytest

from hefl.timings import Timings


def test_phases_add_up_and_are_taken_once() -> None:
    timings = Timings()
    for _ in range(2):
        with timings.phase("train"):
            time.sleep(0.01)
    taken = timings.take()
    assert taken.keys() == {"train"}
    assert taken["train"] >= 0.02
    assert timings.take() == {}


def test_a_phase_that_fails_counts() -> None:
    timings = Timings()
    with pytest.raises(ZeroDivisionError), timings.phase("encrypt"):
        raise ZeroDivisionError
    assert "encrypt" in timings.take()
