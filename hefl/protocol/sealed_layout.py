"""Seal a model's layout for the other clients; the server may only compare commitments."""

from __future__ import annotations

import hashlib
import hmac
import os

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from hefl.ckks.context import SecretContext
from hefl.errors import MalformedError
from hefl.models.layout import Layout


def commitment(layout: Layout, secret: SecretContext) -> str:
    """Return an HMAC by which a server can tell that two layouts are equal, and nothing else of them."""
    return hmac.new(secret.derive("hefl/v1/layout"), msgspec.json.encode(layout), hashlib.sha256).hexdigest()


def seal(layout: Layout, secret: SecretContext) -> bytes:
    """Encrypt for the other clients: AES-256-GCM under a key of its own, with a random nonce in front."""
    nonce, data = os.urandom(12), msgspec.json.encode(layout)
    return nonce + AESGCM(secret.derive("hefl/v1/sealed-layout")).encrypt(nonce, data, None)


def unseal(sealed: bytes, secret: SecretContext) -> Layout:
    """Open another client's sealed layout.

    Raises:
        MalformedError: It was not sealed under this group key, or does not parse.
    """
    try:
        data = AESGCM(secret.derive("hefl/v1/sealed-layout")).decrypt(sealed[:12], sealed[12:], None)
        return msgspec.json.decode(data, type=Layout)
    except (InvalidTag, ValueError, msgspec.MsgspecError) as error:
        raise MalformedError("a layout that no client of this federation sealed") from error
