"""The demo's report: one JSON value, a table, and curves."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.table import Table

from hefl.ckks.context import seal_version
from hefl.demo.processes import Event
from hefl.demo.training import DataSplit, Task, Training
from hefl.encoding.codec import Metrics
from hefl.files import replacing
from hefl.timings import PHASES

Report = dict[str, Any]
_PACKAGES = ("hefl", "tenseal", "numpy", "torch", "scikit-learn", "cryptography", "aiohttp")


def build_report(
    task: Task, shares: DataSplit, encrypted: Training, plaintext: Training, pooled: Sequence[Metrics]
) -> Report:
    """Everything that the demo found out, as README.md describes ``report.json``."""
    names = sorted(encrypted.clients)
    model, reference = encrypted.models[names[0]], plaintext.models[names[0]]
    return {
        "engine": encrypted.engine,
        "data": task.data,
        "clients": task.clients,
        "partition": str(task.partition),
        "labels": dict(shares.labels),
        "validation_examples": shares.validation,
        "values": sum(a.size for a in model.values()),
        "verified": all(
            e["verified"] for events in encrypted.clients.values() for e in events if e["event"] == "round"
        ),
        **_course(encrypted),
        "plaintext": _course(plaintext),
        "pooled": {
            "initial": pooled[0],
            "rounds": [{"round": number, **metrics} for number, metrics in enumerate(pooled) if number],
            "final": pooled[-1],
        },
        "exact": encrypted.exact,
        "max_abs_difference": encrypted.max_abs_difference,
        "drift": max(
            float(np.abs(model[t].astype(np.float64) - reference[t].astype(np.float64)).max())
            for t in model
            if np.issubdtype(model[t].dtype, np.floating)
        ),
        "versions": {
            "python": platform.python_version(),
            "seal": seal_version(),
            **{package: importlib.metadata.version(package) for package in _PACKAGES},
        },
    }


def _course(training: Training) -> Report:
    """``initial``, ``rounds`` and ``final`` of one training."""
    first = next(iter(training.clients.values()))
    metrics = {e["metrics_of_model"]: e["metrics"] for e in first if e["event"] == "round" and e["round"] > 0}
    by_round = [_round(training, number) for number in range(1, max(metrics) + 1)]
    return {
        "initial": metrics[0],
        "rounds": [{"round": r["round"], **metrics[r["round"]], **r} for r in by_round],
        "final": metrics[max(metrics)],
    }


def _round(training: Training, number: int) -> Report:
    """Bytes of all clients together, and seconds: the server's, and the mean over clients."""
    mine = [_event(events, number) for events in training.clients.values()]
    seconds = {phase: float(np.mean([e["seconds"].get(phase, 0.0) for e in mine])) for phase in PHASES}
    seconds["aggregate"] = _event(training.server, number)["seconds"]["aggregate"]
    return {
        "round": number,
        "bytes_up": sum(e["bytes_up"] for e in mine),
        "bytes_down": sum(e["bytes_down"] for e in mine),
        "wall_seconds": _announced_s(training, number + 1) - _announced_s(training, number),
        "seconds": seconds,
    }


def _announced_s(training: Training, number: int) -> float:
    """When a round's first attempt was announced; that of the last training's successor is the closing round."""
    return float(next(e["read_s"] for e in training.server if e["event"] == "announced" and e["round"] == number))


def _event(events: Sequence[Event], number: int) -> Event:
    return next(e for e in events if e["event"] == "round" and e["round"] == number)


def build_table(report: Mapping[str, Any]) -> Table:
    """One row a round: losses and accuracies of the three trainings, and what a round of the encrypted one takes."""
    title = f"{report['data']}, {report['clients']} clients, {report['partition']}, engine {report['engine']}"
    table = _table(
        title,
        "round",
        *(f"{metric}\n{course}" for metric in ("loss", "accuracy") for course in ("encrypted", "plain", "pooled")),
        "kB\nup",
        "kB\ndown",
        "s",
    )
    courses = (report, report["plaintext"], report["pooled"])
    table.add_row("0", *_metrics([course["initial"] for course in courses]))
    for rows in zip(*(course["rounds"] for course in courses), strict=True):
        row = rows[0]
        sizes = (f"{row[way] / 1e3:.0f}" for way in ("bytes_up", "bytes_down"))
        table.add_row(str(row["round"]), *_metrics(rows), *sizes, f"{row['wall_seconds']:.2f}")
    return table


def build_phases_table(report: Mapping[str, Any]) -> Table:
    """One row a round: how long each phase of the encrypted training took."""
    table = _table("phases of a round in ms: the mean of the clients, aggregate the server's", "round", *PHASES)
    for row in report["rounds"]:
        table.add_row(str(row["round"]), *(f"{row['seconds'][phase] * 1e3:.1f}" for phase in PHASES))
    return table


def _table(title: str, *headings: str) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=0)
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def _metrics(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Each training's loss, then each training's accuracy."""
    values = [row[metric] for metric in ("loss", "accuracy") for row in rows]
    return ["-" if value is None else f"{value:.4f}" for value in values]


def draw_curves(report: Mapping[str, Any], path: Path) -> None:
    """Loss and accuracy by round, encrypted over plaintext, and on pooled data, as a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    for axes, name in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        for course, label, style in (
            (report["pooled"], "pooled data", {"color": "tab:gray", "linestyle": "--"}),
            (report["plaintext"], "plaintext", {"color": "tab:orange", "linewidth": 5, "alpha": 0.5}),
            (report, f"encrypted ({report['engine']})", {"color": "tab:blue", "linewidth": 1.5, "marker": "."}),
        ):
            points = [course["initial"], *course["rounds"]]
            axes.plot(range(len(points)), [p[name] for p in points], label=label, **style)
        axes.set_xlabel("round")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set_ylabel(f"validation {name}")
        axes.grid(alpha=0.3)
        axes.legend()
    figure.suptitle(f"{report['data']}: federated training of {report['clients']} clients, {report['partition']}")
    with replacing(path) as file:
        figure.savefig(file, format="png", dpi=120)
