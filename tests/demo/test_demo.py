"""The demo, whole: real keys, processes and TLS."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from federation import Command
from terminal import Terminal

from hefl.datasets import load_example
from hefl.datasets.data import load_parts
from hefl.datasets.partition import Partition
from hefl.demo.training import client_names
from hefl.timings import PHASES

FIGURE = r"\d+\.\d{4}"
ROW = re.compile(rf" +\d+(?: +{FIGURE}){{6}}(?: +\d+ +\d+ +\d+\.\d\d)?")


def test_the_demo_trains_iris_and_leaves_its_report_and_curves(tmp_path: Path) -> None:
    with Terminal("demo", "--out", "out", "--verbose", cwd=tmp_path) as demo:
        assert demo.wait(110) == 0, demo.lines
    check_iris(tmp_path, "packed", demo.lines)
    # on a screen of 80 columns, each row of the tables is whole
    assert len([line for line in demo.lines if ROW.fullmatch(line)]) == 21
    headings = " round encrypted  plain pooled encrypted    plain   pooled up down"
    assert any(line.startswith(headings) and line.endswith(" s") for line in demo.lines)
    assert any(line.split() == ["round", *PHASES] for line in demo.lines)
    assert len([line for line in demo.lines if re.fullmatch(r" +\d+(?: +\d+\.\d){8}", line)]) == 20
    assert not any("\u2026" in line or "\u2501" in line for line in demo.lines)
    assert any(re.match(r"hefl: watch it in a browser: http://127\.0\.0\.1:\d+$", line) for line in demo.lines)
    assert any(re.fullmatch(r" +packed [━╸╺ ]+ \d+/20 0:\d\d:\d\d", last) for last in demo.last_lines)


@pytest.mark.slow
def test_the_demo_in_a_pipe_says_how_far_it_is_and_prints_no_phases_unasked(tmp_path: Path) -> None:
    demo = Command("demo", "--out", "out", "--engine", "tenseal", cwd=tmp_path)
    assert demo.wait(110) == 0, demo.error
    check_iris(tmp_path, "tenseal", demo.out)
    assert len([line for line in demo.out if ROW.fullmatch(line.rstrip())]) == 21
    assert "quantise" not in "\n".join(demo.out)
    assert "10 of 20 rounds" in demo.error


def check_iris(folder: Path, engine: str, said: list[str]) -> None:
    """What a demo with default settings has left, and said."""
    report = json.loads((folder / "out/report.json").read_text())
    assert (report["engine"], report["data"], report["clients"], report["values"]) == (engine, "iris", 2, 1315)
    assert report["verified"] is (engine == "packed")
    assert report["exact"] is (True if engine == "packed" else None)
    assert report["final"]["accuracy"] * 30 == pytest.approx(29, abs=1.001)
    assert report["final"]["accuracy"] * 30 > 28.9
    # Half a step of the largest range, 8, which a parameter beyond 1 calls for.
    assert 0 < report["max_abs_difference"] <= (8 * 2.0**-24 if engine == "packed" else 1e-6)
    for course in (report, report["plaintext"]):
        assert [r["round"] for r in course["rounds"]] == list(range(1, 21))
        assert course["initial"]["loss"] == pytest.approx(1.1085, abs=1e-3)
        assert course["final"] == {k: course["rounds"][-1][k] for k in ("loss", "accuracy")}
        for row in course["rounds"]:
            assert set(row["seconds"]) == set(PHASES)
            assert 0 < row["seconds"]["train"] < row["wall_seconds"]
            assert row["bytes_up"] > 2 * 3 * 1315
            assert row["bytes_down"] > 2 * 3 * 1315
    assert report["final"]["loss"] == pytest.approx(report["plaintext"]["final"]["loss"], abs=1e-3)
    assert report["drift"] < 1e-2
    assert {"python", "seal", "hefl", "tenseal", "numpy", "torch"} <= set(report["versions"])
    assert (folder / "out/curves.png").read_bytes().startswith(b"\x89PNG")
    assert {p.name for p in (folder / "out").iterdir()} == {"report.json", "curves.png"}
    text = "\n".join(said)
    assert f"verified: {'true' if engine == 'packed' else 'false'}" in text
    assert "right: 29 of 30" in text or "right: 30 of 30" in text


def accuracies(report: dict[str, Any]) -> list[float]:
    """Of the encrypted training, the plaintext one and the one on pooled data."""
    return [course["final"]["accuracy"] for course in (report, report["plaintext"], report["pooled"])]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_clients_with_different_labels_come_within_two_points_of_pooled_data(tmp_path: Path) -> None:
    """On 113 validation rows: within two of them."""
    flags = ("--data", "breast_cancer", "--clients", "3", "--partition", "dirichlet:0.3")
    demo = Command("demo", "--out", "out", *flags, cwd=tmp_path)
    assert demo.wait(280) == 0, demo.error
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert [report[key] for key in ("data", "clients", "partition")] == ["breast_cancer", 3, "dirichlet:0.3"]
    assert (report["verified"], report["exact"], report["validation_examples"]) == (True, True, 113)
    splits = load_parts("breast_cancer", 3, Partition(0.3))
    assert report["labels"] == {
        name: np.bincount(split.labels, minlength=2).tolist()
        for name, split in zip(("alice", "bob", "carol"), splits, strict=True)
    }
    encrypted, plaintext, pooled = accuracies(report)
    assert pooled > 0.94
    assert abs(encrypted - pooled) <= 0.02
    assert abs(encrypted - plaintext) <= 0.02
    assert [row["round"] for row in report["pooled"]["rounds"]] == list(range(1, 21))
    assert report["pooled"]["initial"] == pytest.approx(report["initial"], abs=1e-6)
    trainer = load_example("breast_cancer:1/1", seed=0)
    arrays = trainer.get_parameters({})
    for number in range(1, 21):
        arrays = trainer.fit(arrays, {"seed": 0, "client": "pooled", "round": number})[0]
    loss, _, metrics = trainer.evaluate(arrays, {})
    assert report["pooled"]["final"] == {"loss": loss, **metrics}
    assert f"pooled data: {pooled * 113:.0f} of 113" in "\n".join(demo.out)


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("data", ["digits", "wine"])
def test_five_clients_with_different_labels_come_within_two_points_of_pooled_data(tmp_path: Path, data: str) -> None:
    flags = ("--data", data, "--clients", "5", "--partition", "dirichlet:0.3")
    demo = Command("demo", "--out", "out", *flags, cwd=tmp_path)
    assert demo.wait(390) == 0, demo.error
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert (report["verified"], report["exact"]) == (True, True)
    assert len(report["labels"]) == 5
    encrypted, _, pooled = accuracies(report)
    assert pooled > 0.95
    assert abs(encrypted - pooled) <= 0.02
    # Half a step of a parameter of magnitude 2 to 4; batch norm's statistics have finer steps, its counters none.
    assert 0 < report["max_abs_difference"] <= 16 * 2.0**-24


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--engine", "plaintext"), "compares an encrypted training"),
        (("--partition", "dirichlet:x"), "--partition takes iid, or dirichlet:ALPHA"),
        (("--partition", "dirichlet:0.001", "--clients", "20"), "leaves client"),
        (("--data", "mnist"), "--data takes one of iris, digits, breast_cancer, wine, got 'mnist'"),
    ],
)
def test_a_demo_that_cannot_be_run_says_so_and_leaves_nothing(
    tmp_path: Path, flags: tuple[str, ...], message: str
) -> None:
    demo = Command("demo", *flags, cwd=tmp_path)
    assert demo.wait() == (3 if flags[0] == "--engine" else 2)
    assert message in demo.error
    assert not list(tmp_path.iterdir())


def test_any_number_of_clients_has_names() -> None:
    names = client_names(50)
    assert len(set(names)) == 50
    assert names[:2] == ("alice", "bob")
