"""Start a server from a folder and options."""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from msgspec.structs import asdict

from hefl.engines.load import load_engine
from hefl.files import locked, state_folder
from hefl.keys.credentials import announce_expiry
from hefl.keys.folders import read_server_folder
from hefl.loops import run_to_end
from hefl.rounds.kept_settings import KeptSettings, terms_of
from hefl.rounds.run import Phase
from hefl.rounds.schedule import RunSettings, at_start
from hefl.server.app import Server
from hefl.server.events import Emit, ended, say_who_lacks
from hefl.server.journal import FILE, Journal, is_journal, read_settings
from hefl.server.options import ServerOptions
from hefl.server.page.site import Page
from hefl.server.page.watch import KEPT_ROUNDS
from hefl.server.spool import Spool, arriving

log = logging.getLogger("hefl")

M_ARENA_MAX = -8
"""In glibc's malloc.h."""


@dataclass(frozen=True, slots=True)
class Serving:
    """A server that can run: it holds its state folder.

    Attributes:
        server: The server.
        page: Its page, where one is wanted.
        journal: The run's.
    """

    server: Server
    page: Page | None
    journal: Journal

    async def run(self) -> None:
        """Serve until the run has ended or ``server.stop`` is called.

        The page's port is tried before anything else happens, and is open until everything has.
        """
        async with self.page or nullcontext():
            await self.server.serve()


@contextmanager
def opened(
    folder: Path, options: ServerOptions, emit: Emit, step: Callable[[str], None] = lambda what: None
) -> Iterator[Serving | None]:
    """Open a server's run, and close it afterwards.

    Args:
        folder: DIR/server.
        options: The operator's.
        emit: Is told every event, as a flat mapping.
        step: Is told what is done before the server listens, in words.

    Yields:
        The server; None where the run has ended, and these options do not make it go on.

    Raises:
        HeflError: Keys, options or the run's folder do not fit; says which, and what does.
    """
    place = options.state or folder / "state"
    keys = read_server_folder(folder, options.passphrase, uploads=arriving(place))
    announce_expiry(keys.credentials)
    place = state_folder(place, FILE, is_journal)
    with locked(place, "server"), ExitStack() as stack:
        found_terms, found_settings = read_settings(place) or (None, KeptSettings())
        terms = terms_of(found_terms, options.engine, options.precision_bits, options.weighting)
        step("preparing the encryption")
        engine = load_engine(
            terms.engine,
            precision_bits=terms.precision_bits,
            weighting=terms.weighting,
            insecure_plaintext=options.insecure_plaintext,
        )
        settings = _settings(found_settings, options)
        engine.prepare()
        step(f"opening the run in {place}")
        journal = stack.enter_context(
            closing(
                Journal(
                    place,
                    keys.public.identity,
                    engine.terms,
                    rounds=options.rounds,
                    min_clients=settings.min_clients,
                    known=keys.clients,
                )
            )
        )
        found = replace(journal.now.run, known=keys.clients)
        if found.phase is Phase.ENDED and not at_start(found, settings):
            hint = "more --rounds go on with it; a new run takes a new folder, see --state"
            log.info("the run in %s has ended already", place, extra={"hint": hint})
            say_who_lacks(found)
            emit(ended(found))
            yield None
            return

        def tell(event: Mapping[str, Any]) -> None:
            emit(event)
            if page:
                page.see(event)
                if event["event"] == "listening":
                    emit({"event": "page", "url": page.url})

        server = Server(
            keys,
            engine,
            settings,
            journal,
            Spool(place),
            tell,
            host=options.host,
            port=options.port,
            insecure_http=options.insecure_http,
            limits=options.limits,
        )
        records = journal.last_records(KEPT_ROUNDS)
        page = None if options.page_port is None else Page(server.look, options.page_port, records, options.limits)
        yield Serving(server, page, journal)


def serve(folder: Path | str, options: ServerOptions | None = None, *, on_event: Emit = lambda event: None) -> None:
    """Run a server until its run has ended, as ``hefl serve`` does.

    It blocks, in a notebook's cell too. The same call again goes on with a run that was interrupted.

    Args:
        folder: DIR/server, as ``hefl keygen`` made it.
        options: How it runs.
        on_event: Is told what happens, each time as a flat mapping with an ``event``: "listening" has the ``url``,
            "round" a round that is over, "ended" the end.

    Raises:
        HeflError: Keys, options or the run's folder do not fit, the port is taken, or the run failed.
    """
    with opened(Path(folder), options or ServerOptions(), on_event) as serving:
        if serving:
            run_to_end(serving.run())


def limit_malloc_arenas() -> None:
    """Let all threads of this process allocate from one heap; does nothing where the C library is not glibc.

    Otherwise each thread that handles updates keeps megabytes of its own that it has freed.
    """
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).mallopt(M_ARENA_MAX, 1)


def _settings(found: KeptSettings, options: ServerOptions) -> RunSettings:
    kept = found.with_given(
        min_clients=options.min_clients,
        join_wait_s=options.join_wait_s,
        round_timeout_s=options.round_timeout_s,
        max_values=options.max_values,
        max_num_examples=options.max_num_examples,
    )
    return RunSettings(rounds=options.rounds, linger_s=options.linger_s, keep=options.keep, **asdict(kept))
