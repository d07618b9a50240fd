"""Take part in a run over HTTPS: the loop around a Learner."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import get_args
from urllib.parse import urlsplit

import msgspec

from hefl.client.callbacks import OnRound, RoundReport, tell
from hefl.client.following import Follower
from hefl.client.http import Connection
from hefl.client.joining import ask_to_join
from hefl.client.learner import Learner
from hefl.client.options import OnTamper
from hefl.client.outcome import say_how_it_ended, say_who_confirmed
from hefl.client.polling import Poller
from hefl.client.receiving import Receiver
from hefl.client.state import ClientState
from hefl.client.threads import work_in_thread
from hefl.encoding.codec import Metrics, RoundKind
from hefl.errors import (
    ConflictError,
    EngineError,
    HeflError,
    ProtocolError,
    StaleError,
    TamperError,
    UnreachableError,
)
from hefl.files import replacing, storing
from hefl.keys.folders import ClientFolder
from hefl.params import CONNECT_TIMEOUT_S, MIN_CLIENTS
from hefl.protocol import messages
from hefl.protocol.frames import read_digest
from hefl.protocol.messages import Confirmation, Join, MetricsReport, Noted, View, Welcome
from hefl.protocol.records import Announcement, Record, confirmation
from hefl.protocol.sealed_layout import commitment, seal

log = logging.getLogger("hefl")

OVER = ("draining", "ended")
"""Phases of a run that has no more rounds."""
FAREWELL_S = 30.0
"""How long a client that has the run's model tries to hear whether the others have it too."""
FETCH_AGAIN_S = 1.0
MAX_FETCHES = 30
"""So often a client asks for a last aggregate that the server does not give."""


class Client:
    """Takes part in one run, from joining to the last record.

    Args:
        folder: The client's keys.
        learner: Its model and data.
        state: Its folder, locked by the caller.
        url: The server's; default: the folder's.
        connect_timeout_s: How long to try again where nobody answers, and to wait for another client whose model has
            another layout.
        insecure_http: Allow plain HTTP, to loopback.
        proxy: http://[USER:PASSWORD@]HOST:PORT, through which TLS goes; None calls the server straight.
        min_participants: Take part only where so many do, and accept only sums of so many; at least 2.
        on_tamper: What to do about a sum that does not pass its checks: stop, or skip it and keep the last model. A
            history that does not hold always stops.
        report_metrics: Tell the server the averaged metrics of each model, for its page.
        on_end: Is called when the last model is here, before the others are told so.
        on_round: Is told each finished round, in a thread of its own, and the run waits for it. What it raises ends
            the run with a TrainerError.

    Attributes:
        confirmed, unconfirmed: Other clients of the last round for which the run has ended in the same model; and
            those of whom that is not known.

    Raises:
        UsageError: As Connection.
        EngineError: ``plaintext`` beyond this machine.
    """

    def __init__(
        self,
        folder: ClientFolder,
        learner: Learner,
        state: ClientState,
        *,
        url: str | None = None,
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
        insecure_http: bool = False,
        proxy: str | None = None,
        min_participants: int = MIN_CLIENTS,
        on_tamper: OnTamper = "stop",
        report_metrics: bool = False,
        on_end: Callable[[], object] = lambda: None,
        on_round: OnRound = lambda report: None,
    ) -> None:
        url = (url or folder.url).rstrip("/")
        self._connection = Connection(
            folder, url, state.join_nonce, connect_timeout_s, insecure_http=insecure_http, proxy=proxy
        )
        self._connect_timeout_s = connect_timeout_s
        host = urlsplit(url).hostname or ""
        if learner.engine.loopback_only and not messages.is_loopback(host):
            raise EngineError(
                f"the engine {learner.engine.name!r} talks to loopback only, not to {host}",
                hint="between machines: --engine packed",
            )
        self._poller = Poller(self._connection, self._join)
        self._folder = folder
        self._learner = learner
        self._state = state
        self._follower = Follower(folder, state, self._connection)
        self._min_participants = max(min_participants, MIN_CLIENTS)
        self._receiver = Receiver(
            folder, learner, state, self._connection, self._follower, self._min_participants, on_tamper
        )
        self._report_metrics = report_metrics
        self._on_end, self._on_round = on_end, on_round
        self.confirmed: tuple[str, ...] = ()
        self.unconfirmed: tuple[str, ...] = ()
        self._welcome: Welcome | None = None
        self._rounds = 0
        self._done: tuple[int, int] = (-1, 0)
        self._taken = -1
        self._useless: int | None = None  # the last training's round, where its sum made no model
        self._weights: frozenset[int] = frozenset()  # this client's in the last sum, which it checked then
        self._noted = 0  # the version from which on the server takes that into account
        self._bytes_up = 0

    async def run(self) -> None:
        """Join, take part in every round, and return when the run has ended and its model is here.

        Raises:
            UnreachableError: Nobody answered for connect_timeout_s.
            HeflError: Anything that this client or the server refused.
        """
        async with self._connection:
            await self._join()
            try:
                async with self._poller:
                    await self._take_part()
            finally:
                await self._connection.leave()

    # --- the run ------------------------------------------------------------------------------------------------------

    async def _join(self) -> None:
        learner = self._learner
        terms = learner.engine.terms
        join = Join(
            engine=terms.engine,
            precision_bits=terms.precision_bits,
            weighting=terms.weighting,
            num_examples=learner.announced_num_examples,
            join_nonce=self._state.join_nonce,
            layout=commitment(learner.layout, self._folder.secret),
            sealed_layout=seal(learner.layout, self._folder.secret),
            values={exchange: learner.values(exchange) for exchange in get_args(RoundKind)},
        )
        self._state.tell(join.num_examples)
        welcome = await ask_to_join(self._connection, join, learner, self._folder.secret, self._connect_timeout_s)
        if self._welcome and welcome.run != self._welcome.run and self._taken >= 0:
            raise ConflictError(
                "the server has begun another run", hint="ask who runs it why, and start this client again"
            )
        if self._welcome is None:
            log.info(
                "joined %(url)s as %(client)s with %(num_examples)d examples",
                {"url": self._connection.url, "client": self._folder.name, "num_examples": learner.num_examples},
            )
        try:
            self._follower.begin(welcome.run)
        except HeflError:
            await self._connection.leave()  # or the others would wait
            raise
        self._welcome = welcome
        await self._say_useless()  # the server has forgotten what this client said before it left

    async def _take_part(self) -> None:
        version = -1
        while True:
            view = await self._poller.other_than(version)
            version = view.version
            self._rounds = max(
                self._rounds, view.rounds
            )  # it may be extended; an end that comes nearer is an early one
            await self._follower.follow(view)
            await self._take_records(view)
            if view.phase in OVER:
                await self._take_last(view)
                over = self._taken >= self._follower.chain.round
                if over and self._learner.model:
                    await work_in_thread(self._on_end)
                    # Only confirmations may still come: a server that is gone is not waited for as long as before.
                    self._connection.connect_timeout_s = min(self._connect_timeout_s, FAREWELL_S)
                if over and await self._confirm(view):
                    say_how_it_ended(view, self._learner, self._rounds)
                    return
                version = -1  # the run goes on after all
                continue
            announcement = view.announcement
            if announcement and self._is_asked(announcement, view.version) and not view.committed:
                await (self._decline if self._learner.has_enough(announcement) else self._answer)(announcement)

    async def _take_last(self, view: View) -> None:
        """Have the run's last aggregate, or fail: a client that ends without it would have an old model.

        Raises:
            TamperError: The server does not give it.
        """
        for _ in range(MAX_FETCHES):
            if self._taken >= self._follower.chain.round:
                return
            await asyncio.sleep(FETCH_AGAIN_S)
            view = self._poller.view or view
            if view.phase not in OVER:
                return
            await self._follower.follow(view)
            await self._take_records(view)
        raise TamperError(
            f"the server ends the run, and does not give the aggregate of its last round {self._follower.chain.round}",
            check="history",
        )

    async def _confirm(self, view: View) -> bool:
        """Tell the other clients in which head the run has ended, and hear whether it is the same for them.

        Returns:
            False where the run goes on, because it was extended meanwhile.
        """
        secret, head, me = self._folder.secret, self._follower.chain.head, self._folder.name
        others = {m.name for record in view.records[-1:] for m in record.members if m.name != me}
        expected = {name: confirmation(secret, head, name) for name in sorted(others)}
        if self._learner.apart or self._learner.model is None:
            self._state.follow(msgspec.structs.replace(self._follower.chain, ended=True))
            self.unconfirmed = tuple(expected)
            return True  # it has nothing to confirm, nor to compare
        waiting, own = False, Confirmation(mac=confirmation(secret, head, me))
        try:
            try:
                await self._connection.call("POST", "/v1/fetched", msgspec.json.encode(own))
            except StaleError:  # nobody is to confirm any more, or the run goes on after all
                view = await self._poller.next()
            else:
                while view.phase in OVER and not (expected.items() <= view.confirmations.items() or view.settled):
                    if not waiting:
                        waiting = True
                        log.info("the model is here; waiting for the others to confirm it")
                    view = await self._poller.next()
        except UnreachableError as error:
            log.info("the run is over, and this client has its model; %s", error)
        if view.phase not in OVER:
            return False
        self._state.follow(msgspec.structs.replace(self._follower.chain, ended=True))
        self.confirmed = tuple(n for n in expected if view.confirmations.get(n) == expected[n])
        self.unconfirmed = tuple(n for n in expected if n not in self.confirmed)
        say_who_confirmed(self.confirmed, self.unconfirmed)
        return True

    def _is_asked(self, announcement: Announcement, version: int) -> bool:
        """Whether this client is to answer: it takes part, and has not answered yet.

        Args:
            announcement: The open one.
            version: Of the view that shows it.

        Raises:
            TamperError: It bears a sample weight that this client never told, or too few take part, or it is for
                another sum than the useless one before.
        """
        if (announcement.round, announcement.attempt) <= self._done:
            return False
        mine = next((p for p in announcement.participants if p.name == self._folder.name), None)
        if mine is None or mine.join_nonce != self._state.join_nonce:
            return False
        limit = self._learner.limit_for(announcement)
        if limit:
            if limit.difference(announcement) and version < self._noted:
                return False  # it was announced before the server could know
            limit.check(announcement)
        elif mine.num_examples not in self._state.told | self._weights:
            raise TamperError(
                f"the server announces {mine.num_examples} examples for {mine.name}, and this client never said so",
                hint="a false weight could make the mean almost one client's own; do not go on with this server",
                check="own-weight",
            )
        count, least = len(announcement.participants), self._min_participants
        if announcement.exchange != "initial" and count < least:
            raise TamperError(
                f"round {announcement.round} is announced to {count} clients, and this one takes part with {least} "
                "at least: a sum of few shows much of each",
                hint=_way_to_more(count, least),
                check="enough-participants",
            )
        return True

    async def _answer(self, announcement: Announcement) -> None:
        """Do what is asked, and upload it; an attempt that is over by then was missed."""
        path = self._state.update
        try:
            size, seed = await work_in_thread(self._write_update, path, announcement)
            self._state.follow(self._follower.chain.answering(announcement, seed))
            with self._learner.timings.phase("upload"):
                await self._upload(path, size, announcement)
            self._bytes_up = size
        except StaleError as error:
            log.warning("round %(round)d was missed: %(why)s", {"round": announcement.round, "why": error})
            if self._learner.announced_num_examples != announcement.num_examples_of(self._folder.name):
                await self._join()  # the server has not heard of the new number
        finally:
            path.unlink(missing_ok=True)
        self._done = (announcement.round, announcement.attempt)

    async def _decline(self, announcement: Announcement) -> None:
        """Say that this client has had enough: it does not train any more."""
        self._state.follow(self._follower.chain.answering(announcement))
        try:
            await self._connection.call("POST", f"/v1/rounds/{announcement.round}/{announcement.attempt}/enough")
        except StaleError:
            return  # another attempt is open, or the closing exchange
        self._done = (announcement.round, announcement.attempt)

    def _write_update(self, path: Path, announcement: Announcement) -> tuple[int, bytes]:
        """Spool the update; returns its size in bytes, and its seed."""
        with storing("the update"), replacing(path) as file:
            seed = self._learner.write_update(file, announcement)
            return file.tell(), seed

    async def _upload(self, path: Path, size: int, announcement: Announcement) -> None:
        where = f"/v1/rounds/{announcement.round}/{announcement.attempt}/update"
        headers = {
            messages.HEADER_NUM_EXAMPLES: str(self._learner.announced_num_examples),
            messages.HEADER_DIGEST: read_digest(path).hex(),
            **({messages.HEADER_WHOLE: "yes"} if self._learner.limit_for(announcement) else {}),
        }
        self._state.tell(self._learner.announced_num_examples)
        await self._connection.upload(where, path, size, headers, announcement.deadline_s)
        log.info("round %(round)d: sent %(kilobytes).1f kB", {"round": announcement.round, "kilobytes": size / 1e3})

    async def _take_records(self, view: View) -> None:
        """Fetch and accept each record that is news."""
        for record in view.records:
            if record.announcement.round <= self._taken:
                continue
            try:
                metrics, size = await self._receiver.take(record)
            except StaleError:
                return  # the server has gone on, and the next view says where
            self._taken = record.announcement.round
            self._weights = frozenset(m.weight for m in record.members if m.name == self._folder.name)
            report = await self._report(record, metrics, size)
            await self._tell_metrics(report.model, metrics)
            if record.announcement.exchange == "training":
                self._useless = record.announcement.round if self._learner.found_useless(record) else None
                await self._say_useless()

    async def _say_useless(self) -> None:
        """Tell the server that the last training's sum made no model: from now on it may ask the same members only.

        Raises:
            TamperError: So many made none that this client stops.
        """
        limit = self._learner.one_set
        if self._useless is None or limit is None:
            return
        with suppress(StaleError):  # another sum was published since, over the same members
            body = await self._connection.call("POST", f"/v1/rounds/{self._useless}/useless")
            self._noted = messages.decode(body, Noted).version
        if limit.is_spent:
            raise limit.spent()

    async def _tell_metrics(self, model: int, metrics: Metrics) -> None:
        """Tell the server of a model's quality, to three digits, where whoever runs this client wants that."""
        if not self._report_metrics or not metrics:
            return
        rounded = {name: None if value is None else float(f"{value:.3g}") for name, value in metrics.items()}
        report = MetricsReport(round=model, metrics=rounded)
        try:
            await self._connection.call("POST", "/v1/metrics", msgspec.json.encode(report))
        except ProtocolError as error:
            log.warning("the server did not take the metrics of model %d: %s", model, error)

    async def _report(self, record: Record, metrics: Metrics, bytes_down: int) -> RoundReport:
        mine = any(m.name == self._folder.name for m in record.members)
        report = self._learner.report(record, self._rounds, metrics, self._bytes_up if mine else 0, bytes_down)
        await work_in_thread(tell, self._on_round, report)
        return report


def _way_to_more(count: int, least: int) -> str:
    """What to do where a round has ``count`` participants, and this client takes part with ``least`` at least."""
    if count < MIN_CLIENTS:
        return "no honest server announces that; do not go on with this one"
    return (
        f"have the server started with --min-clients {least}, where the federation has as many clients, "
        f"or start this client with --min-participants {count}"
    )
