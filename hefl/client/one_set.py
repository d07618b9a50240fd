"""Train from one model again only for the very same sum.

A sum that made no model leaves everybody where they were, and they train from the same model again. Two sums of nearly
the same updates over different members, or with different weights, are two equations: any client can make sums useless,
and whoever has enough of them solves for each update. So a client answers again only for the same members with the same
weights, which is the same equation, and at most MAX_USELESS_SUMS times.
"""

from __future__ import annotations

import hashlib
from typing import Annotated

import msgspec

from hefl.engines.engine import Weighting
from hefl.errors import TamperError
from hefl.models.layout import Arrays
from hefl.params import MAX_CLIENTS, MAX_USELESS_SUMS
from hefl.protocol.records import Announcement, Hex32, Name, NumExamples, Record, Value, canonical

Members = tuple[tuple[Name, NumExamples], ...]
"""Names with the weights that were announced for them, ordered by name."""


class OneSet(Value, frozen=True, kw_only=True):
    """For whom this client trains again from one model.

    Attributes:
        model: SHA-256 of its arrays, as the trainer gets them.
        members: Who was in the sum that made no other model of it.
        engine, precision_bits, weighting: How that was encrypted and weighed.
        sums: Heads of the records of such sums.
        lifted: A person has allowed another set since the last of them.
    """

    model: Hex32
    members: Annotated[Members, msgspec.Meta(max_length=MAX_CLIENTS)]
    engine: str
    precision_bits: int
    weighting: Weighting
    sums: tuple[Hex32, ...]
    lifted: bool = False

    @classmethod
    def after(cls, before: OneSet | None, model: str, record: Record) -> OneSet:
        """With the sum of one more record, that made no other model; ``before`` may be about another model."""
        known = before if before and before.model == model else None
        if known and record.head in known.sums:
            return known  # it was taken before, by a process that has ended since
        sums = known.sums if known and not known.lifted else ()
        terms = record.announcement.terms
        return cls(
            model=model,
            members=members_of(record),
            engine=terms.engine,
            precision_bits=terms.precision_bits,
            weighting=terms.weighting,
            sums=(*sums, record.head),
        )

    @property
    def is_spent(self) -> bool:
        """So many sums made no model of this one that it is not trained from again."""
        return not self.lifted and len(self.sums) >= MAX_USELESS_SUMS

    @property
    def code(self) -> str:
        """By which a person lifts it, once."""
        return hashlib.sha256(b"hefl/v1/again" + canonical(self)).hexdigest()[:8]

    def difference(self, of: Announcement | Record) -> str | None:
        """What is not the same in an announcement, or a record, as in the sum before, in words; None where all is."""
        announcement = of.announcement if isinstance(of, Record) else of
        if announcement.terms != (self.engine, self.precision_bits, self.weighting):
            return "the engine, precision or weighting is another"
        theirs, mine = dict(members_of(of)), dict(self.members)
        parts = [
            *(f"{name} is missing" for name in mine if name not in theirs),
            *(f"{name} was not in it" for name in theirs if name not in mine),
            *(f"{n} weighs {theirs[n]} and not {w}" for n, w in mine.items() if theirs.get(n, w) != w),
        ]
        return "; ".join(parts) or None

    def check(self, of: Announcement | Record) -> None:
        """Refuse to train, or to decrypt, for another sum than the one before.

        Raises:
            TamperError: Names what has changed, and the way out, which is a person's.
        """
        number = of.announcement.round if isinstance(of, Record) else of.round
        if self.lifted:
            return
        if difference := self.difference(of):
            raise TamperError(
                f"round {number} starts from a model that was trained from before, for a sum that was useless: now "
                f"{difference}",
                hint=self.way_on,
                check="one-set",
            )
        if self.is_spent and not isinstance(of, Record):
            raise self.spent()

    def spent(self) -> TamperError:
        """Why this model is not trained from any more."""
        return TamperError(
            f"{len(self.sums)} sums of {', '.join(name for name, _ in self.members)} made no model, all from the same "
            "model: one of these clients sends what hefl never sends",
            hint=self.way_on,
            check="one-set",
        )

    def lost(self) -> TamperError:
        """Why a client that weighs its own update does not train again after it was started anew."""
        return TamperError(
            "this client was started again after a useless sum, and does not know by how much it weighed its update "
            "then: with another weight the next sum would give it away",
            hint=self.way_on,
            check="one-set",
        )

    @property
    def way_on(self) -> str:
        """What a person can do."""
        return (
            f"find out which client it is. 'hefl client --again {self.code}' at each client trains from this model "
            "again, for whoever is there: clients that were in both sums, together or one alone, may then read others' "
            "updates"
        )


def members_of(of: Announcement | Record) -> Members:
    """Who is announced, or in a sum."""
    if isinstance(of, Record):
        return tuple((m.name, m.weight) for m in of.members)
    weighed = of.as_attempt().weights
    return tuple(weighed.items())


def digest_of(arrays: Arrays) -> str:
    """SHA-256 of a model's arrays, as the trainer gets them: types, shapes and bytes."""
    digest = hashlib.sha256(b"hefl/v1/model")
    for array in arrays:
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
