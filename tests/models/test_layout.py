from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pytest
from builders import Array
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from hefl.errors import LayoutError
from hefl.models.layout import Kind, Layout, Tensor, describe
from hefl.params import MAX_METRICS

FLOATS = ("float16", "float32", "float64")
INTEGERS = ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64")
SHAPES = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)


def arrays_of(dtypes: tuple[str, ...]) -> st.SearchStrategy[list[Array]]:
    one = st.sampled_from(dtypes).flatmap(lambda dtype: hnp.arrays(dtype, SHAPES))
    return st.lists(one, min_size=1, max_size=5).filter(lambda arrays: any(a.size for a in arrays))


def whole(bound: int) -> Callable[[str], st.SearchStrategy[Array]]:
    def of(dtype: str) -> st.SearchStrategy[Array]:
        info = np.iinfo(dtype)
        return hnp.arrays(dtype, SHAPES, elements=st.integers(max(info.min, -bound), min(info.max, bound)))

    return of


def described(arrays: list[Array]) -> Layout:
    """With whole numbers as counts."""
    return describe(arrays, [], None, ["integer" if a.dtype.kind in "iu" else None for a in arrays])


# --- bytes and vectors ------------------------------------------------------------------------------------------------


@given(arrays_of(FLOATS + INTEGERS))
def test_words_give_every_array_back_to_the_bit(arrays: list[Array]) -> None:
    layout = described(arrays)
    back = layout.from_words(layout.to_words(arrays))
    assert [(a.dtype, a.shape, a.tobytes()) for a in back] == [(a.dtype, a.shape, a.tobytes()) for a in arrays]


@given(arrays_of(FLOATS + INTEGERS))
def test_words_are_the_little_endian_bytes_one_after_the_other(arrays: list[Array]) -> None:
    layout = described(arrays)
    data = b"".join(a.astype(a.dtype.newbyteorder("<")).tobytes() for a in arrays)
    data += bytes(len(data) % 2)
    assert layout.to_words(arrays).tolist() == [
        int.from_bytes(data[i : i + 2], "little") for i in range(0, len(data), 2)
    ]
    assert layout.nbytes == sum(a.nbytes for a in arrays)


@pytest.mark.parametrize("arrange", [np.asfortranarray, lambda a: a.astype(">f4"), lambda a: a[::-1][::-1]])
def test_memory_order_does_not_reach_the_vector(arrange: Callable[[Array], Array]) -> None:
    plain = np.arange(6, dtype=np.float32).reshape(2, 3)
    layout = describe([plain], [])
    assert layout.flatten([arrange(plain)]).tolist() == list(range(6))
    assert layout.to_words([arrange(plain)]).tolist() == layout.to_words([plain]).tolist()


@given(arrays_of(FLOATS))
def test_flattened_floats_unflatten_to_the_same(arrays: list[Array]) -> None:
    layout = described(arrays)
    vector = layout.flatten(arrays)
    assert vector.dtype == np.float64
    assert vector.shape == (layout.size,)
    for back, array in zip(layout.unflatten(vector), arrays, strict=True):
        assert back.dtype == array.dtype
        np.testing.assert_array_equal(back, array)


@given(st.lists(st.sampled_from(INTEGERS).flatmap(whole(2**53)), min_size=1, max_size=4))
def test_flattened_integers_unflatten_to_the_same(arrays: list[Array]) -> None:
    arrays = [*arrays, np.ones(1, np.int8)]
    layout = described(arrays)
    for back, array in zip(layout.unflatten(layout.flatten(arrays)), arrays, strict=True):
        assert back.dtype == array.dtype
        assert back.tolist() == array.tolist()


@given(st.lists(st.integers(-1000, 1000), min_size=1, max_size=8))
def test_integer_means_are_rounded_half_to_even(halves: list[int]) -> None:
    layout = described([np.zeros(len(halves), np.int64)])
    (back,) = layout.unflatten(np.array(halves) / 2)
    assert back.tolist() == [round(half / 2) for half in halves]


def test_unflattened_arrays_do_not_share_the_vectors_memory() -> None:
    layout = describe([np.zeros(2), np.zeros(2)], [])
    vector = np.ones(4)
    back = layout.unflatten(vector)
    vector[:] = 5
    assert [a.tolist() for a in back] == [[1, 1], [1, 1]]


@given(arrays_of(FLOATS))
def test_locate_names_the_tensor_and_the_index_of_every_value(arrays: list[Array]) -> None:
    layout = described(arrays)
    flat = [f"tensor '{i}', index {index}" for i, a in enumerate(arrays) for index in np.ndindex(a.shape)]
    assert [layout.locate(i) for i in range(layout.size)] == flat
    with pytest.raises(IndexError):
        layout.locate(layout.size)


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("came", "message"),
    [
        ([np.zeros(2, np.float32)], "has 2 tensors, and 1 came"),
        (
            [np.zeros(2, np.float32), np.zeros((2, 2), np.float64)],
            r"'b' is float32 \(2, 2\), and float64 \(2, 2\) came",
        ),
        ([np.zeros(3, np.float32), np.zeros(4, np.float32)], r"'a' is float32 \(2,\), and float32 \(3,\) came"),
        ([np.zeros(2, np.float32), np.zeros(4, np.float32)], r"'b' is float32 \(2, 2\), and float32 \(4,\) came"),
    ],
)
def test_arrays_of_another_layout_are_refused_and_the_first_is_named(came: list[Array], message: str) -> None:
    layout = describe([np.zeros(2, np.float32), np.zeros((2, 2), np.float32)], [], ["a", "b"])
    for use in (layout.check, layout.flatten, layout.to_words):
        with pytest.raises(LayoutError, match=message):
            use(came)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros(2, bool),
        np.zeros(2, complex),
        np.array(["text"]),
        np.array([None], object),
        np.zeros(2, "timedelta64"),
        np.zeros(2, np.longdouble),
    ],
)
def test_a_dtype_without_a_mean_is_refused_by_name(array: Array) -> None:
    with pytest.raises(LayoutError, match=f"'odd' is {array.dtype.name}"):
        describe([np.zeros(1), array], [], ["good", "odd"])


@pytest.mark.parametrize("dtype", INTEGERS)
def test_several_whole_numbers_are_refused_by_name_unless_they_are_said_to_be_counts(dtype: str) -> None:
    """The bytes of a boosted model, say, have no mean."""
    array = np.frombuffer(bytes(range(32)), dtype)
    with pytest.raises(LayoutError, match=f"tensor 'trees' is {dtype} .* not averaged") as caught:
        describe([np.zeros(1), array], [], ["good", "trees"])
    assert "boosted model" in str(caught.value.hint)
    assert describe([array], [], None, ["integer"]).tensors[0].kind == "integer"
    for counter in (array[:0], array[:1], array[:1].reshape(())):
        assert describe([np.zeros(1), counter], []).tensors[1].kind == "integer"


@pytest.mark.parametrize("arrays", [[], [np.zeros((0, 3))]])
def test_a_model_without_a_value_is_refused(arrays: list[Array]) -> None:
    with pytest.raises(LayoutError, match="0 values"):
        describe(arrays, ["loss"])


def test_two_tensors_of_one_name_are_refused() -> None:
    with pytest.raises(LayoutError, match="'a'"):
        describe([np.zeros(1)] * 3, [], ["a", "b", "a"])


@pytest.mark.parametrize(("names", "kinds"), [(["a"], None), (None, ["parameter"] * 3), (["a", "b", "c"], None)])
def test_names_and_kinds_come_one_for_each_array(names: list[str] | None, kinds: list[Kind | None] | None) -> None:
    with pytest.raises(LayoutError, match="2 arrays"):
        describe([np.zeros(1)] * 2, [], names, kinds)


@pytest.mark.parametrize(("dtype", "kind"), [("float32", "integer"), ("int32", "parameter"), ("uint8", "buffer")])
def test_a_kind_that_contradicts_the_dtype_is_refused(dtype: str, kind: Kind) -> None:
    with pytest.raises(LayoutError, match=f"{dtype} and cannot be of kind '{kind}'"):
        describe([np.zeros(1, dtype)], [], None, [kind])


def test_names_and_kinds_have_defaults() -> None:
    layout = describe(
        [np.zeros(1, np.float32), np.zeros((), np.int64), np.zeros(2)], ["loss"], None, [None, None, "buffer"]
    )
    assert layout == Layout(
        (
            Tensor("0", "float32", (1,), "parameter"),
            Tensor("1", "int64", (), "integer"),
            Tensor("2", "float64", (2,), "buffer"),
        ),
        ("loss",),
    )


def test_as_many_metrics_as_may_travel_and_no_more() -> None:
    describe([np.zeros(1)], [str(i) for i in range(MAX_METRICS)])
    with pytest.raises(LayoutError, match=str(MAX_METRICS + 1)):
        describe([np.zeros(1)], [str(i) for i in range(MAX_METRICS + 1)])


# --- comparing layouts ------------------------------------------------------------------------------------------------

NAMED = [Tensor(name, "float32", (2, 3), "parameter") for name in "abcd"]
CHANGES: list[dict[str, Any]] = [{"name": "z"}, {"dtype": "float64"}, {"shape": (3, 2)}, {"kind": "buffer"}]


@given(st.data(), st.sampled_from(CHANGES))
def test_the_first_tensor_that_differs_is_named_from_both_sides(data: st.DataObject, change: dict[str, Any]) -> None:
    places = sorted(data.draw(st.sets(st.integers(0, 3), min_size=1)))
    there = [msgspec.structs.replace(t, **change) if i in places else t for i, t in enumerate(NAMED)]
    first = places[0]
    assert Layout(tuple(NAMED), ()).difference(Layout(tuple(there), ("loss",))) == (
        f"tensor {first + 1} is {NAMED[first]} here and {there[first]} there"
    )


@pytest.mark.parametrize("length", range(4))
def test_a_tensor_too_many_is_named_with_its_side(length: int) -> None:
    long, short = Layout(tuple(NAMED), ()), Layout(tuple(NAMED[:length]), ())
    assert long.difference(short) == f"tensor {NAMED[length]} is here and not there"
    assert short.difference(long) == f"tensor {NAMED[length]} is there and not here"


def test_metrics_that_differ_are_named_and_equal_layouts_have_no_difference() -> None:
    here, there = Layout(tuple(NAMED), ("loss", "accuracy")), Layout(tuple(NAMED), ("loss", "f1"))
    assert here.difference(there) == "the metrics are loss, accuracy here and loss, f1 there"
    assert here.difference(Layout(tuple(NAMED), ("loss", "accuracy"))) is None
