"""A recorded run against the second verifier: it accepts every round, finds the same model, and refuses what is not."""

from __future__ import annotations

import base64
from pathlib import Path

import numpy as np
import pytest
from federation import Federation
from recording import Recorded, record_run
from verifier import Key, Round, check_history, read_key
from verifier_model import Decoder, Layout, unseal

WHO = {"alice": (10, 0.1), "bob": (25, -0.2), "carol": (7, 0.35)}


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    return Federation(tmp_path_factory.mktemp("keys") / "fed", *WHO)


@pytest.fixture(scope="module")
def key(keys: Federation) -> Key:
    return read_key((keys.folder / "clients/alice/secret.hefl").read_bytes())


@pytest.fixture(scope="module")
def run(keys: Federation, tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    return record_run(keys, tmp_path_factory.mktemp("run"), WHO, rounds=2)

def test_x(run, key):
    import time
    layout = unseal(base64.b64decode(run.sealed_layout), key)
    print(layout, run.records.keys(), run.stored.keys(), run.models.keys(), run.metrics)
    for r in run.records:
        t=time.time()
        rd = Round(key, run.records[r], run.aggregates[r]); rd.open(); print(rd.plan, time.time()-t)
