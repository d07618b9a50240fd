"""What ``hefl bench`` prints."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from hefl.cli.bench import _table
from hefl.demo.benchmark import Row


@pytest.mark.parametrize("engine", ["packed", "tenseal-public"])
def test_its_table_is_whole_on_a_screen_of_80_columns(engine: str) -> None:
    shape = (25_557_032, 50, (1,) * 50)
    rows = [
        Row("engines", engine, *shape, "dequantise", 123.4567, 235 * 25_557_032, 131 * 25_557_032, 12_345_000_000, 5e-7)
    ]
    out = io.StringIO()
    Console(width=80, file=out).print(_table("engines", rows))
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert [line.split() for line in lines if line.startswith(f" {engine}")] == [
        [engine, "dequantise", "123,456.7", "4,830.6", "235.00", "131.00", "12,345", "5e-07"]
    ]
