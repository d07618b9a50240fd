"""What a running process takes, as Linux says: processor time, memory, open files; and what a folder holds."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from pathlib import Path


def cpu_s(pid: int) -> float:
    """Processor time so far of all threads of a process, in seconds."""
    # clock_getcpuclockid(3): a negative clock id names another process's clock, to the nanosecond. /proc has 10 ms.
    return time.clock_gettime((~pid << 3) | 2)


def memory_bytes(pid: int) -> int:
    """Resident now."""
    return _status_bytes(pid, "VmRSS")


def peak_bytes(pid: int) -> int:
    """Most that was resident. Not rusage's: that counts what the parent had when it started the process."""
    return _status_bytes(pid, "VmHWM")


def _status_bytes(pid: int, field: str) -> int:
    (found,) = re.findall(rf"^{field}:\s+(\d+) kB$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return int(found) * 1024


def descriptors(pid: int) -> int:
    """Open files and sockets."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


@dataclass(frozen=True, slots=True)
class Contents:
    """What is in a folder and in those below it."""

    files: int
    bytes: int


def contents(folder: Path) -> Contents:
    """Count a folder's files; those that go meanwhile do not count."""
    sizes = []
    for path in folder.rglob("*"):
        try:
            if path.is_file():
                sizes.append(path.stat().st_size)
        except FileNotFoundError:
            continue
    return Contents(len(sizes), sum(sizes))
