"""The scheduler's counters, counted anew from what they count."""

from collections import Counter
from collections.abc import Iterator

from grange.scheduler.core import Scheduler
from grange.scheduler.facts import Phase
from grange.scheduler.state import PRIORITY_NONE, Agent, State, Step


def audit(core: Scheduler) -> str:
    """What does not add up in the scheduler's memory; "" where all does."""
    return next(_faults(core), "")


def _faults(core: Scheduler) -> Iterator[str]:
    for step in core.steps.values():
        yield from _step_faults(core, step)
    for agent in core.agents.values():
        yield from _agent_faults(agent)
    used = Counter(attempt.account.project for attempt in core.attempts.values())
    if dict(used) != core.used:
        yield f"projects use {dict(used)}, not {core.used}"
    for attempt in core.attempts.values():
        if attempt not in attempt.step.attempts:
            yield f"attempt {attempt.id} is not of its step {attempt.step.id}"


def _step_faults(core: Scheduler, step: Step) -> Iterator[str]:
    name = f"step {step.id} ({step.state.name})"
    if step.state > State.PUBLISHING:
        yield f"{name} should be forgotten"
    if step.state >= State.PUBLISHING:
        return
    unfinished = [needed for needed in step.inputs if needed.state is not State.DONE]
    if any(needed.state > State.DONE for needed in unfinished):
        yield f"{name} waits for a step that is gone"
    if step.missing != len(unfinished):
        yield f"{name} misses {len(unfinished)} inputs, not {step.missing}"
    if step.unbuilt != sum(needed.home is None for needed in unfinished):
        yield f"{name} counts {step.unbuilt} unbuilt inputs"
    wanted = len(step.builds) + sum(d.state < State.PUBLISHING for d in step.dependants)
    if step.wanted != wanted:
        yield f"{name} is wanted {wanted} times, not {step.wanted}"
    if not wanted and not step.attempts:
        yield f"{name} is kept for nobody"
    if (step.state is State.WAITING) != (step.missing > 0) and step.state is not State.ACTIVE:
        yield f"{name} misses {step.missing} inputs"
    if step.state is State.ACTIVE and not step.attempts:
        yield f"{name} has no attempt"
    if step.stored is not None and step.stored[0] not in step.attempts:
        yield f"{name} has outputs of an attempt that is over"
    # One that nobody wants waits for its lost agent alone; who wants it again raises its rank.
    is_held_back = not step.wanted or step.priority == PRIORITY_NONE
    if step.state is State.READY and not is_held_back and not _is_queued(core, step):
        yield f"{name} is in no queue"
    makers = [a for a in step.attempts if a.agent is step.home and a.phase >= Phase.BUILT]
    if step.home is not None and not makers:
        yield f"{name} has its outputs where nobody made them"


def _is_queued(core: Scheduler, step: Step) -> bool:
    heap = core.queues[step.queue].projects.get(step.project, [])
    return any(item[3] is step and item[:2] == (-step.priority, -step.path_s) for item in heap)


def _agent_faults(agent: Agent) -> Iterator[str]:
    name = agent.spec.name
    built = sum(attempt.phase >= Phase.BUILT for attempt in agent.attempts.values())
    if agent.delivering != built:
        yield f"{name} delivers {built} attempts, not {agent.delivering}"
    if agent.occupied != len(agent.attempts) - built:
        yield f"{name} has {len(agent.attempts) - built} attempts in places, not {agent.occupied}"
