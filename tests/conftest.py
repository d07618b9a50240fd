from __future__ import annotations

import pytest
from hypothesis import settings

import hefl
from hefl.ckks.context import PublicContext, SecretContext
from hefl.ckks.selftest import check_kernels
from hefl.identity import Identity
from hefl.params import RINGS

# No deadline: a shared core may pause any example.
settings.register_profile("hefl", deadline=None)
settings.load_profile("hefl")


def pytest_sessionstart(session: pytest.Session) -> None:
    """Compile the kernels once, where several processes are to start tests and would each compile them."""
    if session.config.getoption("numprocesses", None):
        check_kernels(RINGS[0])


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
