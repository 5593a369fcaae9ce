"""Operators who turn every knob while the farm works, and an oracle that knows what they ruled."""

import asyncio
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from random import Random
from typing import Final
from unittest.mock import patch

from grange.coordinator.submit import Submissions
from grange.errors import ConflictError
from grange.scheduler import effects as do
from grange.scheduler import events as on
from grange.scheduler.core import Scheduler
from grange.scheduler.facts import NO_RULE, AgentId, AttemptId, BuildId, ProjectRule
from grange.scheduler.state import PRIORITY_NONE, State, Step
from tests.simulation.farm import Farm
from tests.simulation.people import Plan

PROJECTS: Final = ("p", "q", "r")
EVERY_S: Final = 8.0  # on average something is ruled
NEAR: Final = 1e-6


def draw_rules(random: Random) -> dict[str, ProjectRule]:
    return {
        project: ProjectRule(
            share=random.choice((0.5, 1.0, 3.0)),
            priority=random.choice((0, 0, 2)),
            running_max=random.choice((0, 1, 2)),
        )
        for project in PROJECTS
        if random.random() < 0.7
    }


def defer_some(random: Random, plans: Iterable[Plan]) -> list[Plan]:
    return [
        replace(plan, defer_s=random.uniform(1.0, 120.0)) if random.random() < 0.3 else plan
        for plan in plans
    ]


class Operators:
    """They rule until `relent`, which takes back whatever keeps work from being done."""

    def __init__(
        self, farm: Farm, random: Random, builds: Iterable[BuildId], said: dict[str, bool]
    ) -> None:
        """`said` is what was answered, and so must hold: whether each is paused."""
        self._farm = farm
        self._said = said
        self._random = random
        self._builds = list(builds)
        self._ruling = farm.world.loop.create_task(self._rule())

    async def _rule(self) -> None:
        while True:
            await asyncio.sleep(self._random.expovariate(1 / EVERY_S))
            await self._say(self._draw())

    def _draw(self) -> on.Event:
        random = self._random
        match random.randrange(6):
            case 0 | 1:
                return on.BuildPrioritised(random.choice(self._builds), random.randint(-3, 6))
            case 2:
                return on.ProjectPaused(random.choice(PROJECTS), random.random() < 0.5, "p")
            case 3:
                return on.FarmPaused(random.random() < 0.4, "f")
            case _:
                agent = random.choice(self._farm.agents).id
                return on.AgentRuled(agent, is_paused=random.random() < 0.4, reason="a")

    async def _say(self, event: on.Event) -> None:
        """Until it was heard: afterwards it must hold, whatever dies."""

        async def say(submissions: Submissions) -> None:
            if isinstance(event, on.BuildPrioritised):
                try:
                    if await self._farm.disk.build(event.build) is not None:
                        await submissions.prioritise(event.build, event.priority)
                except ConflictError:
                    pass  # it has ended
                return
            loop = self._farm.coordinator.loop
            assert loop is not None
            await loop.settle(event)

        pause = _pause(event)
        if pause is not None:
            self._said.pop(pause[0], None)  # until it is answered it may hold or not
        await self._farm.coordinator.ask(say)
        if pause is not None:
            self._said.update([pause])

    def relent(self) -> None:
        self._ruling.cancel()
        self._farm.people.tasks.append(self._farm.world.loop.create_task(self._take_back()))

    async def _take_back(self) -> None:
        await self._say(on.FarmPaused(False))
        for project in PROJECTS:
            await self._say(on.ProjectPaused(project, False))
        for agent in self._farm.agents:
            await self._say(on.AgentRuled(agent.id, is_paused=False))

    def close(self) -> None:
        self._ruling.cancel()


@contextmanager
def rule(
    farm: Farm, random: Random, plans: Iterable[Plan], until_s: float
) -> Iterator[Sequence[Plan]]:
    """Operators are at work until `until_s` of the run, on projects with rules of their own.

    Yields the plans, some of them deferred. Before the farm opens.
    """
    farm.world.rules = draw_rules(random)
    farm.world.ledger.may_trouble = True  # pauses make people wait
    deferred = defer_some(random, plans)
    said: dict[str, bool] = {}
    with watched(farm.world.ledger.blame, said):
        operators = Operators(farm, random, [plan.build for plan in deferred], said)
        farm.world.after(until_s, operators.relent)
        yield deferred
        operators.close()


def _pause(event: on.Event) -> tuple[str, bool] | None:
    match event:
        case on.FarmPaused(is_paused):
            return "farm", is_paused
        case on.ProjectPaused(project, is_paused):
            return f"project {project}", is_paused
        case on.AgentRuled(agent, _, bool() as is_paused):
            return f"agent {agent}", is_paused
    return None


@dataclass
class Ruled:
    """What holds, taken from the events alone, of one life of the scheduler."""

    farm: bool = False
    projects: dict[str, bool] = field(default_factory=dict)
    agents: dict[AgentId, bool] = field(default_factory=dict)
    rules: Mapping[str, ProjectRule] = field(default_factory=dict)
    priorities: dict[BuildId, int] = field(default_factory=dict)
    not_before: dict[BuildId, float] = field(default_factory=dict)
    past: list[tuple[str, float, float]] = field(default_factory=list)  # project, seconds, when
    begun: dict[AttemptId, tuple[str, float]] = field(default_factory=dict)  # project, when
    spans: list[tuple[str, float, float]] = field(default_factory=list)  # project, begin, end

    def take(self, event: on.Event) -> None:
        match event:
            case on.FarmPaused(is_paused):
                self.farm = is_paused
            case on.ProjectPaused(project, is_paused):
                self.projects[project] = is_paused
            case on.AgentRuled(agent, _, bool() as is_paused):
                self.agents[agent] = is_paused
            case on.ProjectsChanged(rules):
                self.rules = rules
            case on.BuildPrioritised(build, priority):
                self.priorities[build] = priority
            case on.BuildsSubmitted(wishes):
                for wish in wishes:
                    if event.is_retry or wish.build not in self.not_before:
                        self.priorities[wish.build] = wish.priority
                        self.not_before[wish.build] = wish.not_before
            case on.UsesRecalled(uses, at):
                self.past += [(project, seconds, at) for project, seconds in uses]
            case _:
                pass


@contextmanager
def watched(blame: Callable[[str], None], said: Mapping[str, bool]) -> Iterator[None]:
    """Every decision of every scheduler made meanwhile is held against what was ruled, and what a
    new one knows against what was `said`."""
    handle = Scheduler.handle
    ruled: dict[int, tuple[Scheduler, Ruled]] = {}

    def checked(self: Scheduler, now: float, events: Iterable[on.Event]) -> list[do.Effect]:
        is_new = id(self) not in ruled
        _, known = ruled.setdefault(id(self), (self, Ruled()))
        events = list(events)
        before = dict(known.priorities)
        for event in events:
            known.take(event)
        effects = handle(self, now, events)
        for event in events:
            if isinstance(event, on.BuildPrioritised) and event.build not in self.builds:
                known.priorities[event.build] = before.get(event.build, 0)
        for fault in _faults(self, known, effects):
            blame(f"rulings: {fault}")
        if is_new:
            paused = dict(filter(None, map(_pause, events)))
            for what, is_paused in said.items():
                if paused.get(what, False) != is_paused:
                    blame(f"rulings: a new life has forgotten whether {what} is paused")
        return effects

    with patch.object(Scheduler, "handle", checked):
        yield


def _faults(core: Scheduler, ruled: Ruled, effects: Iterable[do.Effect]) -> Iterator[str]:
    lent = {
        build.id: PRIORITY_NONE
        if ruled.projects.get(build.project) or ruled.not_before[build.id] > core.now
        else ruled.priorities[build.id] + ruled.rules.get(build.project, NO_RULE).priority
        for build in core.builds.values()
    }
    most = _most_urgent(core, lent)
    for step in core.steps.values():
        if step.wanted and step.state < State.PUBLISHING and step.priority != most[step.seq]:
            yield f"step {step.id} has priority {step.priority}, not {most[step.seq]}"
    for effect in effects:
        if not isinstance(effect, do.StartBuild):
            continue
        if ruled.farm:
            yield f"step {effect.step} begins while the farm is paused"
        if ruled.agents.get(effect.agent):
            yield f"step {effect.step} goes to {effect.agent}, which is paused"
        begun = core.steps[effect.step]
        if most[begun.seq] == PRIORITY_NONE:
            yield f"step {effect.step} begins, and all who want it wait"
        account = core.attempts[effect.attempt].account
        bound = ruled.rules.get(account.project, NO_RULE).running_max
        if bound and account.running > bound:
            yield f"{account.project} runs {account.running} attempts of {bound}"
    yield from _account_faults(core, ruled)


def _most_urgent(core: Scheduler, lent: Mapping[BuildId, int]) -> dict[int, int]:
    """By the step's age, from each build down: the long way round."""
    most = dict.fromkeys([step.seq for step in core.steps.values()], PRIORITY_NONE)
    for build in core.builds.values():
        todo: list[Step] = [build.root]
        seen: set[int] = set()
        while todo:
            step = todo.pop()
            if step.seq in seen or step.seq not in most:
                continue
            seen.add(step.seq)
            most[step.seq] = max(most[step.seq], lent[build.id])
            todo += step.inputs
    return most


def _account_faults(core: Scheduler, ruled: Ruled) -> Iterator[str]:
    """Is what each project used what its attempts took, with the past fading?"""
    for id_ in ruled.begun.keys() - core.attempts.keys():
        ruled.spans.append((*ruled.begun.pop(id_), core.now))
    for id_, attempt in core.attempts.items():
        ruled.begun.setdefault(id_, (attempt.account.project, core.now))
    mean_s = core.policy.share_half_life_s / math.log(2.0)

    def weight(at: float) -> float:
        return math.exp(min(0.0, at - core.now) / mean_s)

    used: defaultdict[str, float] = defaultdict(float)
    for project, seconds, at in ruled.past:
        used[project] += seconds * weight(at)
    still = [(project, start, core.now) for project, start in ruled.begun.values()]
    for project, start, end in [*ruled.spans, *still]:
        used[project] += mean_s * (weight(end) - weight(start))
    queued = Counter(build.project for build in core.builds.values())
    running = Counter(attempt.account.project for attempt in core.attempts.values())
    for project in {*used, *queued, *running}:
        account = core.accounts[project]
        past_s, _ = core.use(account)
        if not math.isclose(past_s, used[project], rel_tol=NEAR, abs_tol=1.5):
            yield f"{project} has used {past_s}, not {used[project]}"
        if (account.queued, account.running) != (queued[project], running[project]):
            yield f"{project} counts {account.queued} builds and {account.running} attempts"
