"""How much faster is the packed engine's arithmetic than stock TenSEAL's? Writes results/engines.json."""

from __future__ import annotations

from results import note, write

from hefl.demo.benchmark import as_json, bench_engines

VALUES = 1_663_370

if __name__ == "__main__":
    rows = [row for weights in ([1, 1, 1], [512, 733, 1201]) for row in bench_engines(VALUES, weights, note)]
    write("engines", as_json(rows))
