"""The autoscaler in troubled worlds: what must hold, and that it is noticed where it does not."""

import logging
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.simulation.autoscaler import test_doors, test_rules
from tests.simulation.autoscaler.mutants import MUTANTS
from tests.simulation.autoscaler.run import crash_at, simulate
from tests.simulation.mutants import Mutant, planted

SEEDS = 10
SEEDS_MAX = 30


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """What goes wrong on purpose is logged by the thousand."""
    logging.disable()
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("seed", range(SEEDS))
def test_a_troubled_world_comes_right(seed: int) -> None:
    verdict = simulate(seed)
    assert not verdict.problem, str(verdict)


@pytest.mark.parametrize("is_forgotten", [False, True])
def test_a_crash_at_any_point_comes_right(*, is_forgotten: bool) -> None:
    """Some points; all of them with ``python -m tests.simulation.autoscaler.run crashes``."""
    problem, points = crash_at(None)
    assert not problem
    assert points > 100
    for point in range(1, points, points // 10):
        problem, _ = crash_at(point, is_forgotten=is_forgotten)
        assert not problem, problem


def test_the_same_seed_is_the_same_run_whatever_the_hash_seed() -> None:
    code = (
        "import logging; logging.disable();"
        "from tests.simulation.autoscaler.run import crash_at, simulate;"
        "print([simulate(seed).digest for seed in range(2)])"
    )
    said = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            check=True,
            capture_output=True,
        ).stdout
        for hash_seed in ("1", "2")
    }
    assert len(said) == 1


def rules_broken() -> str:
    """The first rule that does not hold, of those that need nothing of pytest."""
    rules = {**vars(test_rules), **vars(test_doors)}
    for name, check in rules.items():
        if name.startswith("test_") and not check.__code__.co_argcount:
            marks = getattr(check, "pytestmark", [])
            cases = [
                dict(zip([mark.args[0]], [case], strict=True))
                for mark in marks
                for case in mark.args[1]
            ]
            for case in cases or [{}]:
                try:
                    check(**case)
                except (Exception, pytest.fail.Exception) as e:
                    return f"{name}: {e!r}"
    return ""


def first_problem(mutant: Mutant) -> str:
    with planted(mutant):
        if said := rules_broken():
            return said
        for seed in (mutant.seed, *range(SEEDS_MAX)):
            try:
                verdict = simulate(seed)
            except Exception as e:  # a bug may also show as a plain error
                return repr(e)
            if verdict.problem:
                return str(verdict)
    return ""


@pytest.mark.parametrize("mutant", MUTANTS, ids=[mutant.name for mutant in MUTANTS])
def test_a_planted_bug_is_caught(mutant: Mutant) -> None:
    assert first_problem(mutant), f"no oracle notices: {mutant.name}"
