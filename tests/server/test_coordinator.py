"""What the clients of a live run hear of it, and of each other."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from raw_peer import JOIN
from run_support import gathering, played

from hefl.ckks.context import PublicContext
from hefl.engines.load import load_engine
from hefl.errors import StaleError
from hefl.protocol.messages import Join, OtherLayoutError
from hefl.rounds.schedule import RunSettings
from hefl.rounds.views import holder_of_layout
from hefl.server.coordinator import Coordinator
from hefl.server.journal import Journal
from hefl.server.spool import Spool

KNOWN = ("alice", "bob", "carol")
OTHER = msgspec.structs.replace(JOIN, layout="cd" * 32, sealed_layout=b"another")


def joining(name: str, join: Join = JOIN) -> Join:
    """What a client says with a join nonce of its own."""
    return msgspec.structs.replace(join, join_nonce=name.encode().hex().zfill(32))


@contextmanager
def coordinating(
    public: PublicContext, folder: Path, known: tuple[str, ...], join_wait_s: float = 0.0
) -> Iterator[tuple[Coordinator, Journal, Spool]]:
    engine, spool = load_engine("tenseal"), Spool(folder)
    with closing(Journal(folder, public.identity, engine.terms, rounds=1, min_clients=2, known=known)) as journal:
        settings = RunSettings(rounds=1, join_wait_s=join_wait_s)
        yield Coordinator(public, engine, settings, journal, spool, lambda event: None), journal, spool


def test_a_client_that_waits_for_news_hears_of_the_run_and_not_of_every_other_client(
    public: PublicContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a round of n clients would take n * n answers."""
    with coordinating(public, tmp_path, KNOWN) as (coordinator, journal, _):

        async def run() -> None:
            await coordinator.join("alice", JOIN)
            first = await coordinator.view("alice", 0)
            waiting = asyncio.create_task(coordinator.view("alice", first.version))
            for name in ("bob", "carol"):
                await coordinator.join(name, joining(name))
            await coordinator.leave("carol")
            await asyncio.sleep(0.05)
            assert journal.now.seq == first.version + 3
            assert not waiting.done()
            await coordinator.tick(1)
            view = await waiting
            assert view.announcement
            assert view.announcement.names == ("alice",)
            assert view.version > first.version
            monkeypatch.setattr("hefl.server.coordinator.POLL_S", 1e6)
            async with asyncio.timeout(60):  # who has seen what was never announced waits for nothing
                assert (await coordinator.view("alice", view.version + 1)).version == view.version

        asyncio.run(run())


def test_an_upload_whose_attempt_ends_before_it_is_checked_is_too_late(public: PublicContext, tmp_path: Path) -> None:
    known = ("alice", "bob")
    with coordinating(public, tmp_path, known) as (coordinator, _, spool):

        async def run() -> None:
            for name in known:
                await coordinator.join(name, joining(name))
            await coordinator.tick(1)
            announcement = coordinator.run.announcement
            assert announcement
            upload = spool.upload("alice", "ab" * 32)
            spool.end_attempt()
            with pytest.raises(StaleError, match="over before the update was checked"):
                await coordinator.commit("alice", announcement, upload, 4, whole=False)

        asyncio.run(run())


def test_the_wait_for_the_others_begins_when_there_are_enough(public: PublicContext, tmp_path: Path) -> None:
    """And not when the first one came, who may have been alone for hours."""
    with coordinating(public, tmp_path, KNOWN, join_wait_s=60.0) as (coordinator, *_):

        async def run() -> None:
            await coordinator.join("alice", JOIN)
            await asyncio.sleep(0.5)
            before = time.monotonic()
            await coordinator.join("bob", msgspec.structs.replace(JOIN, join_nonce="0b" * 16))
            assert coordinator.look()[1].enough_s <= time.monotonic() - before

        asyncio.run(run())


# --- whose layout all must have ---------------------------------------------------------------------------------------


async def refused(coordinator: Coordinator, name: str, join: Join) -> tuple[str, bytes, bool]:
    """Whose layout stands in a client's way, which that is, and whether it stays."""
    with pytest.raises(OtherLayoutError) as caught:
        await coordinator.join(name, joining(name, join))
    of = caught.value.reference
    assert f"another layout than {of.client}'s" in caught.value.message
    return of.client, of.sealed, of.settled


@pytest.mark.parametrize("restarted", [False, True], ids=["", "restarted"])
@pytest.mark.parametrize("way", ["leaves", "comes again", "is silent"])
def test_a_layout_that_nobody_here_has_makes_way_before_anything_is_summed(
    public: PublicContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str, restarted: bool
) -> None:
    """Also where the server starts anew in between."""

    async def first(coordinator: Coordinator) -> None:
        await coordinator.join("alice", joining("alice", OTHER))
        assert await refused(coordinator, "bob", JOIN) == ("alice", b"another", False)
        if way == "leaves":
            await coordinator.leave("alice")
        if way == "comes again":
            await coordinator.join("alice", joining("alice"))

    async def then(coordinator: Coordinator) -> None:
        if way == "is silent":
            monkeypatch.setattr("hefl.server.presence.SILENT_S", 0.0)
        await coordinator.join("bob", joining("bob"))
        monkeypatch.undo()
        assert list(coordinator.run.sessions) == (["alice", "bob"] if way == "comes again" else ["bob"])
        holder = next(iter(coordinator.run.sessions))
        assert await refused(coordinator, "carol", OTHER) == (holder, b"sealed", False)
        with pytest.raises(OtherLayoutError):  # who was silent and is back, or has come in the meantime
            await coordinator.join("alice", joining("alice", OTHER))
        await coordinator.join("carol", joining("carol"))

    with coordinating(public, tmp_path, KNOWN) as (coordinator, *_):
        asyncio.run(first(coordinator))
        if not restarted:
            asyncio.run(then(coordinator))
    if restarted:
        with coordinating(public, tmp_path, KNOWN) as (coordinator, journal, _):
            assert journal.resumed
            asyncio.run(then(coordinator))


def test_a_layout_stays_while_an_attempt_is_open_or_being_summed(public: PublicContext, tmp_path: Path) -> None:
    """The open attempt's values are of it: another one would be summed under the wrong layout."""
    with coordinating(public, tmp_path, KNOWN) as (coordinator, *_):

        async def run() -> None:
            for name in ("alice", "bob"):
                await coordinator.join(name, joining(name))
            await coordinator.tick(1)
            assert coordinator.look()[0].announcement
            for name in ("alice", "bob"):
                await coordinator.leave(name)
            assert await refused(coordinator, "carol", OTHER) == ("alice", b"sealed", False)
            await coordinator.tick(1)  # nobody is here to answer the attempt
            assert coordinator.look()[0].announcement is None
            await coordinator.join("carol", joining("carol", OTHER))

        asyncio.run(run())


def test_a_layout_stays_for_good_once_a_round_is_over() -> None:
    run = played(gathering(KNOWN, next_round=1))
    assert holder_of_layout(run, frozenset()) == ("alice", True)
    assert holder_of_layout(run, frozenset({"alice"})) == ("bob", True)
    assert holder_of_layout(run, frozenset(KNOWN)) == ("alice", True)
    assert holder_of_layout(replace(run, sessions={}), frozenset()) == ("alice", True)
    assert holder_of_layout(gathering(), frozenset(KNOWN)) is None
