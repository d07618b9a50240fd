"""From which of the last sums a newcomer follows a run."""

from __future__ import annotations

import pytest

from hefl.client.newcomer import Ranges, first_to_follow

FIRST = Ranges(None, (0, 2))
GOOD = Ranges((0, 2), (0, 2))
GROWN = Ranges((0, 2), (0, 3))
AFTER_GROWN = Ranges((0, 3), (0, 3))
LIE = Ranges((1, 2), (1, 2))


@pytest.mark.parametrize(
    ("sums", "place"),
    [
        ([GOOD], 0),
        ([GOOD, GOOD, GOOD, GOOD], 0),
        ([GOOD, GROWN, AFTER_GROWN], 0),
        ([LIE, GOOD, GOOD, GOOD], 1),
        ([GOOD, LIE, GOOD, GOOD], 0),
        ([GOOD, GOOD, LIE], 0),
        ([GOOD, GOOD, LIE, LIE], None),
        ([GOOD, LIE], None),
        ([FIRST, LIE], 0),
        ([FIRST, LIE, LIE], 0),
        ([None, GOOD, GOOD], 1),
        ([GOOD, None, GOOD], 0),
        ([None, None], None),
        ([], None),
    ],
)
def test_a_newcomer_follows_the_sum_from_which_the_most_follow(sums: list[Ranges | None], place: int | None) -> None:
    assert first_to_follow(sums) == place
