"""One run: a seed in, a verdict and a trace out."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from random import Random
from typing import Final
from unittest.mock import patch

from grange.coordinator import loop
from tests.simulation.farm import Farm, draw_plans, draw_policy
from tests.simulation.faults import Rates, faults_are_meant
from tests.simulation.graph import FOREIGN, SYSTEMS, draw_graph
from tests.simulation.operators import rule
from tests.simulation.people import Plan
from tests.simulation.virtual import StuckError, run_virtually

LATE_P: Final = 0.5  # where agents of some system are wanting, that one comes at last
CALM_EVERY = 4  # of so many seeds one is calm, for economy
RULED_EVERY = 5  # of so many that are not calm, operators turn every knob in one


@dataclass(frozen=True, slots=True)
class Scale:
    """How much a run has in it: many small ones find more in the same time than few large ones."""

    weight: int  # how often it is drawn, relative to the others
    steps_max: int
    builds_max: int
    agents_max: int
    faulty_max_s: float  # until all heals
    haste: float  # how much oftener faults strike: a short run should have its share of them


SCALES: Final = (
    Scale(80, 8, 4, 3, 200.0, 4.0),
    Scale(17, 25, 6, 5, 500.0, 2.0),
    Scale(3, 80, 10, 8, 1200.0, 1.0),
)


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
    (scale,) = random.choices(SCALES, [scale.weight for scale in SCALES])
    rates = Rates() if seed % CALM_EVERY == 0 else Rates.draw(random, scale.haste)
    # Each life of a coordinator would freeze the garbage of the lives before it, for ever.
    with faults_are_meant(), patch.object(loop, "_tidy_memory", lambda: None):
        return run_virtually(_simulate(seed, random, scale, rates, on_note))


async def _simulate(
    seed: int, random: Random, scale: Scale, rates: Rates, on_note: Callable[[str], None] | None
) -> Verdict:
    shown = str(rates)
    graph = draw_graph(random, rates, scale.steps_max)
    farm = Farm(random, rates, graph, draw_policy(random, rates))
    if on_note is not None:
        farm.world.on_note = on_note
    faulty_s = random.uniform(30.0, scale.faulty_max_s)
    plans: Sequence[Plan] = draw_plans(
        random, rates, farm.world.graph, scale.builds_max, faulty_s * 0.7
    )
    with ExitStack() as stack:
        if not farm.is_calm and seed % RULED_EVERY == 0:
            plans = stack.enter_context(rule(farm, Random(f"rules {seed}"), plans, faulty_s))
        for plan in plans:
            farm.people.follow(plan)
        problem = await _run(farm, random, scale, faulty_s)
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


async def _run(farm: Farm, random: Random, scale: Scale, faulty_s: float) -> str:
    """What was wrong; "" for nothing."""
    await farm.open()
    for number in range(random.randint(1, scale.agents_max)):
        systems = SYSTEMS if number == 0 else random.choice((SYSTEMS, SYSTEMS[:1], SYSTEMS[1:]))
        farm.add_agent(f"agent-{number}", systems, random.randint(1, 4))
    if farm.world.rates.foreign_p and random.random() < LATE_P:
        farm.world.after(random.uniform(0.0, faulty_s), farm.add_agent, "late", (FOREIGN,))
    farm.tempt_fate()
    farm.world.after(faulty_s, farm.heal)
    try:
        problem = await farm.finish(faulty_s + 7200.0)
    except StuckError as error:
        problem = f"liveness: {error}"
    farm.close()
    return problem
