"""The engine's bytes are those of a second implementation, and those of the day the format was fixed."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import packed_reference as reference
import pytest
from packed_support import add_up, encrypt, new_secret
from tenseal import sealapi as seal

from hefl.engines import packed
from hefl.engines.engine import Attempt
from hefl.engines.packed import PackedEngine

VECTORS = json.loads((Path(__file__).parent / "vectors" / "packed.json").read_text())


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["what"])
def test_an_update_is_the_same_to_the_bit(vector: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.array(vector["cycle"])[np.arange(vector["values"]) % len(vector["cycle"])]
    given_bytes = ("published_test_key", "ctx", "seed", "noise_key")
    group_key, ctx, seed, noise_key = (bytes.fromhex(vector[k]) for k in given_bytes)
    secret = dataclasses.replace(new_secret(), group_key=group_key)
    attempt = Attempt(ctx, vector["values"], vector["weights"])
    engine = PackedEngine(vector["precision_bits"], threads=1)
    draws = iter([seed, noise_key])
    monkeypatch.setattr(packed.os, "urandom", lambda size: next(draws))  # type: ignore[attr-defined]
    update = encrypt(engine, secret, attempt, vector["name"], values)

    plan = engine.plan(attempt)
    primes = [q.value() for q in seal.CoeffModulus.Create(plan.ring.degree, plan.ring.chain)][: plan.limbs]
    given = reference.Given(
        group_key=group_key,
        ctx=ctx,
        name=vector["name"],
        seed=seed,
        noise_key=noise_key,
        degree=plan.ring.degree,
        primes=primes,
        bits=plan.limb_bits,
        lanes=plan.lanes,
        precision=vector["precision_bits"],
        total_weight=sum(vector["weights"].values()),
        values=values.tolist(),
    )
    blocks, tag = reference.update(given)
    assert update.blocks == blocks
    assert update.trailer.tag == tag
    assert update.trailer.seed == seed

    assert [len(blocks), len(blocks[0])] == vector["blocks"]
    assert hashlib.sha256(b"".join(blocks)).hexdigest() == vector["sha256"]
    assert tag.hex() == vector["tag"]

    total_sum = add_up(engine, secret, attempt, {vector["name"]: update}).open(engine, secret, attempt)
    assert (total_sum.vector == attempt.weights[vector["name"]] * values).all()
