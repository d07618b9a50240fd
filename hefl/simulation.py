"""Train federated in one process, through the same engine, codec and state machine."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hefl.ckks.context import generate_secret
from hefl.client.callbacks import OnRound, tell
from hefl.client.learner import Learner
from hefl.encoding.codec import Metrics
from hefl.engines.engine import Engine
from hefl.engines.load import load_engine
from hefl.errors import LayoutError, UsageError
from hefl.models.layout import Arrays
from hefl.models.trainer import Trainer
from hefl.params import DEFAULT_ENGINE, MAX_USELESS_SUMS, MIN_CLIENTS, NAME_PATTERN
from hefl.protocol.frames import DIGEST_BYTES
from hefl.protocol.records import Announcement, Record, genesis
from hefl.protocol.updates import Aggregation
from hefl.rounds.events import Announced, Closed, Committed, Declined, Joined, Published, Stopped, Useless
from hefl.rounds.run import Run, advance
from hefl.rounds.schedule import Announce, Clock, Finish, Stop, announcement_of, decide
from hefl.rounds.views import useless_sums


@dataclass(frozen=True, slots=True)
class Simulation:
    """What a simulated training came to.

    Attributes:
        names: Of the model's tensors.
        arrays: The final global model.
        metrics: Averages of models 0 to the last, in order.
    """

    names: tuple[str, ...]
    arrays: Arrays
    metrics: list[Metrics]


def simulate(
    trainers: Mapping[str, Trainer] | Sequence[Trainer],
    rounds: int,
    *,
    engine: str = DEFAULT_ENGINE,
    seed: int = 0,
    patience: int | None = None,
    on_round: OnRound = lambda report: None,
) -> Simulation:
    """Train one model with several trainers under encryption, in this process.

    Args:
        trainers: At least two, by client name or in order (then named client-1, client-2, ...).
        rounds: Trainings, at least 1.
        engine: ``packed``, ``tenseal``, or ``plaintext`` to compare.
        seed: For the trainers.
        patience: Stop once so many models in a row were no better than the best before them, by averaged validation
            loss. A model's loss is known a round later, so that ``patience + 1`` trainings follow the best one.
        on_round: Is called with a RoundReport after each round, as the first client by name sees it. What it raises
            ends the training with a TrainerError.

    Raises:
        UsageError: Too few trainers, rounds, or patience.
        LayoutError: Two trainers' models differ; names the first difference.
        HeflError: As a real client or server would raise it.
    """
    named = _named(trainers, rounds, patience)
    secret = generate_secret()
    public, cipher = secret.public(), load_engine(engine, insecure_plaintext=True)
    learners = {n: Learner(n, named[n], secret, cipher, seed=seed, patience=patience) for n in sorted(named)}
    first = next(iter(learners.values()))
    for learner in learners.values():
        if difference := first.layout.difference(learner.layout):
            raise LayoutError(
                f"the models of {first.name} (here) and {learner.name} (there) differ: {difference}",
                hint="all clients train the same model: same tensors, same order, same metrics",
            )
    run = _start(learners, rounds, genesis(public.identity, run_id := os.urandom(16).hex()), run_id)
    clock = Clock(silent=frozenset(), phase_s=0, enough_s=0, join_wait_s=0, round_timeout_s=1)
    history: list[Metrics] = []
    while not isinstance(decision := decide(run, clock), Finish):
        if not isinstance(decision, Announce):
            raise TypeError(f"a simulated run cannot {decision}")
        announcement = _announce(run, decision, learners, cipher)
        run = advance(run, Announced(announcement))
        updates: dict[str, bytes] = {}
        for name in announcement.names:
            if learners[name].has_enough(announcement):
                run = advance(run, Declined(name))
                continue
            update = io.BytesIO()
            whole = learners[name].limit_for(announcement) is not None
            learners[name].write_update(update, announcement)
            updates[name] = update.getvalue()
            digest = updates[name][-DIGEST_BYTES:].hex()
            run = advance(run, Committed(name, digest, learners[name].num_examples, whole))
        if isinstance(decide(run, clock), Stop):
            run = advance(run, Stopped())
            continue
        run = advance(run, Closed())
        aggregation, aggregate = Aggregation(public, cipher, announcement, updates), io.BytesIO()
        for name, data in updates.items():
            aggregation.add(aggregation.open(data, name), name)
        record: Record = aggregation.finish(aggregate)
        run = advance(run, Published(record))
        metrics = {name: learner.accept(aggregate.getvalue(), record) for name, learner in learners.items()}
        if announcement.exchange != "initial":
            history.append(metrics[first.name])
        sizes = len(updates.get(first.name, b"")), len(aggregate.getvalue())
        tell(on_round, first.report(record, rounds, metrics[first.name], *sizes))
        run = _after_useless(run, learners, record)
    if first.model is None:
        raise TypeError("a run without a model")
    return Simulation(tuple(t.name for t in first.layout.tensors), first.model.arrays, history)


def _after_useless(run: Run, learners: Mapping[str, Learner], record: Record) -> Run:
    """The run once every learner has said whether a sum made no model. Raises UselessSumsError, as a server."""
    for name, learner in learners.items():
        if learner.found_useless(record):
            run = advance(run, Useless(name, record.announcement.round))
    if run.again is not None and len(run.useless_rounds) >= MAX_USELESS_SUMS:
        raise useless_sums(run)
    return run


def _named(
    trainers: Mapping[str, Trainer] | Sequence[Trainer], rounds: int, patience: int | None
) -> Mapping[str, Trainer]:
    """The trainers by client name. Raises UsageError."""
    named = trainers if isinstance(trainers, Mapping) else {f"client-{i + 1}": t for i, t in enumerate(trainers)}
    if len(named) < MIN_CLIENTS or rounds < 1:
        raise UsageError(f"simulate needs at least {MIN_CLIENTS} trainers and 1 round, got {len(named)} and {rounds}")
    if patience is not None and patience < 1:
        raise UsageError(f"patience must be at least 1 round, got {patience}")
    for name in named:
        if not re.fullmatch(NAME_PATTERN, name):
            raise UsageError(f"a trainer's name is 1 to 32 of a-z, 0-9 and -, not starting with -, got {name!r}")
    return named


def _start(learners: Mapping[str, Learner], rounds: int, head: str, run_id: str) -> Run:
    run = Run(run=run_id, rounds=rounds, min_clients=len(learners), known=tuple(learners), head=head)
    for name, learner in learners.items():
        run = advance(run, Joined(name, learner.num_examples, os.urandom(16).hex()))
    return run


def _announce(run: Run, decision: Announce, learners: Mapping[str, Learner], engine: Engine) -> Announcement:
    values = learners[decision.names[0]].values(decision.exchange)
    return announcement_of(run, decision, values=values, terms=engine.terms, deadline_s=1.0)
