"""Keep models: the best one as a file, the last ones as their aggregates."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from hefl.ckks.context import SecretContext
from hefl.client.global_model import GlobalModel
from hefl.client.state import ClientState, kept_rounds, naming, read
from hefl.engines.load import load_engine, make_codec
from hefl.errors import MismatchError, StateError
from hefl.models.layout import Arrays, Layout
from hefl.protocol import frames, messages
from hefl.protocol.records import Record
from hefl.protocol.sealed_layout import unseal
from hefl.protocol.updates import read_aggregate

log = logging.getLogger("hefl")


@dataclass(frozen=True, slots=True)
class BestModel:
    """Where ``--save-best`` keeps the best model of a run: also a client that was started again knows how good it is.

    Attributes:
        state: Of the client.
        path: The file.
    """

    state: ClientState
    path: Path

    @property
    def loss(self) -> float | None:
        """Of the model that is there; None where none is."""
        return self.state.loss_of(self.path)

    def write(self, model: GlobalModel, layout: Layout, loss: float) -> None:
        """Replace it by a better one. Raises StateError where it cannot be stored."""
        self.state.write_model(self.path, layout, model.arrays, loss)
        log.info("%s holds model %d, the best so far", self.path, model.made_in)


@dataclass(frozen=True, slots=True)
class KeptModel:
    """A global model from a client's folder.

    Attributes:
        round: Whose aggregate it is.
        verified: The aggregate proved that it is the announced sum.
    """

    round: int
    layout: Layout
    arrays: Arrays
    verified: bool


def read_model(folder: Path, secret: SecretContext, round_num: int | None = None) -> KeptModel:
    """The global model that a round made, from what a client keeps; by default the last one.

    Any aggregate suffices for that: it holds the scales that it was encoded at.

    Raises:
        StateError: The round is not kept, or a file is damaged.
        MismatchError: It is of other keys.
        ProtocolError: As updates.read_aggregate: it is not what its record says.
    """
    kept = kept_rounds(folder / "aggregates")
    number = kept[-1] if round_num is None and kept else round_num
    if number not in kept:
        there = f"there are {_listed(kept)}" if kept else "there is none"
        raise StateError(
            f"{folder} keeps no model{'' if number is None else f' of round {number}'}: {there}",
            hint="a client keeps its last ones; see its --keep, and --state",
        )
    stem, others = folder / "aggregates" / f"{number:010}", [other for other in kept if other != number]
    hint = f"name another round with --round: {_listed(others)}" if others else "no other round is kept there"
    with naming(path := stem.with_suffix(".agg"), hint):
        data = read(path)
        identity = frames.open_frame(data).header.identity
    if identity != secret.identity:
        raise MismatchError(
            f"{path} is of {identity}, and the client's keys are of {secret.identity}",
            hint="a model is read with the keys that it was made with, from the folder that the client had then, or a "
            f"copy of its secret.hefl: 'hefl export OLD/secret.hefl --state {folder} --to FILE'",
        )
    with naming(path := stem.with_suffix(".layout"), hint):
        layout = unseal(read(path), secret)
    with naming(path := stem.with_suffix(".json"), hint):
        record = messages.decode(read(path), Record)
    announcement, terms = record.announcement, record.announcement.terms
    engine = load_engine(
        terms.engine,
        precision_bits=terms.precision_bits,
        weighting=terms.weighting,
        insecure_plaintext=True,  # it is here already
    )
    total = read_aggregate(data, secret, engine, announcement, record)
    codec = make_codec(engine, layout, lambda: 1)  # which counts for what is sent only
    if announcement.values != codec.values(announcement.exchange):
        raise StateError(f"{stem}.agg is not of the model that {stem}.layout describes", hint=hint)
    initial = announcement.exchange == "initial"
    arrays = codec.decode_initial(total)[0] if initial else codec.decode_model(total, None)[0]
    return KeptModel(number, layout, arrays, engine.verifies)


def _listed(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers))
