"""The farm under a swarm of faults: safety, liveness, economy, and the same seed the same run."""

import os
import subprocess
import sys

import pytest

from tests.simulation.run import CALM_EVERY, simulate

SEEDS = range(100, 400)  # a soak does the rest


@pytest.mark.parametrize("seed", SEEDS)
def test_the_oracles_are_content(seed: int) -> None:
    verdict = simulate(seed)
    assert not verdict.problem, str(verdict)


def test_calm_and_faulty_runs_both_do_real_work() -> None:
    verdicts = [simulate(seed) for seed in range(100, 100 + 20 * CALM_EVERY)]
    calm = [verdict for verdict in verdicts if verdict.rates == "calm"]
    faulty = [verdict for verdict in verdicts if verdict.rates != "calm"]
    assert sum(verdict.attempts for verdict in calm) > 20
    assert sum(verdict.wasted for verdict in calm) == 0
    assert sum(verdict.wasted for verdict in faulty) > 10


def test_the_same_seeds_give_the_same_runs_in_every_process() -> None:
    command = [sys.executable, "-m", "tests.simulation", "--hash", "--seeds", "40", "--from", "100"]
    traces = [
        subprocess.run(
            command,
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for hash_seed in ("1", "2")
    ]
    assert traces[0].count("\n") == 40
    assert traces[0] == traces[1]
