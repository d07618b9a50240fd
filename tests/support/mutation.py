"""Valid inputs, changed a little: by their bytes, by what a field of theirs says, and by where they end."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
from builders import redigested
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from hefl.protocol import frames

ODD_INTS = (0, 1, -1, 2, 255, 256, 2**15, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**40 + 1, 2**63, 2**64, 10**400)
ODD_TEXTS = ("", "\0", "a" * 33, "é", "\ud800", "../..", "A", "-", " ", "ab" * 32, "00" * 16, "\n", "a" * 5000, "nan")
ODD: tuple[Any, ...] = (*ODD_INTS, *ODD_TEXTS, None, True, 0.5, -0.0, 1e308, [], {}, [[]], [None] * 2000, {"x": 1})

AT_ONCE = 1000
"""Hypothesis remembers every input until it is done."""

Check = Callable[[st.DataObject], None]


def try_many(count: int, check: Check) -> None:
    """Run a check on so many drawn inputs; the same ones each time, unless FUZZ_SEED is another number."""
    first = int(os.environ.get("FUZZ_SEED", "0"))
    quiet = settings(
        max_examples=min(count, AT_ONCE),
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],  # a server that has changed would not fail twice
    )
    for batch in range(-(-count // AT_ONCE)):
        quiet(seed(first + batch)(given(st.data())(check)))()


@contextmanager
def memory_within(limit_bytes: int, process: int | str = "self") -> Iterator[None]:
    """Fails where a process needs so much more at any moment of the block than before it."""
    folder = Path("/proc") / str(process)
    (folder / "clear_refs").write_text("5")  # the peak begins anew
    before = _kilobytes(folder, "VmRSS")
    yield
    grown = 1024 * (_kilobytes(folder, "VmHWM") - before)
    assert grown <= limit_bytes, f"{grown} bytes more, where {limit_bytes} are the bound"


def _kilobytes(folder: Path, field: str) -> int:
    return int((folder / "status").read_text().split(f"{field}:")[1].split()[0])


def damaged(draw: st.DataObject, data: bytes, others: Sequence[bytes] = ()) -> bytes:
    """A few changes at drawn places: most of the input stays as it was, so that what follows is reached."""
    changed = bytearray(data)
    for _ in range(draw.draw(st.integers(1, 3), label="changes")):
        at = _place(draw, len(changed))
        length = draw.draw(st.sampled_from([1, 1, 4, 32, 32]))
        match draw.draw(st.sampled_from(["flip", "set", "cut", "insert", "end", "twice", "splice"])):
            case "flip" if at < len(changed):
                changed[at] ^= 1 << draw.draw(st.integers(0, 7))
            case "set":
                changed[at : at + length] = draw.draw(st.sampled_from([b"\0", b"\xff", b"\x80", b"9"])) * length
            case "cut":
                del changed[at : at + length]
            case "insert":
                changed[at:at] = draw.draw(st.binary(max_size=40))
            case "end":
                del changed[at:]
            case "twice":
                changed[at:at] = changed[max(0, at - 64) : at]
            case "splice" if others:
                other = draw.draw(st.sampled_from(list(others)))
                changed[at:] = other[at:]
            case _:
                pass
    return bytes(changed)


def _place(draw: st.DataObject, length: int) -> int:
    """Anywhere, or near an end: what is short there says much."""
    near = draw.draw(st.integers(0, 255))
    match draw.draw(st.sampled_from(["anywhere", "begin", "end"])):
        case "begin":
            return min(near, length)
        case "end":
            return max(length - near, 0)
        case _:
            return (near << 8 | draw.draw(st.integers(0, 255))) * length >> 16


def damaged_frame(draw: st.DataObject, data: bytes, others: Sequence[bytes] = ()) -> bytes:
    """A frame with a change in its header's fields or anywhere, mostly under a digest that is right."""
    where = draw.draw(st.sampled_from(["header", "header", "anywhere", "anywhere", "numbers"]))
    if len(data) < frames.HEADER.size:  # of a change before
        where = "anywhere"
    if where == "numbers":
        at = frames.HEADER.size + 8 + draw.draw(st.integers(0, 255)) * (len(data) - 600) // 255
        return redigested(data[:at] + b"\xff" * 32 + data[at + 32 :])
    if where == "header":
        fields = list(frames.HEADER.unpack(data[: frames.HEADER.size]))
        at = draw.draw(st.integers(0, len(fields) - 1), label="field")
        if isinstance(fields[at], int):
            width = {1: 1, 2: 1, 5: 4, 6: 4, 7: 4, 10: 8, 11: 4, 12: 4, 13: 2}[at]
            most = 2 ** (8 * width)
            near = (fields[at] - 1, fields[at] + 1, 2 * fields[at])
            fields[at] = draw.draw(st.sampled_from([n % most for n in (*near, *ODD_INTS)]))
        else:
            fields[at] = damaged(draw, fields[at])[: len(fields[at])]
        changed = frames.HEADER.pack(*fields) + data[frames.HEADER.size :]
    else:
        changed = damaged(draw, data, others)
    return redigested(changed) if draw.draw(st.integers(0, 3)) else changed


def damaged_json(draw: st.DataObject, data: bytes) -> bytes:
    """JSON that says something odd in one place, or of which a few bytes are others."""
    try:
        value = msgspec.json.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError):  # of a change before
        return damaged(draw, data)
    if not draw.draw(st.integers(0, 3)):
        return damaged(draw, data)
    places = list(_places(value))
    holder, key = draw.draw(st.sampled_from(places)) if places else ([value], 0)
    match draw.draw(st.sampled_from(["odd", "odd", "odd", "near", "gone", "more"])):
        case "odd":
            holder[key] = draw.draw(st.sampled_from(ODD))
        case "near":
            holder[key] = _near(draw, holder[key])
        case "gone":
            del holder[key]
        case _ if isinstance(holder, dict):
            holder["more"] = holder[key]
        case _:
            holder.append(holder[key])
    # By the standard library's encoder, which writes what msgspec refuses to.
    return json.dumps(value).encode(errors="surrogatepass")


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield value, key
        yield from _places(inner)


def _near(draw: st.DataObject, value: Any) -> Any:
    if isinstance(value, bool) or value is None:
        return not value
    if isinstance(value, int | float):
        return value + draw.draw(st.sampled_from([-1, 1, 2**20]))
    if isinstance(value, str) and value:
        at = draw.draw(st.integers(0, len(value) - 1))
        return value[:at] + draw.draw(st.sampled_from("0af-Z\n")) + value[at + 1 :]
    return [value]
