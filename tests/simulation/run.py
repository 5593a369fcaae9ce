"""One run: a seed in, a verdict and a trace out."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from unittest.mock import patch

from grange.coordinator import loop
from tests.simulation.farm import Farm, draw_plans
from tests.simulation.faults import Rates
from tests.simulation.graph import SYSTEMS, draw_graph
from tests.simulation.virtual import StuckError, run_virtually

CALM_EVERY = 4  # of so many seeds one is calm, for economy


@dataclass(frozen=True, slots=True)
class Verdict:
    seed: int
    rates: str
    problem: str  # "" where every oracle is content, else "<time> <oracle>: ..."
    trace: str  # a hash: the same for the same seed
    virtual_s: float
    attempts: int
    wasted: int

    def __str__(self) -> str:
        return f"seed {self.seed} [{self.rates}]: {self.problem or 'ok'}"


def simulate(seed: int, on_note: Callable[[str], None] | None = None) -> Verdict:
    random = Random(seed)
    rates = Rates() if seed % CALM_EVERY == 0 else Rates.draw(random)
    logging.getLogger("grange").setLevel(logging.CRITICAL + 1)  # faults are meant
    # Each life of a coordinator would freeze the garbage of the lives before it, for ever.
    with patch.object(loop, "_tidy_memory"):
        return run_virtually(_simulate(seed, random, rates, on_note))


async def _simulate(
    seed: int, random: Random, rates: Rates, on_note: Callable[[str], None] | None
) -> Verdict:
    shown = str(rates)
    farm = Farm(random, rates, draw_graph(random, rates.doomed_p))
    if on_note is not None:
        farm.world.on_note = on_note
    faulty_s = random.uniform(60.0, 900.0)
    for plan in draw_plans(random, rates, farm.world.graph, faulty_s * 0.7):
        farm.people.follow(plan)
    await farm.open()
    for number in range(random.randint(1, 6)):
        systems = SYSTEMS if number == 0 else random.choice((SYSTEMS, SYSTEMS[:1], SYSTEMS[1:]))
        farm.add_agent(f"agent-{number}", systems, random.randint(1, 4))
    farm.tempt_fate()
    farm.world.after(faulty_s, farm.heal)
    try:
        problem = await farm.finish(faulty_s + 7200.0)
    except StuckError as error:
        problem = f"liveness: {error}"
    farm.close()
    ledger = farm.world.ledger
    return Verdict(
        seed,
        shown,
        problem,
        farm.world.trace(),
        farm.world.loop.time(),
        len(ledger.attempts),
        ledger.wasted(),
    )
