"""The scheduler's mutable state. Only this package changes it.

Steps refer to each other directly; a step that is done stays in memory only while an unfinished
dependant refers to it.
"""

from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final

from grange.scheduler.facts import (
    NO_LIMITS,
    AgentId,
    AgentSpec,
    AttemptId,
    BuildId,
    Limits,
    Measurements,
    Phase,
    QueueKey,
    StepId,
    Usage,
)
from grange.scheduler.shares import Account
from grange.scheduler.strategy import StepOrder

HOLDERS_MAX: Final = 3  # agents remembered per output: enough to find one with room
AHEAD_S: Final = 0.1  # work queued at an agent beyond its places: hides one commit and round trip
AHEAD_MAX: Final = 64
PRIORITY_NONE: Final = -(1 << 63)  # below that of any build: of what is not to be begun
DELIVERING_MAX: Final = 512  # attempts an agent may have built and not yet delivered
SUSPECT_KILLS: Final = 2  # agents lost while they built a step: one may be chance


class State(IntEnum):
    """Where a step stands. Only the first five are ever seen in `Scheduler.steps`."""

    WAITING = 0  # for inputs
    READY = 1  # in a queue
    BACKING_OFF = 2  # until a timer
    ACTIVE = 3  # some attempt covers it
    PUBLISHING = 4  # path infos saved, narinfos on their way
    DONE = 5
    FAILED = 6
    DROPPED = 7  # nobody wants it any more


class Build:
    __slots__ = (
        "id",
        "is_started",
        "not_before",
        "priority",
        "project",
        "root",
        "urgency",
    )

    def __init__(
        self, id_: BuildId, project: str, priority: int, root: "Step", not_before: float = 0.0
    ) -> None:
        self.id = id_
        self.project = project
        self.priority = priority
        self.root = root
        self.not_before = not_before
        self.urgency = PRIORITY_NONE  # the priority it lends to the steps that it needs
        self.is_started = False  # an agent had its root


@dataclass(frozen=True, slots=True)
class Bounds:
    """Whose limits hold for a step. Shared by all steps that are alike in this."""

    own: Limits = NO_LIMITS  # that its derivation sets
    wanted: Limits | None = None  # most generous of the builds that want it; None for no build
    effective: Limits = NO_LIMITS  # the strictest of both

    def widened(self, wanted: Limits) -> "Bounds":
        """As it is where one more build wants the step under the limits `wanted`."""
        most = wanted if self.wanted is None else self.wanted.most_generous(wanted)
        return self if most == self.wanted else Bounds(self.own, most, self.own.strictest(most))


@dataclass(frozen=True, slots=True)
class Past:
    """What few steps have behind them."""

    tries: int = 0  # times the build itself failed
    kills: int = 0  # agents lost while they built it


NO_BOUNDS: Final = Bounds()
FREE_BOUNDS: Final = Bounds(wanted=NO_LIMITS)
NO_PAST: Final = Past()


class Step:
    __slots__ = (
        "attempts",
        "avoid",
        "bounds",
        "builds",
        "dependants",
        "expected_s",
        "failures",
        "first",
        "holders",
        "home",
        "id",
        "inputs",
        "losses",
        "missing",
        "nar_bytes",
        "not_before",
        "past",
        "path_s",
        "priority",
        "project",
        "queue",
        "seq",
        "state",
        "stored",
        "unbuilt",
        "wanted",
    )

    def __init__(self, id_: StepId, queue: QueueKey, seq: int) -> None:
        self.id = id_
        self.queue = queue
        self.project = ""  # whose share its attempts count against: the first that wanted it
        self.first: BuildId | None = None  # the build that first wanted it
        self.seq = seq  # age: lower is older
        self.state = State.WAITING
        self.inputs: tuple[Step, ...] = ()
        self.dependants: list[Step] = []
        self.missing = 0  # inputs that are not done
        self.unbuilt = 0  # inputs that are neither done nor built on some agent
        self.wanted = 0  # unfinished builds of it, plus unfinished dependants that are wanted
        self.builds: tuple[Build, ...] = ()
        self.priority = PRIORITY_NONE  # highest of all builds that want it; NONE: it is held back
        self.expected_s = 0.0
        self.path_s = 0.0  # longest expected way from its start to the end of any build
        self.attempts: tuple[Attempt, ...] = ()
        self.failures = 0
        self.losses = 0
        self.past = NO_PAST
        self.bounds = NO_BOUNDS
        self.avoid: tuple[AgentId, ...] = ()  # agents that failed it for reasons of their own
        self.home: Agent | None = None  # where its outputs are built and not yet published
        self.holders: tuple[Agent, ...] = ()  # agents thought to have its outputs
        self.nar_bytes = 0
        self.stored: tuple[Attempt, tuple[Any, ...]] | None = None  # verified, waits for inputs
        self.not_before = 0.0

    @property
    def is_covered(self) -> bool:
        """Some attempt of it is on an agent that is thought to be there."""
        return any(not attempt.agent.is_suspect for attempt in self.attempts)

    @property
    def limits(self) -> Limits:
        """What its next attempt may use."""
        return self.bounds.effective

    @property
    def is_suspect(self) -> bool:
        """It may be what kills the agents that build it."""
        return self.past.kills >= SUSPECT_KILLS

    def held_by(self, agent: "Agent") -> None:
        if agent not in self.holders:
            self.holders = (agent, *self.holders[: HOLDERS_MAX - 1])


class Attempt:
    __slots__ = (
        "account",
        "agent",
        "build_since",
        "id",
        "is_limit_known",
        "limits",
        "moved",
        "order",
        "phase",
        "progress",
        "sent",
        "since",
        "step",
        "usage",
    )

    def __init__(
        self,
        id_: AttemptId,
        step: Step,
        agent: "Agent",
        account: Account,
        *,
        order: int,
        now: float,
    ) -> None:
        self.id = id_
        self.step = step
        self.agent = agent
        self.account = account  # whose share it counts against
        self.order = order  # number of the order that sent it; 0 if that was on an earlier tunnel
        self.sent = now
        self.limits: Limits = step.limits  # it was sent with
        self.is_limit_known = True  # False: an older release sent it, perhaps under smaller limits
        self.phase = Phase.SENT
        self.since = now  # when it came to its phase
        self.progress = 0  # as its agent last counted it
        self.moved = now  # when it last came along
        self.build_since = 0.0
        self.usage = Usage()

    def enter(self, phase: Phase, now: float) -> None:
        """Whatever brings it to another phase is progress."""
        self.phase = phase
        self.since = self.moved = now


class Agent:
    __slots__ = (
        "aside_reason",
        "aside_until",
        "asides",
        "attempts",
        "build_s",
        "cut_since",
        "delivering",
        "failed_step",
        "free",
        "heard",
        "is_connected",
        "is_draining",
        "is_failing_widely",
        "is_suspect",
        "is_timed",
        "lease_until",
        "local",
        "measurements",
        "occupied",
        "order",
        "orders",
        "own_failures",
        "pause",
        "places",
        "refusal",
        "said",
        "spec",
        "upload_moved",
    )

    def __init__(self, spec: AgentSpec, lease_until: float) -> None:
        self.said = spec  # of itself
        self.spec = spec  # with what operators say of it
        self.pause: str | None = None  # why an operator keeps work from it; None: nobody does
        self.order: StepOrder | None = None  # of what waits in `local`
        self.places = spec.max_jobs  # attempts that it may hold or queue without a reason
        self.lease_until = lease_until
        self.is_connected = False
        self.is_suspect = False  # cut off for so long that its steps may be tried elsewhere
        self.is_draining = False
        self.is_timed = False  # a lease timer is set
        self.cut_since = 0.0  # when its tunnel last closed without a goodbye
        self.heard: float | None = None  # last heartbeat; None before the first
        self.measurements = Measurements()
        self.refusal = "it has not sent a heartbeat yet"  # why it gets no work; "" if it may
        self.attempts: dict[AttemptId, Attempt] = {}
        self.occupied = 0  # attempts that hold or await a place
        self.delivering = 0  # attempts built and not settled
        self.orders = 0  # number of the latest order to this session, over all its tunnels
        self.build_s: float | None = None  # moving average of how long a build holds its place
        self.local: list[tuple[float, float, int, Step]] = []  # ready here alone: a heap
        self.free = 0  # room in this dispatch pass
        self.upload_moved = 0.0  # when any upload of it last came along
        self.own_failures = 0  # for its own reasons, since it last succeeded
        self.failed_step: StepId | None = None  # the first of those
        self.is_failing_widely = False  # they were of several steps
        self.asides = 0  # times it was set aside since it last succeeded
        self.aside_until = 0.0  # it takes no work before then
        self.aside_reason = ""  # why it was set aside; "" since it last succeeded

    def takes_work(self, now: float) -> bool:
        """Nothing but a want of places keeps work from it."""
        is_here = self.is_connected and not self.is_draining and self.pause is None
        return is_here and not self.refusal and now >= self.aside_until

    def room(self, now: float) -> int:
        """How many more attempts it may be sent now."""
        if self.delivering >= DELIVERING_MAX or not self.takes_work(now):
            return 0
        if self.asides:
            return 1 - len(self.attempts)  # on probation
        return self.places + self._ahead(now) - self.occupied

    def _ahead(self, now: float) -> int:
        """Attempts to queue beyond the places, so that short builds never wait for the wire."""
        if self.build_s is None or self.build_s > AHEAD_S:
            return 0
        ahead = min(AHEAD_MAX, int(AHEAD_S * self.spec.max_jobs / max(self.build_s, 0.001)))
        if 0 <= self.occupied - self.spec.max_jobs < ahead:  # else it is full in any case
            stuck = sum(
                attempt.phase is Phase.BUILDING and now - attempt.build_since > 2 * AHEAD_S
                for attempt in self.attempts.values()
            )
            if stuck >= self.spec.max_jobs:
                return 0
        return ahead
