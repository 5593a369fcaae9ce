"""A coordinator with a fault of its own ends and says so; it does not sit on its port for ever."""

import subprocess
import sys
from pathlib import Path

from tests.ports import free_port

# A coordinator whose recovery meets a bug.
FAULTY = """
import grange.coordinator.loop

async def recover(*_, **__):
    raise KeyError("planted")

grange.coordinator.loop.recover = recover
from grange.main import main
main()
"""


def test_a_fault_in_recovery_ends_the_process(tmp_path: Path) -> None:
    listen = [f"{option}=127.0.0.1:{free_port()}" for option in ("--listen", "--listen-agents")]
    done = subprocess.run(
        [sys.executable, "-c", FAULTY, "serve", f"--state-dir={tmp_path}", *listen],
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    assert done.returncode == 70, done.stderr
    assert "a fault of Grange's own" in done.stderr
    assert "KeyError: 'planted'" in done.stderr, "for whoever is to mend it"
