"""Allocation strategies: which ready step goes first, and which agent gets it.

Two pure functions, each of which may be left to the farm: the same facts give the same answer, in
every process. Whatever they say, what operators rule holds first: agents that do not fit, quotas,
pauses and deferral. `docs/operating/scheduling.md` tells how to bring one's own.
"""

from collections.abc import Callable, Mapping
from typing import Final, Protocol

from grange.scheduler.facts import AgentSpec, Measurements, QueueKey, StepId


class StepFacts(Protocol):
    """What is known of a ready step."""

    @property
    def id(self) -> StepId: ...

    @property
    def queue(self) -> QueueKey:
        """What it asks of an agent."""

    @property
    def priority(self) -> int:
        """Highest of the builds that want it, with what their projects add."""

    @property
    def path_s(self) -> float:
        """Longest expected way from its start to the end of any build, seconds."""

    @property
    def expected_s(self) -> float:
        """How long its own build is expected to take, seconds."""

    @property
    def wanted(self) -> int:
        """How many builds and unfinished steps wait for it directly."""

    @property
    def seq(self) -> int:
        """Its age: lower is older."""

    @property
    def project(self) -> str:
        """Whose share it counts against."""


class AgentFacts(Protocol):
    """What is known of an agent that may take the step."""

    @property
    def spec(self) -> AgentSpec: ...

    @property
    def measurements(self) -> Measurements:
        """As of its last heartbeat."""

    @property
    def free(self) -> int:
        """Attempts that it may be sent now; at least one."""


StepOrder = Callable[[StepFacts], tuple[float, float]]
"""Lower goes first. Between the two comes what the step's project used of its share, and after
them age: so the first alone decides where it is never the same for two steps."""

AgentOrder = Callable[[AgentFacts, int], tuple[float, ...]]
"""Higher is better, and of equals the one that joined first; the number is how many bytes of the
step's input the agent has already."""


class Strategy(Protocol):
    """What an entry point of the group "grange.strategies" gives when it is called."""

    def step_rank(self, step: StepFacts) -> tuple[float, float]:
        """See `StepOrder`."""

    def agent_score(self, agent: AgentFacts, held_bytes: int) -> tuple[float, ...]:
        """See `AgentOrder`."""


def _oldest(step: StepFacts) -> tuple[float, float]:
    return (float(step.seq), 0.0)


def _most_wanted(step: StepFacts) -> tuple[float, float]:
    return (float(-step.priority), float(-step.wanted))


STEP_ORDERS: Final[Mapping[str, StepOrder | None]] = {
    "critical-path": None,  # the default: the longest expected way to the end first
    "first-come": _oldest,  # neither priorities nor shares
    "most-dependants": _most_wanted,  # Hydra's WithRdeps
}


def _free_share(agent: AgentFacts) -> float:
    return agent.free / agent.spec.max_jobs


def _fastest(agent: AgentFacts, _held_bytes: int) -> tuple[float, ...]:
    return (agent.spec.speed_factor, _free_share(agent))


def _most_cores(agent: AgentFacts, _held_bytes: int) -> tuple[float, ...]:
    return (agent.spec.speed_factor * agent.spec.cpus, _free_share(agent))


def _most_bogomips(agent: AgentFacts, _held_bytes: int) -> tuple[float, ...]:
    spec = agent.spec
    return (spec.speed_factor * spec.bogomips * spec.cpus, _free_share(agent))


AGENT_ORDERS: Final[Mapping[str, AgentOrder | None]] = {
    "locality": None,  # the default: bytes of input already there, then room, then speed
    "speed": _fastest,  # Hydra's SpeedFactorOnly
    "cores": _most_cores,  # its CpuCoreCountWithSpeedFactor
    "bogomips": _most_bogomips,  # its BogomipsWithSpeedFactor: of all cores together
}
