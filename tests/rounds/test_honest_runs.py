"""An honest server never trips a check, whoever comes, goes, restarts or misses what, in runs at random."""

from __future__ import annotations

import io
import os
from collections import Counter
from dataclasses import dataclass, field

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test
from packed_support import new_secret, public_of

from hefl.engines.engine import Terms
from hefl.engines.packed import PackedEngine
from hefl.protocol.history import Chain
from hefl.protocol.records import Announcement, Record, genesis
from hefl.protocol.updates import Aggregation, read_aggregate, write_update
from hefl.rounds import events, run, schedule
from hefl.rounds.run import Phase, Run
from hefl.rounds.schedule import Abandon, Announce, Clock, Close, Finish

NAMES = ("alice", "bob", "carol", "dave")
SECRET = new_secret()
PUBLIC = public_of(SECRET)
ENGINE = PackedEngine(threads=1)
VALUES = 3


REACHED: Counter[str] = Counter()
"""What happened in all runs: a test that reaches nothing proves nothing."""


@dataclass
class Participant:
    """A client with its state folder; ``here`` is its process."""

    name: str
    nonce: str = field(default_factory=lambda: os.urandom(16).hex())
    chain: Chain | None = None
    here: bool = False


class HonestRuns(RuleBasedStateMachine):
    """A server that keeps every event, and clients that follow it; each rule is what may happen next."""

    def __init__(self) -> None:
        super().__init__()
        run_id = os.urandom(16).hex()
        self.start = Run(
            run=run_id, rounds=3, min_clients=2, known=NAMES, head=genesis(PUBLIC.identity, run_id), sessions={}
        )
        self.run, self.events = self.start, list[events.Event]()
        self.records: list[Record] = []
        self.updates: dict[str, bytes] = {}
        self.sums: dict[int, bytes] = {}
        self.vectors: dict[str, np.ndarray] = {}
        self.clients = {name: Participant(name) for name in NAMES}

    # --- the server ---------------------------------------------------------------------------------------------------

    def apply(self, event: events.Event) -> None:
        self.run = run.advance(self.run, event)
        self.events.append(event)

    @rule(late=st.booleans())
    def time_passes(self, late: bool) -> None:
        clock = Clock(
            silent=frozenset(), phase_s=99.0 if late else 0.0, enough_s=9.0, join_wait_s=1.0, round_timeout_s=60.0
        )
        match schedule.decide(self.run, clock):
            case Announce() as decision:
                terms = Terms("packed", 24)
                self.apply(
                    events.Announced(
                        schedule.announcement_of(self.run, decision, values=VALUES, terms=terms, deadline_s=60.0)
                    )
                )
                self.updates, self.vectors = {}, {}
            case Close():
                self.apply(events.Closed())
                self.publish()
            case Abandon(_, culprits):
                self.apply(events.Abandoned(culprits))
            case Finish():
                self.apply(events.Finished())

    def publish(self) -> None:
        announcement = self.run.announcement
        assert announcement
        aggregation, out = Aggregation(PUBLIC, ENGINE, announcement, self.run.committed), io.BytesIO()
        for name in self.run.committed:
            aggregation.add(aggregation.open(self.updates[name], name), name)
        record = aggregation.finish(out)
        self.sums[announcement.round] = out.getvalue()
        self.apply(events.Published(record))
        self.records.append(record)
        REACHED[announcement.exchange] += 1
        REACHED["dropouts"] += len(record.members) < len(announcement.names)
        REACHED["later attempts"] += announcement.attempt > 1
        attempt = announcement.as_attempt()
        weights = ENGINE.weights(attempt, [m.name for m in record.members]).of
        expected = sum(weights[m.name] * self.vectors[m.name] for m in record.members)
        total = read_aggregate(out.getvalue(), SECRET, ENGINE, announcement, record)
        np.testing.assert_array_equal(total.vector, expected)

    @rule()
    def the_server_restarts(self) -> None:
        """What it was told to keep is all that it has."""
        again = self.start
        for event in self.events:
            again = run.advance(again, event)
        assert again == self.run

    # --- clients ------------------------------------------------------------------------------------------------------

    @precondition(lambda self: self.run.phase is not Phase.FINISHING)
    @rule(name=st.sampled_from(NAMES), num_examples=st.integers(1, 5))
    def joins(self, name: str, num_examples: int) -> None:
        client = self.clients[name]
        client.here = True
        client.chain = client.chain or Chain.begin(PUBLIC.identity, self.run.run)
        self.apply(events.Joined(name, num_examples, client.nonce))
        self.follow(client)

    @precondition(lambda self: self.run.phase is not Phase.FINISHING)
    @rule(name=st.sampled_from(NAMES))
    def leaves(self, name: str) -> None:
        if self.clients[name].here:
            self.clients[name].here = False
            self.apply(events.Left(name))

    @rule(name=st.sampled_from(NAMES))
    def loses_its_state(self, name: str) -> None:
        """Its process ends, and its folder is gone; the server only sees it when it joins again."""
        self.clients[name] = Participant(name)

    @rule(name=st.sampled_from(NAMES), arrives=st.booleans())
    def answers(self, name: str, arrives: bool) -> None:
        """It encrypts, and its upload may or may not arrive; without that it will encrypt anew."""
        client, announcement = self.clients[name], self.run.announcement
        if not client.here or client.chain is None:
            return
        self.follow(client)
        if announcement is None or self.run.phase is not Phase.COLLECTING or name in self.run.committed:
            return
        if not any(p.name == name and p.join_nonce == client.nonce for p in announcement.participants):
            return
        out = io.BytesIO()
        vector = np.arange(VALUES) * (NAMES.index(name) + 1) - len(self.events)
        seal = write_update(out, vector, SECRET, ENGINE, announcement, name)
        client.chain = client.chain.answering(announcement, seal.seed)
        if arrives:
            self.updates[name], self.vectors[name] = out.getvalue(), vector
            digest = seal.seed.hex()
            self.apply(events.Committed(name, digest, len(self.events) % 5 + 1))

    @initialize(names=st.sets(st.sampled_from(NAMES), min_size=2))
    def some_begin(self, names: set[str]) -> None:
        for name in sorted(names):
            self.joins(name, 2)

    @rule(missing=st.sets(st.sampled_from(NAMES), max_size=2), again=st.booleans(), count=st.integers(1, 3))
    def rounds_go_by(self, missing: set[str], again: bool, count: int) -> None:
        """Most answer, some of them after an upload that was lost; the deadline passes where others do not."""
        for _ in range(count):
            self.time_passes(late=False)
            for name in NAMES:
                if name not in missing:
                    if again:
                        self.answers(name, arrives=False)
                    self.answers(name, arrives=True)
            self.time_passes(late=bool(missing))

    @rule(name=st.sampled_from(NAMES))
    def looks(self, name: str) -> None:
        if self.clients[name].here:
            self.follow(self.clients[name])

    def follow(self, client: Participant) -> None:
        """Every check of a client's, on what the server shows."""
        chain = client.chain
        assert chain
        for record in self.records[chain.round + 1 :]:
            chain = chain.extended(record, client.name)
            read_aggregate(self.sums[record.announcement.round], SECRET, ENGINE, record.announcement, record)
        chain.check_shown(self.records[-1] if self.records else None)
        if chain.joined is None:
            chain = msgspec.structs.replace(chain, joined=chain.round + 1)
        if self.run.announcement and self.run.phase is Phase.COLLECTING:
            chain.check_announcement(shown(self.run.announcement))
        client.chain = msgspec.json.decode(msgspec.json.encode(chain), type=Chain)


def shown(announcement: Announcement) -> Announcement:
    """As it comes over the wire."""
    return msgspec.json.decode(msgspec.json.encode(announcement), type=Announcement)


def play(runs: int, *, random: bool) -> None:
    """So many runs; the same ones each time, unless they are to be random."""
    REACHED.clear()
    run_state_machine_as_test(
        HonestRuns,
        settings=settings(
            max_examples=runs,
            stateful_step_count=40,
            deadline=None,
            database=None,
            derandomize=not random,
            suppress_health_check=list(HealthCheck),
        ),
    )
    assert REACHED["training"] > runs / 2
    assert min(REACHED[what] for what in ("closing", "dropouts", "later attempts")) > runs / 40, REACHED


def test_an_honest_server_trips_no_check() -> None:
    play(60, random=False)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_an_honest_server_trips_no_check_in_a_thousand_runs() -> None:
    play(1000, random=True)
