"""What the clients of a live run hear of it, and of each other."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import msgspec
import pytest
from hostile import JOIN

from hefl.ckks.context import PublicContext
from hefl.coordinator import Coordinator
from hefl.decisions import RunSettings
from hefl.engine import load_engine
from hefl.errors import StaleError
from hefl.journal import Journal
from hefl.spool import Spool


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
    with coordinating(public, tmp_path, ("alice", "bob", "carol")) as (coordinator, journal, _):

        async def run() -> None:
            await coordinator.join("alice", JOIN)
            first = await coordinator.view("alice", 0)
            waiting = asyncio.create_task(coordinator.view("alice", first.version))
            for name in ("bob", "carol"):
                await coordinator.join(name, msgspec.structs.replace(JOIN, join_nonce=name.encode().hex().zfill(32)))
            await coordinator.leave("carol")
            await asyncio.sleep(0.05)
            assert journal.now.seq == first.version + 3
            assert not waiting.done()
            await coordinator.tick(1)
            view = await waiting
            assert view.announcement
            assert view.announcement.names == ("alice",)
            assert view.version > first.version
            monkeypatch.setattr("hefl.coordinator.POLL_S", 1e6)
            async with asyncio.timeout(60):  # who has seen what was never announced waits for nothing
                assert (await coordinator.view("alice", view.version + 1)).version == view.version

        asyncio.run(run())


def test_an_upload_whose_attempt_ends_before_it_is_checked_is_too_late(public: PublicContext, tmp_path: Path) -> None:
    known = ("alice", "bob")
    with coordinating(public, tmp_path, known) as (coordinator, _, spool):

        async def run() -> None:
            for name in known:
                await coordinator.join(name, msgspec.structs.replace(JOIN, join_nonce=name.encode().hex().zfill(32)))
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
    with coordinating(public, tmp_path, ("alice", "bob", "carol"), join_wait_s=60.0) as (coordinator, *_):

        async def run() -> None:
            await coordinator.join("alice", JOIN)
            await asyncio.sleep(0.5)
            before = time.monotonic()
            await coordinator.join("bob", msgspec.structs.replace(JOIN, join_nonce="0b" * 16))
            assert coordinator.look()[1].enough_s <= time.monotonic() - before

        asyncio.run(run())
