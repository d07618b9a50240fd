"""Compute one encrypted weighted mean of vectors, on bytes in memory.

>>> secret = generate_secret()
>>> public = secret.public()
>>> attempt = announce(public, {"alice": 30, "bob": 10}, values=2)
>>> alice = encrypt([0.1, 0.2], secret, attempt, "alice")
>>> bob = encrypt([0.5, 0.6], secret, attempt, "bob")
>>> decrypt(aggregate([alice, bob], public, attempt), secret, attempt).round(6).tolist()
[0.2, 0.3]
"""

from __future__ import annotations

import io
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from hefl.ckks.context import PublicContext, SecretContext
from hefl.encoding.codec import Codec
from hefl.engines.engine import Engine
from hefl.engines.load import load_engine
from hefl.errors import NotFiniteError, OutOfRangeError, ParametersError
from hefl.models.layout import Layout, Tensor
from hefl.models.trainer import check_num_examples
from hefl.params import DEFAULT_ENGINE, MIN_CLIENTS, PRECISION_BITS
from hefl.protocol import frames
from hefl.protocol.records import Announcement, Participant, genesis
from hefl.protocol.updates import Aggregation, read_aggregate, write_update

LARGEST_RANGE = 2.0**64
"""No ``value_range`` is above it."""


def announce(
    public: PublicContext,
    num_examples: Mapping[str, int],
    values: int,
    *,
    engine: str = DEFAULT_ENGINE,
    precision_bits: int = PRECISION_BITS,
) -> Announcement:
    """Announce one weighted mean of vectors; every party works from the same announcement.

    Args:
        public: The server's context.
        num_examples: The participants' positive sample weights by name.
        values: Length of each vector.
        engine: ``packed`` (exact in fixed point, authenticated) or ``tenseal``.
        precision_bits: Of a fixed-point value of ``packed``.

    Raises:
        NumExamplesError: A weight is not a whole number from 1 to what the engine can scale by.
        ParametersError: Fewer than two participants, a name that is none, or no values.
    """
    cipher = load_engine(engine, precision_bits=precision_bits)
    weights = {n: check_num_examples(count, cipher.max_num_examples) for n, count in sorted(num_examples.items())}
    if len(weights) < MIN_CLIENTS:
        raise ParametersError(f"a sum of fewer than {MIN_CLIENTS} vectors shows one of them, got {len(weights)}")
    run = os.urandom(16).hex()
    announcement = Announcement(
        run=run,
        round=1,
        attempt=1,
        exchange="training",
        engine=cipher.terms.engine,
        precision_bits=cipher.terms.precision_bits,
        weighting=cipher.terms.weighting,
        nonce=os.urandom(32).hex(),
        head=genesis(public.identity, run),
        values=values and values + _overhead(cipher),
        deadline_s=60.0,
        participants=tuple(
            Participant(name=name, num_examples=count, join_nonce=os.urandom(16).hex())
            for name, count in weights.items()
        ),
    )
    try:
        return msgspec.convert(msgspec.to_builtins(announcement), Announcement)
    except msgspec.ValidationError as error:
        raise ParametersError(f"cannot announce: {error}") from error


def encrypt(
    vector: Sequence[float] | NDArray[Any],
    secret: SecretContext,
    attempt: Announcement,
    name: str,
    *,
    value_range: float = 1.0,
) -> bytes:
    """Encrypt one participant's vector.

    Args:
        vector: As long as was announced, finite, and for ``packed`` of magnitude at most ``value_range``.
        secret: The clients' context.
        attempt: From ``announce``.
        name: The participant's.
        value_range: A power of two from 1 to 2**64, the same for all participants; ``packed`` rounds to
            value_range * 2**(1 - precision_bits).

    Returns:
        An update, as the wire format has it.

    Raises:
        NotFiniteError, OutOfRangeError: A value is NaN or infinite, or beyond the range.
        ParametersError: The vector's shape is another, the name was not announced, or the range is none.
    """
    engine = _engine(attempt)
    codec, count = _codec(engine, attempt)
    values = np.asarray(vector, np.float64)
    if values.shape != (count,) or name not in attempt.names:
        raise ParametersError(
            f"{name!r} cannot encrypt an array of shape {values.shape}: announced are {', '.join(attempt.names)} "
            f"and shape ({count},)"
        )
    if not np.isfinite(values).all():
        raise NotFiniteError(
            f"value {int(np.argmin(np.isfinite(values)))} is NaN or infinite; nothing was encrypted",
            hint="no mean has a place for it: look for where it comes from",
        )
    exponent = _exponent(value_range)
    if engine.terms.precision_bits and (np.abs(values) > value_range).any():
        raise OutOfRangeError(
            f"value {int(np.argmax(np.abs(values) > value_range))} is beyond +-{value_range:g}; nothing was encrypted",
            hint=_way_to_hold(float(np.abs(values).max())),
        )
    file = io.BytesIO()
    write_update(file, codec.encode_model([values], {}, (exponent,)), secret, engine, attempt, name)
    return file.getvalue()


def aggregate(updates: Sequence[bytes], public: PublicContext, attempt: Announcement) -> bytes:
    """Add up updates, each scaled by its sender's ``num_examples``; needs no key.

    Raises:
        MalformedError, MismatchError, StaleError, ConflictError: An update does not belong here, or there are too few.
    """
    names = [frames.read_header(update).name for update in updates]
    aggregation = Aggregation(public, _engine(attempt), attempt, names)
    for name, update in zip(names, updates, strict=True):
        aggregation.add(aggregation.open(update, name), name)
    file = io.BytesIO()
    aggregation.finish(file)
    return file.getvalue()


def decrypt(aggregate: bytes, secret: SecretContext, attempt: Announcement) -> NDArray[np.float64]:
    """The weighted mean of the vectors that are in the aggregate.

    Raises:
        MalformedError, MismatchError, StaleError, ConflictError: The aggregate does not belong here.
        TamperError: It is not the announced weighted sum (``packed``).
        UploadError: Participants used different ranges, or broke the protocol otherwise (``packed``).
    """
    engine = _engine(attempt)
    codec, _ = _codec(engine, attempt)
    (mean,), _, _ = codec.decode_model(read_aggregate(aggregate, secret, engine, attempt), None)
    return mean


def _engine(attempt: Announcement) -> Engine:
    return load_engine(attempt.engine, precision_bits=attempt.precision_bits or PRECISION_BITS)


def _codec(engine: Engine, attempt: Announcement) -> tuple[Codec, int]:
    """How one vector becomes what this engine encrypts, and the vector's length."""
    count = attempt.values - _overhead(engine)
    return engine.codec(_layout(count)), count


def _overhead(engine: Engine) -> int:
    """Values that travel beside a vector's own."""
    return engine.codec(_layout(1)).values("training") - 1


def _layout(count: int) -> Layout:
    return Layout((Tensor("vector", "float64", (count,), "parameter"),), ())


def _exponent(value_range: float) -> int:
    mantissa, exponent = math.frexp(value_range)
    if mantissa != 0.5 or not 1 <= value_range <= LARGEST_RANGE:
        raise ParametersError(f"value_range must be a power of two from 1 to 2**64, got {value_range!r}")
    return exponent - 1


def _way_to_hold(largest: float) -> str:
    """What to do about a value of this magnitude, which the range does not hold."""
    if largest > LARGEST_RANGE:
        return "scale the vector at all participants: no value_range is above 2**64"
    mantissa, exponent = math.frexp(largest)
    exponent -= mantissa == 0.5
    power = f"{2**exponent}" if exponent <= 20 else f"2.0**{exponent}"
    return f"give all participants the same value_range, a power of two that holds the values of all: here {power}"
