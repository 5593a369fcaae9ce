"""Fixtures that several rooms' tests share."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.peers import NIXES, NixStore
from tests.postgres import Postgres, binaries, running_postgres

# How long an example takes says something of the machine, which may be busy, and not of the code.
settings.register_profile("grange", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("grange")


@pytest.fixture(params=NIXES)
def nix_store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[NixStore]:
    """A private store for each Nix that is tried."""
    if os.geteuid() != 0 or shutil.which("nix-daemon") is None:
        reason = "needs root, for private mounts and the sandbox, and nix-daemon (Debian: nix-bin)"
        if "CI" in os.environ:
            pytest.fail(reason)
        pytest.skip(reason)
    store = NixStore.make(request.param, tmp_path / "store")
    yield store
    shutil.rmtree(store.root)  # a busybox for each test would add up


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A private PostgreSQL that runs; whoever stops it starts it again."""
    if binaries() is None:
        reason = "needs PostgreSQL (Debian: postgresql)"
        if "CI" in os.environ:
            pytest.fail(reason)
        pytest.skip(reason)
    with running_postgres() as running:
        yield running
