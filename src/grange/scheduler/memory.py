"""All that the scheduler knows: the one mutable state that its functions work on.

Iteration is always over lists and insertion-ordered dicts, so that the same events give the same
effects in every process.
"""

import heapq
from enum import Enum

from grange.scheduler.effects import Effect
from grange.scheduler.facts import AgentId, AttemptId, BuildId, QueueKey, StepId
from grange.scheduler.ready import ReadyQueue
from grange.scheduler.settled import EndedBuilds, Settled
from grange.scheduler.state import Agent, Attempt, Build, Step


class Timer(Enum):
    LEASE = "lease"  # of an agent
    CUT = "cut"  # an agent's tunnel closed a while ago
    BACKOFF = "backoff"  # of a step


class Memory:
    """Times are seconds, as told with the events."""

    __slots__ = (
        "agents",
        "attempts",
        "builds",
        "ended_builds",
        "held_up",
        "last_seq",
        "last_timer",
        "lease_s",
        "next_attempt",
        "now",
        "out",
        "queues",
        "settled",
        "steps",
        "timers",
        "used",
    )

    def __init__(self, next_attempt: AttemptId, lease_s: float) -> None:
        self.lease_s = lease_s
        self.now = 0.0  # never runs backwards
        self.held_up = 0.0  # when the farm itself was last held up
        self.steps: dict[StepId, Step] = {}
        self.builds: dict[BuildId, Build] = {}
        self.agents: dict[AgentId, Agent] = {}
        self.attempts: dict[AttemptId, Attempt] = {}
        self.queues: dict[QueueKey, ReadyQueue] = {}
        self.used: dict[str, int] = {}  # running attempts by project; none is 0
        self.settled = Settled()
        self.ended_builds = EndedBuilds()
        self.next_attempt = next_attempt
        self.last_seq = 0  # of the latest step
        self.timers: list[tuple[float, int, Timer, Agent | Step]] = []  # a heap
        self.last_timer = 0  # its number: timers of one instant go off in order
        self.out: list[Effect] = []  # decided since the last answer, in order

    def set_timer(self, at: float, kind: Timer, subject: Agent | Step) -> None:
        self.last_timer += 1
        heapq.heappush(self.timers, (at, self.last_timer, kind, subject))
