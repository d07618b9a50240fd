"""Plans: sizes, bounds and weights."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hefl.ckks.blocks import lane_layout
from hefl.ckks.plan import choose_plan, largest_total, reduce_weights, weights_in
from hefl.errors import ParametersError
from hefl.params import RINGS

VALUES = 1_663_370
totals = st.one_of(st.integers(1, 2**16), st.sampled_from([1, 2, 3, 2**15, 2**15 + 1, 2**16 - 1, 2**16]))


@pytest.mark.parametrize(("weights", "most"), [((1, 1, 1), 3.65), ((512, 733, 1201), 5.3)])
def test_updates_and_sums_are_small(weights: tuple[int, ...], most: float) -> None:
    plan = choose_plan(VALUES, 24, reduce_weights(dict(zip("abc", weights, strict=True))).total)
    assert plan.update_bytes <= most * VALUES
    assert plan.aggregate_bytes(3) <= most * VALUES


@given(values=st.integers(1, 2**33), precision=st.integers(8, 40), total=totals)
def test_no_field_overflows(values: int, precision: int, total: int) -> None:
    plan = choose_plan(values, precision, total)
    layout = lane_layout(plan)  # refuses what does not fit, or whose words could overflow
    assert total * (2 ** (precision - 1) - 1) < 2 ** (plan.width_bits - 1)
    assert 21 * total < 2 ** (plan.margin_bits - 1)
    assert 2 ** (plan.margin_bits + plan.lanes * plan.width_bits) <= layout.basis.modulus
    assert plan.width_bits <= 63
    assert plan.limbs <= len(plan.ring.limb_bits) <= 14
    assert layout.basis.limbs <= 2 ** (32 - plan.limb_bits)
    assert max(layout.basis.primes) < 2 * min(layout.basis.primes)
    assert (plan.blocks - 1) * plan.values_per_block < values <= plan.blocks * plan.values_per_block


@given(values=st.integers(1, 2**22), precision=st.integers(8, 40), total=totals, data=st.data())
def test_no_other_ring_or_number_of_limbs_takes_fewer_bytes(
    values: int, precision: int, total: int, data: st.DataObject
) -> None:
    ring = data.draw(st.sampled_from(RINGS))
    limbs = data.draw(st.integers(1, len(ring.limb_bits)))
    width = precision + (total - 1).bit_length()
    lanes = (sum(ring.limb_bits[:limbs]) - 1 - ((21 * total).bit_length() + 1)) // width
    if lanes >= 1:
        blocks = -(-values // (lanes * ring.degree))
        ciphertexts = blocks * limbs * ring.degree * ring.limb_bits[0] // 8
        plan = choose_plan(values, precision, total)
        assert plan.update_bytes <= ciphertexts + 32 + -(-3 * limbs * ring.limb_bits[0] // 8)


def test_every_ring_keeps_its_security_cap() -> None:
    caps = {4096: 106, 8192: 214, 16384: 430}
    for ring in RINGS:
        assert sum(ring.chain) <= caps[ring.degree]


@pytest.mark.parametrize(
    ("values", "precision", "total", "message"),
    [
        (0, 24, 1, "values"),
        (2**33 + 1, 24, 1, "values"),
        (1, 7, 1, "precision must be from 8 to 40 bits, got 7"),
        (1, 41, 1, "precision"),
        (1, 24, 0, "total weight"),
        (1, 24, 2**16 + 1, "total weight"),
    ],
)
def test_numbers_out_of_bounds_are_refused(values: int, precision: int, total: int, message: str) -> None:
    with pytest.raises(ParametersError, match=message):
        choose_plan(values, precision, total)


def test_a_sum_takes_no_more_memory_than_float32_values() -> None:
    assert choose_plan(VALUES, 24, 3).sum_bytes < 1.1 * 4 * VALUES


def test_weights_are_divided_by_their_greatest_common_divisor() -> None:
    weights = reduce_weights({"a": 600, "b": 1200, "c": 300})
    assert (weights.of, weights.total, weights.off_by) == ({"a": 2, "b": 4, "c": 1}, 7, 0.0)


def test_weights_are_exact_up_to_the_budget() -> None:
    weights = reduce_weights({"a": 2**16 - 1, "b": 1})
    assert (weights.of, weights.off_by) == ({"a": 2**16 - 1, "b": 1}, 0.0)
    assert reduce_weights({"a": 2**16, "b": 1}).off_by > 0


def test_beyond_the_budget_the_largest_remainders_are_rounded_up() -> None:
    # Shares of 10: 5.5, 2.75 and 1.75 of 40 examples; two are left over after rounding down.
    weights = reduce_weights({"a": 22, "b": 11, "c": 7}, budget=10)
    assert weights.of == {"a": 5, "b": 3, "c": 2}
    assert weights.off_by == pytest.approx(max(abs(5 / 5.5 - 1), 3 / 2.75 - 1, 2 / 1.75 - 1))


def test_no_client_is_rounded_to_nothing() -> None:
    weights = reduce_weights({"large": 2**40, "small": 1, "other": 3})
    assert weights.of["small"] == weights.of["other"] == 1
    assert weights.total == 2**16


@given(st.lists(st.integers(1, 2**40), min_size=1, max_size=50))
def test_reduced_weights_are_positive_within_the_budget_and_in_order(numbers: list[int]) -> None:
    examples = {str(i): n for i, n in enumerate(numbers)}
    weights = reduce_weights(examples)
    assert list(weights.of) == list(examples)
    assert weights.total == sum(weights.of.values()) <= 2**16
    assert min(weights.of.values()) >= 1
    for a in examples:
        for b in examples:
            assert weights.of[a] <= weights.of[b] or examples[a] >= examples[b]
    if len(numbers) == 1:
        assert weights.total == 1


@pytest.mark.parametrize("examples", [{}, {"a": 0}, {"a": 1, "b": -1}, {str(i): 1 for i in range(1025)}], ids=len)
def test_weights_that_are_none_are_refused(examples: dict[str, int]) -> None:
    with pytest.raises(ParametersError, match="weights need"):
        reduce_weights(examples)


def test_a_client_that_is_announced_and_sends_nothing_changes_no_weight() -> None:
    announced = {"ghost": 2**40, "large": 30_000, "small": 10}
    assert weights_in(announced).of == {"ghost": 2**16 - 2, "large": 1, "small": 1}
    weights = weights_in(announced, ["large", "small"])
    assert (weights.of, weights.off_by) == ({"large": 3000, "small": 1}, 0.0)


announcements = st.lists(st.one_of(st.integers(1, 60), st.integers(1, 2**40)), min_size=2, max_size=12).map(
    lambda numbers: {f"client-{i:02}": n for i, n in enumerate(numbers)}
)


@given(announced=announcements, data=st.data())
def test_every_sum_of_announced_clients_fits_the_plan_and_is_weighed_by_its_members(
    announced: dict[str, int], data: st.DataObject
) -> None:
    members = data.draw(st.lists(st.sampled_from(list(announced)), min_size=1, unique=True))
    weights, total = weights_in(announced, members), sum(announced[name] for name in members)
    assert list(weights.of) == [name for name in announced if name in members]
    assert sum(weights.of.values()) == weights.total <= largest_total(announced) <= 2**16
    for name, weight in weights.of.items():
        off = Fraction(weight * total, weights.total * announced[name]) - 1
        assert weights.off[name] == pytest.approx(float(off))
    if total // math.gcd(*announced.values()) <= 2**16:
        assert weights.off_by == 0


@given(announced=announcements, data=st.data())
def test_where_nothing_is_rounded_a_weight_is_the_same_whoever_is_missing(
    announced: dict[str, int], data: st.DataObject
) -> None:
    """So the server need not add again."""
    if sum(announced.values()) // math.gcd(*announced.values()) <= 2**16:
        members = data.draw(st.lists(st.sampled_from(list(announced)), min_size=1, unique=True))
        assert weights_in(announced, members).of.items() <= weights_in(announced).of.items()
