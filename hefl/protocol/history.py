"""Follow a run's chain of records, so that a server cannot show a client another history.

A chain is a value: each record and each answered attempt gives the next one, or is refused. It ends in the head that
all later announcements bind; clients whose heads differ cannot take part in one attempt any more.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from hefl.errors import TamperError
from hefl.identity import Identity
from hefl.protocol.records import Announcement, Hex16, Hex32, Record, Value, genesis

REWOUND = "the server was set back, or shows its clients different histories: do not go on with it"


class Chain(Value, frozen=True, kw_only=True):
    """A run as one client has followed it.

    Attributes:
        run: Its id.
        federation, generation: Whose keys it runs with.
        head: Of the history up to ``round``.
        round: Of the last record; -1 where there is none.
        answered: Round and attempt that this client last answered.
        ctx: Of that attempt.
        seeds: Of the updates that this client made for it.
        joined: The round that was open when this client came; what its name did before, it cannot know.
        ended: Nothing is left to do in this run.
    """

    run: Hex16
    federation: Hex16
    generation: int
    head: Hex32
    round: Annotated[int, msgspec.Meta(ge=-1)] = -1
    answered: tuple[int, int] = (-1, 0)
    ctx: str = ""
    seeds: tuple[Hex32, ...] = ()
    joined: int | None = None
    ended: bool = False

    @classmethod
    def begin(cls, identity: Identity, run: str) -> Chain:
        """Of a run that this client has seen nothing of."""
        return cls(run=run, federation=identity.federation, generation=identity.generation, head=genesis(identity, run))

    def is_left_for(self, identity: Identity, run: str) -> bool:
        """Whether another run may follow: this one has ended, nothing of it was seen, or its keys were rotated away."""
        same = (self.federation, self.generation) == (identity.federation, identity.generation)
        return self.run != run and (self.ended or self.round < 0 or not same)

    def extended(self, record: Record, name: str) -> Chain:
        """The chain with one more record, for the client of that name.

        Raises:
            TamperError: It does not continue this history, is of an attempt before the one that this client
                answered, or holds an update of this client's that it did not make.
        """
        announcement = record.announcement
        self._check_continues(announcement, f"the record of round {announcement.round}")
        if (announcement.round, announcement.attempt) < self.answered:
            raise TamperError(
                f"the record of round {announcement.round} is of attempt {announcement.attempt}, and this client has "
                f"answered attempt {self.answered[1]}",
                hint=REWOUND,
                check="attempt-rises",
            )
        self._check_own(record, name)
        return msgspec.structs.replace(self, head=record.head, round=announcement.round, ended=False)

    def check_shown(self, newest: Record | None) -> None:
        """Refuse a last record that is not the one that this chain ends in.

        Raises:
            TamperError: The server shows fewer rounds than this client has seen, or others.
        """
        shown = newest.announcement.round if newest else -1
        if shown < self.round:
            raise TamperError(
                f"the server shows a history that ends with round {shown}, and this client has seen round {self.round}",
                hint=REWOUND,
                check="history",
            )
        if newest and newest.head != self.head:
            raise TamperError(
                f"the server shows another round {shown} than the one that this client has seen",
                hint=REWOUND,
                check="history",
            )

    def check_announcement(self, announcement: Announcement) -> None:
        """Refuse an attempt that does not continue this history, or is older than one that this client answered.

        Raises:
            TamperError: As said.
        """
        what = f"round {announcement.round}, attempt {announcement.attempt}"
        self._check_continues(announcement, what)
        number = (announcement.round, announcement.attempt)
        if number < self.answered or (number == self.answered and announcement.ctx.hex() != self.ctx):
            raise TamperError(
                f"{what} is announced, and this client has answered round {self.answered[0]}, attempt "
                f"{self.answered[1]}",
                hint=REWOUND,
                check="attempt-rises",
            )

    def answering(self, announcement: Announcement, seed: bytes | None = None) -> Chain:
        """The chain of a client that is about to answer, with an update of this seed or with none."""
        ctx = announcement.ctx.hex()
        seeds = self.seeds if ctx == self.ctx else ()
        number = (announcement.round, announcement.attempt)
        return msgspec.structs.replace(self, answered=number, ctx=ctx, seeds=(*seeds, *([seed.hex()] if seed else [])))

    def _check_continues(self, announcement: Announcement, what: str) -> None:
        if announcement.run != self.run:
            raise TamperError(f"{what} is of another run than the one that this client joined", check="run")
        if (announcement.round, announcement.head) != (self.round + 1, self.head):
            raise TamperError(
                f"{what} does not continue the history that this client has seen, up to round {self.round}",
                hint=REWOUND,
                check="head",
            )

    def _check_own(self, record: Record, name: str) -> None:
        """What a sum holds of this client's is what this client made, or nothing."""
        mine = next((m for m in record.members if m.name == name), None)
        announcement = record.announcement
        unknown = self.joined is None or announcement.round <= self.joined
        if mine is None or (announcement.ctx.hex() != self.ctx and unknown):
            return
        if announcement.ctx.hex() != self.ctx or mine.seed not in self.seeds:
            raise TamperError(
                f"the sum of round {announcement.round} holds an update of {name} that this client did not make",
                hint="another process has this client's keys, or the server lies",
                check="own-seed",
            )
