from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hefl.datasets.partition import DRAWS, Partition, _dirichlet
from hefl.errors import UsageError

LABELS = st.lists(st.integers(0, 4), min_size=4, max_size=300).map(np.array)
PARTITIONS = st.one_of(st.just(Partition()), st.floats(1e-3, 1e3).map(Partition))


@given(labels=LABELS, count=st.integers(1, 12), partition=PARTITIONS, seed=st.integers(0, 2**32 - 1))
def test_parts_are_disjoint_cover_all_rows_and_have_two_each_or_none_is_made(
    labels: np.ndarray, count: int, partition: Partition, seed: int
) -> None:
    try:
        parts = partition.share(labels, count, np.random.RandomState(seed))
    except UsageError as error:
        # Even parts fail only where there are too few rows; others also where a label cannot be cut so.
        assert partition.alpha is not None or len(labels) < 2 * count
        assert "at least 2" in error.message
        return
    assert len(parts) == count
    assert min(map(len, parts)) >= 2
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(len(labels)))
    again = partition.share(labels, count, np.random.RandomState(seed))
    assert all((a == b).all() for a, b in zip(parts, again, strict=True))


@given(labels=LABELS, count=st.integers(1, 12), seed=st.integers(0, 2**32 - 1))
def test_even_parts_differ_by_one_row_at_most(labels: np.ndarray, count: int, seed: int) -> None:
    if len(labels) < 2 * count:
        return
    sizes = [len(part) for part in Partition().share(labels, count, np.random.RandomState(seed))]
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("alpha", [0.05, 0.3, 1.0, 20.0])
def test_a_labels_shares_are_dirichlet_distributed(alpha: float) -> None:
    """By the mean and the variance of each share, which numpy's own sampler has too."""
    generator, count, draws = np.random.RandomState(1), 5, 20_000
    shares = np.array([_dirichlet(count, alpha, generator) for _ in range(draws)])
    theirs = np.random.default_rng(2).dirichlet(np.full(count, alpha), draws)
    np.testing.assert_allclose(shares.sum(axis=1), 1)
    np.testing.assert_allclose(shares.mean(axis=0), 1 / count, atol=0.02)
    variance = (1 / count) * (1 - 1 / count) / (count * alpha + 1)
    np.testing.assert_allclose(shares.var(axis=0), variance, rtol=0.08)
    np.testing.assert_allclose(np.quantile(shares, (0.5, 0.9)), np.quantile(theirs, (0.5, 0.9)), rtol=0.1, atol=0.01)


def test_a_small_alpha_gives_clients_few_labels_and_a_large_one_nearly_equal_mixtures() -> None:
    labels = np.tile(np.arange(10), 200)

    def spread(alpha: float) -> float:
        parts = Partition(alpha).share(labels, 5, np.random.RandomState(3))
        counts = np.array([np.bincount(labels[part], minlength=10) for part in parts])
        return float((counts.max(axis=0) / 200).mean())

    assert spread(0.01) > 0.9
    assert spread(1000.0) < 0.25


@pytest.mark.parametrize("alpha", [1e-300, 1e-9, 1e300, 1.7e308])
def test_extreme_alphas_overflow_nothing(alpha: float) -> None:
    labels = np.tile(np.arange(10), 20)
    parts = Partition(alpha).share(labels, 3, np.random.RandomState(0))
    assert sum(map(len, parts)) == 200


def test_an_impossible_partition_names_the_client_that_is_left_without() -> None:
    labels = np.zeros(100, np.int64)
    with pytest.raises(UsageError, match=r"dirichlet:1e-09 of 100 .* leaves client (alice|bob) \(part [12] of 2\) 0;"):
        Partition(1e-9).share(labels, 2, np.random.RandomState(0), {1: "alice", 2: "bob"})
    with pytest.raises(UsageError, match=r"iid of 100 .* leaves client zoe \(part 51 of 51\) 1; .* at least 2"):
        Partition().share(labels, 51, np.random.RandomState(0), {51: "zoe"})
    with pytest.raises(UsageError, match="leaves part 50 of 51 1;"):
        Partition(1e6).share(labels, 51, np.random.RandomState(0), {1: "alice"})


def test_a_partition_is_redrawn_until_every_part_has_enough() -> None:
    """Two rows of one label for two clients: only the one even cut will do, which few draws find."""
    labels = np.zeros(4, np.int64)
    found = [len(Partition(1.0).share(labels, 2, np.random.RandomState(seed))[0]) for seed in range(20)]
    assert found == [2] * 20
    assert DRAWS >= 100


@pytest.mark.parametrize("text", ["iid", "dirichlet:0.3", "dirichlet:1", "dirichlet:1e-3"])
def test_a_partition_reads_what_it_writes(text: str) -> None:
    partition = Partition.parse(text)
    assert Partition.parse(str(partition)) == partition
    assert partition.alpha == (None if text == "iid" else float(text.removeprefix("dirichlet:")))


@pytest.mark.parametrize(
    "text",
    [
        *("", "IID", "iid:", "iid:1", "dirichlet", "dirichlet:", "dirichlet:0", "dirichlet:-1", "dirichlet:x"),
        *("dirichlet:nan", "dirichlet:inf", "dirichlet:1e400", "shards:2", "0.3"),
    ],
)
def test_other_forms_of_a_partition_are_a_usage_error(text: str) -> None:
    with pytest.raises(UsageError, match="iid, or dirichlet:ALPHA"):
        Partition.parse(text)
