"""What does a round cost encrypted, beside the same round in plaintext? Writes results/rounds.json.

Plaintext and encrypted take turns, for what else runs on a machine comes and goes.
"""

from __future__ import annotations

import statistics
from dataclasses import replace

from results import note, write

from hefl.demo.benchmark import Row, as_json, bench_round

TURNS = 5


def in_turn(values: int) -> list[Row]:
    """Each figure's median over the turns."""
    turns = [bench_round(values, [1, 1, 1], note) for _ in range(TURNS)]
    return [replace(same[0], seconds=statistics.median(r.seconds for r in same)) for same in zip(*turns, strict=True)]


if __name__ == "__main__":
    write("rounds", as_json([row for values in (1_663_370, 25_557_032) for row in in_turn(values)]))
