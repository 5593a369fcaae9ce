"""The scheduler: takes in events, answers with effects, and knows when it wants to be woken.

This is the door. What follows from an event is in `roster` (agents and their leases), `watchdog`
(attempts that stand still), `mending` (inputs that were lost), `submission` (builds and what they
want), `unsupported` (what no agent can build), `dispatch`, `attempts`, `aside` (agents that fail at
all they are given), `steps` and `lasting` (last tries): functions over one `Memory`, each module
calling only those after it, none asking for the time or for chance.
"""

import heapq
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Final, assert_never

from grange.scheduler import (
    attempts,
    lasting,
    mending,
    roster,
    rulings,
    steps,
    submission,
    unsupported,
    urgency,
)
from grange.scheduler import effects as do
from grange.scheduler import events as on
from grange.scheduler.demand import Demand, demand
from grange.scheduler.dispatch import dispatch
from grange.scheduler.effects import Effect
from grange.scheduler.facts import AgentId, AgentRule, AttemptId, Policy, QueueKey
from grange.scheduler.matching import is_offered
from grange.scheduler.memory import Memory
from grange.scheduler.roster import LATE_S, RECONNECT_S
from grange.scheduler.shares import Account
from grange.scheduler.state import Agent, Build, State, Step

__all__ = ["FAILURES_MAX", "LEASE_S", "RECONNECT_S", "Scheduler"]

USES_SAVE_S: Final = 60.0  # so much of what projects use a restart may forget
LEASE_S: Final = Policy().lease_s
FAILURES_MAX: Final = Policy().failures_max


class Scheduler:
    """Call `handle` with what happened; act on what it returns, in order.

    What it knows may be read between two calls, and changes only in them.
    """

    def __init__(
        self,
        *,
        next_attempt: AttemptId,
        lease_s: float | None = None,
        policy: Policy | None = None,
    ) -> None:
        """`lease_s`, where given, takes the place of the policy's."""
        policy = policy or Policy()
        if lease_s is not None:
            policy = replace(policy, lease_s=lease_s)
        self._memory = memory = Memory(next_attempt, policy)
        self.policy = policy
        self.steps = memory.steps
        self.builds = memory.builds
        self.agents = memory.agents
        self.attempts = memory.attempts
        self.queues = memory.queues
        self.settled = memory.settled
        self.accounts: Mapping[str, Account] = memory.accounts

    def handle(self, now: float, events: Iterable[on.Event]) -> list[Effect]:
        """Take in what happened, in order; `now` (s) never runs backwards."""
        memory = self._memory
        deadline = self.next_deadline()
        memory.now = memory.accounts.now = max(memory.now, now)
        if deadline is not None and memory.now - deadline > LATE_S:
            roster.excuse(memory, memory.now - deadline)
        for event in events:
            _take(memory, event)
        _wake(memory)
        unsupported.watch(memory)
        dispatch(memory)
        _save_uses(memory)
        out, memory.out = memory.out, []
        return out

    @property
    def used(self) -> dict[str, int]:
        """How many attempts each project runs; those that run none are left out."""
        return {name: each.running for name, each in self.accounts.items() if each.running}

    def use(self, account: Account) -> tuple[float, float]:
        """What a project used of late, in decayed agent-seconds, and its place in the order."""
        self._memory.accounts.bring_up(account)
        return account.past_s, account.use

    def demand(self) -> list[Demand]:
        """What work there is of each kind; none where the whole farm is paused."""
        memory = self._memory
        if memory.pause is not None:
            return []
        return demand(
            memory.queues.values(), memory.attempts.values(), memory.accounts, self.must_last
        )

    @property
    def pause(self) -> str | None:
        """Why nothing is begun at all; None where the farm works."""
        return self._memory.pause

    @property
    def agent_rules(self) -> Mapping[AgentId, AgentRule]:
        """What operators say of agents, here or not."""
        return self._memory.agent_rules

    @property
    def now(self) -> float:
        """The latest time it was told, seconds."""
        return self._memory.now

    def is_offered(self, queue: QueueKey) -> bool:
        """An agent that could take steps of `queue` may appear."""
        return is_offered(self._memory.offers, queue)

    @property
    def judged(self) -> Mapping[AgentId, bool]:
        """Which agents no cloud takes away, and which one may; of others it is not known."""
        return self._memory.judged

    def must_last(self, step: Step) -> bool:
        """Its next try is the last, and for an agent that no cloud takes away."""
        return lasting.must_last(self._memory, step)

    def next_deadline(self) -> float | None:
        """When to send a `Tick` at the latest; None for never."""
        timers = self._memory.timers
        return timers[0][0] if timers else None


def _take(memory: Memory, event: on.Event) -> None:
    match event:
        case on.OutputsBuilt():
            attempts.built(memory, event)
        case on.OutputsStored():
            attempts.stored(memory, event)
        case on.OutputsPublished():
            steps.published(memory, event)
        case on.PhaseReached():
            attempts.reached(memory, event)
        case on.AgentHeard():
            roster.heard(memory, event)
        case on.AttemptFailed():
            attempts.failed(memory, event)
        case on.BuildsSubmitted():
            submission.submit(memory, event)
        case on.BuildCancelled():
            submission.cancel(memory, event)
        case on.AgentJoined():
            roster.join(memory, event.spec)
        case on.AgentAwaited():
            roster.expect(memory, event)
        case on.AgentCut():
            roster.cut(memory, event)
        case on.AgentLeft():
            roster.left(memory, event)
        case on.InputsLost():
            mending.inputs_lost(memory, event)
        case on.OutputsCollected():
            mending.outputs_collected(memory, event)
        case on.AttemptsGivenUp():
            attempts.give_up(memory, event)
        case on.LimitsRecalled():
            attempts.recall_limits(memory, event)
        case on.OffersChanged():
            memory.offers = event.offers
        case on.AgentsJudged():
            memory.judged = dict.fromkeys(event.fleeting, False)
            memory.judged |= dict.fromkeys(event.lasting, True)
        case on.BuildPrioritised():
            rulings.prioritise(memory, event)
        case on.AgentRuled():
            rulings.rule_agent(memory, event)
        case on.ProjectsChanged():
            rulings.rule_projects(memory, event)
        case on.ProjectPaused():
            rulings.pause_project(memory, event)
        case on.FarmPaused():
            rulings.pause_farm(memory, event)
        case on.UsesRecalled():
            memory.accounts.recall(dict(event.uses), event.at)
        case on.Tick():
            pass
        case _:
            assert_never(event)


def _save_uses(memory: Memory) -> None:
    """Now and then, so that a restart does not make all projects equal."""
    if memory.now - memory.uses_saved < USES_SAVE_S or not memory.accounts:
        return
    memory.uses_saved = memory.now
    memory.out.append(do.SaveUses(tuple(memory.accounts.uses()), memory.now))


def _wake(memory: Memory) -> None:
    """Do what was put off until now."""
    while memory.timers and memory.timers[0][0] <= memory.now:
        _, _, kind, subject = heapq.heappop(memory.timers)
        if isinstance(subject, Build):
            if memory.builds.get(subject.id) is subject:
                urgency.rank_builds(memory, (subject,))
        elif isinstance(subject, Step):
            if subject.state is State.BACKING_OFF and subject.not_before <= memory.now:
                steps.make_ready(memory, subject)
        elif isinstance(subject, Agent) and memory.agents.get(subject.spec.id) is subject:
            roster.watch(memory, kind, subject)
