"""Which agents a step may go to, which of them is best, and what would fail anywhere."""

from collections.abc import Collection, Iterable

from grange.scheduler.facts import (
    AgentSpec,
    Cause,
    Limits,
    Measurements,
    Offer,
    QueueKey,
    Room,
)
from grange.scheduler.state import Agent, Step
from grange.scheduler.strategy import AgentOrder

BUILTIN = "builtin"


def misfit(spec: AgentSpec | Offer, queue: QueueKey) -> str:
    """Why an agent like `spec` can never take steps of `queue`; "" if it can."""
    if queue.system != BUILTIN and queue.system not in spec.systems:
        return f"it builds {', '.join(spec.systems)}, not {queue.system}"
    lacking = [feature for feature in queue.features if feature not in spec.features]
    if lacking:
        return f"it lacks the feature{'s' * (len(lacking) > 1)} {', '.join(lacking)}"
    unasked = [feature for feature in spec.mandatory_features if feature not in queue.features]
    if unasked:
        return f"it only takes steps that require {', '.join(unasked)}"
    unwanted = [tag for tag in spec.mandatory_tags if tag not in queue.tags]
    if unwanted:
        return f"it only takes steps of builds tagged {', '.join(unwanted)}"
    untagged = [tag for tag in queue.tags if tag not in spec.tags]
    if untagged:
        return f"it lacks the tag{'s' * (len(untagged) > 1)} {', '.join(untagged)}"
    return ""


def asked(queue: QueueKey) -> str:
    """What `queue` asks of an agent, in words."""
    text = f"system {queue.system}"
    if queue.features:
        text += f" with {', '.join(queue.features)}"
    if queue.tags:
        text += f", tagged {', '.join(queue.tags)}"
    return text


def is_offered(offers: Iterable[Offer], queue: QueueKey) -> bool:
    """An agent that could take steps of `queue` may appear."""
    return any(not misfit(offer, queue) for offer in offers)


def refusal(spec: AgentSpec, now: Measurements, room: Room = Room.BOTH) -> str:
    """Which threshold keeps an agent in this state from new work; "" for none."""
    limits = spec.thresholds
    if now.refuses:
        return now.refuses
    if now.store_free_percent < limits.store_free_percent:
        return (
            f"its store has {now.store_free_percent:.1f} % free, "
            f"less than {limits.store_free_percent:g} %"
        )
    if now.build_dir_free_percent < limits.build_dir_free_percent:
        return (
            f"its build directory has {now.build_dir_free_percent:.1f} % free, "
            f"less than {limits.build_dir_free_percent:g} %"
        )
    if room is Room.PLACES:
        return ""
    pressures = (
        ("CPU", now.cpu_pressure, limits.cpu_pressure_percent),
        ("memory", now.memory_pressure, limits.memory_pressure_percent),
        ("I/O", now.io_pressure, limits.io_pressure_percent),
    )
    for what, pressure, limit in pressures:
        if pressure is not None and limit is not None and pressure > limit:
            return f"its {what} pressure is {pressure:.0f} %, over {limit:g} %"
    load_max = limits.load1_per_cpu * max(spec.cpus, 1)
    if now.cpu_pressure is None and now.load1 > load_max:
        return f"its load is {now.load1:.1f}, over {load_max:g}"
    return ""


def is_final(cause: Cause, limits: Limits) -> bool:
    """Whether a step that failed for `cause` would fail again under `limits`."""
    if cause.limit is None or not cause.outcome.is_limit:
        return True
    return 0 < limits.of(cause.outcome) <= cause.limit


def choose(step: Step, agents: Collection[Agent]) -> Agent | None:
    """The best of `agents` that are free: bytes of input already there, then room, then speed.

    Ties go to the agent that comes first. Agents that failed this step before are left out.
    """
    present: dict[Agent, int] = {}
    for needed in step.inputs:
        for holder in needed.holders:
            if holder.free > 0:
                present[holder] = present.get(holder, 0) + needed.nar_bytes + 1
    avoid = step.avoid
    best: Agent | None = None
    best_score = (0, 0.0, 0.0)
    for agent, held_bytes in present.items():
        score = (held_bytes, agent.free / agent.spec.max_jobs, agent.spec.speed_factor)
        if score > best_score and agent in agents and agent.spec.id not in avoid:
            best, best_score = agent, score
    if best is not None:
        return best
    for agent in agents:
        free = agent.free
        if free > 0 and (not avoid or agent.spec.id not in avoid):
            score = (0, free / agent.spec.max_jobs, agent.spec.speed_factor)
            if best is None or score > best_score:
                best, best_score = agent, score
    return best


def choose_by(order: AgentOrder, step: Step, agents: Collection[Agent]) -> Agent | None:
    """The best of `agents` that are free, as `order` has it; those that failed the step are left
    out."""
    present: dict[Agent, int] = {}
    for needed in step.inputs:
        for holder in needed.holders:
            present[holder] = present.get(holder, 0) + needed.nar_bytes
    best: Agent | None = None
    best_score: tuple[float, ...] = ()
    for agent in agents:
        if agent.free > 0 and agent.spec.id not in step.avoid:
            score = order(agent, present.get(agent, 0))
            if best is None or score > best_score:
                best, best_score = agent, score
    return best


def is_avoiding_all(step: Step, agents: Iterable[Agent], now: float) -> bool:
    """No agent that takes work is left to try; one that refuses may do so for ever."""
    return all(agent.spec.id in step.avoid for agent in agents if agent.takes_work(now))
