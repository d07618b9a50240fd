"""What does a round cost encrypted, beside the same round in plaintext? Writes results/rounds.json."""

from __future__ import annotations

from results import note, write

from hefl.bench import as_json, bench_round

if __name__ == "__main__":
    rows = [row for values in (1_663_370, 25_557_032) for row in bench_round(values, [1, 1, 1], note)]
    write("rounds", as_json(rows))
