"""A client that lies, for ``hefl demo --tamper`` and the tests.

It is the real one with valid keys, but for what it says. Nothing that serves a federation imports this module; it is
run as ``python -m hefl.cli.lying_client LIE client ...``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, Literal

import msgspec
import numpy as np

from hefl.client import client, learner
from hefl.client.global_model import GlobalModel
from hefl.encoding.codec import Metrics
from hefl.encoding.fixedpoint import FixedPointCodec
from hefl.engines import packed
from hefl.errors import ProtocolError, TamperError
from hefl.models.layout import Arrays
from hefl.models.trainer import Evaluation
from hefl.params import MAX_NUM_EXAMPLES, NOISE_BOUND, SERVED_NUM_EXAMPLES
from hefl.protocol import frames
from hefl.protocol.records import Announcement, Record

Outcome = Literal["refused", "stopped", "held", "bounded", "seen", "unseen"]
"""What comes of a lie: the server refuses it; all stop; the run waits for the liar; it changes nothing; it is logged;
nobody can tell."""


CHECKS = {
    "off-range": "one-set",
    "re-weigh": "one-set",
    "noise": "one-set",
    "negative-count": "one-set",
    "false-tag": "tag",
}
"""By which check honest clients stop, after a lie that stops them."""

OUTCOMES: Mapping[str, Outcome] = {
    **dict.fromkeys(CHECKS, "stopped"),
    **dict.fromkeys(("ghost", "always-cut", "newcomer"), "bounded"),
    **dict.fromkeys(("many-examples", "damaged-block", "replay", "other-name"), "refused"),
    "false-useless": "seen",
    "drop-out": "held",
    "poison": "unseen",
    "false-metrics": "unseen",
}
"""What comes of each lie: those of params.CLIENT_LIES, and two that take more than a demo. ``drop-out`` spoils a sum
and leaves before the next, to see the difference; ``newcomer`` states a range in round 2 that only who comes late would
believe."""


class _GoneError(Exception):
    """The liar leaves."""


class LyingLearner(learner.Learner):
    """Encrypts what a liar says."""

    lie: ClassVar[str]

    @property
    def announced_num_examples(self) -> int:
        """As the lie wants it; it stays the same within a round."""
        match self.lie:
            case "many-examples":
                return MAX_NUM_EXAMPLES
            case "ghost":
                return SERVED_NUM_EXAMPLES
            case "re-weigh":
                return int(min(10 * 7 ** (self.model.round + 1 if self.model else 0), SERVED_NUM_EXAMPLES))
        return super().announced_num_examples

    def _vector(self, announcement: Announcement) -> Any:
        vector = super()._vector(announcement)
        codec = FixedPointCodec(self.layout, self.engine.terms.precision_bits)
        if announcement.exchange != "training":
            return vector
        tensors = len(self.layout.tensors)
        values = codec.values("training") - 3 * tensors - codec.values("closing") * bool(self.layout.metrics)
        match self.lie:
            case "off-range" | "re-weigh":
                vector[values] += 1
            case "drop-out" if announcement.round == 1:
                vector[values] += 1
            case "newcomer" if announcement.round == 2 and isinstance(self.engine, packed.PackedEngine):
                weights = self.engine.weights(announcement.as_attempt())
                vector[values] += weights.total // weights.of[self.name]
            case "always-cut":
                vector[values + tensors : values + 3 * tensors] = 1000
            case "negative-count":
                vector[values + tensors] = -1
        return vector

    def write_update(self, file: BinaryIO, announcement: Announcement) -> bytes:
        """As Learner, with noise that hefl never adds where the lie wants it."""
        if self.lie == "noise" and announcement.exchange == "training" and isinstance(self.engine, packed.PackedEngine):
            weights = self.engine.weights(announcement.as_attempt())
            noise = NOISE_BOUND * weights.total // weights.of[self.name] + 1
            setattr(packed, "draw_noise", lambda streams, block, degree: np.full(degree, noise, np.int32))  # noqa: B010
        return super().write_update(file, announcement)

    def _train(self, model: GlobalModel) -> tuple[Arrays, Evaluation]:
        arrays, found = super()._train(model)
        if self.lie == "poison":
            arrays = [
                before - (after - before) if after.dtype.kind == "f" else after
                for before, after in zip(model.arrays, arrays, strict=True)
            ]
        return arrays, found

    def _evaluate(self, model: GlobalModel) -> Evaluation:
        found = super()._evaluate(model)
        return Evaluation({**found.metrics, "loss": 0.0}, found.rows) if self.lie == "false-metrics" else found

    def accept(self, source: frames.Source, record: Record, least: int = 2) -> Metrics:
        """As Learner, for a client that does not mind whom it harms: nothing is its limit."""
        try:
            return super().accept(source, record, least)
        finally:
            if self.one_set:
                self.one_set = msgspec.structs.replace(self.one_set, lifted=True)


class LyingClient(client.Client):
    """Takes part as a liar does."""

    _first: bytes | None = None

    async def run(self) -> None:
        """As Client, and leave when the lie wants it."""
        try:
            await super().run()
        except _GoneError:
            return

    def _is_asked(self, announcement: Announcement, version: int) -> bool:
        """As Client, whatever weight is announced: a liar does not mind."""
        try:
            return super()._is_asked(announcement, version)
        except TamperError as error:
            if error.check != "own-weight":
                raise
            return True

    async def _answer(self, announcement: Announcement) -> None:
        training, lie = announcement.exchange == "training", LyingLearner.lie
        if training and (lie == "ghost" or (lie == "drop-out" and announcement.round == 2)):
            raise _GoneError
        try:
            await super()._answer(announcement)
        except ProtocolError as error:
            if OUTCOMES[lie] != "refused":
                raise
            client.log.error("the server refused: %s", error)
            raise

    def _write_update(self, path: Path, announcement: Announcement) -> tuple[int, bytes]:
        size, seed = super()._write_update(path, announcement)
        if announcement.exchange == "training":
            path.write_bytes(self._forged(path.read_bytes(), announcement))
        return size, seed

    def _forged(self, frame: bytes, announcement: Announcement) -> bytes:
        """The bytes that are sent in the place of an update."""
        data = bytearray(frame[: -frames.DIGEST_BYTES])
        match LyingLearner.lie:
            case "false-tag":
                data[-self._learner.engine.tag_bytes(announcement.as_attempt())] ^= 1
            case "damaged-block":
                first = frames.HEADER.size + frames.LENGTH.size
                data[first : first + 4] = b"\xff" * 4
            case "other-name":
                victim = next(name for name in announcement.names if name != self._folder.name)
                at = data.index(self._folder.name.encode().ljust(frames.NAME_BYTES, b"\0"))
                data[at : at + frames.NAME_BYTES] = victim.encode().ljust(frames.NAME_BYTES, b"\0")
            case "replay":
                self._first = self._first or bytes(data)
                data = bytearray(self._first)
        return bytes(data) + hashlib.sha256(data).digest()

    async def _say_useless(self) -> None:
        if LyingLearner.lie == "false-useless" and self._taken > 0:
            await self._connection.call("POST", f"/v1/rounds/{self._taken}/useless")
