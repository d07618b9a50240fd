"""Choose the sum from which a client without a model follows a run.

A sum says in which ranges it was made. Who has the model before knows which those must be, and refuses another sum; a
newcomer can only see whether sums follow from each other. So it follows that one of the last sums from which the most
others follow, and believes none where that is not clear.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hefl.encoding.codec import Scales


@dataclass(frozen=True, slots=True)
class Ranges:
    """What a sum tells of ranges.

    Attributes:
        used: Those that it was made in; None of initial arrays, which need none.
        following: Those of the next training, where this sum made a model.
    """

    used: Scales | None
    following: Scales


def first_to_follow(sums: Sequence[Ranges | None]) -> int | None:
    """The place of the sum from which on a newcomer follows the rest; None where several would do as well.

    Args:
        sums: Of successive rounds; None is one that nobody can use.
    """
    followed = {place: _follow(sums, place) for place, ranges in enumerate(sums) if ranges}
    exact = [place for place in followed if (ranges := sums[place]) and ranges.used is None]
    if exact:
        return exact[-1]
    most = max((len(places) for places in followed.values()), default=0)
    best = {places[-1]: place for place, places in reversed(followed.items()) if len(places) == most}
    return best.popitem()[1] if len(best) == 1 else None


def _follow(sums: Sequence[Ranges | None], first: int) -> list[int]:
    """Places of the sums that a client would use that took the first one."""
    places, ranges = [first], sums[first]
    for place in range(first + 1, len(sums)):
        later = sums[place]
        if ranges and later and later.used == ranges.following:
            places.append(place)
            ranges = later
    return places
