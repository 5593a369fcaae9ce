"""A real Buildbot master and worker, with a gate before its builds."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.timeout(300)
def test_buildbot_scenarios(tmp_path: Path) -> None:
    """Trial runs them, since Buildbot's own test tools want its reactor, in a process of theirs."""
    ran = subprocess.run(
        [
            *(sys.executable, "-m", "twisted.trial", "--temp-directory", str(tmp_path / "trial")),
            "tests.integration.buildbot.scenarios",
        ],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout[-20_000:] + ran.stderr[-5_000:]
