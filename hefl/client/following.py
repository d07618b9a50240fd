"""Fetch the records that a client missed, and check that they continue its history."""

from __future__ import annotations

import msgspec

from hefl.client.http import Connection
from hefl.client.state import ClientState
from hefl.errors import StateError, TamperError
from hefl.keys.folders import ClientFolder
from hefl.protocol.compact_records import decode_records
from hefl.protocol.history import Chain
from hefl.protocol.messages import View
from hefl.protocol.records import Record


class Follower:
    """Keeps a client's chain, durably, in step with what the server shows.

    Args:
        folder: The client's keys.
        state: Where the chain is kept.
        connection: To the server.
    """

    def __init__(self, folder: ClientFolder, state: ClientState, connection: Connection) -> None:
        self._folder = folder
        self._state = state
        self._connection = connection

    @property
    def chain(self) -> Chain:
        """What was seen of the run so far."""
        if self._state.chain is None:
            raise StateError("a run without a history")
        return self._state.chain

    def begin(self, run: str) -> None:
        """Follow the run that the server runs: the one that this client was in, or another where that is over.

        Raises:
            TamperError: It was in another, which has not ended.
            ExistsError, StateError: As ClientState.begin.
        """
        chain, identity = self._state.chain, self._folder.secret.identity
        if chain and chain.run == run:
            return
        if chain and not chain.is_left_for(identity, run):
            hint = "where whoever runs the server began anew on purpose, name another folder with --state"
            if self._state.one_set and not self._state.one_set.lifted:
                hint += f"; it forgets a useless sum: {self._state.one_set.way_on}"
            raise TamperError(
                f"the server is in another run than this client, whose run is at round {chain.round} and has not ended",
                hint=hint,
                check="run",
            )
        self._state.begin(Chain.begin(identity, run))

    async def follow(self, view: View) -> None:
        """Check that what the server shows continues what this client has seen, record by record.

        Raises:
            TamperError: It does not; nothing has been sent or decrypted for it.
        """
        newest, chain = view.records[-1] if view.records else None, self.chain
        while newest and chain.round < newest.announcement.round:
            for record in await self._records_after(chain.round, newest):
                chain = chain.extended(record, self._folder.name)
                if chain.round == newest.announcement.round:
                    break
        chain.check_shown(newest)
        for record in filter(None, (view.model, view.closing)):
            self._check_place(record, closing=record is view.closing)
        if newest and newest is view.closing and view.model and newest.announcement.head != view.model.head:
            raise TamperError("the closing metrics are not of the model that is shown with them", check="history")
        if chain.joined is None:
            chain = msgspec.structs.replace(chain, joined=chain.round + 1)
        if view.announcement:
            chain.check_announcement(view.announcement)
        self._state.follow(chain)

    async def _records_after(self, number: int, newest: Record) -> tuple[Record, ...]:
        """The records that follow round ``number``, up to the newest at most."""
        if newest.announcement.round == number + 1:
            return (newest,)
        query = f"?after={number}" if number >= 0 else ""
        records = await self._connection.ask("GET", f"/v1/records{query}", decode_records)
        if not records:
            raise TamperError(
                f"the server shows round {newest.announcement.round}, and no record of round {number + 1}",
                check="history",
            )
        return records

    async def before(self, record: Record, count: int) -> tuple[Record, ...]:
        """At most so many records before one that is part of the chain, the last one first.

        Raises:
            TamperError: They are not those that the chain was made of.
        """
        number, head, found = record.announcement.round, record.announcement.head, []
        first = max(number - count, 0)
        query = f"?after={first - 1}" if first else ""
        shown = await self._connection.ask("GET", f"/v1/records{query}", decode_records)
        for older in reversed(shown[: number - first]):
            if older.head != head:
                raise TamperError("the server shows other records than before", check="history")
            found.append(older)
            head = older.announcement.head
        return tuple(found)

    def _check_place(self, record: Record, *, closing: bool) -> None:
        """Refuse a record that is genuine, and of another kind than it is shown as."""
        exchange = record.announcement.exchange
        if (exchange == "closing") != closing:
            raise TamperError(f"the server shows a record of exchange {exchange!r} in another's place", check="history")
