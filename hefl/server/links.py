"""Hash chain over a journal's rows: a row that was damaged or edited does not fit."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import msgspec


def run_link(row: Sequence[Any]) -> bytes:
    """Of a run's settings."""
    return hashlib.sha256(b"hefl/v1/run" + msgspec.json.encode(row)).digest()


def first_link(seq: int, body: bytes) -> bytes:
    """Of a checkpoint, with which a chain of events begins."""
    return hashlib.sha256(b"hefl/v1/checkpoint" + msgspec.json.encode((seq, body))).digest()


def next_link(link: bytes, seq: int, at: float, kind: str, body: bytes) -> bytes:
    """Of an event, and so of all before it."""
    return hashlib.sha256(b"hefl/v1/event" + msgspec.json.encode((link, seq, at, kind, body))).digest()
