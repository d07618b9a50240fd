"""``hefl`` that kills itself at a chosen write of its journal.

It is run as ``python -m crashing_server COMMAND...``, with DIE="SIDE EVENT COUNT" in its environment.
SIDE is ``before`` or ``after`` the write is durable; EVENT is the class of the event, or ``*`` for any write; COUNT
says which of them in this process, from 1.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hefl.cli.main import main
from hefl.server.journal import Journal

append, transaction = Journal.append, Journal._transaction
SIDE, EVENT, COUNT = os.environ["DIE"].split()
left = int(COUNT)


def due(*, is_it: bool) -> bool:
    global left
    left -= is_it
    return is_it and left == 0


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@contextmanager
def dying_transaction(self: Journal) -> Iterator[Any]:
    now = due(is_it=EVENT == "*")
    if now and SIDE == "before":
        die()
    with transaction(self) as db:
        yield db
    if now and SIDE == "after":
        die()


def dying_append(self: Journal, event: Any) -> None:
    now = due(is_it=type(event).__name__ == EVENT)
    if now and SIDE == "before":
        die()
    append(self, event)
    if now and SIDE == "after":
        die()


if __name__ == "__main__":
    Journal._transaction = dying_transaction  # type: ignore[method-assign]
    Journal.append = dying_append  # type: ignore[method-assign]
    main()
