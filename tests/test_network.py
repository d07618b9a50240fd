"""A network that breaks: every connection may be cut, and the run ends with the right model all the same."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from federation import Federation
from proxy import Fault, Proxy


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    return Federation(tmp_path_factory.mktemp("keys") / "fed", "alice", "bob")


def test_connections_that_are_cut_delayed_and_truncated_change_no_model(keys: Federation, tmp_path: Path) -> None:
    """No connection carries a whole update: it gets through in pieces only."""
    faults, update_bytes = np.random.default_rng(10001), 0

    def fault(number: int) -> Fault:
        if number < 2:
            return Fault()  # with TLS 1.3 a reset at the first request cannot be told from a refused certificate
        return Fault(
            up_bytes=int(faults.integers(60_000, 140_000)),
            down_bytes=(None, None, 3_000, 100_000)[faults.integers(4)],
            reset=bool(faults.integers(2)),
            delay_s=(0.0, 0.0, 0.01)[faults.integers(3)],
        )

    with keys:
        server = keys.serve(tmp_path / "server", "--rounds", "3", "--join-wait", "10")
        with Proxy(urlsplit(keys.url).port or 0, fault) as proxy:
            keys.url = f"https://127.0.0.1:{proxy.port}"
            clients = [
                keys.client(n, tmp_path / n, "--save", tmp_path / f"{n}.npz", WIDTH="20000") for n in ("alice", "bob")
            ]
            assert [c.wait() for c in (*clients, server)] == [0, 0, 0], [c.error for c in (*clients, server)]
            assert proxy.cuts > 10
    for client in clients:
        update_bytes = max(e["bytes_up"] for e in client.events if e["event"] == "round")
        assert update_bytes > 140_000
        assert any(int(at) > 0 for at in re.findall(r"goes on at byte (\d+)", client.error))
        assert "was missed" not in client.error
    assert [e["in"] for e in server.events if e["event"] == "round"] == [["alice"], *[["alice", "bob"]] * 4]
    weight, bias = 0.5, 0.0
    for _ in range(3):
        weight, bias = weight * 0.5 + 1, bias + 1 / 3
    for name in ("alice", "bob"):
        model = np.load(tmp_path / f"{name}.npz", allow_pickle=False)
        np.testing.assert_allclose(model["layer.weight"], weight, rtol=0, atol=1e-6)
        np.testing.assert_allclose(model["layer.bias"], bias, rtol=0, atol=1e-6)
