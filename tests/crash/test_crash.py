"""Short runs of the crash test, one on each database."""

import os
import shutil
from pathlib import Path

import pytest

from tests.crash.farm import Database
from tests.crash.run import run
from tests.postgres import binaries

pytestmark = [pytest.mark.peer, pytest.mark.timeout(420)]

SEED = 1
DERIVATIONS = 60


@pytest.mark.parametrize("database", ["sqlite", "postgres"])
def test_nothing_is_lost_or_built_again(tmp_path: Path, database: Database) -> None:
    lacking = [name for name in ("nix-daemon", "busybox") if shutil.which(name) is None]
    if os.geteuid() != 0:
        lacking.append("root, for the sandbox")
    if database == "postgres" and binaries() is None:
        lacking.append("PostgreSQL")
    if lacking:
        reason = f"needs {', '.join(lacking)}"
        if "CI" in os.environ:
            pytest.fail(reason)
        pytest.skip(reason)
    verdict = run(tmp_path / "run", database, SEED, DERIVATIONS)
    shutil.rmtree(tmp_path / "run", ignore_errors=True)  # stores add up
    assert not verdict.problems, str(verdict)
