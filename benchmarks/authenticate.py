"""What does it cost a client to authenticate an update, and to check a sum? Writes results/authenticate.json.

The part of ``encrypt`` and of ``decrypt`` that is the MAC: its keys, the hash of every block, and the pads.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from statistics import median

import numpy as np
from results import note, write

import hefl
from hefl.ckks.blocks import BlockCoder
from hefl.ckks.mac import Mac
from hefl.demo.benchmark import REPEATS
from hefl.engines.engine import Attempt
from hefl.engines.packed import PackedEngine
from hefl.protocol.compact_records import to_bytes
from hefl.protocol.records import Announcement, MemberEntry, Participant, Record, canonical

VALUES = 1_663_370


def seconds(work: Callable[[], object]) -> float:
    work()
    times = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return median(times)


def measured(clients: int) -> dict[str, object]:
    engine, secret = PackedEngine(threads=1), hefl.generate_secret()
    engine.prepare()
    attempt = Attempt(os.urandom(32), VALUES, {f"client-{i}": 1 for i in range(clients)})
    coder = BlockCoder(engine.plan(attempt), attempt.ctx)
    moduli = coder.basis.moduli[:, None]
    words = np.frombuffer(os.urandom(4 * coder.basis.limbs * coder.basis.degree), np.uint32)
    residues = words.reshape(coder.basis.limbs, -1) % moduli
    blocks = coder.plan.blocks

    def authenticate(pads: int) -> None:
        mac = Mac(secret, attempt.ctx, coder.basis, blocks)
        total = mac.total([mac.hash(residues) for _ in range(blocks)])
        for i in range(pads):
            total = mac.add_pad(total, f"client-{i}", bytes(32), 1)

    blobs: list[bytes] = []
    whole_s = seconds(
        lambda: engine.encrypt(np.zeros(VALUES, np.int64), secret, attempt, "client-0", lambda d: blobs.clear())
    )
    tag_s, check_s = seconds(lambda: authenticate(1)), seconds(lambda: authenticate(clients))
    return {
        "values": VALUES,
        "clients": clients,
        "encrypt_s": whole_s,
        "tag_s": tag_s,
        "check_s": check_s,
        "tag_ns_a_value": tag_s * 1e9 / VALUES,
        "check_ns_a_value": check_s * 1e9 / VALUES,
        **record_sizes(clients),
    }


def record_sizes(clients: int) -> dict[str, int]:
    """Bytes of one round's record, as it travels to a client that missed it, and as JSON."""
    people = tuple(
        Participant(name=f"client-{i}", num_examples=1000 + i, join_nonce=os.urandom(16).hex()) for i in range(clients)
    )
    announcement = Announcement(
        run=os.urandom(16).hex(),
        round=12,
        attempt=1,
        exchange="training",
        engine="packed",
        precision_bits=24,
        weighting="server",
        nonce=os.urandom(32).hex(),
        head=os.urandom(32).hex(),
        values=VALUES,
        deadline_s=60.0,
        participants=tuple(sorted(people, key=lambda p: p.name)),
    )
    members = tuple(
        MemberEntry(name=p.name, seed=os.urandom(32).hex(), weight=p.num_examples) for p in announcement.participants
    )
    record = Record(announcement=announcement, members=members, digest=os.urandom(32).hex(), tag=os.urandom(74).hex())
    return {"record_bytes": len(to_bytes(record)), "record_json_bytes": len(canonical(record))}


if __name__ == "__main__":
    rows = []
    for count in (3, 10, 100):
        note(f"authenticate: {count} clients")
        rows.append(measured(count))
    write("authenticate", rows)
