"""CKKS contexts, which the key authority issues. The only module that opens TenSEAL's.

``SecretContext`` and ``PublicContext`` are different types, so that a server's function cannot be handed a key.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import os
import re
from dataclasses import dataclass
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from hefl.errors import KeyFileError, SealVersionError, SecretAtServerError
from hefl.identity import Identity
from hefl.params import RINGS, SLOTS_RING, SLOTS_SCALE_BITS, Ring

# A TenSEAL context is a protocol buffer whose first field is what SEAL saved of its parameters, and that starts with
# SEAL's magic number, the size of its header, and its version.
_SEAL_HEADER = re.compile(rb"\x0a[\x80-\xff]*[\x00-\x7f]\x5e\xa1\x10(..)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Fingerprints:
    """Hashes that bind a public context to its secret one, 64 hexadecimal digits each; they tell nothing of it."""

    ckks: str
    group: str

    def __str__(self) -> str:
        return f"{self.ckks}-{self.group}"


@dataclass(frozen=True, slots=True)
class PublicContext:
    """What a server may hold: parameters and fingerprints, no secret of any kind.

    Attributes:
        identity: Federation and key generation.
        ckks: A TenSEAL CKKS context without keys, serialised.
        rings: Those allowed for packed coefficients.
        fingerprints: Of the secret context that belongs to it.
    """

    identity: Identity
    ckks: bytes
    rings: tuple[Ring, ...]
    fingerprints: Fingerprints


@dataclass(frozen=True, slots=True, repr=False)
class SecretContext:
    """What every client holds, and nobody else.

    Attributes:
        identity: Federation and key generation.
        ckks: A TenSEAL CKKS context with its secret key, serialised.
        rings: Those allowed for packed coefficients.
        group_key: 32 random bytes, independent of the CKKS key.
    """

    identity: Identity
    ckks: bytes
    rings: tuple[Ring, ...]
    group_key: bytes

    def __repr__(self) -> str:
        return f"SecretContext({self.identity})"

    def derive(self, info: str, salt: bytes = b"") -> bytes:
        """A 32-byte key for one purpose, by HKDF-SHA256 from the group key."""
        return HKDF(hashes.SHA256(), 32, salt, info.encode()).derive(self.group_key)

    @property
    def fingerprints(self) -> Fingerprints:
        """Hashes that a public context carries."""
        ckks = hashlib.sha256(b"hefl/v1/fingerprint" + self.ckks).hexdigest()
        return Fingerprints(ckks, self.derive("hefl/v1/fingerprint").hex())

    def public(self) -> PublicContext:
        """The same without a secret."""
        stripped = _serialize(open_secret(self), secret_key=False)
        return PublicContext(self.identity, stripped, self.rings, self.fingerprints)


def generate_secret(identity: Identity | None = None) -> SecretContext:
    """Draw a new secret context; all randomness is SEAL's and the operating system's.

    Args:
        identity: Default: a new federation's first generation.

    TenSEAL checks each ring's security level and refuses less than 128 bits.
    """
    import tenseal as ts

    identity = identity or Identity(os.urandom(16).hex(), 1)
    for ring in RINGS:
        _new_context(ring)
    context = _new_context(SLOTS_RING)
    context.global_scale = 2.0**SLOTS_SCALE_BITS
    assert isinstance(context, ts.Context)  # noqa: S101 - tells the type checker, not a check on input
    return SecretContext(identity, _serialize(context, secret_key=True), RINGS, os.urandom(32))


def _new_context(ring: Ring) -> Any:
    import tenseal as ts

    return ts.context(
        ts.SCHEME_TYPE.CKKS,
        ring.degree,
        coeff_mod_bit_sizes=ring.chain,
        encryption_type=ts.ENCRYPTION_TYPE.SYMMETRIC,
        n_threads=1,
    )


def _serialize(context: Any, *, secret_key: bool) -> bytes:
    # TenSEAL's defaults would ship megabytes of keys that nothing here uses.
    data: bytes = context.serialize(
        save_public_key=False, save_secret_key=secret_key, save_galois_keys=False, save_relin_keys=False
    )
    return data


@functools.lru_cache(maxsize=4)
def open_secret(context: SecretContext) -> Any:
    """The TenSEAL context with its secret key.

    Raises:
        SealVersionError, KeyFileError: As open_public.
    """
    opened = _open(context.ckks)
    if not opened.is_private():
        raise KeyFileError("the secret context holds no secret key", hint="this is not a client's secret.hefl")
    return opened


@functools.lru_cache(maxsize=4)
def open_public(context: PublicContext) -> Any:
    """The TenSEAL context without keys.

    Raises:
        SecretAtServerError: It holds a secret key.
        SealVersionError: Another version of SEAL made it.
        KeyFileError: It does not parse, or its parameters are not hefl's.
    """
    opened = _open(context.ckks)
    if opened.is_private():
        raise SecretAtServerError(
            "the public context holds a secret key: the server could read every update",
            hint="copy server/ from the authority's folder again, and rotate the keys if this file has travelled",
        )
    return opened


def _open(data: bytes) -> Any:
    """Parse a context, and refuse one that is not, to the last byte, what this version of hefl issues."""
    import tenseal as ts

    found, running = _seal_version_of(data), seal_version()
    if found != running:
        raise SealVersionError(
            f"the TenSEAL context was made with SEAL {found}, and this machine runs SEAL {running}",
            hint="install the TenSEAL version that the key file names, or make new keys",
        )
    try:
        opened = ts.context_from(data, 1)
        keyless, again = (_serialize(opened, secret_key=key) for key in (False, opened.is_private()))
    except Exception as error:  # TenSEAL raises ValueError, RuntimeError and SEAL's own, by what is broken
        raise KeyFileError(f"the TenSEAL context does not parse: {error}", hint="copy the file again") from error
    if keyless != _reference() or again != data:
        raise KeyFileError(
            "the TenSEAL context is not one that this version of hefl issues", hint="copy the file again"
        )
    return opened


@functools.cache
def _reference() -> bytes:
    """A keyless context of hefl's own parameters, as the running TenSEAL serialises it."""
    context = _new_context(SLOTS_RING)
    context.global_scale = 2.0**SLOTS_SCALE_BITS
    return _serialize(context, secret_key=False)


def _seal_version_of(data: bytes) -> str:
    found = _SEAL_HEADER.match(data)
    if not found:
        raise KeyFileError("the TenSEAL context does not start as one does", hint="copy the file again")
    major, minor = found[1]
    return f"{major}.{minor}"


@functools.cache
def seal_version() -> str:
    """The SEAL that TenSEAL brings, as its own serialised objects state it."""
    return _seal_version_of(_reference())


def tenseal_version() -> str:
    """The installed TenSEAL."""
    return importlib.metadata.version("tenseal")
