"""Every planted bug is caught, within few seeds."""

import pytest

from tests.simulation.mutants import MUTANTS, Mutant, planted
from tests.simulation.run import simulate

SEEDS_MAX = 1500


def first_problem(mutant: Mutant) -> str:
    with planted(mutant):
        for seed in (mutant.seed, *range(SEEDS_MAX)):
            verdict = simulate(seed)
            if verdict.problem:
                return str(verdict)
    return ""


@pytest.mark.parametrize("mutant", MUTANTS, ids=[mutant.name for mutant in MUTANTS])
def test_a_planted_bug_is_caught(mutant: Mutant) -> None:
    assert first_problem(mutant), f"no oracle notices: {mutant.name}"
