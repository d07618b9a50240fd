from __future__ import annotations

import pickle
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from hefl.errors import HeflError, LayoutError, ModelFileError, UsageError
from hefl.models.file import SUFFIXES, read_model, write_model
from hefl.models.layout import Layout, describe

ARRAYS: list[Any] = [
    np.arange(6, dtype=np.float32).reshape(2, 3).T,  # not contiguous
    np.array(7, np.int64),
    np.array([0.1, -0.2]),
    np.array([1.5], np.float16),
]
NAMES = ["layer.weight", "steps", "bias", "a/b"]


@pytest.fixture
def layout() -> Layout:
    return describe(ARRAYS, ["loss"], NAMES)


def saved(path: Path, arrays: dict[str, Any]) -> Path:
    """A file that hefl did not write."""
    if path.suffix == ".npz":
        with path.open("wb") as file:
            np.savez(file, allow_pickle=True, **arrays)
    else:
        save_file({name: array.copy(order="C") for name, array in arrays.items()}, path)
    return path


def named(**changes: Any) -> dict[str, Any]:
    """Arrays that fit, with others in the place of some; None leaves one out."""
    arrays = dict(zip(NAMES, ARRAYS, strict=True)) | changes
    return {name: array for name, array in arrays.items() if array is not None}


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_model_comes_back_to_the_bit_and_others_can_read_it(layout: Layout, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"model{suffix}"
    write_model(path, layout, ARRAYS)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    others = dict(np.load(path, allow_pickle=False)) if suffix == ".npz" else load_file(path)
    for mine, name, array in zip(read_model(path, layout), NAMES, ARRAYS, strict=True):
        for back in (mine, others[name]):
            assert (back.dtype, back.shape, back.tobytes()) == (array.dtype, array.shape, array.tobytes())


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_order_in_the_file_does_not_matter(layout: Layout, tmp_path: Path, suffix: str) -> None:
    path = saved(tmp_path / f"model{suffix}", dict(reversed(named().items())))
    assert [a.tobytes() for a in read_model(path, layout)] == [a.tobytes() for a in ARRAYS]


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"bias": None}, "there is no 'bias' in the file"),
        ({"steps": None, "step": np.array(7)}, "there is no 'steps' in the file; there is 'step'"),
        ({"more": np.ones(1)}, "the trainer has no tensor 'more'"),
        ({"bias": np.ones(3)}, r"'bias' is float64 \(3,\) in the file, and float64 \(2,\) in the trainer"),
        ({"bias": np.ones(2, np.float32)}, r"'bias' is float32 \(2,\) in the file, and float64 \(2,\)"),
        ({"steps": np.array([7])}, r"'steps' is int64 \(1,\) in the file, and int64 \(\)"),
    ],
)
def test_another_model_is_refused_and_the_first_difference_named(
    layout: Layout, tmp_path: Path, suffix: str, changes: dict[str, Any], text: str
) -> None:
    path = saved(tmp_path / f"model{suffix}", named(**changes))
    with pytest.raises(LayoutError, match=text) as caught:
        read_model(path, layout)
    assert str(path) in caught.value.message
    assert caught.value.hint


class Bomb:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("boom"),))


def test_nothing_that_a_file_holds_is_run(layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pickled = tmp_path / "pickled.npz"
    pickled.write_bytes(pickle.dumps(Bomb()))
    for path in (saved(tmp_path / "object.npz", named(steps=np.array(Bomb(), object))), pickled):
        with pytest.raises(ModelFileError, match=r"is no \.npz file of numeric arrays"):
            read_model(path, layout)
    assert not (tmp_path / "boom").exists()


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_damaged_file_is_refused_at_every_length(layout: Layout, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"model{suffix}"
    write_model(path, layout, ARRAYS)
    whole = path.read_bytes()
    for length in [*range(0, len(whole), 37), len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises((ModelFileError, LayoutError), match="model"):
            read_model(path, layout)


def test_one_array_is_no_model(layout: Layout, tmp_path: Path) -> None:
    with (tmp_path / "one.npz").open("wb") as file:
        np.save(file, ARRAYS[0])
    with pytest.raises(ModelFileError, match="one array, and no archive"):
        read_model(tmp_path / "one.npz", layout)


def test_a_name_of_another_kind_or_of_nothing_is_refused(layout: Layout, tmp_path: Path) -> None:
    kinds: list[tuple[str, type[HeflError], str]] = [
        ("model.pt", UsageError, "ends in .npz or .safetensors"),
        ("model", UsageError, "ends in .npz or .safetensors"),
        ("missing.npz", UsageError, "does not exist"),
        ("missing.safetensors", UsageError, "does not exist"),
        ("folder.npz", ModelFileError, "cannot be read"),
        ("folder.safetensors", ModelFileError, "cannot be read"),
    ]
    for suffix in SUFFIXES:
        (tmp_path / f"folder{suffix}").mkdir()
    for name, kind, text in kinds:
        with pytest.raises(kind, match=text):
            read_model(tmp_path / name, layout)
    with pytest.raises(UsageError, match="ends in"):
        write_model(tmp_path / "model.pt", layout, ARRAYS)
