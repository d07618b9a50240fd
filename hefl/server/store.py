"""Add up the updates of the open attempt, from their files.

Everything here waits for a disk: it runs in threads, one at a time, under the coordinator's lock.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from hefl.ckks.context import PublicContext
from hefl.engines.engine import Engine
from hefl.errors import MalformedError, StateError
from hefl.protocol.frames import Frame
from hefl.protocol.records import Announcement, Record
from hefl.protocol.updates import Aggregation
from hefl.rounds.events import Committed
from hefl.server.journal import Journal
from hefl.server.spool import Spool
from hefl.timings import Timings


class DurableStore:
    """Adds committed updates up; the sum can be made again from their files at any time.

    Args:
        public: The server's context.
        engine: Which clients run too.
        journal: Says which updates are committed.
        spool: Has their files.
        keep: How many of the last aggregates stay.
    """

    def __init__(self, public: PublicContext, engine: Engine, journal: Journal, spool: Spool, keep: int) -> None:
        self._public = public
        self._engine = engine
        self._journal = journal
        self._spool = spool
        self._keep = keep
        self._aggregation: Aggregation | None = None
        self.timings = Timings()

    def check_files(self) -> None:
        """At a start: keep the files that the journal names, and no others. Raises StateError as Spool.check."""
        run = self._journal.now.run
        needed = [record.digest for record in (run.model, run.closing) if record]
        self._spool.check(run.committed.values(), needed, self._kept())

    def fold(self) -> Aggregation:
        """The sum of what is committed."""
        if self._aggregation is None:
            run = self._journal.now.run
            if run.announcement is None:
                raise StateError("a sum where no attempt is open")
            self._aggregation = self._add_up(run.announcement, run.committed, run.announcement.names)
        return self._aggregation

    def _add_up(
        self, announcement: Announcement, committed: Mapping[str, str], planned: Collection[str]
    ) -> Aggregation:
        """A sum of committed updates, by digest, from their files."""
        aggregation = self._empty_sum(announcement, planned)
        with self.timings.phase("aggregate"):
            for name, digest in committed.items():
                aggregation.add(aggregation.open(self._spool.update(digest), name), name)
        return aggregation

    def _empty_sum(self, announcement: Announcement, planned: Collection[str]) -> Aggregation:
        return Aggregation(self._public, self._engine, announcement, planned)

    def take(self, frame: Frame, event: Committed) -> None:
        """Fold an update in and commit it: in this order, for one that does not parse must not be committed.

        Raises:
            MalformedError: It does not parse; nothing has changed.
            DiskFullError, StateError: It cannot be stored; nothing has changed.
        """
        aggregation = self.fold()
        try:
            with self.timings.phase("aggregate"):
                aggregation.add(frame, event.name)
            with self._spool.keeping(event.name):
                self._journal.append(event)
        except MalformedError:
            raise  # nothing of it was added
        except BaseException:
            self._aggregation = None  # it may hold what is not committed
            raise

    def bytes_up(self) -> int:
        """Size of all committed updates."""
        committed = self._journal.now.run.committed.values()
        return sum(self._spool.update(digest).stat().st_size for digest in committed)

    def write_aggregate(self) -> Record:
        """Write the sum, whole or not at all; returns its record, which is for the journal to publish."""
        run = self._journal.now.run
        if run.announcement is None:
            raise StateError("a sum where no attempt is open")
        aggregation, self._aggregation = self._aggregation, None  # one that was cut short is not to be used again
        if aggregation is None or not aggregation.is_weighed_right:
            aggregation = None  # its memory is what the next one needs
            aggregation = self._add_up(run.announcement, run.committed, run.committed)
        with self.timings.phase("aggregate"):
            return self._spool.write_aggregate(aggregation)

    def end_attempt(self) -> None:
        """Forget the sum, its updates, and older aggregates."""
        self._aggregation = None
        self._spool.end_attempt()
        self._spool.keep_aggregates(self._kept())

    def aggregate(self, round_num: int) -> Path | None:
        """Where a round's aggregate is; None where it is not kept."""
        for record in self._journal.records(round_num - 1, 1):
            path = self._spool.aggregate(record.digest)
            if record.announcement.round == round_num and path.is_file():
                return path
        return None

    def _kept(self) -> set[str]:
        """Digests of the aggregates that stay: the last ones, and those that a client who joins now needs."""
        run, records = self._journal.now.run, self._journal.last_records(self._keep)
        return {record.digest for record in (*records, run.model, run.closing) if record}
