"""Builders that several test modules share, and oracles that are not hefl."""

from __future__ import annotations

import hashlib
import hmac
import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from hefl.ckks.context import PublicContext, SecretContext
from hefl.engines.engine import Engine
from hefl.protocol.messages import Join
from hefl.protocol.records import Announcement, MemberEntry, Participant, Record
from hefl.protocol.updates import Aggregation, write_update

Array = NDArray[Any]

RUN = "0123456789abcdef" * 2
HEAD = "5a" * 32
JOIN = Join(
    engine="packed",
    precision_bits=24,
    weighting="server",
    num_examples=4,
    join_nonce="00" * 16,
    layout="ab" * 32,
    sealed_layout=b"sealed",
    values={"initial": 4, "training": 10, "closing": 4},
)
"""What a client says when it comes."""


def nonce_of(name: str) -> str:
    """A join nonce of a client's."""
    return hashlib.sha256(name.encode()).hexdigest()[:32]


def announcement(weights: Mapping[str, int] | None = None, **changes: Any) -> Announcement:
    """An announcement of round 1, attempt 1; ``changes`` are its fields."""
    weights = {"alice": 30, "bob": 10} if weights is None else weights
    fields: dict[str, Any] = {
        "run": RUN,
        "round": 1,
        "attempt": 1,
        "exchange": "training",
        "engine": "tenseal",
        "precision_bits": 24 if changes.get("engine") == "packed" else 0,
        "weighting": "server",
        "nonce": "77" * 32,
        "head": HEAD,
        "values": 3,
        "deadline_s": 60.0,
        "participants": tuple(
            Participant(name=name, num_examples=count, join_nonce=nonce_of(name)) for name, count in weights.items()
        ),
    }
    return Announcement(**{**fields, **changes})


def record(of: Announcement, names: Iterable[str] | None = None) -> Record:
    """A record of an attempt with these members; its digest stands for no aggregate."""
    names = of.names if names is None else list(names)
    return Record(
        announcement=of,
        members=tuple(
            MemberEntry(name=p.name, seed="00" * 32, weight=p.num_examples) for p in of.participants if p.name in names
        ),
        digest="d1" * 32,
        tag="",
    )


def update(engine: Engine, secret: SecretContext, of: Announcement, name: str, vector: Array) -> bytes:
    """One encrypted update."""
    file = io.BytesIO()
    write_update(file, vector, secret, engine, of, name)
    return file.getvalue()


def summed(
    engine: Engine, public: PublicContext, of: Announcement, updates: Mapping[str, bytes]
) -> tuple[bytes, Record]:
    """The aggregate of some updates, and its record."""
    aggregation = Aggregation(public, engine, of, updates)
    for name, data in updates.items():
        aggregation.add(aggregation.open(data, name), name)
    file = io.BytesIO()
    made = aggregation.finish(file)
    return file.getvalue(), made


def redigested(data: bytes | bytearray) -> bytes:
    """The same bytes under a digest that is right, as a peer that lies would send them."""
    body = bytes(data[:-32])
    return body + hashlib.sha256(body).digest()


def weighted_mean(vectors: Sequence[Array], weights: Sequence[int]) -> NDArray[np.float64]:
    """Numpy's, in float64."""
    mean: NDArray[np.float64] = np.average(np.asarray(vectors, np.float64), axis=0, weights=weights)
    return mean


def canonical_json(value: msgspec.Struct) -> bytes:
    """What history hashes, by the standard library's encoder."""
    return json.dumps(msgspec.to_builtins(value), sort_keys=True, separators=(",", ":")).encode()


def hkdf(key: bytes, info: bytes, salt: bytes = b"") -> bytes:
    """RFC 5869 with SHA-256, one block of output."""
    extracted = hmac.new(salt or bytes(32), key, hashlib.sha256).digest()
    return hmac.new(extracted, info + b"\x01", hashlib.sha256).digest()


class LeastSquares:
    """Linear regression by gradient descent in numpy: a trainer of two tensors, each of its own dtype."""

    names = ("weight", "bias")

    def __init__(self, x: NDArray[np.float64], y: NDArray[np.float64], *, in_place: bool = False) -> None:
        self.x, self.y = x, y
        self.in_place = in_place
        self.num_examples = len(y)

    def get_parameters(self, config: Mapping[str, Any]) -> list[Array]:
        return [np.linspace(-0.1, 0.1, self.x.shape[1]), np.zeros(1)]

    def fit(self, parameters: list[Array], config: Mapping[str, Any]) -> tuple[list[Array], int, dict[str, Any]]:
        weight, bias = parameters if self.in_place else [p.copy() for p in parameters]
        for _ in range(5):
            error = self.x @ weight + bias - self.y
            weight -= 0.2 * self.x.T @ error / len(self.y)
            bias -= 0.2 * error.mean()
        return [weight, bias], self.num_examples, {}

    def evaluate(self, parameters: list[Array], config: Mapping[str, Any]) -> tuple[float, int, dict[str, Any]]:
        weight, bias = parameters
        error = self.x @ weight + bias - self.y
        if self.in_place:
            weight[:] = bias[:] = 1e9
        return float((error**2).mean()), len(self.y), {"mae": float(np.abs(error).mean()), "note": "not a number"}


def diabetes(parts: int) -> list[LeastSquares]:
    """Scikit-learn's diabetes data, standardised, in parts of different sizes."""
    from sklearn.datasets import load_diabetes

    x, y = load_diabetes(return_X_y=True)
    x, y = x / x.std(axis=0), (y - y.mean()) / y.std()
    edges = np.cumsum(np.arange(1, parts + 1)) * len(y) // (parts * (parts + 1) // 2)
    return [LeastSquares(a, b) for a, b in zip(np.split(x, edges[:-1]), np.split(y, edges[:-1]), strict=True)]


def saved(path: Path) -> dict[str, bytes]:
    """The arrays of a model's file, as they are to the bit."""
    archive = np.load(path, allow_pickle=False)
    return {name: archive[name].tobytes() for name in archive.files}


def steps(path: Path) -> int:
    """Which of trainers.Drift's models a file holds, as the model itself counts."""
    return int(np.load(path, allow_pickle=False)["steps"]) - 7


def wide_noise(streams: object, block: int, n: int) -> NDArray[np.int32]:
    """In place of ckks.packed's: what no honest client adds, and what makes a sum useless."""
    return np.full(n, 99, np.int32)


def rewritten(path: Path, pattern: str, replacement: str) -> None:
    """Change a key file's text like one who knows the format: the checksum is right again."""
    text = path.read_text()
    changed = re.sub(pattern, replacement, text, count=1, flags=re.MULTILINE)
    assert changed != text
    head = changed[: changed.rindex("checksum: ")]
    path.write_text(f"{head}checksum: {hashlib.sha256(head.encode()).hexdigest()}\n")
