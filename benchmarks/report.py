"""Turns results/*.json into the tables of README.md here, and the picture."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from results import read
from soak import SETTLED, Sample, slope

HERE = Path(__file__).parent
PARTS = ("quantise", "encrypt", "upload", "aggregate", "download", "decrypt")

Rows = list[dict[str, Any]]


def table(headings: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    heads = list(headings)
    lines = [heads, ["---" if i == 0 else "---:" for i in range(len(heads))], *map(list, rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def pick(rows: Rows, **wanted: Any) -> dict[str, Any]:
    (found,) = (row for row in rows if all(row[k] == v for k, v in wanted.items()))
    return found


def total(rows: Rows, phases: Iterable[str], **wanted: Any) -> float:
    return float(sum(pick(rows, phase=phase, **wanted)["seconds"] for phase in phases))


def engines_table(rows: Rows) -> str:
    """Milliseconds for each phase, by weights and engine, and how many times faster packed is than TenSEAL."""
    lines = []
    for weights in ([1, 1, 1], [512, 733, 1201]):
        times = {}
        for engine in ("plaintext", "packed", "tenseal", "tenseal-public"):
            encrypt = ("encrypt", "serialise") if engine.startswith("tenseal") else ("encrypt",)
            seconds = [
                total(rows, phases, engine=engine, weights=weights)
                for phases in (encrypt, ("digest",), ("aggregate",), ("decrypt",))
            ]
            times[engine] = seconds
            row = pick(rows, engine=engine, weights=weights, phase="aggregate")
            sizes = [f"{row[k] / row['values']:.2f}" for k in ("bytes_up", "bytes_down")]
            figures = [f"{s * 1e3:.1f}" for s in seconds]
            lines.append([engine, ", ".join(map(str, weights)), *figures, *sizes, f"{row['max_abs_error']:.0e}"])
        ratios = [f"{a / b:.0f}x" for a, b in zip(times["tenseal"], times["packed"], strict=True)]
        lines.append(["*packed is faster than tenseal*", "", *ratios, "", "", ""])
    heads = (
        "engine",
        "weights",
        "encrypt ms",
        "digest ms",
        "aggregate ms",
        "decrypt ms",
        "bytes up",
        "bytes down",
        "error",
    )
    return table(heads, lines)


def rounds_table(rows: Rows) -> str:
    lines = []
    for values in sorted({row["values"] for row in rows}):
        for engine in ("plaintext", "packed"):
            wall = pick(rows, engine=engine, values=values, phase="wall")
            server = pick(rows, engine=engine, values=values, phase="aggregate")
            figures = [f"{pick(rows, engine=engine, values=values, phase=p)['seconds'] * 1e3:.0f}" for p in PARTS]
            peaks = [f"{row['peak_bytes'] / 1e6:.0f}" for row in (wall, server)]
            lines.append([f"{values:,}", engine, f"{wall['seconds'] * 1e3:.0f}", *figures, *peaks])
        lines.append(["", "*encrypted / plaintext*", f"{ratio(rows, values):.2f}", *[""] * (len(PARTS) + 2)])
    heads = ("values", "engine", "round ms", *(f"{p} ms" for p in PARTS), "client MB", "server MB")
    return table(heads, lines)


def ratio(rows: Rows, values: int) -> float:
    packed, plain = (pick(rows, engine=e, values=values, phase="wall")["seconds"] for e in ("packed", "plaintext"))
    return float(packed / plain)


def threads_table(rows: Rows) -> str:
    lines = []
    for values in sorted({row["values"] for row in rows}):
        for phase in ("encrypt", "aggregate", "decrypt"):
            one, two = (pick(rows, values=values, phase=phase, threads=n)["seconds"] for n in (1, 2))
            lines.append([f"{values:,}", phase, f"{one * 1e3:.1f}", f"{two * 1e3:.1f}", f"{one / two:.2f}x"])
    return table(("values", "phase", "1 thread ms", "2 threads ms", "faster"), lines)


def authenticate_table(rows: Rows) -> str:
    lines = [
        [
            f"{row['clients']}",
            f"{row['encrypt_s'] * 1e3:.1f}",
            f"{row['tag_ns_a_value']:.2f}",
            f"{row['check_ns_a_value']:.2f}",
            f"{row['record_bytes']:,}",
        ]
        for row in rows
    ]
    return table(("clients", "encrypt ms", "tag ns a value", "check ns a value", "record bytes"), lines)


def startup_table(rows: Rows) -> str:
    lines = [[f"`{row['command']}`", f"{row['first_s']:.1f}", f"{row['later_s']:.1f}"] for row in rows]
    return table(("command", "first start s", "later starts s"), lines)


def load_table(rows: Rows) -> str:
    """What each client costs a server, and its memory beside what was planned."""
    lines = []
    for row in rows:
        seconds = [f"{row['server_cpu_s'] * 1e3:.0f}", f"{row['round_s']:.1f}"]
        sizes = [f"{row[k] / 1e6:.2f}" for k in ("bytes_up", "bytes_down")]
        memory = [f"{row[k] / 1e6:.0f}" for k in ("idle_bytes", "initial_bytes", "peak_bytes")]
        lines.append([str(row["clients"]), *seconds, *sizes, *memory, f"{row['planned_bytes'] / 1e6:.0f}"])
    heads = ("clients", "server CPU ms a client", "round s", "MB up", "MB down", "idle MB", "round 0 MB", "peak MB")
    return table((*heads, "planned MB"), lines)


def soak_table(rows: Rows) -> str:
    """Each process at round SETTLED and at the end, and what comes with each round between."""
    lines = []
    for name in dict.fromkeys(row["name"] for row in rows):
        samples = [Sample(**row) for row in rows if row["name"] == name and row["round"] >= SETTLED]
        first, last = samples[0], samples[-1]
        memory = [f"{s.memory_bytes / 1e6:.1f}" for s in (first, last)]
        grown = [f"{slope(samples, field) / 1e3:.1f}" for field in ("memory_bytes", "disk_bytes")]
        counts = [
            f"{min(getattr(s, f) for s in samples)} to {max(getattr(s, f) for s in samples)}"
            for f in ("descriptors", "files")
        ]
        lines.append([name, *memory, *grown, *counts, f"{last.disk_bytes / 1e6:.1f}"])
    ends = [f"MB in round {SETTLED}", f"MB in round {rows[-1]['round']}"]
    heads = ("process", *ends, "kB a round", "disk kB a round", "descriptors", "files", "disk MB")
    return table(heads, lines)


def summary_table(engines: Rows, rounds: Rows) -> str:
    """The few figures that say most."""
    rows = []
    equal, unequal = [1, 1, 1], [512, 733, 1201]
    for name, phases, stock in (
        ("encrypt, authenticate and serialise", ("encrypt",), ("encrypt", "serialise")),
        ("aggregate, for one client", ("aggregate",), ("aggregate",)),
        ("verify and decrypt", ("decrypt",), ("decrypt",)),
    ):
        packed_s = total(engines, phases, engine="packed", weights=equal)
        stock_s = total(engines, stock, engine="tenseal", weights=equal)
        figures = [f"{packed_s * 1e3:.1f} ms", f"{stock_s * 1e3:.0f} ms", f"{stock_s / packed_s:.0f} times faster"]
        rows.append([name, *figures])
    for label, weights in (("equal weights", equal), ("weights 512, 733, 1201", unequal)):
        ours, theirs = (pick(engines, engine=e, weights=weights, phase="aggregate") for e in ("packed", "tenseal"))
        up, stock_up = (row["bytes_up"] / row["values"] for row in (ours, theirs))
        rows.append([f"bytes a value up, {label}", f"{up:.2f}", f"{stock_up:.2f}", f"{stock_up / up:.0f} times fewer"])
    text = table(("1,663,370 values, 3 clients, one core", "hefl", "stock TenSEAL", ""), rows)
    walls = []
    for values in sorted({row["values"] for row in rounds}):
        packed, plain = (pick(rounds, engine=e, values=values, phase="wall") for e in ("packed", "plaintext"))
        figures = [f"{row['seconds'] * 1e3:,.0f} ms" for row in (packed, plain)]
        walls.append([f"{values:,} values", *figures, f"{ratio(rounds, values):.2f}"])
    heads = ("a whole round, 3 clients over TLS, training left out", "encrypted", "plaintext", "ratio")
    return text + "\n\n" + table(heads, walls)


def draw(rounds: Rows, path: Path) -> None:
    """Each phase of a round, encrypted over plaintext."""
    from matplotlib.figure import Figure

    sizes = sorted({row["values"] for row in rounds})
    figure = Figure(figsize=(10, 2.2 * len(sizes)), layout="constrained")
    for axes, values in zip(figure.subplots(len(sizes), 1), sizes, strict=True):
        for engine in ("plaintext", "packed"):
            left = 0.0
            for k, phase in enumerate(PARTS):
                width = pick(rounds, engine=engine, values=values, phase=phase)["seconds"] * 1e3
                label = phase if engine == "plaintext" else None
                axes.barh(engine, width, left=left, color=f"C{k}", label=label)
                left += width
            wall = pick(rounds, engine=engine, values=values, phase="wall")["seconds"] * 1e3
            axes.plot([wall], [engine], "k|", markersize=22, label="whole round" if engine == "packed" else None)
        axes.set_title(f"{values:,} values: median milliseconds of a client's phases (aggregate: the server's)")
        axes.invert_yaxis()
    figure.axes[0].legend(ncols=7, fontsize="small", loc="upper center", bbox_to_anchor=(0.5, -0.15))
    figure.savefig(path, dpi=110)


def put(path: Path, name: str, text: str) -> None:
    """Replace what stands between <!-- NAME --> and <!-- /NAME -->."""
    before = path.read_text()
    pattern = rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)"
    after, count = re.subn(pattern, lambda m: f"{m[1]}{text}\n{m[2]}", before, flags=re.DOTALL)
    if count != 1:
        raise SystemExit(f"{path} has no place for {name}")
    path.write_text(after)


def sections() -> Mapping[Path, Mapping[str, str]]:
    """Every generated text, by file and place."""
    engines, rounds = read("engines"), read("rounds")
    machine = engines["machine"]
    versions = ", ".join(
        f"{k} {machine[k]}" for k in ("python", "tenseal", "numpy", "numba", "cryptography", "aiohttp")
    )
    about = f"{machine['processor']}, {machine['cores']} cores; {versions}; measured {engines['measured']}."
    return {
        HERE / "README.md": {
            "machine": about,
            "measurements": summary_table(engines["rows"], rounds["rows"]),
            "engines": engines_table(engines["rows"]),
            "rounds": rounds_table(rounds["rows"]),
            "threads": threads_table(read("threads")["rows"]),
            "authenticate": authenticate_table(read("authenticate")["rows"]),
            "startup": startup_table(read("startup")["rows"]),
            "load": load_table(read("load")["rows"]),
            "soak": soak_table(read("soak")["rows"]),
        },
    }


if __name__ == "__main__":
    for file, texts in sections().items():
        for place, text in texts.items():
            put(file, place, text)
    draw(read("rounds")["rows"], HERE / "rounds.png")
