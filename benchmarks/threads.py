"""What does a second core bring the packed engine? Writes results/threads.json."""

from __future__ import annotations

from results import note, write

from hefl.demo.benchmark import as_json, bench_packed

if __name__ == "__main__":
    rows = []
    for values in (1_663_370, 25_557_032):
        for threads in (1, 2):
            note(f"threads: {threads}, {values:,} values")
            rows += [{**row, "threads": threads} for row in as_json(bench_packed(values, [1, 1, 1], threads))]
    write("threads", rows)
