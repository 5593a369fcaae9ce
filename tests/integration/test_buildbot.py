"""A real Buildbot master and worker, with a gate before its builds; and what it reads of Nix."""

import os
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import pytest

from grange.buildbot.unbuilt import plan_command, read_plan
from grange.store.path import NIX_STORE
from tests.peers import NixStore

ROOT = Path(__file__).parents[2]
SCENARIOS = {"one": ("scenarios",), "other": ("losses", "askings", "real")}
WORK = """
let
  of = more: derivation ({ system = "x86_64-linux"; builder = "/bin/sh"; } // more);
  source = of {
    name = "source"; outputHashMode = "flat"; outputHashAlgo = "sha256"; outputHash = "%s";
  };
  part = of { name = "part"; requiredSystemFeatures = [ "kvm" ]; };
in of { name = "whole"; inherit source part; }
"""


@pytest.mark.timeout(600)
def test_buildbot(tmp_path: Path) -> None:
    """Trial runs them, since Buildbot's own test tools want its reactor, in processes of theirs:
    two at a time, since what they do most is wait."""
    running = [trial(tmp_path / name, *SCENARIOS[name]) for name in SCENARIOS]
    try:
        for each in running:
            said, complaints = each.communicate()
            assert each.returncode == 0, said[-20_000:] + complaints[-5_000:]
            assert "PASSED (successes=" in said, "nothing is skipped"
    finally:
        for each in running:
            each.kill()


def trial(folder: Path, *scenarios: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "twisted.trial", "--temp-directory", str(folder)]
    return subprocess.Popen(
        [*command, *(f"tests.integration.buildbot.{each}" for each in scenarios)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.peer
def test_what_nix_would_build_is_understood(nix_store: NixStore) -> None:
    digest = sha256(b"hi").hexdigest()
    drv = nix_store.run("nix-instantiate", "-E", WORK % digest).strip()

    def plan() -> list[str] | None:
        command = nix_store.command(*plan_command(drv))
        ran = subprocess.run(
            command, env=nix_store.environment, capture_output=True, text=True, check=True
        )
        found = read_plan(ran.stderr, NIX_STORE)
        return None if found is None else sorted(path.name for path in found)

    assert plan() == ["part.drv", "source.drv", "whole.drv"]
    file = nix_store.root / "nix/source"
    file.write_text("hi")
    seen = str(file) if nix_store.nix == "2.8" else "/nix/source"
    nix_store.run("nix-store", "--add-fixed", "sha256", seen)
    assert plan() == ["part.drv", "whole.drv"], "what is there is not built"
