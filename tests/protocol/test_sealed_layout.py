"""A layout that clients tell each other opens for them alone, and a commitment to it tells nothing else of it."""

from __future__ import annotations

import hashlib
import hmac
import json
from typing import Any

import msgspec
import pytest
from builders import hkdf
from hypothesis import given, settings
from hypothesis import strategies as st

from hefl.ckks.context import SecretContext
from hefl.errors import MalformedError
from hefl.models.layout import Layout, Tensor
from hefl.protocol.sealed_layout import commitment, seal, unseal

NAMED = [Tensor(name, "float32", (2, 3), "parameter") for name in "abcd"]
CHANGES: list[dict[str, Any]] = [{"name": "z"}, {"dtype": "float64"}, {"shape": (3, 2)}, {"kind": "buffer"}]
LAYOUT = Layout(tuple(NAMED), ("loss",))


def test_a_sealed_layout_opens_under_its_own_key_and_shows_nothing(secret: SecretContext) -> None:
    sealed = seal(LAYOUT, secret)
    assert unseal(sealed, secret) == LAYOUT
    assert b"float32" not in sealed
    assert sealed != seal(LAYOUT, secret)


def test_a_layout_sealed_under_another_key_is_refused(secret: SecretContext, other_secret: SecretContext) -> None:
    with pytest.raises(MalformedError, match="no client of this federation"):
        unseal(seal(LAYOUT, other_secret), secret)


def test_a_sealed_layout_cut_or_flipped_anywhere_is_refused(secret: SecretContext) -> None:
    sealed = seal(LAYOUT, secret)
    for at in range(len(sealed)):
        flipped = bytearray(sealed)
        flipped[at] ^= 1
        for bad in (sealed[:at], bytes(flipped)):
            with pytest.raises(MalformedError):
                unseal(bad, secret)


def test_a_commitment_is_an_hmac_of_the_layout_under_a_key_of_its_own(
    secret: SecretContext, other_secret: SecretContext
) -> None:
    text = json.dumps(msgspec.to_builtins(LAYOUT), separators=(",", ":")).encode()
    key = hkdf(secret.group_key, b"hefl/v1/layout")
    assert commitment(LAYOUT, secret) == hmac.new(key, text, hashlib.sha256).hexdigest()
    assert commitment(LAYOUT, secret) != commitment(LAYOUT, other_secret)


@settings(max_examples=20)
@given(st.sampled_from(CHANGES), st.integers(0, 3))
def test_two_layouts_that_differ_have_different_commitments(change: dict[str, Any], at: int) -> None:
    secret = SecretContext(identity=None, ckks=b"", rings=(), group_key=bytes(32))  # type: ignore[arg-type]
    there = [msgspec.structs.replace(t, **change) if i == at else t for i, t in enumerate(NAMED)]
    assert commitment(LAYOUT, secret) != commitment(Layout(tuple(there), ("loss",)), secret)
