"""One client's work in a round: decrypt, evaluate, train, encrypt. No network."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, Protocol

import msgspec

from hefl.ckks.context import SecretContext
from hefl.client.callbacks import RoundReport
from hefl.client.early_stopping import Patience, Progress, of_layout, without
from hefl.client.global_model import GlobalModel
from hefl.client.newcomer import Ranges
from hefl.client.one_set import OneSet, digest_of
from hefl.client.remarks import on_averages, on_rounding, say_whether_used
from hefl.client.trace import Trace
from hefl.encoding.codec import Averages, Metrics, RoundKind, Sum
from hefl.engines.engine import Engine, Vector, check_terms
from hefl.engines.load import make_codec
from hefl.errors import LayoutError, NotFiniteError, ProtocolError, StaleError, UploadError
from hefl.models.file import read_model, write_model
from hefl.models.layout import Arrays, Layout
from hefl.models.remarks import Remarks
from hefl.models.trainer import CheckedTrainer, Evaluation, Trainer
from hefl.params import CLIENT_WEIGHT_BITS, MIN_CLIENTS
from hefl.protocol import frames
from hefl.protocol.records import Announcement, Record
from hefl.protocol.updates import read_aggregate, write_update
from hefl.timings import Timings

log = logging.getLogger("hefl")


class KeepsBest(Protocol):
    """Keeps the best global model so far."""

    @property
    def loss(self) -> float | None:
        """Its averaged loss; None where there is none yet."""

    def write(self, model: GlobalModel, layout: Layout, loss: float) -> None:
        """Replace it by a better one. Raises StateError where it cannot be stored."""


class Learner:
    """One client's side of the training.

    Args:
        name: The client's.
        trainer: Its model and data.
        secret: The clients' context.
        engine: Which must be the server's too.
        seed: For the trainer; never reaches cryptography.
        num_examples: Overrides the trainer's.
        initial: A file of the model to start from, in place of the trainer's own arrays; see models.file.
        save_best: Where the best global model so far is kept, as soon as its averaged loss is known; None keeps none.
        patience: Stop after so many rounds without a better averaged validation loss; None never does.
        trace: A folder for what was encrypted and what was decrypted, for a comparison; None keeps nothing.

        one_set: For whom it trains again from a model that was in a useless sum, as an earlier process left it.

    Attributes:
        engine: As given.
        layout: The model's tensors and metrics.
        num_examples: The sample weight, as the last ``fit`` stated it.
        model: The last global model, None before round 0 is over.
        progress: How its averaged loss has gone, as far as this client has seen it, or all have told each other.
        apart: The model is not that of the run's last record, which this client skipped.
        one_set: As given, or after a useless sum since.
    """

    def __init__(
        self,
        name: str,
        trainer: Trainer,
        secret: SecretContext,
        engine: Engine,
        *,
        seed: int = 0,
        num_examples: int | None = None,
        initial: Path | None = None,
        save_best: KeepsBest | None = None,
        patience: int | None = None,
        trace: Path | None = None,
        one_set: OneSet | None = None,
    ) -> None:
        self.name = name
        self.timings = Timings()
        self._secret = secret
        self.engine = engine
        self._own_weights = engine.terms.weighting == "client"
        most = 1 << CLIENT_WEIGHT_BITS if self._own_weights else engine.max_num_examples
        self._trainer = CheckedTrainer(trainer, name, seed, num_examples, most)
        self._initial = self._trainer.initial()
        self.layout: Layout = self._trainer.layout(self._initial)
        self.num_examples, self.num_examples_source = self._trainer.num_examples(self._initial)
        self._initial_file = initial
        if initial:
            self._initial = read_model(initial, self.layout)
        if bad := self.layout.not_finite(self._initial):
            raise NotFiniteError(
                f"the initial model holds NaN or infinity in tensor {bad!r}; nothing was sent",
                hint=f"look at {initial or 'what get_parameters returns'}",
            )
        self._save_best = save_best
        self._patience = Patience(patience) if patience else None
        self._hidden = self._patience.metrics if self._patience else ()
        self.layout = msgspec.structs.replace(self.layout, metrics=(*self.layout.metrics, *self._hidden))
        self.progress = Progress()
        self._codec = make_codec(engine, self.layout, lambda: self.num_examples)
        self._trace = Trace(trace, name, self.layout, engine) if trace else None
        self.model: GlobalModel | None = None
        self.apart = False
        self.one_set = one_set
        self._measured = -1  # the round that made the model which the last metrics are of
        self._trained: tuple[int, Arrays, Evaluation] | None = None
        self._remarks = Remarks()

    @property
    def announced_num_examples(self) -> int:
        """The sample weight that the server is told: 1 where it must not learn it."""
        return 1 if self._own_weights else self.num_examples

    def has_enough(self, announcement: Announcement) -> bool:
        """Whether it is time to stop, and a training that is announced is not to be answered with an update."""
        return (
            announcement.exchange == "training"
            and self._patience is not None
            and self._patience.is_over(self.progress)
            and self._starts_from_here(announcement)
        )

    @property
    def reason_to_stop(self) -> str | None:
        """Why no more training makes sense, or None."""
        if self._patience is None or not self._patience.is_over(self.progress):
            return None
        return f"no better validation loss for {self._patience.rounds} rounds"

    def difference(self, other: Layout) -> str | None:
        """The first difference between this client's layout and another's, in words."""
        mine, theirs = of_layout(self.layout.metrics), of_layout(other.metrics)
        if self.layout.tensors == other.tensors and mine != theirs:
            return f"{mine} here and {theirs} there"
        return self.layout.difference(other)

    def values(self, exchange: RoundKind) -> int:
        """Length of the vector that this model makes for an exchange."""
        return self._codec.values(exchange)

    def write_update(self, file: BinaryIO, announcement: Announcement) -> bytes:
        """Do what an announcement asks for, and write the encrypted answer; returns its seed.

        Raises:
            EngineError, LayoutError: The announcement's engine or number of values is not this client's.
            StaleError: It is about a round that this client has no model for.
            TamperError: It is to be summed over others than the sum before, from the same model.
            UpdateError: The update cannot be encrypted.
            TrainerError: The user's code failed.
        """
        self._check(announcement)
        if limit := self.limit_for(announcement):
            limit.check(announcement)
            if announcement.exchange == "training" and self._own_weights and not self._has_trained():
                raise limit.lost()
        vector = self._vector(announcement)
        with self.timings.phase("encrypt"):
            return write_update(file, vector, self._secret, self.engine, announcement, self.name).seed

    def limit_for(self, announcement: Announcement) -> OneSet | None:
        """For whom alone this client does what an announcement asks for; None where its model was in no useless sum."""
        limit = self.one_set
        if limit is None or limit.lifted or self.model is None or not self._starts_from_here(announcement):
            return None
        return limit if limit.model == digest_of(self.model.arrays) else None

    def found_useless(self, record: Record) -> bool:
        """Whether a record's sum made no model, and this client is to train again from the one of before."""
        limit = self.one_set
        return limit is not None and not limit.lifted and record.head in limit.sums

    def _has_trained(self) -> bool:
        """Whether this process has trained from the model that stands."""
        return self._trained is not None and self.model is not None and self._trained[0] == self.model.made_in

    def _check(self, announcement: Announcement) -> None:
        check_terms(self.engine, announcement.terms, "the server")
        expected = self.values(announcement.exchange)
        if announcement.values != expected:
            raise LayoutError(
                f"the server announces {announcement.values} values, and this model makes {expected}",
                hint="all clients train the same model, with the same engine and --precision as the server",
            )

    def _vector(self, announcement: Announcement) -> Vector:
        if announcement.exchange == "initial":
            with self.timings.phase("quantise"):
                return self._codec.encode_initial(self._initial)
        if self.model is None or self.model.round != announcement.round - 1:
            have = "none" if self.model is None else f"that of round {self.model.round}"
            raise StaleError(
                f"round {announcement.round} starts from the model of the round before, and here is {have}"
            )
        weight = self.engine.weight_of(self.name, announcement.as_attempt())
        if announcement.exchange == "closing":
            found = self._evaluate(self.model)
            with self.timings.phase("quantise"):
                return self._codec.encode_metrics(self._told(found), found.shares(weight))
        arrays, found = self._train(self.model)
        with self.timings.phase("quantise"):
            vector = self._codec.encode_model(arrays, self._told(found), self.model.scales, found.shares(weight))
        if self._trace:
            self._trace.sent(arrays, vector, announcement)
        return vector

    def _told(self, found: Evaluation) -> dict[str, float]:
        return found.metrics | (self._patience.tell(self.progress) if self._patience else {})

    def _evaluate(self, model: GlobalModel) -> Evaluation:
        with self.timings.phase("evaluate"):
            return self._trainer.evaluate(model.arrays, model.round)

    def _train(self, model: GlobalModel) -> tuple[Arrays, Evaluation]:
        """Evaluate and train. A second attempt from one model uses the first one's result: it tells nothing new."""
        if self._trained and self._has_trained():
            return self._trained[1:]
        found = self._evaluate(model)
        with self.timings.phase("train"):
            # Of the round that made the model: trained from it again, it is to make the same.
            arrays, count = self._trainer.fit(model.arrays, model.made_in + 1)
        if count != self.num_examples:
            when = "at once" if self._own_weights else "from the next round on"
            log.warning("fit used %d examples instead of %d; the new number weighs %s", count, self.num_examples, when)
            self.num_examples = count
        self._trained = (model.made_in, arrays, found)
        return arrays, found

    def accept(self, source: frames.Source, record: Record, least: int = MIN_CLIENTS) -> Metrics:
        """Take a record's aggregate: the new global model, or closing metrics. Returns the averaged metrics.

        The metrics are of the model that the round started from; where it is the best so far, it is saved. Where a
        participant's upload made the sum useless, the round is passed over, by every client alike.

        Args:
            source: The aggregate's frame.
            record: What it must be.
            least: Updates that must be in it.

        Raises:
            ProtocolError, MismatchError: It is not what the record says, or does not decrypt, or is useless in round 0.
        """
        announcement = record.announcement
        self._check(announcement)
        if (limit := self.limit_for(announcement)) and self._is_in(record):
            limit.check(record)
        at_start = self.model if self._starts_from_here(announcement) else None
        self._measured = at_start.made_in if at_start else announcement.round - 1
        before = None if self.apart else at_start
        try:
            with self.timings.phase("decrypt"):
                total = read_aggregate(source, self._secret, self.engine, announcement, record, least)
                averages = self._accept(total, record)
        except UploadError as error:
            self._limit(record)
            return self._pass_over(announcement, error)
        if self._initial_file:
            say_whether_used(self._initial_file, record, self.model.arrays if self.model else [], self._initial)
            self._initial_file = None
        if announcement.exchange != "initial":
            self._note_loss(averages.metrics, before, closing=announcement.exchange == "closing")
            members = [member.name for member in record.members]
            off = self.engine.rounding(announcement.as_attempt(), members, self.name) if self._is_in(record) else 0.0
            said = on_averages(without(averages.present, self._hidden)) + on_rounding(off)
            self._remarks.make(self._measured, said)
        return without(averages.metrics, self._hidden)

    def ranges(self, source: frames.Source, record: Record, least: int = MIN_CLIENTS) -> Ranges | None:
        """What a sum says of ranges; None where nobody can use it. Takes nothing of it. Raises as ``accept``."""
        total = read_aggregate(source, self._secret, self.engine, record.announcement, record, least)
        try:
            if record.announcement.exchange == "initial":
                return Ranges(None, self._codec.decode_initial(total)[1])
            return Ranges(*self._codec.ranges(total))
        except UploadError:
            return None

    def restore(
        self,
        source: frames.Source,
        record: Record,
        round_num: int,
        progress: Progress | None,
        least: int = MIN_CLIENTS,
    ) -> None:
        """Take an older record's model, which still stands.

        Args:
            source: The aggregate's frame.
            record: What it must be.
            round_num: A round that the model is still that of.
            progress: How the loss had gone by then; None takes it from the aggregate.
            least: Updates that must be in it.

        Raises:
            ProtocolError, MismatchError: As accept.
        """
        total = read_aggregate(source, self._secret, self.engine, record.announcement, record, least)
        model, averages = self._decode(total, record)
        self.model = model.standing(round_num)
        # Initial arrays come without metrics.
        self.progress = progress or (self._progress_after(averages.metrics) if averages.metrics else Progress())

    def skip(self, record: Record, error: ProtocolError) -> Metrics:
        """Keep the model of before, where this client cannot believe a sum that the others may have taken.

        One that may be genuine but for a false tag, or is of too few for this client, may be read by others.

        Raises:
            ProtocolError: The error, where it leaves no model: of round 0.
        """
        self.apart = True
        if error.check in ("tag", "enough-members"):
            self._limit(record)
        return self._pass_over(record.announcement, error)

    def wait(self, announcement: Announcement) -> Metrics:
        """Take no model, where it is not clear which of the last sums made one."""
        why = "it is not clear which of the last sums are good, and this client waits for the next one"
        return self._pass_over(announcement, UploadError(why))

    def _is_in(self, record: Record) -> bool:
        return any(member.name == self.name for member in record.members)

    def _limit(self, record: Record) -> None:
        """Train again from this model only for the same sum, where this client's update was in that of a record."""
        of = record.announcement
        if self.model and self._is_in(record) and of.exchange == "training" and self._starts_from_here(of):
            self.one_set = OneSet.after(self.one_set, digest_of(self.model.arrays), record)

    def _pass_over(self, announcement: Announcement, error: ProtocolError) -> Metrics:
        """Count a round that an error made useless, and keep the model, where there is one; there are no metrics.

        A client that came later has none: it waits for the next sum that can be used.

        Raises:
            ProtocolError: The error, where it leaves nobody a model: round 0 made none.
        """
        if announcement.exchange == "initial":
            raise error
        log.error("round %d changes nothing: %s", announcement.round, error.message)
        self.stand(announcement)
        if announcement.exchange == "training":
            self.progress = self.progress.after(None)
        return dict.fromkeys(without(dict.fromkeys(self.layout.metrics), self._hidden))

    def _starts_from_here(self, announcement: Announcement) -> bool:
        return self.model is not None and self.model.round == announcement.round - 1

    def _note_loss(self, metrics: Metrics, model: GlobalModel | None, *, closing: bool) -> None:
        """Take the progress from what everyone told, and keep the model that the loss is of, if it is the best."""
        progress = self._progress_after(metrics)
        if not closing:
            # A run that is extended evaluates the same model once more, and a decision to stop stays as it was.
            self.progress = progress
        best = self._save_best
        if best and model and progress.since == 0 and (best.loss is None or progress.best < best.loss):
            best.write(model, self.layout, progress.best)

    def _progress_after(self, metrics: Metrics) -> Progress:
        """How the loss has gone with the model that a round started from, whose metrics these are."""
        told = self._patience.read(metrics) if self._patience else self.progress
        return told.after(metrics["loss"])

    def _accept(self, total: Sum, record: Record) -> Averages:
        announcement = record.announcement
        if announcement.exchange == "closing":
            averages = self._codec.decode_metrics(total)
            self.stand(announcement)  # a run that is extended goes on from there
            return averages
        self.model, averages = self._decode(total, record)
        self.apart = False
        return averages

    def stand(self, announcement: Announcement) -> None:
        """The model is that of one more round, which made none."""
        if self.model and self._starts_from_here(announcement):
            self.model = self.model.standing(announcement.round)
        else:
            self.model = None  # it has missed one since

    def _decode(self, total: Sum, record: Record) -> tuple[GlobalModel, Averages]:
        announcement = record.announcement
        if announcement.exchange == "initial":
            return GlobalModel(announcement.round, *self._codec.decode_initial(total)), Averages({}, {})
        # One that is apart knows no scales, but those of its own update.
        knows = not self.apart or any(member.name == self.name for member in record.members)
        before = self.model.scales if self.model and knows and self._starts_from_here(announcement) else None
        arrays, averages, scales = self._codec.decode_model(total, before)
        if self._trace:
            self._trace.received(total, before, announcement)
        return GlobalModel(announcement.round, arrays, scales), averages

    def report(self, record: Record, rounds: int, metrics: Metrics, bytes_up: int, bytes_down: int) -> RoundReport:
        """What became of a round, and the time that it took since the last report."""
        return RoundReport(
            round=record.announcement.round,
            rounds=rounds,
            model=self._measured,
            metrics=metrics,
            verified=self.engine.verifies,
            bytes_up=bytes_up,
            bytes_down=bytes_down,
            seconds=self.timings.take(),
        )

    def save(self, path: Path, write: Callable[[Path, Layout, Arrays], None] = write_model) -> None:
        """Write the global model: names, shapes and dtypes as the trainer has them; see models.file.

        Raises:
            StaleError: There is none yet.
        """
        if self.model is None:
            raise StaleError("there is no global model to save yet")
        write(path, self.layout, self.model.arrays)
