"""A trainer for scikit-learn's LogisticRegression and MLPClassifier. Needs no torch."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.neural_network import MLPClassifier
from threadpoolctl import threadpool_limits

from hefl.errors import TrainerError
from hefl.models.layout import Arrays
from hefl.models.trainer import Config, training_seed


class SklearnTrainer:
    """Trains an estimator: its coefficients are the model.

    Each round trains a new copy of the estimator, with a new optimiser, from the global coefficients, seeded from
    (seed, client, round).

    Args:
        estimator: Not fitted. Its ``max_iter`` counts the iterations of one round (of an MLPClassifier: epochs), for
            which scikit-learn's default is many.
        features: Shape (n, d), scaled by what all clients agree on.
        labels: Shape (n,).
        validation_features: Shape (m, d).
        validation_labels: Shape (m,). Where m is 0, this client adds nothing to the averaged metrics.
        classes: Every label that any client has: a client that lacks some keeps the shapes that all share.
        deterministic: Compute in one thread, so that runs repeat bit for bit on one machine. Otherwise numerical
            libraries use the threads that they are set to.

    Raises:
        TrainerError: The estimator cannot start from given coefficients, there is no row, or a label is not among the
            classes.
    """

    def __init__(
        self,
        estimator: LogisticRegression | MLPClassifier,
        features: ArrayLike,
        labels: ArrayLike,
        validation_features: ArrayLike,
        validation_labels: ArrayLike,
        *,
        classes: ArrayLike,
        deterministic: bool = False,
    ) -> None:
        self.classes = np.unique(np.asarray(classes))
        self._estimator = estimator
        self._threads = 1 if deterministic else None
        self._features, self._labels = np.asarray(features, np.float64), np.asarray(labels)
        self._validation = np.asarray(validation_features, np.float64), np.asarray(validation_labels)
        self._lacking = np.setdiff1d(self.classes, self._labels)
        self._check()
        self._perceptron = isinstance(estimator, MLPClassifier)
        self.num_examples = len(self._labels)
        layers = len(self._parts(self._new(np.random.RandomState(0)))) // 2
        self.names = (
            [f"{part}.{i}" for part in ("coefs_", "intercepts_") for i in range(layers)]
            if self._perceptron
            else ["coef_", "intercept_"]
        )

    def _check(self) -> None:
        made = self._estimator
        if not isinstance(made, (LogisticRegression, MLPClassifier)):
            raise TrainerError(
                f"the estimator is a LogisticRegression or an MLPClassifier, got a {type(made).__name__}",
                hint="for another estimator, write a trainer: see hefl.models.trainer.Trainer",
            )
        if isinstance(made, LogisticRegression) and made.solver == "liblinear":
            raise TrainerError("solver 'liblinear' cannot start from the global model", hint="take 'saga'")
        if isinstance(made, MLPClassifier) and (made.solver == "lbfgs" or made.early_stopping):
            raise TrainerError(
                "an MLPClassifier that trains round by round needs solver 'adam' or 'sgd', and no early_stopping",
                hint="all clients stop alike with 'hefl client --patience'",
            )
        if len(self.classes) < 2 or not len(self._labels):
            raise TrainerError(
                f"at least 2 classes and 1 training row are needed, got {len(self.classes)} and {len(self._labels)}",
                hint="name all classes that any client has, in the same order everywhere, and give each client data",
            )
        unknown = np.setdiff1d(np.concatenate([self._labels, self._validation[1]]), self.classes)
        if len(unknown):
            raise TrainerError(
                f"{len(unknown)} labels of the data are not among the {len(self.classes)} classes",
                hint="name all classes that any client has, in the same order everywhere",
            )
        if len(self._lacking) and getattr(made, "class_weight", None) == "balanced":
            raise TrainerError(
                f"class_weight='balanced' has no weight for the {len(self._lacking)} classes that this client lacks",
                hint="give class_weight as a dictionary that all clients share",
            )

    def get_parameters(self, config: Config) -> Arrays:
        """Initial coefficients, float64: zeros, or an MLPClassifier's random ones."""
        return [part.copy() for part in self._parts(self._new(_generator(config)))]

    def fit(self, parameters: Sequence[NDArray[Any]], config: Config) -> tuple[Arrays, int, dict[str, float]]:
        """Train from ``parameters``."""
        model = self._with(parameters, _generator(config))
        with threadpool_limits(self._threads):
            if self._perceptron:
                for _ in range(self._estimator.max_iter):
                    model.partial_fit(self._features, self._labels)
            else:
                self._fit_logistic(model)
        return self._parts(model), self.num_examples, {}

    def evaluate(self, parameters: Sequence[NDArray[Any]], config: Config) -> tuple[float, int, dict[str, float]]:
        """Log loss and accuracy on the validation rows."""
        features, labels = self._validation
        if not len(labels):
            return np.nan, 0, {"accuracy": np.nan}
        with threadpool_limits(self._threads):
            shares = self.estimator(parameters).predict_proba(features)
        right = (self.classes[shares.argmax(axis=1)] == labels).mean()
        loss = log_loss(labels, shares, labels=self.classes)
        return float(loss), len(labels), {"accuracy": float(right)}

    def estimator(self, parameters: Sequence[NDArray[Any]]) -> Any:
        """A copy of the estimator with these coefficients, ready to predict."""
        return self._with(parameters, np.random.RandomState(0))

    def _new(self, generator: np.random.RandomState) -> Any:
        """A copy of the estimator with initial coefficients, as if it had been fitted."""
        model = clone(self._estimator).set_params(random_state=generator, warm_start=not self._perceptron)
        columns = self._features.shape[1]
        if not self._perceptron:
            rows = len(self.classes) if len(self.classes) > 2 else 1
            model.classes_, model.n_features_in_ = self.classes, columns
            model.coef_, model.intercept_ = np.zeros((rows, columns)), np.zeros(rows)
            return model
        # Coefficients come into being in the first step only: a step so short that it changes none.
        model.set_params(learning_rate_init=np.nextafter(0, 1), batch_size="auto")
        model.partial_fit(self._features[:1], self._labels[:1], classes=self.classes)
        batch_size = self._estimator.batch_size
        model.set_params(
            learning_rate_init=self._estimator.learning_rate_init,
            batch_size=batch_size if batch_size == "auto" else min(batch_size, self.num_examples),
        )
        # partial_fit keeps its optimiser; without one it makes a new one.
        del model._optimizer
        model.t_ = 0
        return model

    def _with(self, parameters: Sequence[NDArray[Any]], generator: np.random.RandomState) -> Any:
        model = self._new(generator)
        for part, given in zip(self._parts(model), parameters, strict=True):
            part[...] = given
        return model

    def _parts(self, model: Any) -> Arrays:
        return [*model.coefs_, *model.intercepts_] if self._perceptron else [model.coef_, model.intercept_]

    def _fit_logistic(self, model: Any) -> None:
        """Fit with a row of no weight for each class that is lacking: scikit-learn takes the classes from the rows."""
        features = np.concatenate([self._features, np.zeros((len(self._lacking), self._features.shape[1]))])
        labels = np.concatenate([self._labels, self._lacking])
        weights = np.repeat([1.0, 0.0], [self.num_examples, len(self._lacking)])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # a round is not meant to be the last one
            model.fit(features, labels, sample_weight=weights)


def _generator(config: Config) -> np.random.RandomState:
    return np.random.RandomState(np.random.MT19937(training_seed(config)))
