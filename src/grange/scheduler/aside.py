"""Setting agents aside: one that fails at whatever it is given takes no work for a while.

Then it is tried with one attempt, and after a success it is as good as any other.
"""

from typing import Final

from grange.scheduler.facts import Cause
from grange.scheduler.memory import Memory, Timer
from grange.scheduler.state import Agent, Step

ASIDE_MAX_S: Final = 3600.0  # someone may have repaired it
DOUBLINGS_MAX: Final = 32  # from a second far beyond the hour


def failed(memory: Memory, agent: Agent, step: Step, cause: Cause) -> None:
    """The agent failed at `step` for a reason of its own, which `step.failures` counts already.

    Where one step is all it failed at, and others failed at it too, the agent is not to blame.
    """
    if memory.now < agent.aside_until:
        return  # begun before it was set aside
    agent.own_failures += 1
    if agent.failed_step is None:
        agent.failed_step = step.id
    elif agent.failed_step != step.id:
        agent.is_failing_widely = True
    is_tried_again = agent.asides > 0
    if not is_tried_again and agent.own_failures < memory.policy.aside_failures:
        return
    if not agent.is_failing_widely and step.failures > agent.own_failures:
        return
    doublings = min(agent.asides, DOUBLINGS_MAX)
    wait_s = min(ASIDE_MAX_S, memory.policy.aside_s * 2.0**doublings)
    agent.asides += 1
    agent.aside_until = memory.now + wait_s
    agent.aside_reason = (
        f"it failed {agent.own_failures} times in a row for reasons of its own, "
        f"the last: {cause.message}"
    )
    memory.set_timer(agent.aside_until, Timer.ASIDE, agent)


def succeeded(agent: Agent) -> None:
    """It has proved that it can build and deliver."""
    agent.own_failures = agent.asides = 0
    agent.failed_step = None
    agent.is_failing_widely = False
    agent.aside_until = 0.0
    agent.aside_reason = ""
