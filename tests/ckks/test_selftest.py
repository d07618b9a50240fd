"""A kernel that computes wrong values refuses to be used."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hefl.ckks import bitpacking, blocks, jit, lanes, mac, ntt, ring, sampling, selftest
from hefl.encoding import kernels
from hefl.errors import KernelError
from hefl.params import RINGS

# Every kernel that Python calls: its module, and which argument (or result, None) it writes.
CALLED: list[tuple[Any, str, int | None]] = [
    (ntt, "fill_powers", 2),
    (ntt, "smallest_root", None),
    (ring, "transform", 1),
    (ring, "invert", 1),
    (ring, "separate", 4),
    (ring, "combine", 2),
    (sampling, "uniform", 4),
    (sampling, "uniform", None),
    (sampling, "binomial", 1),
    (sampling, "binomial", None),
    (bitpacking, "pack_block", 2),
    (bitpacking, "unpack_block", 3),
    (bitpacking, "unpack_block", None),
    (bitpacking, "add_multiple", 0),
    (lanes, "encode", 12),
    (lanes, "decode", 12),
    (lanes, "decode", None),
    (blocks, "draw_products", 11),
    (blocks, "draw_products", None),
    (mac, "hash_block", 4),
    (kernels, "round_scaled", 4),
    (kernels, "round_scaled", None),
    (kernels, "divide_scaled", 3),
    (kernels, "largest_magnitude", None),
]

# Those that only other kernels call: whoever calls them fails with them.
INNER = {
    "hefl.ckks.ntt": {
        "forward_scalar",
        "forward_vector",
        "inverse_scalar",
        "inverse_vector",
        "to_columns",
        "to_rows",
    },
    "hefl.ckks.ring": {"add_four_products", "add_product", "add_products"},
    "hefl.ckks.sampling": {"mask_words", "mask_accepted", "count_bits21"},
    "hefl.ckks.bitpacking": {"pack", "unpack"},
    "hefl.ckks.lanes": {"put", "take", "reduce_words", "subtract", "add", "largest"},
    "hefl.ckks.blocks": {"multiply"},
}


def _check() -> None:
    selftest.check_kernels.__wrapped__(RINGS[1])
    kernels.check_quantise.__wrapped__()


def _broken(kernel: Callable[..., Any], argument: int | None) -> Callable[..., Any]:
    def wrong(*args: Any) -> Any:
        result = kernel(*args)
        if argument is not None:
            out = args[argument].reshape(-1)
            out[out.size // 2] += np.asarray(1, out.dtype)  # one wrong value somewhere in the middle
            return result
        if isinstance(result, tuple):
            return result[0], result[1] + 1, result[2]
        return not result if isinstance(result, bool) else result + 1

    return wrong


@pytest.mark.parametrize(
    ("module", "name", "argument"), CALLED, ids=lambda value: str(getattr(value, "__name__", value))
)
def test_one_wrong_value_is_enough(
    module: Any, name: str, argument: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    ring.basis_of.cache_clear()
    monkeypatch.setattr(module, name, _broken(getattr(module, name), argument))
    with pytest.raises(KernelError, match="computes wrong values"):
        _check()
    ring.basis_of.cache_clear()


def test_sound_kernels_pass() -> None:
    for of in RINGS:
        selftest.check_kernels.__wrapped__(of)
    kernels.check_quantise.__wrapped__()


def test_no_kernel_goes_unchecked() -> None:
    listed = {f"{sys_name}.{name}" for sys_name, names in INNER.items() for name in names}
    for module, name, _ in CALLED:
        listed.add(f"{getattr(module, name).__module__}.{name}")
    assert set(jit.KERNELS) == listed
    places = {Path(sys.modules[name.rpartition(".")[0]].__file__ or "") for name in jit.KERNELS}
    assert places <= set(jit.SOURCES)  # or code that was compiled before a change would be used after it
