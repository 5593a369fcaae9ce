"""All that the scheduler knows: the one mutable state that its functions work on.

Iteration is always over lists and insertion-ordered dicts, so that the same events give the same
effects in every process.
"""

import heapq
from enum import Enum
from typing import Final

from grange.scheduler.effects import Effect
from grange.scheduler.facts import (
    NO_LIMITS,
    AgentId,
    AgentRule,
    AttemptId,
    BuildId,
    Limits,
    Offer,
    Policy,
    QueueKey,
    StepId,
)
from grange.scheduler.ready import ReadyQueue
from grange.scheduler.settled import EndedBuilds, GivenUp, Settled
from grange.scheduler.shares import Accounts
from grange.scheduler.state import FREE_BOUNDS, NO_BOUNDS, Agent, Attempt, Bounds, Build, Step

BOUNDS_MAX: Final = 4096  # different limits remembered as the same; more cost memory alone


class Timer(Enum):
    LEASE = "lease"  # of an agent
    CUT = "cut"  # an agent's tunnel closed a while ago
    BACKOFF = "backoff"  # of a step
    ASIDE = "aside"  # an agent that was set aside may be tried again
    UNSUPPORTED = "unsupported"  # no agent that fits a queue was there for long
    DEFERRED = "deferred"  # a build that is not to begin before then


Subject = Agent | Build | Step | ReadyQueue  # what a timer is about


class Memory:
    """Times are seconds, as told with the events."""

    __slots__ = (
        "accounts",
        "agent_rules",
        "agents",
        "attempts",
        "bounds",
        "builds",
        "ended_builds",
        "given_up",
        "held_up",
        "judged",
        "last_seq",
        "last_timer",
        "last_tries",
        "next_attempt",
        "now",
        "offers",
        "out",
        "pause",
        "policy",
        "queues",
        "settled",
        "steps",
        "timers",
        "uses_saved",
        "widened",
        "widening",
    )

    def __init__(self, next_attempt: AttemptId, policy: Policy) -> None:
        self.policy = policy
        self.now = 0.0  # never runs backwards
        self.held_up = 0.0  # when the farm itself was last held up
        self.steps: dict[StepId, Step] = {}
        self.builds: dict[BuildId, Build] = {}
        self.agents: dict[AgentId, Agent] = {}
        self.attempts: dict[AttemptId, Attempt] = {}
        self.queues: dict[QueueKey, ReadyQueue] = {}
        self.accounts = Accounts(policy.share_half_life_s)
        self.uses_saved = 0.0  # when projects' uses were last put into the journal
        self.agent_rules: dict[AgentId, AgentRule] = {}  # of operators; an agent need not be here
        self.pause: str | None = None  # why nothing is begun at all; None where the farm works
        self.offers: tuple[Offer, ...] = ()
        self.judged: dict[AgentId, bool] = {}  # whether it lasts; of others it is not known
        self.last_tries: dict[Step, None] = {}  # that became ready; some have ceased to be so
        self.bounds: dict[Bounds, Bounds] = {}  # one of each that are equal
        self.widening = (NO_BOUNDS, NO_LIMITS)  # the latest: what is asked next is mostly the same
        self.widened = self.bounds.setdefault(FREE_BOUNDS, FREE_BOUNDS)
        self.settled = Settled()
        self.given_up = GivenUp()
        self.ended_builds = EndedBuilds()
        self.next_attempt = next_attempt
        self.last_seq = 0  # of the latest step
        self.timers: list[tuple[float, int, Timer, Subject]] = []  # a heap
        self.last_timer = 0  # its number: timers of one instant go off in order
        self.out: list[Effect] = []  # decided since the last answer, in order

    def widen(self, step: Step, wanted: Limits | None) -> bool:
        """Let the step use what a build allows; whether that is more than it might before."""
        old = step.bounds
        if wanted is None or wanted is old.wanted:
            return False
        if (old, wanted) != self.widening:
            if len(self.bounds) >= BOUNDS_MAX:
                self.bounds.clear()
            new = old.widened(wanted)
            self.widening, self.widened = (old, wanted), self.bounds.setdefault(new, new)
        step.bounds = self.widened
        return step.bounds is not old

    def set_timer(self, at: float, kind: Timer, subject: Subject) -> None:
        self.last_timer += 1
        heapq.heappush(self.timers, (at, self.last_timer, kind, subject))
