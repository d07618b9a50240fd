from __future__ import annotations

import io
import stat
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from builders import LeastSquares, announcement, summed, weighted_mean

from hefl.ckks.context import PublicContext, SecretContext
from hefl.client.global_model import GlobalModel
from hefl.client.learner import Learner
from hefl.engines.engine import Engine
from hefl.engines.load import load_engine
from hefl.errors import LayoutError, MismatchError, NotFiniteError, StaleError, TamperError
from hefl.params import ENGINES
from hefl.protocol.records import Announcement, Record

WEIGHTS = {"alice": 30, "bob": 10}


def data(seed: int, rows: int) -> LeastSquares:
    rng = np.random.default_rng(seed)
    return LeastSquares(rng.normal(size=(rows, 3)), rng.normal(size=rows))


@pytest.fixture
def engine() -> Engine:
    return load_engine("tenseal")


def learner_of(name: str, secret: SecretContext, engine: Engine, **options: Any) -> Learner:
    return Learner(name, data(len(name), WEIGHTS[name]), secret, engine, **options)


def attempt_of(learner: Learner, **changes: Any) -> Announcement:
    exchange = changes.get("exchange", "training")
    return announcement(
        {"alice": 30} if exchange == "initial" else WEIGHTS,
        **{"values": learner.values(exchange), "round": 0 if exchange == "initial" else 1, **changes},
    )


def written(learner: Learner, attempt: Announcement) -> bytes:
    file = io.BytesIO()
    learner.write_update(file, attempt)
    return file.getvalue()


def exchanged(
    engine: Engine, public: PublicContext, learners: dict[str, Learner], attempt: Announcement
) -> tuple[bytes, Record]:
    return summed(engine, public, attempt, {name: written(learners[name], attempt) for name in attempt.names})


@pytest.mark.parametrize("name", ENGINES)
def test_a_run_gives_the_senders_initial_model_then_the_mean_then_closing_metrics(
    secret: SecretContext, public: PublicContext, name: str
) -> None:
    engine = load_engine(name, insecure_plaintext=True)
    learners = {n: learner_of(n, secret, engine) for n in WEIGHTS}
    alice, bob = learners.values()

    data_0, record_0 = exchanged(engine, public, learners, attempt_of(alice, exchange="initial", engine=name))
    for learner in learners.values():
        assert learner.accept(data_0, record_0) == {}
        assert learner.model is not None
        assert learner.model.round == 0
    initial = data(5, 30).get_parameters({})
    assert bob.model is not None
    assert [a.tobytes() for a in bob.model.arrays] == [a.tobytes() for a in initial]

    data_1, record_1 = exchanged(engine, public, learners, attempt_of(alice, engine=name))
    trainers = [data(5, 30), data(3, 10)]
    expected = [
        weighted_mean(list(tensors), [30, 10])
        for tensors in zip(*(t.fit(initial, {})[0] for t in trainers), strict=True)
    ]
    losses = [t.evaluate(initial, {})[0] for t in trainers]
    for learner in learners.values():
        metrics = learner.accept(data_1, record_1)
        assert metrics["loss"] == pytest.approx(np.average(losses, weights=[30, 10]), abs=1e-5)
        assert learner.model is not None
        assert learner.model.round == 1
        for array, mean in zip(learner.model.arrays, expected, strict=True):
            np.testing.assert_allclose(array, mean, rtol=0, atol=1e-6)

    closing = attempt_of(alice, exchange="closing", round=2, engine=name)
    data_2, record_2 = exchanged(engine, public, learners, closing)
    assert alice.model is not None
    losses = [t.evaluate(alice.model.arrays, {})[0] for t in trainers]
    before = alice.model
    assert alice.accept(data_2, record_2)["loss"] == pytest.approx(np.average(losses, weights=[30, 10]), abs=1e-5)
    # The same model stands after it, as what a run that is extended goes on from.
    assert alice.model.arrays is before.arrays
    assert alice.model.round == 2


def test_every_client_reads_the_same_model_to_the_bit(
    secret: SecretContext, public: PublicContext, engine: Engine
) -> None:
    learners = {n: learner_of(n, secret, engine) for n in WEIGHTS}
    for exchange in ("initial", "training"):
        aggregate, record = exchanged(engine, public, learners, attempt_of(learners["alice"], exchange=exchange))
        for learner in learners.values():
            learner.accept(aggregate, record)
    models = [learner.model for learner in learners.values()]
    assert models[0] is not None
    assert models[1] is not None
    assert [a.tobytes() for a in models[0].arrays] == [a.tobytes() for a in models[1].arrays]


def test_a_second_attempt_at_a_round_sends_the_same_training_under_new_ciphertext(
    secret: SecretContext, engine: Engine
) -> None:
    fits = []

    class Counting(LeastSquares):
        def fit(self, *arguments: Any) -> Any:
            fits.append(1)
            return super().fit(*arguments)

    learner = Learner("alice", Counting(np.eye(3), np.ones(3)), secret, engine)
    learner.model = GlobalModel(0, [np.zeros(3), np.zeros(1)])
    first, second = (written(learner, attempt_of(learner, attempt=n)) for n in (1, 2))
    assert len(fits) == 1
    assert first != second
    learner.model = GlobalModel(1, learner.model.arrays)
    written(learner, attempt_of(learner, round=2))
    assert len(fits) == 2


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("exchange", ["initial", "training", "closing"])
@pytest.mark.parametrize("more", [-1, 1])
def test_an_announcement_of_another_number_of_values_is_refused(
    secret: SecretContext, engine: Engine, exchange: Any, more: int
) -> None:
    learner = learner_of("alice", secret, engine)
    values = learner.values(exchange)
    with pytest.raises(LayoutError, match=f"announces {values + more} values, and this model makes {values}"):
        written(learner, attempt_of(learner, exchange=exchange, values=values + more))


@pytest.mark.parametrize(("have", "wanted"), [(None, 1), (0, 2), (1, 1), (3, 2)])
@pytest.mark.parametrize("exchange", ["training", "closing"])
def test_a_round_that_does_not_follow_the_clients_model_is_refused(
    secret: SecretContext, engine: Engine, have: int | None, wanted: int, exchange: Any
) -> None:
    learner = learner_of("alice", secret, engine)
    learner.model = None if have is None else GlobalModel(have, [np.zeros(3), np.zeros(1)])
    with pytest.raises(StaleError, match=f"round {wanted} starts from the model of the round before"):
        written(learner, attempt_of(learner, round=wanted, exchange=exchange))


def test_a_training_that_diverges_sends_nothing(secret: SecretContext, engine: Engine) -> None:
    class Diverging(LeastSquares):
        def fit(self, parameters: Any, config: Any) -> Any:
            return [np.array([0.0, np.nan, np.inf]), np.zeros(1)], 3, {}

    learner = Learner("alice", Diverging(np.eye(3), np.ones(3)), secret, engine)
    learner.model = GlobalModel(0, [np.ones(3), np.ones(1)])
    file = io.BytesIO()
    with pytest.raises(NotFiniteError, match=r"tensor 'weight', index \(1,\)"):
        learner.write_update(file, attempt_of(learner))
    assert file.getvalue() == b""


def test_an_aggregate_that_is_not_its_records_leaves_the_model_as_it_was(
    secret: SecretContext, other_secret: SecretContext, public: PublicContext, engine: Engine
) -> None:
    learners = {n: learner_of(n, secret, engine) for n in WEIGHTS}
    alice = learners["alice"]
    aggregate, record = exchanged(engine, public, learners, attempt_of(alice, exchange="initial"))
    with pytest.raises(TamperError, match="record"):
        alice.accept(aggregate, msgspec.structs.replace(record, digest="00" * 32))
    later = msgspec.structs.replace(record.announcement, attempt=2)
    with pytest.raises(StaleError):
        alice.accept(aggregate, msgspec.structs.replace(record, announcement=later))
    stranger = learner_of("alice", other_secret, engine)
    with pytest.raises(MismatchError):
        stranger.accept(aggregate, record)
    assert alice.model is None
    assert stranger.model is None


# --- files ------------------------------------------------------------------------------------------------------------


def test_a_saved_model_is_a_private_npz_of_the_trainers_names(
    secret: SecretContext, engine: Engine, tmp_path: Path
) -> None:
    learner = learner_of("alice", secret, engine)
    with pytest.raises(StaleError):
        learner.save(tmp_path / "model.npz")
    assert list(tmp_path.iterdir()) == []
    arrays = [np.array([1.0, 2.0, 3.0]), np.array([4.0])]
    learner.model = GlobalModel(3, arrays)
    learner.save(tmp_path / "model.npz")
    with np.load(tmp_path / "model.npz", allow_pickle=False) as saved:
        assert saved.files == ["weight", "bias"]
        for name, array in zip(saved.files, arrays, strict=True):
            assert saved[name].dtype == array.dtype
            assert saved[name].tolist() == array.tolist()
    assert stat.S_IMODE((tmp_path / "model.npz").stat().st_mode) == 0o600


def test_a_trace_holds_what_was_encrypted_and_what_came_out(
    secret: SecretContext, public: PublicContext, engine: Engine, tmp_path: Path
) -> None:
    learners = {}
    for name in WEIGHTS:
        (tmp_path / name).mkdir()
        learners[name] = learner_of(name, secret, engine, trace=tmp_path / name)
    for exchange in ("initial", "training"):
        aggregate, record = exchanged(engine, public, learners, attempt_of(learners["alice"], exchange=exchange))
        for learner in learners.values():
            if exchange == "training" or learner.name in record.announcement.names:
                learner.accept(aggregate, record)
            else:
                learner.model = learners["alice"].model
    sent, received = [], []
    for name in WEIGHTS:
        assert {f.name for f in (tmp_path / name).iterdir()} == {"sent-1.npz", "received-1.npz"}
        with np.load(tmp_path / name / "sent-1.npz") as file:
            sent.append(file["vector"])
            assert file["num_examples"] == WEIGHTS[name]
        with np.load(tmp_path / name / "received-1.npz") as file:
            received.append(file["vector"])
    np.testing.assert_array_equal(received[0], received[1])
    np.testing.assert_allclose(received[0], weighted_mean(sent, list(WEIGHTS.values())), rtol=0, atol=1e-6)


def test_without_a_trace_nothing_is_kept(
    secret: SecretContext, engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    learner = learner_of("alice", secret, engine)
    written(learner, attempt_of(learner, exchange="initial"))
    assert list(tmp_path.iterdir()) == []


def test_the_phases_of_a_round_are_timed(secret: SecretContext, engine: Engine) -> None:
    learner = learner_of("alice", secret, engine)
    learner.model = GlobalModel(0, [np.zeros(3), np.zeros(1)])
    written(learner, attempt_of(learner))
    assert learner.timings.take().keys() == {"evaluate", "train", "quantise", "encrypt"}
