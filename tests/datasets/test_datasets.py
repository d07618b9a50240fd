from __future__ import annotations

import re

import numpy as np
import pytest
import sklearn.datasets
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hefl.datasets import load_example
from hefl.datasets.data import BREAST_CANCER_RANGES, WINE_RANGES, Split, load_parts
from hefl.datasets.partition import Partition
from hefl.errors import UsageError
from hefl.models.torch import TorchTrainer
from hefl.params import DATA_SETS

CONFIG = {"round": 1, "seed": 0, "client": "alice"}
ROWS = {"iris": 150, "digits": 1797, "breast_cancer": 569, "wine": 178}
EVENLY = Partition()


def test_iris_is_split_as_documented() -> None:
    features, labels = sklearn.datasets.load_iris(return_X_y=True)
    order = np.random.RandomState(42).permutation(150)
    for split, rows in zip(load_parts("iris", 2, EVENLY), (order[30:90], order[90:]), strict=True):
        np.testing.assert_array_equal(split.features, features[rows].astype(np.float32))
        np.testing.assert_array_equal(split.labels, labels[rows])
        np.testing.assert_array_equal(split.validation_features, features[order[:30]].astype(np.float32))


def rows_of(split: Split) -> list[bytes]:
    return [bytes(row) + bytes([label]) for row, label in zip(split.features, split.labels, strict=True)]


@pytest.mark.parametrize("name", DATA_SETS)
@settings(max_examples=10)
@given(count=st.integers(1, 9), alpha=st.sampled_from([None, 0.3, 5.0]), data_seed=st.integers(0, 2**32 - 1))
def test_the_parts_are_all_of_the_training_rows_once_and_the_first_fifth_validates_for_everyone(
    name: str, count: int, alpha: float | None, data_seed: int
) -> None:
    parts = load_parts(name, count, Partition(alpha), data_seed=data_seed)
    (whole,) = load_parts(name, 1, EVENLY, data_seed=data_seed)
    assert len(whole.validation_labels) == ROWS[name] // 5
    assert len(whole.labels) == ROWS[name] - ROWS[name] // 5
    # As rows with their labels, of which some data sets have a few twice.
    assert sorted(row for part in parts for row in rows_of(part)) == sorted(rows_of(whole))
    for part in parts:
        np.testing.assert_array_equal(part.validation_features, whole.validation_features)
        np.testing.assert_array_equal(part.validation_labels, whole.validation_labels)
        assert part.classes == len(np.unique(np.concatenate([whole.labels, whole.validation_labels])))
        assert len(part.labels) >= 2


def test_a_partition_is_the_same_on_every_machine() -> None:
    """As it was when this was written: clients of one training may run different versions."""
    labels = [np.bincount(part.labels, minlength=10).tolist() for part in load_parts("digits", 5, Partition(0.3))]
    assert labels == [
        [98, 145, 6, 85, 57, 1, 13, 0, 5, 5],
        [0, 0, 14, 6, 10, 20, 8, 105, 70, 88],
        [24, 0, 17, 19, 1, 43, 18, 21, 28, 0],
        [22, 5, 31, 26, 66, 41, 10, 16, 38, 8],
        [1, 4, 76, 13, 1, 31, 97, 3, 3, 39],
    ]


def test_tables_are_scaled_by_the_ranges_that_their_descriptions_publish() -> None:
    for name, ranges in (("breast_cancer", BREAST_CANCER_RANGES), ("wine", WINE_RANGES)):
        text = getattr(sklearn.datasets, f"load_{name}")().DESCR
        table = text[text.index("Summary Statistics") : text.index("Missing Attribute")]
        published = [(float(a), float(b)) for a, b in re.findall(r":\s+([\d.]+)\s+([\d.]+)", table)]
        assert list(ranges) == published
        (split,) = load_parts(name, 1, EVENLY)
        assert -1 <= split.features.min() <= split.features.max() <= 1.02
        rows, _ = getattr(sklearn.datasets, f"load_{name}")(return_X_y=True)
        raw = rows[np.random.RandomState(42).permutation(len(rows))[len(rows) // 5]]
        low, high = np.array(published).T
        expected = [2 * np.sqrt(max(0.0, (x - a) / (b - a))) - 1 for x, a, b in zip(raw, low, high, strict=True)]
        np.testing.assert_allclose(split.features[0], expected, rtol=1e-5, atol=1e-6)


def trained(trainer: TorchTrainer) -> bytes:
    arrays, _, _ = trainer.fit(list(trainer.get_parameters(CONFIG)), CONFIG)
    return b"".join(array.tobytes() for array in arrays)


def test_alice_and_bob_are_the_halves_and_no_part_is_everything() -> None:
    for name, part in (("iris:alice", "iris:1/2"), ("iris:bob", "iris:2/2"), ("iris", "iris:1/1")):
        assert trained(load_example(name, seed=0)) == trained(load_example(part, seed=0))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        *((spec, "takes NAME or NAME:PART with NAME one of iris, digits, breast_cancer, wine, got '") for spec in (
            "", ":", "iris:", "mnist", "iris:carol", "iris:0/2", "iris:1/0", "iris:1", "iris:1/2/3", "iris:-1/2",
            "iris: 1/2", "digits:1/10000", "Iris:1/2",
        )),
        ("digits:6/5", "there is no part 6 of 5"),
    ],
)  # fmt: skip
def test_other_forms_of_data_are_a_usage_error(spec: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_example(spec, seed=0)


def test_a_client_that_the_data_does_not_suffice_for_is_named() -> None:
    with pytest.raises(UsageError, match=r"leaves client carol \(part 61 of 61\) 1; every client needs at least 2"):
        load_example("iris:61/61", seed=0, client="carol")
    with pytest.raises(UsageError, match=r"dirichlet:0\.001 of 120 .* leaves part \d+ of 30 0"):
        load_example("iris:1/30", seed=0, partition="dirichlet:0.001")


def test_the_model_on_iris_is_the_documented_one() -> None:
    made = load_example("iris:1/2", seed=3)
    arrays = made.get_parameters(CONFIG)
    assert [a.shape for a in arrays] == [(32, 4), (32,), (32, 32), (32,), (3, 32), (3,)]
    assert sum(a.size for a in arrays) == 1315
    for weight, bias in zip(arrays[::2], arrays[1::2], strict=True):
        assert not bias.any()
        assert weight.std() == pytest.approx(1 / np.sqrt(weight.size), rel=0.2)
    assert made.num_examples == 60


@pytest.mark.parametrize("name", DATA_SETS)
def test_fit_repeats_bit_for_bit_and_depends_on_its_parameters(name: str) -> None:
    made, twin = load_example(f"{name}:1/2", seed=0), load_example(f"{name}:1/2", seed=1)
    arrays = made.get_parameters(CONFIG)
    first = made.fit(arrays, CONFIG)[0]
    made.fit(first, CONFIG)
    torch.rand(7)
    again, other = made.fit(arrays, CONFIG)[0], twin.fit(arrays, CONFIG)[0]
    assert all((a == b).all() and (a == c).all() for a, b, c in zip(first, again, other, strict=True))
    assert any((a != b).any() for a, b in zip(first, arrays, strict=True))
    assert any((a != b).any() for a, b in zip(arrays, twin.get_parameters(CONFIG), strict=True))


def test_the_network_on_digits_averages_its_running_statistics() -> None:
    made = load_example("digits:1/5", seed=0)
    kinds = dict(zip(made.names, made.kinds, strict=True))
    assert {name.rpartition(".")[2]: kind for name, kind in kinds.items() if name.startswith("2.")} == {
        "weight": "parameter",
        "bias": "parameter",
        "running_mean": "buffer",
        "running_var": "buffer",
        "num_batches_tracked": "integer",
    }
    assert len(made.names) == 16


def test_batch_normalisation_meets_no_batch_of_one() -> None:
    """17 rows in batches of 16 would leave one row."""
    made = load_example("digits:1/84", seed=0)
    assert made.num_examples in (17, 18)
    arrays = made.fit(list(made.get_parameters(CONFIG)), CONFIG)[0]
    batches = arrays[made.names.index("2.num_batches_tracked")]
    assert batches == 2
    assert all(np.isfinite(array).all() for array in arrays)


@pytest.mark.parametrize("name", DATA_SETS)
def test_a_part_that_lacks_labels_trains_the_whole_model(name: str) -> None:
    parts = load_parts(name, 5, Partition(0.1))
    index = next(i for i, part in enumerate(parts) if len(np.unique(part.labels)) < part.classes) + 1
    lacking = load_example(f"{name}:{index}/5", seed=0, partition="dirichlet:0.1")
    full = load_example(name, seed=0)
    arrays = lacking.fit(list(lacking.get_parameters(CONFIG)), CONFIG)[0]
    assert [a.shape for a in arrays] == [a.shape for a in full.get_parameters(CONFIG)]
    loss, _, metrics = lacking.evaluate(arrays, CONFIG)
    assert np.isfinite(loss)
    assert 0 <= metrics["accuracy"] <= 1
