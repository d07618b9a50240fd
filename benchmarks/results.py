"""Where benchmarks leave their figures, and what they were measured on."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hefl.demo.benchmark import machine

FOLDER = Path(__file__).parent / "results"


def write(name: str, rows: list[dict[str, Any]]) -> None:
    """Keep rows as results/NAME.json."""
    value = {"measured": datetime.now(UTC).strftime("%Y-%m-%d"), "machine": machine(), "rows": rows}
    (FOLDER / f"{name}.json").write_text(json.dumps(value, indent=1) + "\n")


def read(name: str) -> dict[str, Any]:
    """What ``write`` kept."""
    value: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text())
    return value


def note(text: str) -> None:
    """Say on stderr what is being measured."""
    print(text, file=sys.stderr, flush=True)
