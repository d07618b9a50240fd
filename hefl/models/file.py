"""Read and write a model as ``.npz`` or ``.safetensors``; neither holds code."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from hefl.errors import ExistsError, LayoutError, ModelFileError, UsageError, reason_of
from hefl.files import check_writable, replacing, storing
from hefl.models.layout import Arrays, Layout

SUFFIXES = (".npz", ".safetensors")


def check_suffix(path: Path) -> None:
    """Refuse a name that says of no known format. Raises UsageError."""
    if path.suffix not in SUFFIXES:
        like = path.with_suffix(".npz") if path.name and not path.is_dir() else path / "model.npz"
        raise UsageError(
            f"a model's file ends in {' or '.join(SUFFIXES)}, got {str(path)!r}",
            hint=f"such as {like}; hefl reads and writes no other kind, and no pickle",
        )


def write_model(
    path: Path,
    layout: Layout,
    arrays: Sequence[NDArray[Any]],
    note: Callable[[os.stat_result], None] = lambda status: None,
) -> None:
    """Write arrays under their tensors' names, in the format that the suffix says, whole or not at all.

    Args:
        path: Where to.
        layout: Names the tensors.
        arrays: One for each.
        note: Is told of the whole file, just before it takes its place.

    Raises:
        UsageError: As check_suffix.
        StateError: It cannot be stored.
    """
    check_suffix(path)
    named = {tensor.name: array for tensor, array in zip(layout.tensors, arrays, strict=True)}
    with storing(f"the model {path}"), replacing(path) as file:
        if path.suffix == ".safetensors":
            # It writes an array's memory as it lies there.
            file.write(save({name: array.copy(order="C") for name, array in named.items()}))
        else:
            _write_npz(file, named)
        file.flush()
        note(os.fstat(file.fileno()))


def _write_npz(file: BinaryIO, named: Mapping[str, NDArray[Any]]) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        for name, array in named.items():
            # np.savez takes names as keywords, and could not save a tensor that is named "file".
            with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
                np.lib.format.write_array(entry, array, allow_pickle=False)


def read_model(path: Path, layout: Layout) -> Arrays:
    """A model's arrays, in the layout's order whatever theirs is in the file.

    Raises:
        UsageError, ModelFileError: As read_arrays.
        LayoutError: It holds another model; names the first difference.
    """
    named = read_arrays(path)
    if difference := _difference(named, layout):
        raise LayoutError(
            f"the model in {path} is not this trainer's: {difference}",
            hint="start from a model of the same architecture, saved with the same names, shapes and dtypes",
        )
    return [np.array(named[t.name], np.dtype(t.dtype), order="C") for t in layout.tensors]


def read_arrays(path: Path) -> Mapping[str, NDArray[Any]]:
    """The arrays in a file, by name.

    Raises:
        UsageError: As check_suffix, or there is no such file.
        ModelFileError: It cannot be read, or is not what its suffix says.
    """
    check_suffix(path)
    read: Callable[[Path], Mapping[str, NDArray[Any]]] = load_file if path.suffix == ".safetensors" else _read_npz
    try:
        return read(path)
    except FileNotFoundError as error:
        raise UsageError(f"{path} does not exist", hint="name a model that --save wrote") from error
    except OSError as error:
        raise ModelFileError(
            f"{path} cannot be read: {reason_of(error)}", hint="name a model that --save wrote"
        ) from error
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile, SafetensorError) as error:
        raise ModelFileError(
            f"{path} is no {path.suffix} file of numeric arrays: {error}",
            hint="name a model that --save wrote, or one of plain arrays under the model's own names",
        ) from error


def _read_npz(path: Path) -> dict[str, NDArray[Any]]:
    with path.open("rb") as file:
        loaded = np.load(file, allow_pickle=False)
        if not isinstance(loaded, np.lib.npyio.NpzFile):
            raise ValueError("one array, and no archive of named ones")
        return dict(loaded)


def _difference(named: Mapping[str, NDArray[Any]], layout: Layout) -> str | None:
    """The first difference between a file's arrays and a layout, in words."""
    names = [tensor.name for tensor in layout.tensors]
    for tensor in layout.tensors:
        if tensor.name not in named:
            near = get_close_matches(tensor.name, [name for name in named if name not in names], 1)
            return f"there is no {tensor.name!r} in the file" + (f"; there is {near[0]!r}" if near else "")
        array = named[tensor.name]
        if (array.dtype.name, array.shape) != (tensor.dtype, tensor.shape):
            return (
                f"{tensor.name!r} is {array.dtype.name} {array.shape} in the file, "
                f"and {tensor.dtype} {tensor.shape} in the trainer"
            )
    extra = next((name for name in named if name not in names), None)
    return None if extra is None else f"the trainer has no tensor {extra!r}"


def check_absent(flag: str, path: Path) -> None:
    """Refuse to replace what is there already."""
    if path.exists():
        raise ExistsError(f"{path} exists already", hint=f"name another file for {flag}, or add --force")


def check_target(flag: str, path: Path) -> None:
    """Refuse now what could not be written in the end."""
    check_suffix(path)
    folder = path.absolute().parent
    if not folder.is_dir():
        raise UsageError(f"the folder of {flag} {path} does not exist", hint=f"make it first: mkdir -p {folder}")
    check_writable(path)
