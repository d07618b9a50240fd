from __future__ import annotations

import dataclasses
import hashlib
from typing import Any

import pytest
import tenseal as ts
from builders import hkdf

import hefl
from hefl.ckks.context import PublicContext, SecretContext, open_public, open_secret, seal_version, tenseal_version
from hefl.errors import KeyFileError, KeysError, SealVersionError, SecretAtServerError
from hefl.identity import Identity
from hefl.params import RINGS, SLOTS_RING

FLAGS = {"save_public_key": False, "save_galois_keys": False, "save_relin_keys": False}


def raw(degree: int = 8192, chain: tuple[int, ...] = (60, 40, 40), scale: float = 2.0**40) -> Any:
    """A TenSEAL context, made without hefl."""
    context = ts.context(
        ts.SCHEME_TYPE.CKKS,
        degree,
        coeff_mod_bit_sizes=chain,
        encryption_type=ts.ENCRYPTION_TYPE.SYMMETRIC,
        n_threads=1,
    )
    context.global_scale = scale
    return context


def test_a_secret_context_is_tenseals_own_with_a_secret_key_and_no_others(secret: SecretContext) -> None:
    opened = ts.context_from(secret.ckks)
    assert opened.is_private()
    assert opened.global_scale == 2.0**40
    assert not (opened.has_galois_keys() or opened.has_relin_keys())


def test_a_public_context_holds_no_secret_of_any_kind(secret: SecretContext, public: PublicContext) -> None:
    opened = ts.context_from(public.ckks)
    assert not (opened.is_private() or opened.has_galois_keys() or opened.has_relin_keys())
    assert len(public.ckks) < 1000
    assert secret.group_key.hex() not in repr(public)
    assert secret.group_key not in public.ckks
    assert (public.identity, public.rings) == (secret.identity, secret.rings)


def test_fingerprints_are_hashes_that_bind_the_public_context_to_the_secret_one(
    secret: SecretContext, public: PublicContext
) -> None:
    assert public.fingerprints == secret.fingerprints
    assert public.fingerprints.ckks == hashlib.sha256(b"hefl/v1/fingerprint" + secret.ckks).hexdigest()
    assert public.fingerprints.group == hkdf(secret.group_key, b"hefl/v1/fingerprint").hex()


@pytest.mark.parametrize("salt", [b"", b"salt"])
def test_keys_are_derived_by_hkdf_and_each_purpose_has_its_own(secret: SecretContext, salt: bytes) -> None:
    assert secret.derive("one", salt) == hkdf(secret.group_key, b"one", salt)
    assert secret.derive("one", salt) != secret.derive("two", salt)


def test_two_federations_share_nothing(secret: SecretContext, other_secret: SecretContext) -> None:
    assert secret.group_key != other_secret.group_key
    assert secret.ckks != other_secret.ckks
    assert secret.fingerprints.ckks != other_secret.fingerprints.ckks
    assert secret.fingerprints.group != other_secret.fingerprints.group


def test_a_new_federation_has_an_identity_of_its_own(secret: SecretContext) -> None:
    assert secret.identity.generation == 1
    assert len(bytes.fromhex(secret.identity.federation)) == 16


def test_a_given_identity_is_kept(other_secret: SecretContext) -> None:
    assert other_secret.identity == Identity("ab" * 16, 1)


def test_no_key_shows_in_a_secret_contexts_repr(secret: SecretContext) -> None:
    assert repr(secret) == f"SecretContext({secret.identity})"
    assert str(secret) == repr(secret)


def test_the_public_name_is_the_contexts_own() -> None:
    assert hefl.SecretContext is SecretContext
    assert hefl.PublicContext is PublicContext


# --- rings ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ring", [*RINGS, SLOTS_RING])
def test_every_ring_is_within_the_cap_for_128_bit_classical_security(ring: Any) -> None:
    caps = {4096: 106, 8192: 214, 16384: 430}  # eprint 2024/463, table 5.2
    assert sum(ring.chain) <= caps[ring.degree]


@pytest.mark.parametrize("ring", [*RINGS, SLOTS_RING])
def test_tenseal_takes_every_ring_under_its_own_security_check(ring: Any) -> None:
    assert raw(ring.degree, tuple(ring.chain)).is_private()


# --- what is refused --------------------------------------------------------------------------------------------------


def test_a_secret_context_is_refused_where_a_public_one_belongs(secret: SecretContext, public: PublicContext) -> None:
    with pytest.raises(SecretAtServerError, match="secret key") as caught:
        open_public(dataclasses.replace(public, ckks=secret.ckks))
    assert caught.value.exit_code == 3


def test_a_public_context_is_refused_where_a_secret_one_belongs(secret: SecretContext, public: PublicContext) -> None:
    with pytest.raises(KeyFileError, match="no secret key"):
        open_secret(dataclasses.replace(secret, ckks=public.ckks))


def test_the_seal_version_is_the_one_in_tenseals_own_bytes(public: PublicContext) -> None:
    start = public.ckks.index(b"\x5e\xa1\x10")
    assert seal_version() == f"{public.ckks[start + 3]}.{public.ckks[start + 4]}"
    assert tenseal_version() == ts.__version__


@pytest.mark.parametrize(("major", "minor"), [(3, 7), (4, 200), (5, 0)])
def test_a_context_of_another_seal_is_refused_and_both_versions_are_named(
    secret: SecretContext, public: PublicContext, major: int, minor: int
) -> None:
    def patched(data: bytes) -> bytes:
        at = data.index(b"\x5e\xa1\x10") + 3
        return data[:at] + bytes([major, minor]) + data[at + 2 :]

    message = rf"SEAL {major}\.{minor},.* SEAL {seal_version()}"
    with pytest.raises(SealVersionError, match=message):
        open_public(dataclasses.replace(public, ckks=patched(public.ckks)))
    with pytest.raises(SealVersionError, match=message):
        open_secret(dataclasses.replace(secret, ckks=patched(secret.ckks)))


def test_a_context_cut_anywhere_in_its_parameters_is_refused(public: PublicContext) -> None:
    for cut in range(len(public.ckks) - 13):
        with pytest.raises(KeyFileError):
            open_public(dataclasses.replace(public, ckks=public.ckks[:cut]))


@pytest.mark.parametrize("share", [0.001, 0.1, 0.5, 0.9, 0.999])
def test_a_secret_context_cut_anywhere_in_its_key_is_refused(secret: SecretContext, share: float) -> None:
    with pytest.raises(KeyFileError):
        open_secret(dataclasses.replace(secret, ckks=secret.ckks[: int(share * len(secret.ckks))]))


@pytest.mark.parametrize("data", [b"", b"\x0a", b"not a context", bytes(100)])
def test_bytes_that_are_no_context_are_refused(public: PublicContext, data: bytes) -> None:
    with pytest.raises(KeyFileError):
        open_public(dataclasses.replace(public, ckks=data))


@pytest.mark.parametrize(
    "context",
    [
        raw(16384),
        raw(8192, (50, 40, 40)),
        raw(8192, (60, 40, 40, 40)),
        raw(scale=2.0**30),
    ],
    ids=["degree", "limb", "depth", "scale"],
)
def test_a_context_of_other_parameters_than_hefls_is_refused(public: PublicContext, context: Any) -> None:
    data = context.serialize(save_secret_key=False, **FLAGS)
    with pytest.raises(KeyFileError, match="not one that this version of hefl issues"):
        open_public(dataclasses.replace(public, ckks=data))


def test_every_refusal_of_a_context_is_an_error_of_keys() -> None:
    for cls in (SecretAtServerError, SealVersionError, KeyFileError):
        assert issubclass(cls, KeysError)
        assert cls.exit_code == 3


@pytest.mark.parametrize("cut", [1, 2, 40])
def test_a_truncated_context_is_refused(secret: SecretContext, public: PublicContext, cut: int) -> None:
    with pytest.raises(KeyFileError):
        open_public(dataclasses.replace(public, ckks=public.ckks[:-cut]))
    with pytest.raises(KeyFileError):
        open_secret(dataclasses.replace(secret, ckks=secret.ckks[:-cut]))


def test_a_context_that_would_not_rescale_is_refused(public: PublicContext) -> None:
    context = raw()
    context.auto_rescale = False
    with pytest.raises(KeyFileError, match="not one that this version of hefl issues"):
        open_public(dataclasses.replace(public, ckks=context.serialize(save_secret_key=False, **FLAGS)))
