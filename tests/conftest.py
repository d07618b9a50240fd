from __future__ import annotations

import pytest
from hypothesis import settings

import hefl
from hefl.ckks.context import Identity, PublicContext, SecretContext

# No deadline: a shared core may pause any example.
settings.register_profile("hefl", deadline=None)
settings.load_profile("hefl")


@pytest.fixture(scope="session")
def secret() -> SecretContext:
    return hefl.generate_secret()


@pytest.fixture(scope="session")
def public(secret: SecretContext) -> PublicContext:
    return secret.public()


@pytest.fixture(scope="session")
def other_secret(secret: SecretContext) -> SecretContext:
    """Another federation's."""
    other = hefl.generate_secret(Identity("ab" * 16, 1))
    assert other.identity != secret.identity
    return other
