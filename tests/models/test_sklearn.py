from __future__ import annotations

import os
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from builders import Array, weighted_mean
from federation import Federation
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.neural_network import MLPClassifier
from sklearn.svm import LinearSVC
from threadpoolctl import threadpool_info, threadpool_limits

import hefl
from hefl.datasets.data import Split, load_parts
from hefl.datasets.partition import Partition
from hefl.errors import TrainerError
from hefl.models.sklearn import SklearnTrainer

CONFIG = {"round": 1, "seed": 0, "client": "alice"}
ESTIMATORS: list[Any] = [
    LogisticRegression(max_iter=3),
    LogisticRegression(max_iter=3, solver="saga"),
    MLPClassifier((8,), max_iter=2, batch_size=16),
    MLPClassifier((8, 4), max_iter=2, solver="sgd", learning_rate="adaptive", learning_rate_init=0.1),
]


def trainer(estimator: Any, split: Split, **changes: Any) -> SklearnTrainer:
    given: dict[str, Any] = {
        "features": split.features,
        "labels": split.labels,
        "validation_features": split.validation_features,
        "validation_labels": split.validation_labels,
        "classes": range(split.classes),
    }
    return SklearnTrainer(estimator, **{**given, **changes})


@pytest.fixture(scope="module")
def wine() -> list[Split]:
    return load_parts("wine", 2, Partition())


def same(one: list[Array], other: list[Array]) -> bool:
    return all((a == b).all() for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("engine", ["packed", "plaintext"])
def test_logistic_regression_is_federated_averaging_of_scikit_learns_own_warm_starts(
    wine: list[Split], engine: str
) -> None:
    simulation = hefl.simulate(
        [trainer(LogisticRegression(C=0.2, max_iter=3), split) for split in wine], 4, engine=engine
    )
    models = [LogisticRegression(C=0.2, max_iter=3, warm_start=True) for _ in wine]
    mean = [np.zeros((3, 13)), np.zeros(3)]
    for _ in range(4):
        for model, split in zip(models, wine, strict=True):
            model.coef_, model.intercept_ = (a.copy() for a in mean)
            with pytest.warns(ConvergenceWarning):
                model.fit(split.features.astype(np.float64), split.labels)
        parts = zip(*((m.coef_, m.intercept_) for m in models), strict=True)
        mean = [weighted_mean(list(part), [len(split.labels) for split in wine]) for part in parts]
    assert simulation.names == ("coef_", "intercept_")
    for array, expected in zip(simulation.arrays, mean, strict=True):
        np.testing.assert_allclose(array, expected, atol=1e-5)
    models[0].coef_, models[0].intercept_ = mean
    features, labels = wine[0].validation_features.astype(np.float64), wine[0].validation_labels
    assert simulation.metrics[-1]["accuracy"] == pytest.approx(models[0].score(features, labels), abs=1e-6)
    assert simulation.metrics[-1]["loss"] == pytest.approx(
        log_loss(labels, models[0].predict_proba(features)), abs=1e-4
    )
    assert simulation.metrics[0] == pytest.approx({"loss": np.log(3), "accuracy": (labels == 0).mean()}, abs=1e-6)


def softmax_step(
    arrays: list[Array], features: Array, labels: NDArray[np.int64], rate: float, alpha: float
) -> list[Array]:
    """One step of full-batch gradient descent of a ReLU network with one hidden layer, by hand."""
    first, second, first_bias, second_bias = arrays
    hidden = np.maximum(features @ first + first_bias, 0)
    scores = hidden @ second + second_bias
    shares = np.exp(scores - scores.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    rows = len(labels)
    error = (shares - np.eye(shares.shape[1])[labels]) / rows
    back = (error @ second.T) * (hidden > 0)
    return [
        first - rate * (features.T @ back + alpha * first / rows),
        second - rate * (hidden.T @ error + alpha * second / rows),
        first_bias - rate * back.sum(axis=0),
        second_bias - rate * error.sum(axis=0),
    ]


def test_an_mlp_without_momentum_is_gradient_descent_by_hand(wine: list[Split]) -> None:
    plain = {"solver": "sgd", "momentum": 0.0, "nesterovs_momentum": False, "batch_size": 10_000, "alpha": 0.3}
    made = trainer(MLPClassifier((8,), max_iter=3, learning_rate_init=0.2, **plain), wine[0])
    expected = start = made.get_parameters(CONFIG)
    assert made.names == ["coefs_.0", "coefs_.1", "intercepts_.0", "intercepts_.1"]
    for _ in range(3):
        expected = softmax_step(expected, wine[0].features.astype(np.float64), wine[0].labels, 0.2, 0.3)
    for array, by_hand, before in zip(made.fit(start, CONFIG)[0], expected, start, strict=True):
        np.testing.assert_allclose(array, by_hand, rtol=1e-9, atol=1e-12)
        assert np.abs(array - before).max() > 1e-3


def test_an_mlps_optimiser_is_new_each_round(wine: list[Split]) -> None:
    """Adam's first step moves every value by the learning rate at most; a later one need not, nor a stale one from
    another place."""
    made = trainer(MLPClassifier((8,), max_iter=1, batch_size=10_000, learning_rate_init=0.01), wine[0])
    arrays = made.get_parameters(CONFIG)
    for number in range(1, 4):
        trained = made.fit(arrays, {**CONFIG, "round": number})[0]
        moved = np.concatenate([np.abs(a - b).ravel() for a, b in zip(trained, arrays, strict=True)])
        assert moved.max() <= 0.01 * (1 + 1e-6)
        assert np.isclose(moved, 0.01, rtol=1e-3).mean() > 0.5
        arrays = trained


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=str)
def test_fit_depends_on_parameters_seed_client_and_round_alone(wine: list[Split], estimator: Any) -> None:
    made, twin = trainer(estimator, wine[0]), trainer(estimator, wine[0])
    start = made.get_parameters(CONFIG)
    first = made.fit(start, CONFIG)[0]
    made.fit(first, {**CONFIG, "round": 2})
    made.evaluate(first, CONFIG)
    np.random.random(3)
    assert same(made.fit(start, CONFIG)[0], first)
    assert same(twin.fit(start, CONFIG)[0], first)
    assert not same(made.fit(first, CONFIG)[0], first)
    if getattr(estimator, "batch_size", None) == 16 or estimator.solver == "saga":
        for change in ({"seed": 1}, {"client": "bob"}, {"round": 2}):
            assert not same(made.fit(start, {**CONFIG, **change})[0], first)
    assert not hasattr(estimator, "classes_")


def threads() -> list[int]:
    """Of each numerical library that is loaded."""
    return [library["num_threads"] for library in threadpool_info()]


class Watching(LogisticRegression):  # type: ignore[misc]
    """Notes in how many threads it is fitted and predicts."""

    seen: ClassVar[list[list[int]]] = []

    def fit(self, *arguments: Any, **options: Any) -> Any:
        self.seen.append(threads())
        return super().fit(*arguments, **options)

    def predict_proba(self, *arguments: Any) -> Any:
        self.seen.append(threads())
        return super().predict_proba(*arguments)


@pytest.mark.parametrize("deterministic", [False, True])
def test_a_federation_trains_in_the_users_threads_unless_it_is_to_repeat_bit_for_bit(
    wine: list[Split], deterministic: bool
) -> None:
    Watching.seen.clear()
    with threadpool_limits(2):
        own = threads()
        hefl.simulate([trainer(Watching(max_iter=1), split, deterministic=deterministic) for split in wine], 1)
        assert threads() == own
    assert set(own) == {2}
    assert set(map(tuple, Watching.seen)) == {(1,) * len(own) if deterministic else tuple(own)}


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=str)
def test_a_client_that_lacks_classes_keeps_the_shapes_and_trains(wine: list[Split], estimator: Any) -> None:
    one = wine[0].labels == 1
    lacking = trainer(estimator, wine[0], features=wine[0].features[one], labels=wine[0].labels[one])
    full = trainer(estimator, wine[0])
    start = lacking.get_parameters(CONFIG)
    assert [(a.shape, a.dtype) for a in start] == [(a.shape, a.dtype) for a in full.get_parameters(CONFIG)]
    trained, count, _ = lacking.fit(start, CONFIG)
    assert count == lacking.num_examples == one.sum()
    assert [(a.shape, a.dtype) for a in trained] == [(a.shape, a.dtype) for a in start]
    features = wine[0].features[one].astype(np.float64)
    before, after = (lacking.estimator(a).predict_proba(features)[:, 1].mean() for a in (start, trained))
    assert after > before


def test_two_classes_are_one_row_of_coefficients_for_whoever_has_one_of_them() -> None:
    parts = load_parts("breast_cancer", 3, Partition(0.3))
    one = parts[0].labels == 0
    for estimator, shape in ((LogisticRegression(max_iter=2), (1, 30)), (MLPClassifier((4,), max_iter=1), (30, 4))):
        made = trainer(estimator, parts[0], features=parts[0].features[one], labels=parts[0].labels[one])
        arrays = made.fit(made.get_parameters(CONFIG), CONFIG)[0]
        assert arrays[0].shape == shape
        assert arrays[-1].shape == (1,)
        loss, _, metrics = made.evaluate(arrays, CONFIG)
        assert loss > 0
        assert 0 <= metrics["accuracy"] <= 1


def test_labels_may_be_words(wine: list[Split]) -> None:
    words = np.array(["barolo", "grignolino", "barbera"])
    changes = {"labels": words[wine[0].labels], "validation_labels": words[wine[0].validation_labels]}
    for estimator in (LogisticRegression(), MLPClassifier((8,), max_iter=60, learning_rate_init=0.05)):
        made = trainer(estimator, wine[0], classes=words, **changes)
        assert made.evaluate(made.fit(made.get_parameters(CONFIG), CONFIG)[0], CONFIG)[2]["accuracy"] > 0.8


def test_a_client_without_validation_rows_leaves_the_metrics_to_the_others(wine: list[Split]) -> None:
    nothing = {"validation_features": wine[1].validation_features[:0], "validation_labels": []}
    estimator = LogisticRegression(max_iter=3)
    alice = trainer(estimator, wine[0])
    simulation = hefl.simulate([alice, trainer(estimator, wine[1], **nothing)], 2)
    loss, rows, metrics = alice.evaluate(simulation.arrays, CONFIG)
    assert rows == len(wine[0].validation_labels)
    assert simulation.metrics[-1] == pytest.approx({"loss": loss, **metrics}, abs=1e-6)
    nobody = hefl.simulate([trainer(estimator, split, **nothing) for split in wine], 1)
    assert nobody.metrics == [{"loss": None, "accuracy": None}] * 2


@pytest.mark.parametrize(
    ("estimator", "changes", "message"),
    [
        (LinearSVC(), {}, "LogisticRegression or an MLPClassifier, got a LinearSVC"),
        (LogisticRegression(solver="liblinear"), {}, "'liblinear' cannot start from the global model"),
        (MLPClassifier(solver="lbfgs"), {}, "solver 'adam' or 'sgd'"),
        (MLPClassifier(early_stopping=True), {}, "no early_stopping"),
        (LogisticRegression(), {"classes": [1]}, "at least 2 classes and 1 training row are needed, got 1 and"),
        (LogisticRegression(), {"features": [], "labels": []}, "got 3 and 0"),
        (LogisticRegression(), {"classes": [0, 1]}, "1 labels of the data are not among the 2 classes"),
        (LogisticRegression(class_weight="balanced"), {"classes": range(5)}, "no weight for the 2 classes"),
    ],
)
def test_what_cannot_be_trained_round_by_round_is_refused(
    wine: list[Split], estimator: Any, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(TrainerError, match=message):
        trainer(estimator, wine[0], **changes)


@pytest.mark.slow
def test_clients_with_scikit_learn_train_over_tls_and_import_no_torch(tmp_path: Path) -> None:
    without = tmp_path / "without"
    without.mkdir()
    (without / "torch.py").write_text("raise RuntimeError('torch was imported')\n")
    env = {"PYTHONPATH": os.pathsep.join([str(without), os.environ.get("PYTHONPATH", "")])}
    with Federation(tmp_path / "keys", "alice", "bob") as federation:
        server = federation.serve(tmp_path / "server", "--rounds", "4")
        clients = [
            federation.client(
                name, tmp_path / name, "--save", tmp_path / f"{name}.npz", trainer=f"hefl.datasets.scikit:{name}", **env
            )
            for name in ("alice", "bob")
        ]
        assert [c.wait() for c in (*clients, server)] == [0, 0, 0], [c.error for c in (*clients, server)]
    last = [e["metrics"] for e in clients[0].events if e["event"] == "round"][-1]
    assert last["accuracy"] > 0.94
    models = [np.load(tmp_path / f"{name}.npz", allow_pickle=False) for name in ("alice", "bob")]
    assert models[0].files == ["coef_", "intercept_"]
    assert models[0]["coef_"].shape == (1, 30)
    assert same(*([model[name] for name in model.files] for model in models))
