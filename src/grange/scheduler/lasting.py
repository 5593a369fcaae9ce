"""The last try of a step that lost its agents: on one that no cloud takes away, if there is one.

On a farm without pools nobody is taken away, and nothing here has any effect.
"""

from collections.abc import Sequence

from grange.scheduler.matching import misfit
from grange.scheduler.memory import Memory
from grange.scheduler.state import PRIORITY_NONE, Agent, State, Step


def is_last(memory: Memory, step: Step) -> bool:
    """Its next attempt is a further one, and would be the last to be lost.

    What is with agents that are cut off just now counts as lost.
    """
    n = step.losses + len(step.attempts)
    return n > 0 and n + 1 >= memory.policy.losses_max


def must_last(memory: Memory, step: Step) -> bool:
    """It waits for an agent that is not taken away: one is here, or may appear."""
    if not memory.offers or not is_last(memory, step):
        return False
    if any(offer.is_lasting and not misfit(offer, step.queue) for offer in memory.offers):
        return True
    agents = memory.queues[step.queue].agents
    return any(
        memory.judged.get(agent.spec.id, True) and agent.takes_work(memory.now) for agent in agents
    )


def is_kept_from(memory: Memory, step: Step, agent: Agent) -> bool:
    """That agent may be taken away, as far as is known, and this step is to have another."""
    return must_last(memory, step) and not _lasts(memory, agent)


def able(memory: Memory, step: Step) -> Sequence[Agent]:
    """The agents that it may go to: those that fit, or of them those that last."""
    agents = memory.queues[step.queue].agents
    if not must_last(memory, step):
        return agents
    return [agent for agent in agents if _lasts(memory, agent)]


def note(memory: Memory, step: Step) -> None:
    """It has become ready."""
    if is_last(memory, step):
        memory.last_tries[step] = None


def waiting(memory: Memory) -> list[Step]:
    """Last tries that may begin and wait for an agent that lasts, in order of becoming ready.

    They go before all others: else those would fill what was started for these, again and again.
    """
    for step in list(memory.last_tries):
        if step.state is not State.READY or not is_last(memory, step):
            del memory.last_tries[step]
    return [
        step
        for step in memory.last_tries
        if step.missing == 0 and step.priority != PRIORITY_NONE and must_last(memory, step)
    ]


def unjudged(memory: Memory, step: Step) -> Agent | None:
    """One with room for it of which nobody has said yet whether it lasts."""
    for agent in memory.queues[step.queue].agents:
        if agent.free > 0 and agent.spec.id not in memory.judged:
            return agent
    return None


def _lasts(memory: Memory, agent: Agent) -> bool:
    return memory.judged.get(agent.spec.id, False)
