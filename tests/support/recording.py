"""A real run, recorded as it came over the wire: a server process, and clients that keep what they are sent."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np
import pytest
from federation import Federation
from trainers import Drift

from hefl.client.client import Client
from hefl.client.http import Body, Connection
from hefl.client.learner import Learner
from hefl.client.state import ClientState
from hefl.engines.engine import Weighting
from hefl.engines.load import load_engine
from hefl.files import private_folder
from hefl.keys.folders import read_client_folder
from hefl.models.layout import Arrays
from hefl.protocol.compact_records import decode_records

T = TypeVar("T")

FIELDS = {"announcement", "members", "digest", "tag"}


@dataclass
class Recorded:
    """What one client was sent and has sent, and the models that it made of it.

    Attributes:
        records: JSON values by round, as the server shows them.
        aggregates: Frames by round.
        sealed_layout: As clients pass it on.
        models: The client's global model after each round, as it saves it.
        metrics: What it reports with each round.
        stored: Aggregates that the server still has on disk when the run has ended, by file name.
    """

    records: dict[int, dict[str, Any]] = field(default_factory=dict)
    aggregates: dict[int, bytes] = field(default_factory=dict)
    sealed_layout: bytes = b""
    models: dict[int, Arrays] = field(default_factory=dict)
    metrics: dict[int, Mapping[str, float | None]] = field(default_factory=dict)
    stored: dict[str, bytes] = field(default_factory=dict)


class Mixed(Drift):
    """A trainer of the tests with a size, a weight and a step of its own, and a buffer beside what is trained."""

    kinds = ("parameter", "buffer", "integer")

    def __init__(self, num_examples: int, step: float, width: int) -> None:
        super().__init__()
        self.num_examples, self.step, self.width = num_examples, step, width


def records_in(value: Any) -> Iterator[dict[str, Any]]:
    """Every record in a JSON value, wherever the protocol puts it."""
    if isinstance(value, dict) and value.keys() == FIELDS:
        yield value
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from records_in(part)


def record_run(
    keys: Federation,
    folder: Path,
    who: Mapping[str, tuple[int, float]],
    *flags: str,
    rounds: int,
    precision: int = 24,
    weighting: Weighting = "server",
    width: int = 4,
) -> Recorded:
    """Run a federation over TLS to its end, in this process but for the server; the first client records."""
    recorded = Recorded()

    class Recording(Connection):
        async def ask(
            self,
            method: str,
            path: str,
            parse: Callable[[bytes], T],
            body: Body = None,
            headers: Mapping[str, str] | None = None,
        ) -> T:
            def noted(answer: bytes) -> T:
                compact = path.startswith("/v1/records")
                shown = msgspec.to_builtins(decode_records(answer)) if compact else json.loads(answer or "null")
                for record in records_in(shown):
                    recorded.records[record["announcement"]["round"]] = record
                return parse(answer)

            if path == "/v1/join" and isinstance(body, bytes):
                recorded.sealed_layout = json.loads(body)["sealed_layout"].encode()
            return await super().ask(method, path, noted, body, headers)

        async def download(
            self, path: str, target: Path, limit_bytes: int, *, over_new_connection: bool = False
        ) -> int:
            size = await super().download(path, target, limit_bytes, over_new_connection=over_new_connection)
            recorded.aggregates[int(path.split("/")[3])] = await asyncio.to_thread(target.read_bytes)
            return size

    first = next(iter(who))
    engine = load_engine("packed", precision_bits=precision, weighting=weighting)
    engine.prepare()

    def client(name: str) -> Client:
        party = read_client_folder(keys.folder / "clients" / name)
        learner = Learner(name, Mixed(*who[name], width), party.secret, engine)

        def note(report: Any) -> None:
            if name == first:
                learner.save(folder / f"{report.round}.npz")
                with np.load(folder / f"{report.round}.npz", allow_pickle=False) as saved:
                    recorded.models[report.round] = [saved[name] for name in saved.files]
                recorded.metrics[report.round] = report.metrics

        return Client(party, learner, ClientState(private_folder(folder / name)), url=keys.url, on_round=note)

    async def run(clients: Sequence[Client]) -> None:
        await asyncio.gather(*(c.run() for c in clients))

    with keys:
        terms = ("--precision", str(precision), "--weighting", weighting)
        server = keys.serve(folder / "server", "--rounds", str(rounds), *terms, *flags)
        with pytest.MonkeyPatch.context() as patch:
            clients = []
            for name in who:
                patch.setattr("hefl.client.client.Connection", Recording if name == first else Connection)
                clients.append(client(name))
        asyncio.run(run(clients))
        assert server.wait() == 0, server.error
    recorded.stored = {p.name: p.read_bytes() for p in (folder / "server/aggregates").iterdir()}
    return recorded
