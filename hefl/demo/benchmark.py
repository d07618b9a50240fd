"""Measure what encryption costs, beside what it replaces.

Table ``engines``: each engine's arithmetic, in a process of its own, on one core. Table ``round``: the wall time of a
whole round, with a real server and clients over TLS on loopback, and training left out. Both check first that
every engine computed the same.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import platform
import resource
import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hefl.ckks.context import SecretContext, generate_secret
from hefl.demo.processes import Children, Event, run_federation
from hefl.demo.training import client_names
from hefl.encoding.codec import Codec, Scales, Sum
from hefl.engines.engine import Attempt, Blocks, Engine, Member, Trailer, Write
from hefl.engines.load import load_engine
from hefl.errors import HeflError
from hefl.keys import authority
from hefl.models.layout import Arrays, Layout, describe
from hefl.params import SLOTS_RING, SLOTS_SCALE_BITS
from hefl.timings import Timings

REPEATS = 5
TOLERANCE = 1e-5
"""Engines must agree to this in every value, all of which are below 1."""

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Row:
    """One figure.

    Attributes:
        table: ``engines`` or ``round``.
        engine: Its name; ``tenseal`` is stock TenSEAL with the secret key, ``tenseal-public`` with the public one.
        phase: What was timed; ``wall`` is a whole round. Packed and plaintext serialise as they encrypt and parse as
            they aggregate and decrypt, block by block; TenSEAL parses as it aggregates and decrypts.
        seconds: Median, for one client; in ``aggregate`` for one client of the server's.
        bytes_up, bytes_down: Of one client.
        peak_bytes: Largest resident size of the process; in table ``round`` the server's in phase ``aggregate``, and a
            client's in the others.
        max_abs_error: Largest difference from numpy's weighted mean in double precision.
    """

    table: str
    engine: str
    values: int
    clients: int
    weights: tuple[int, ...]
    phase: str
    seconds: float
    bytes_up: int
    bytes_down: int
    peak_bytes: int
    max_abs_error: float


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    import importlib.metadata

    names = ("hefl", "tenseal", "numpy", "numba", "cryptography", "aiohttp", "uvloop")
    processor = next(
        (line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")),
        platform.processor(),
    )
    return {
        "processor": processor,
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "repeats": REPEATS,
        **{name: importlib.metadata.version(name) for name in names},
    }


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


# --- engines ----------------------------------------------------------------------------------------------------------


def bench_engines(values: int, weights: Sequence[int], say: Say, threads: int = 1) -> list[Row]:
    """Each engine's phases at so many values, for clients with these sample weights."""
    rows: list[Row] = []
    for engine in ("plaintext", "packed"):
        say(f"engines: {engine}, {values:,} values, weights {list(weights)}")
        rows += _alone(_bench_engine, engine, values, tuple(weights), threads)
    for public_key in (False, True):
        say(f"engines: stock TenSEAL with the {'public' if public_key else 'secret'} key, {values:,} values")
        rows += _alone(_bench_tenseal, values, tuple(weights), public_key)
    return rows


def bench_packed(values: int, weights: Sequence[int], threads: int) -> list[Row]:
    """The packed engine alone, with so many threads."""
    return _alone(_bench_engine, "packed", values, tuple(weights), threads)


def _alone(function: Callable[..., list[Row]], *arguments: Any) -> list[Row]:
    """Run in a process of its own, so that its peak of memory is its own."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def _models(values: int, clients: int) -> list[Arrays]:
    rng = np.random.default_rng(7)
    return [[rng.normal(0, 0.1, values).clip(-0.9, 0.9).astype(np.float32)] for _ in range(clients)]


def _bench_engine(name: str, values: int, weights: tuple[int, ...], threads: int) -> list[Row]:
    engine = _engine(name, threads)
    secret = generate_secret()
    models, names = _models(values, len(weights)), client_names(len(weights))
    layout = describe(models[0], ["loss"])
    run = _EngineRun(engine, secret, layout, dict(zip(names, weights, strict=True)))
    run.once([[m[0][:1000]] for m in models], describe([models[0][0][:1000]], ["loss"]))  # compile and warm up
    expected = np.average([m[0] for m in models], axis=0, weights=weights)
    samples: list[dict[str, float]] = []
    for _ in range(REPEATS):
        found = run.once(models, layout)
        error = float(np.abs(found.mean - expected).max())
        if error > TOLERANCE:
            raise HeflError(f"the engine {name} is off by {error:g}")
        samples.append(found.seconds)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return [
        Row(
            "engines",
            name,
            values,
            len(weights),
            weights,
            phase,
            statistics.median(s[phase] for s in samples),
            found.bytes_up,
            found.bytes_down,
            peak,
            error,
        )
        for phase in samples[0]
    ]


def _engine(name: str, threads: int) -> Engine:
    if name == "packed":
        from hefl.engines.packed import PackedEngine

        return PackedEngine(threads=threads)
    return load_engine(name, insecure_plaintext=True)


@dataclass(frozen=True, slots=True)
class _Found:
    mean: NDArray[np.float64]
    seconds: dict[str, float]
    bytes_up: int
    bytes_down: int


class _EngineRun:
    """Everything that one round's arithmetic does, in memory."""

    def __init__(self, engine: Engine, secret: SecretContext, layout: Layout, weights: Mapping[str, int]) -> None:
        self._engine, self._secret, self._public = engine, secret, secret.public()
        self._weights = weights

    def once(self, models: Sequence[Arrays], layout: Layout) -> _Found:
        engine, timings = self._engine, Timings()
        codec = engine.codec(layout)
        attempt = Attempt(os.urandom(32), codec.values("training"), self._weights)
        scales = _scales(codec, models[0])
        updates: dict[str, tuple[list[bytes], Trailer]] = {}
        for name, model in zip(self._weights, models, strict=True):
            blocks: list[bytes] = []
            with timings.phase("quantise"):
                vector = codec.encode_model(model, {"loss": 0.5}, scales)
            with timings.phase("encrypt"):
                trailer = engine.encrypt(vector, self._secret, attempt, name, _collect(blocks))
            with timings.phase("digest"):
                _digest(blocks)
            updates[name] = blocks, trailer
        total: list[bytes] = []
        with timings.phase("aggregate"):
            aggregator = engine.aggregator(self._public, attempt)
            for name, (blocks, trailer) in updates.items():
                aggregator.add(name, _again(blocks), trailer)
            tag = aggregator.finish(_collect(total))
        members = [Member(name, trailer.seed, self._weights[name]) for name, (_, trailer) in updates.items()]
        with timings.phase("decrypt"):
            sums = engine.decrypt(_again(total), tag, self._secret, attempt, members)
        with timings.phase("dequantise"):
            arrays = codec.decode_model(sums, scales)[0]
        each = {"quantise", "encrypt", "digest", "aggregate"}
        seconds = {k: s / len(self._weights) if k in each else s for k, s in timings.take().items()}
        sent = next(iter(updates.values()))[0]
        return _Found(arrays[0].astype(np.float64), seconds, sum(map(len, sent)), sum(map(len, total)))


def _collect(blocks: list[bytes]) -> Write:
    return lambda block: blocks.append(bytes(block))


def _again(blocks: list[bytes]) -> Blocks:
    return lambda: iter(blocks)


def _scales(codec: Codec, model: Arrays) -> Scales:
    """Those that clients share after the initial round."""
    return codec.decode_initial(Sum(codec.encode_initial(model), 1))[1]


def _digest(blocks: Sequence[bytes]) -> bytes:
    digest = hashlib.sha256()
    for block in blocks:
        digest.update(block)
    return digest.digest()


def _bench_tenseal(values: int, weights: tuple[int, ...], public_key: bool) -> list[Row]:
    """Stock TenSEAL, called as its documentation does: nothing of hefl's but the parameters."""
    import tenseal as ts

    kind = ts.ENCRYPTION_TYPE.ASYMMETRIC if public_key else ts.ENCRYPTION_TYPE.SYMMETRIC
    chain, degree = SLOTS_RING.chain, SLOTS_RING.degree
    context = ts.context(ts.SCHEME_TYPE.CKKS, degree, coeff_mod_bit_sizes=chain, encryption_type=kind, n_threads=1)
    context.global_scale = 2.0**SLOTS_SCALE_BITS
    keyless = ts.context_from(
        context.serialize(save_public_key=False, save_secret_key=False, save_galois_keys=False, save_relin_keys=False),
        n_threads=1,
    )
    models, shares = [m[0].astype(np.float64) for m in _models(values, len(weights))], np.array(weights) / sum(weights)
    expected, samples = np.average(models, axis=0, weights=weights), []
    for _ in range(REPEATS):
        timings = Timings()
        updates = [_tenseal_encrypt(context, model, timings) for model in models]
        with timings.phase("digest"):
            for blocks in updates:
                _digest(blocks)
        with timings.phase("aggregate"):
            total = []
            for parts in zip(*updates, strict=True):
                first, *others = (
                    ts.ckks_vector_from(keyless, part) * share for part, share in zip(parts, shares, strict=True)
                )
                total.append(sum(others, first).serialize())
        with timings.phase("decrypt"):
            out = np.concatenate([ts.ckks_vector_from(context, block).decrypt() for block in total])
        error = float(np.abs(out - expected).max())
        if error > TOLERANCE:
            raise HeflError(f"TenSEAL is off by {error:g}")
        taken = timings.take()
        samples.append({k: s if k == "decrypt" else s / len(weights) for k, s in taken.items()})
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    up, down = sum(map(len, updates[0])), sum(map(len, total))
    shape = ("tenseal-public" if public_key else "tenseal", values, len(weights), weights)
    return [
        Row("engines", *shape, phase, statistics.median(s[phase] for s in samples), up, down, peak, error)
        for phase in samples[0]
    ]


def _tenseal_encrypt(context: Any, vector: NDArray[np.float64], timings: Timings) -> list[bytes]:
    import tenseal as ts

    slots = SLOTS_RING.degree // 2
    chunks = range(0, vector.size, slots)
    with timings.phase("encrypt"):
        encrypted = [ts.ckks_vector(context, vector[at : at + slots].tolist()) for at in chunks]
    with timings.phase("serialise"):
        return [chunk.serialize() for chunk in encrypted]


# --- whole rounds -----------------------------------------------------------------------------------------------------


class IdleTrainer:
    """A model of one tensor whose training is a subtraction: what a round takes besides is left to see."""

    names = ("parameters",)

    def __init__(self, values: int, num_examples: int) -> None:
        self.num_examples = num_examples
        self._values = values

    def get_parameters(self, config: Mapping[str, Any]) -> Arrays:
        """Numbers below 1."""
        return [np.random.default_rng(7).normal(0, 0.1, self._values).clip(-0.9, 0.9).astype(np.float32)]

    def fit(self, parameters: Arrays, config: Mapping[str, Any]) -> tuple[Arrays, int, dict[str, float]]:
        """Move a little, by an amount of this client's own."""
        parameters[0] -= np.float32(1e-3 * (self.num_examples % 7))
        return parameters, self.num_examples, {}

    def evaluate(self, parameters: Arrays, config: Mapping[str, Any]) -> tuple[float, int, dict[str, float]]:
        """One number."""
        return float(parameters[0][0]), 1, {}


def bench_round(values: int, weights: Sequence[int], say: Say) -> list[Row]:
    """A whole round's wall time, plaintext and packed, for clients with these sample weights."""
    runs = {}
    for engine in ("plaintext", "packed"):
        say(f"rounds: {engine}, {values:,} values, {len(weights)} clients over TLS")
        with tempfile.TemporaryDirectory(prefix="hefl-bench-") as folder:
            runs[engine] = _RoundRun(Path(folder), engine, values, tuple(weights))
    error = float(np.abs(runs["packed"].model - runs["plaintext"].model).max())
    if error > TOLERANCE:
        raise HeflError(f"encrypted and plaintext rounds differ by {error:g}")
    return [row for run in runs.values() for row in run.rows(error)]


class _RoundRun:
    """One federation's rounds, from its first announcement to its last record."""

    def __init__(self, folder: Path, engine: str, values: int, weights: tuple[int, ...]) -> None:
        self._engine, self._values, self._weights = engine, values, weights
        self._rounds = REPEATS + 1  # the first one compiles and warms up
        names = client_names(len(weights))
        authority.create(folder / "keys", names, ("127.0.0.1",))
        lines = ["from hefl.demo.benchmark import IdleTrainer", ""]
        lines += [f"def client_{i}(): return IdleTrainer({values}, {weight})" for i, weight in enumerate(weights)]
        (folder / "bench_trainers.py").write_text("\n".join(lines) + "\n")
        common = ["--engine", engine, *(["--insecure-plaintext"] if engine == "plaintext" else [])]
        clients = {
            name: [*common, "--trainer", f"bench_trainers:client_{i}", "--save", str(folder / f"{name}.npz")]
            for i, name in enumerate(names)
        }
        serve = [*common, "--rounds", str(self._rounds), "--round-timeout", "600"]
        self._events: list[tuple[str, Event]] = []
        with Children(folder) as children:
            self._events += run_federation(children, folder / "keys", serve, clients)
            self._peaks = children.peak_bytes
        self.model: NDArray[np.float32] = np.load(folder / f"{names[0]}.npz", allow_pickle=False)["parameters"]

    def rows(self, error: float) -> Iterator[Row]:
        """The wall time, and each phase."""
        announced = {e["round"]: e["read_s"] for n, e in self._events if n == "server" and e["event"] == "announced"}
        measured = range(2, self._rounds + 1)
        rounds = [e for n, e in self._events if n != "server" and e["event"] == "round" and e["round"] in measured]
        served = [e for n, e in self._events if n == "server" and e["event"] == "round" and e["round"] in measured]
        up, down = rounds[0]["bytes_up"], rounds[0]["bytes_down"]
        client_peak = max(peak for name, peak in self._peaks.items() if name != "server")

        def row(phase: str, seconds: Sequence[float], peak: int = client_peak) -> Row:
            shape = (self._values, len(self._weights), self._weights)
            return Row("round", self._engine, *shape, phase, statistics.median(seconds), up, down, peak, error)

        yield row("wall", [announced[r + 1] - announced[r] for r in measured])
        for phase in ("quantise", "encrypt", "upload", "download", "decrypt"):
            yield row(phase, [e["seconds"][phase] for e in rounds])
        seconds = [e["seconds"]["aggregate"] / len(self._weights) for e in served]
        yield row("aggregate", seconds, self._peaks["server"])


def as_json(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Rows as they are kept."""
    return [asdict(row) for row in rows]
