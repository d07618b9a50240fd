"""Map a function over blocks in threads, in order and with bounded memory."""

from __future__ import annotations

import itertools
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from hefl.params import BLOCKS_AT_ONCE

T = TypeVar("T")
R = TypeVar("R")


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def ordered_map(function: Callable[[T], R], items: Iterable[T], threads: int) -> Iterator[R]:
    """Results in the items' order; for each thread, at most 2 * BLOCKS_AT_ONCE items are taken, and results held."""
    if threads == 1:
        yield from map(function, items)
        return
    source = iter(items)
    pool, running = ThreadPoolExecutor(threads), deque[Future[list[R]]]()
    try:
        while group := list(itertools.islice(source, BLOCKS_AT_ONCE)):
            running.append(pool.submit(_apply, function, group))
            if len(running) == 2 * threads:
                yield from running.popleft().result()
        while running:
            yield from running.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _apply(function: Callable[[T], R], group: list[T]) -> list[R]:
    return [function(item) for item in group]
