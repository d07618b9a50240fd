"""The demo, whole: real keys, processes and TLS."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from federation import Command

from hefl.demo import client_names
from hefl.timings import PHASES


@pytest.mark.parametrize("engine", ["packed", "tenseal"])
def test_the_demo_trains_iris_and_leaves_its_report_and_curves(tmp_path: Path, engine: str) -> None:
    flags = [] if engine == "packed" else ["--engine", engine]
    demo = Command("demo", "--out", "out", *flags, cwd=tmp_path)
    assert demo.wait(110) == 0, demo.error
    report = json.loads((tmp_path / "out/report.json").read_text())
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
            assert row["bytes_up"] > 2 * 3 * 1315
            assert row["bytes_down"] > 2 * 3 * 1315
    assert report["final"]["loss"] == pytest.approx(report["plaintext"]["final"]["loss"], abs=1e-3)
    assert report["drift"] < 1e-2
    assert {"python", "seal", "hefl", "tenseal", "numpy", "torch"} <= set(report["versions"])
    assert (tmp_path / "out/curves.png").read_bytes().startswith(b"\x89PNG")
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"report.json", "curves.png"}
    text = "\n".join(demo.out)
    assert f"verified: {'true' if engine == 'packed' else 'false'}" in text
    assert "right: 29 of 30" in text or "right: 30 of 30" in text
    assert len([line for line in demo.out if line.strip()[:2].strip().isdigit()]) == 21
    assert "10 of 20 rounds" in demo.error


def test_a_demo_that_cannot_share_the_data_says_so_and_leaves_no_process(tmp_path: Path) -> None:
    demo = Command("demo", "--engine", "plaintext", cwd=tmp_path)
    assert demo.wait() == 3
    assert "--insecure-plaintext" in demo.error or "compares" in demo.error
    assert not list(tmp_path.iterdir())


def test_any_number_of_clients_has_names() -> None:
    names = client_names(50)
    assert len(set(names)) == 50
    assert names[:2] == ("alice", "bob")
