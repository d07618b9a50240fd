from __future__ import annotations

import numpy as np
import pytest
from sklearn.datasets import load_iris

from hefl.errors import UsageError
from hefl.examples import load_example
from hefl.examples.data import iris
from hefl.examples.iris import trainer

CONFIG = {"round": 1, "seed": 0, "client": "alice"}


def test_iris_is_split_as_documented() -> None:
    features, labels = load_iris(return_X_y=True)
    order = np.random.RandomState(42).permutation(150)
    for index, rows in ((1, order[30:90]), (2, order[90:])):
        split = iris(index, 2, 42)
        np.testing.assert_array_equal(split.features, features[rows].astype(np.float32))
        np.testing.assert_array_equal(split.labels, labels[rows])
        np.testing.assert_array_equal(split.validation_features, features[order[:30]].astype(np.float32))


def test_the_parts_of_any_number_of_clients_are_all_of_the_training_rows_once() -> None:
    parts = [iris(i + 1, 7, 42).features for i in range(7)]
    assert sum(map(len, parts)) == 120
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    with pytest.raises(UsageError, match="at least 2"):
        iris(61, 61, 42)


def test_alice_and_bob_are_the_halves() -> None:
    for name, part in (("alice", "1/2"), ("bob", "2/2")):
        named, counted = load_example(f"iris:{name}", seed=0), load_example(f"iris:{part}", seed=0)
        first, second = (t.fit(list(t.get_parameters(CONFIG)), CONFIG)[0] for t in (named, counted))
        assert all((a == b).all() for a, b in zip(first, second, strict=True))


def test_the_model_is_the_documented_one() -> None:
    made = trainer(1, 2, seed=3)
    arrays = made.get_parameters(CONFIG)
    assert [a.shape for a in arrays] == [(32, 4), (32,), (32, 32), (32,), (3, 32), (3,)]
    assert sum(a.size for a in arrays) == 1315
    for weight, bias in zip(arrays[::2], arrays[1::2], strict=True):
        assert not bias.any()
        assert weight.std() == pytest.approx(1 / np.sqrt(weight.size), rel=0.2)
    assert made.num_examples == 60


def test_fit_repeats_bit_for_bit_and_depends_on_its_parameters() -> None:
    made, twin = trainer(1, 2, seed=0), trainer(1, 2, seed=1)
    arrays = made.get_parameters(CONFIG)
    first = made.fit(arrays, CONFIG)[0]
    made.fit(first, CONFIG)
    again, other = made.fit(arrays, CONFIG)[0], twin.fit(arrays, CONFIG)[0]
    assert all((a == b).all() and (a == c).all() for a, b, c in zip(first, again, other, strict=True))
    assert any((a != b).any() for a, b in zip(first, arrays, strict=True))
