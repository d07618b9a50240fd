"""The server's folder for one run: its id, uploads while they arrive, and the last aggregates."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import msgspec

from hefl.ckks.context import Identity
from hefl.errors import StateError
from hefl.files import private_folder, replacing, storing
from hefl.history import Hex16, Record, Value
from hefl.updates import Summation


class _Saved(Value, frozen=True, kw_only=True):
    federation: Hex16
    generation: int
    run: Hex16
    rounds: int
    state: Literal["running", "ended"]


class ServerState:
    """A run's folder; the caller holds its lock.

    Attributes:
        run: The run's id.
        finished: The run in this folder has ended already.
    """

    def __init__(self, folder: Path, identity: Identity, rounds: int) -> None:
        """Begin a run in an empty folder, or recognise a finished one.

        Raises:
            StateError: The folder holds an unfinished run, a shorter one, or another federation's.
        """
        self._folder = folder
        self._file = folder / "run.json"
        # A server that was killed may have left uploads: nobody needs them any more.
        self._uploads = private_folder(folder / "uploads")
        for path in self._uploads.iterdir():
            path.unlink()
        saved = self._read()
        if saved is not None:
            self._check(saved, identity, rounds)
        self._saved = saved or _Saved(
            federation=identity.federation,
            generation=identity.generation,
            run=os.urandom(16).hex(),
            rounds=rounds,
            state="running",
        )
        self.run = self._saved.run
        self.finished = self._saved.state == "ended"
        self._aggregates = private_folder(folder / "aggregates")

    def begin(self) -> None:
        """Something is announced: from now on the folder belongs to this run."""
        self._write(self._saved)

    def _check(self, saved: _Saved, identity: Identity, rounds: int) -> None:
        elsewhere = "name another folder with --state, or remove this one"
        if (saved.federation, saved.generation) != (identity.federation, identity.generation):
            other = Identity(saved.federation, saved.generation)
            raise StateError(f"{self._folder} holds a run of {other}, and the keys are of {identity}", hint=elsewhere)
        if saved.state != "ended":
            raise StateError(f"{self._folder} holds a run that has not ended; it cannot be resumed", hint=elsewhere)
        if rounds > saved.rounds:
            raise StateError(
                f"{self._folder} holds a finished run of {saved.rounds} rounds; it cannot be extended to {rounds}",
                hint=elsewhere,
            )

    def end(self) -> None:
        """The run is over."""
        self._saved = msgspec.structs.replace(self._saved, state="ended")
        self._write(self._saved)

    def aggregate(self, round_num: int) -> Path:
        """Where a round's aggregate is."""
        return self._aggregates / f"{round_num}.agg"

    def write_aggregate(self, round_num: int, summation: Summation) -> Record:
        """Write a finished sum, whole or not at all."""
        with storing("the aggregate"), replacing(self.aggregate(round_num)) as file:
            return summation.finish(file)

    def drop_aggregates_before(self, round_num: int) -> None:
        """Remove older aggregates."""
        for path in self._aggregates.glob("*.agg"):
            if int(path.stem) < round_num:
                path.unlink()

    def new_upload(self, name: str) -> Path:
        """A path that no other upload has."""
        return self._uploads / f"{name}-{os.urandom(8).hex()}"

    def _read(self) -> _Saved | None:
        try:
            return msgspec.json.decode(self._file.read_bytes(), type=_Saved)
        except FileNotFoundError:
            return None
        except msgspec.MsgspecError as error:
            raise StateError(f"{self._file} is damaged: {error}", hint="name another folder with --state") from error

    def _write(self, saved: _Saved) -> None:
        with storing("the run's state"), replacing(self._file) as file:
            file.write(msgspec.json.encode(saved))
