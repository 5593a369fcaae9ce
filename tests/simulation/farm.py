"""A whole simulated farm, and what fate has in store for it."""

import asyncio
from collections.abc import Callable, Sequence
from random import Random
from typing import Final

from grange.scheduler.core import Scheduler
from grange.scheduler.facts import NO_LIMITS, BuildId, Limits, Policy
from tests.simulation.agent import SimAgent
from tests.simulation.coordinator import LEASE_S, Coordinator
from tests.simulation.disk import Disk
from tests.simulation.faults import Rates
from tests.simulation.graph import SYSTEMS, Graph
from tests.simulation.network import Network
from tests.simulation.people import People, Plan
from tests.simulation.store import Store
from tests.simulation.world import World

HEALED_S: Final = 7200.0  # within which everything must end once nothing fails any more
QUIET_S: Final = 240.0  # within which nobody may remember anything of it
LOOK_EVERY_S: Final = 1.0  # a run's end is found out this late at most
HUNG_QUIET_S: Final = 1800.0  # the same where attempts hang: some times what stops them
CALM_QUIET_S: Final = 2.0  # the same where nothing ever failed: less than a heartbeat


class Farm:
    def __init__(
        self, random: Random, rates: Rates, graph: Graph, policy: Policy | None = None
    ) -> None:
        self.world = World(random, rates, graph, policy or Policy())
        self.is_calm = rates.is_calm
        self.world.ledger.may_trouble = not self.is_calm
        self.disk = Disk(self.world)
        self.store = Store(self.world)
        self.disk.forgets = self.store.forget
        self.network = Network(self.world, self.store)
        self.coordinator = Coordinator(self.world, self.disk, self.network, self.store)
        self.people = People(self.world, self.disk, self.coordinator)
        self.agents: list[SimAgent] = []
        self._fates: list[asyncio.Task[None]] = []

    async def open(self) -> None:
        await self.disk.add_derivations(self.world.graph.derivations())
        self.coordinator.start()

    def add_agent(self, name: str, systems: tuple[str, ...] = SYSTEMS, jobs: int = 1) -> SimAgent:
        agent = SimAgent(self.world, self.network, name, systems, jobs)
        self.agents.append(agent)
        agent.boot()
        return agent

    @property
    def core(self) -> Scheduler:
        loop = self.coordinator.loop
        assert loop is not None
        assert loop.core is not None
        return loop.core

    def close(self) -> None:
        for task in [*self._fates, *self.people.tasks]:
            task.cancel()
        self.coordinator.end()
        self.network.crash()

    # --- fate -----------------------------------------------------------------------------

    def tempt_fate(self) -> None:
        """Let faults happen at the rates that were drawn."""
        rates = self.world.rates
        for rate_h, strike in (
            (rates.cut_h, self._cut),
            (rates.stall_h, self._stall),
            (rates.one_way_h, self._stall_one_way),
            (rates.sleep_h, self._sleep),
            (rates.break_h, self._break),
            (rates.kill_h, self._kill),
            (rates.vanish_h, self._vanish),
            (rates.drain_h, self._drain),
            (rates.refuse_h, self._refuse),
            (rates.crash_h, self.coordinator.crash),
            (rates.freeze_h, self._freeze),
            (rates.usurp_h, self.coordinator.usurp),
            (rates.lose_h, self.store.lose),
        ):
            if rate_h:
                self._fates.append(self.world.loop.create_task(self._strike(rate_h, strike)))

    async def _strike(self, rate_h: float, strike: Callable[[], None]) -> None:
        while True:
            await asyncio.sleep(self.world.random.expovariate(rate_h / 3600.0))
            strike()

    def heal(self) -> None:
        """From now on nothing fails, and whoever is gone comes back."""
        self.world.note("healed")
        for task in self._fates:
            task.cancel()
        self.world.rates.heal()
        for agent in self.agents:
            agent.heal()

    def _pick(self) -> SimAgent | None:
        alive = [agent for agent in self.agents if agent.is_alive]
        return self.world.random.choice(alive) if alive else None

    def _cut(self) -> None:
        agent = self._pick()
        if agent is not None and agent.tunnel is not None:
            self.world.note(f"cut {agent.id}")
            agent.tunnel.break_off()

    def _stall(self) -> None:
        agent = self._pick()
        if agent is not None and agent.tunnel is not None:
            for_s = self.world.soon(2 * LEASE_S)
            self.world.note(f"stall {agent.id} for {for_s:.0f} s")
            agent.tunnel.stall(for_s)
            self.world.ledger.trouble(agent.id, for_s + LEASE_S)

    def _stall_one_way(self) -> None:
        agent = self._pick()
        if agent is not None and agent.tunnel is not None:
            for_s = self.world.soon(2 * LEASE_S)
            way = self.world.random.randint(0, 1)
            self.world.note(f"stall {agent.id} {('up', 'down')[way]} for {for_s:.0f} s")
            agent.tunnel.stall(for_s, (way,))
            self.world.ledger.trouble(agent.id, for_s + LEASE_S)

    def _sleep(self) -> None:
        agent = self._pick()
        if agent is not None:
            for_s = self.world.soon(2 * LEASE_S)
            self.world.note(f"{agent.id} sleeps for {for_s:.0f} s")
            agent.sleep(for_s)
            self.world.ledger.trouble(agent.id, for_s + LEASE_S)

    def _break(self) -> None:
        agent = self._pick()
        if agent is not None:

            def repair() -> None:
                agent.is_broken = False

            self.world.note(f"{agent.id} breaks")
            agent.is_broken = True
            self.world.after(self.world.soon(300.0), repair)

    def _kill(self) -> None:
        agent = self._pick()
        if agent is not None:
            agent.kill()
            self.world.after(self.world.soon(90.0), agent.boot)

    def _vanish(self) -> None:
        agent = self._pick()
        if agent is not None:
            agent.kill()
            agent.is_gone = agent is not self.agents[0]  # which can build everything

    def _drain(self) -> None:
        agent = self._pick()
        if agent is not None:
            self.world.note(f"drain {agent.id}")
            agent.drain()

    def _refuse(self) -> None:
        agent = self._pick()
        if agent is not None:

            def relent() -> None:
                agent.refuses = ""

            agent.refuses = "its disk is full"
            self.world.after(self.world.soon(300.0), relent)

    def _freeze(self) -> None:
        for_s = (
            self.world.random.uniform(1.2, 3.0) * LEASE_S
        )  # long enough to be told from lateness
        self.world.note(f"frozen for {for_s:.0f} s")
        self.world.ledger.held_up(for_s)
        self.world.loop.freeze(for_s)

    # --- the end --------------------------------------------------------------------------

    async def finish(self, limit_s: float = HEALED_S) -> str:
        """Wait until everything has ended; returns what was wrong, or ""."""
        deadline = self.world.loop.time() + limit_s
        if not await self._until(self._is_over, deadline):
            return self.world.ledger.violation or f"liveness: unfinished: {self._unfinished()}"
        self.heal()
        if not await self._until(self._is_quiet, self.world.loop.time() + self._quiet_s()):
            return self.world.ledger.violation or f"liveness: not forgotten: {self._left_over()}"
        return self.world.ledger.violation or await self._reckon()

    def _quiet_s(self) -> float:
        if self.is_calm:
            return CALM_QUIET_S
        may_hang = any(each.hangs_in for agent in self.agents for each in agent.tries.values())
        return HUNG_QUIET_S if may_hang or self.world.ledger.hanging else QUIET_S

    async def _until(self, holds: Callable[[], bool], deadline: float) -> bool:
        while not holds():
            if self.world.ledger.violation or self.world.loop.time() > deadline:
                return False
            await asyncio.sleep(LOOK_EVERY_S)
        return True

    def _is_over(self) -> bool:
        return not self._unfinished() and all(task.done() for task in self.people.tasks)

    def _unfinished(self) -> Sequence[BuildId]:
        ledger = self.world.ledger
        return [build for build in ledger.roots if build not in ledger.outcomes]

    def _is_quiet(self) -> bool:
        return not self._left_over()

    def _left_over(self) -> str:
        loop = self.coordinator.loop
        if loop is None or loop.core is None:
            return "there is no coordinator"
        if loop.core.steps or loop.core.attempts or loop.core.builds:
            return f"steps {[*loop.core.steps]}, attempts {[*loop.core.attempts]}"
        busy = [agent.id for agent in self.agents if agent.tries]
        if self.world.ledger.open:
            return f"attempts {[*self.world.ledger.open]} in the journal"
        there = [agent.id for agent in self.agents if not agent.is_gone]
        absent = [id_ for id_ in there if id_ not in self.network.lines]
        deaf = [id_ for id_ in there if id_ not in loop.core.agents]
        unheard = [a.spec.id for a in loop.core.agents.values() if not a.is_connected]
        found = [("busy", busy), ("absent", absent), ("unknown", deaf), ("cut", unheard)]
        return "; ".join(f"{what}: {who}" for what, who in found if who)

    async def _reckon(self) -> str:
        """Once all is over: does the journal agree, and was the work done without waste?"""
        ledger = self.world.ledger
        for build, outcome in ledger.outcomes.items():
            record = await self.disk.build(build)
            if record is None or record.outcome is not outcome:
                return f"safety: the journal forgot that {build} ended as {outcome}: {record}"
        if not self.is_calm:
            return ""
        wanted = {n.step for root in ledger.roots.values() for n in self.world.graph.closure(root)}
        tried = [step for step, _ in ledger.attempts.values()]
        if sorted(tried) != sorted(wanted):
            return f"economy: a calm farm tried {sorted(tried)} for {sorted(wanted)}"
        if any(count > 1 for count in ledger.uploads.values()):
            return "economy: a calm farm uploads twice"
        if ledger.aborts or len(ledger.ended) > 1:
            ends = ", ".join(f"{count} {outcome}" for outcome, count in ledger.ended.items())
            return f"economy: a calm farm has {ledger.aborts} aborts and attempts that end: {ends}"
        return ""


def draw_policy(random: Random, rates: Rates) -> Policy:
    """How patient the farm is; where some steps may find no agent, not for longer than the run."""
    return Policy(
        build_tries=random.choice((1, 1, 2, 3)),
        max_unsupported_s=random.choice((60.0, 600.0)) if rates.foreign_p else 86_400.0,
    )


def draw_plans(
    random: Random, rates: Rates, graph: Graph, builds_max: int, span_s: float
) -> list[Plan]:
    plans = []
    for number in range(random.randint(1, builds_max)):
        is_again = random.random() < rates.twice_p
        is_cancelled = random.random() < rates.cancel_p
        plans.append(
            Plan(
                BuildId(f"build-{number}"),
                random.choice([*graph.nodes][-max(1, len(graph.nodes) // 3) :]),
                random.choice(("p", "q", "r")),
                random.randint(0, 3),
                random.uniform(0.0, span_s),
                random.choice((random.uniform(0, 1), random.uniform(0, 300))) if is_again else None,
                random.choice((random.uniform(0, 1), random.uniform(0, 120)))
                if is_cancelled
                else None,
                2 if random.random() < rates.retry_p else 0,
                Limits(build_s=random.choice((1, 5, 20, 60)))
                if random.random() < rates.limit_p
                else NO_LIMITS,
                random.random() < rates.check_p,
            )
        )
    return plans
