"""Events that change the state of a run; a journal keeps them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from hefl.protocol.records import Announcement, Record


@dataclass(frozen=True, slots=True)
class Joined:
    """A client is here, or here again."""

    name: str
    num_examples: int
    join_nonce: str


@dataclass(frozen=True, slots=True)
class Left:
    """A client said that it goes, or is taken for dead."""

    name: str


@dataclass(frozen=True, slots=True)
class AllowedChanged:
    """These clients may join from now on; whoever else is here has left."""

    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Announced:
    """An attempt is open."""

    announcement: Announcement


@dataclass(frozen=True, slots=True)
class Committed:
    """A participant's update of the open attempt is stored.

    Attributes:
        num_examples: Its weight from the next round on.
        whole: It may only be in a sum of all who are announced.
    """

    name: str
    digest: str
    num_examples: int
    whole: bool = False


@dataclass(frozen=True, slots=True)
class Declined:
    """A participant will not train any more: it decided, as all do alike, that the model gets no better."""

    name: str


@dataclass(frozen=True, slots=True)
class Useless:
    """A member of the last training's sum says that it made no model: it trains again from the one of before."""

    name: str
    round: int


@dataclass(frozen=True, slots=True)
class Closed:
    """No more updates are taken."""


@dataclass(frozen=True, slots=True)
class Abandoned:
    """The attempt came to nothing.

    Attributes:
        culprits: Are passed over as senders of the initial arrays.
        is_counted: It was tried; or it came before the server could know what it should be.
    """

    culprits: frozenset[str] = frozenset()
    is_counted: bool = True


@dataclass(frozen=True, slots=True)
class Stopped:
    """The participants had enough: the open attempt and all later trainings are called off."""


@dataclass(frozen=True, slots=True)
class Published:
    """The attempt's aggregate stands."""

    record: Record


@dataclass(frozen=True, slots=True)
class Finished:
    """There will be no more rounds."""


@dataclass(frozen=True, slots=True)
class Confirmed:
    """A client has the last record, and confirms for the others which one that is."""

    name: str
    confirmation: str


@dataclass(frozen=True, slots=True)
class Ended:
    """The server may go."""


@dataclass(frozen=True, slots=True)
class Reopened:
    """The result of a run that has ended is to be had again, by whoever came late."""


@dataclass(frozen=True, slots=True)
class Extended:
    """The run is to have so many trainings, more than before; a finished run goes on."""

    rounds: int


Event = (
    Joined
    | Left
    | AllowedChanged
    | Announced
    | Committed
    | Declined
    | Useless
    | Closed
    | Abandoned
    | Stopped
    | Published
    | Finished
    | Confirmed
    | Ended
    | Reopened
    | Extended
)

KINDS: Mapping[str, type[Event]] = {
    "joined": Joined,
    "left": Left,
    "allowed-changed": AllowedChanged,
    "announced": Announced,
    "committed": Committed,
    "declined": Declined,
    "useless": Useless,
    "closed": Closed,
    "abandoned": Abandoned,
    "stopped": Stopped,
    "published": Published,
    "finished": Finished,
    "confirmed": Confirmed,
    "ended": Ended,
    "reopened": Reopened,
    "extended": Extended,
}
"""By the names that a journal knows them by."""
