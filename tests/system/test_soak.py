"""Long runs and many clients: what must not grow does not. They run the benchmarks, smaller."""

from __future__ import annotations

from pathlib import Path

import pytest
from load import load
from soak import CLIENTS, slope, soak

from hefl.params import CONNECTION_BYTES

MEMORY_BYTES = 20e3
"""A process may come to hold so much more in each of rounds 50 to 150, when caches still fill."""
RECORD_BYTES = 1500
"""The journal keeps a record of each round."""
WAL_BYTES = 5e6
"""SQLite lets its log grow to 4 MB, and begins anew."""


@pytest.mark.slow
def test_nothing_grows_with_rounds_but_the_journal_by_their_records(tmp_path: Path) -> None:
    samples = [s for s in soak(tmp_path, 150, 10) if s.round >= 50]
    for name in ("server", *CLIENTS):
        mine = [s for s in samples if s.name == name]
        assert len(mine) == 11
        assert slope(mine, "memory_bytes") < MEMORY_BYTES
        assert max(s.descriptors for s in mine) <= min(s.descriptors for s in mine) + 4
        assert max(s.files for s in mine) <= min(s.files for s in mine) + 2
        assert max(s.disk_bytes for s in mine) < (WAL_BYTES + 150 * RECORD_BYTES if name == "server" else 200e3)


@pytest.mark.slow
def test_a_servers_memory_stays_within_the_plan_however_many_upload_at_once(tmp_path: Path) -> None:
    """Every client's model is, to the bit, what integers give in numpy."""
    runs = {}
    for clients in (8, 48):
        folder = tmp_path / str(clients)
        folder.mkdir()
        runs[clients] = load(folder, 800_000, clients)
        assert runs[clients].peak_bytes < runs[clients].planned_bytes
    assert runs[48].peak_bytes - runs[8].peak_bytes < 40 * CONNECTION_BYTES
