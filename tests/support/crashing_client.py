"""``hefl client`` that kills itself at a step of a round: ``python -m crashing_client client ...``, DIE="STEP ROUND".

STEP is ``join`` (the server has let it in), ``encrypted`` (its update is made), ``sent`` (the server has it) or
``accepted`` (the round's aggregate is taken).
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

from hefl.cli.main import main
from hefl.client.client import Client
from hefl.client.receiving import Receiver

STEP, ROUND = os.environ["DIE"].split()


def die(round_num: int) -> None:
    if round_num == int(ROUND):
        os.kill(os.getpid(), signal.SIGKILL)


def after_join(original: Callable[..., Any]) -> Callable[..., Any]:
    async def join(self: Client) -> None:
        await original(self)
        die(0)

    return join


def after_encrypting(original: Callable[..., Any]) -> Callable[..., Any]:
    def write_update(self: Client, path: Any, announcement: Any) -> int:
        size: int = original(self, path, announcement)
        die(announcement.round)
        return size

    return write_update


def after_sending(original: Callable[..., Any]) -> Callable[..., Any]:
    async def upload(self: Client, path: Any, size: int, announcement: Any) -> None:
        await original(self, path, size, announcement)
        die(announcement.round)

    return upload


def after_accepting(original: Callable[..., Any]) -> Callable[..., Any]:
    def accept(self: Receiver, record: Any, *flags: bool) -> Any:
        metrics = original(self, record, *flags)
        die(record.announcement.round)
        return metrics

    return accept


PATCHES: dict[str, tuple[type, str, Callable[..., Any]]] = {
    "join": (Client, "_join", after_join),
    "encrypted": (Client, "_write_update", after_encrypting),
    "sent": (Client, "_upload", after_sending),
    "accepted": (Receiver, "accept", after_accepting),
}

if __name__ == "__main__":
    cls, name, patch = PATCHES[STEP]
    setattr(cls, name, patch(getattr(cls, name)))
    main()
