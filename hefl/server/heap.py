"""How the C library keeps the memory that threads free."""

from __future__ import annotations

import ctypes
from contextlib import suppress

M_ARENA_MAX = -8
"""In glibc's malloc.h."""


def share_one_arena() -> None:
    """Let all threads of this process allocate from one heap; does nothing where the C library is not glibc.

    Otherwise each thread that handles updates keeps megabytes of its own that it has freed.
    """
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).mallopt(M_ARENA_MAX, 1)
