"""Steps that no agent can take, nor could any that may appear: they fail when that lasts."""

from grange.scheduler import steps
from grange.scheduler.facts import Cause, Outcome, checked
from grange.scheduler.matching import asked, is_offered
from grange.scheduler.memory import Memory, Timer
from grange.scheduler.ready import ReadyQueue
from grange.scheduler.state import State


def watch(memory: Memory) -> None:
    """Note since when a queue waits for nobody, and fail its steps when that is too long."""
    for queue in memory.queues.values():
        if queue.agents or not queue.projects or not _is_hopeless(memory, queue):
            queue.hopeless_since = None
            continue
        if queue.hopeless_since is None:
            queue.hopeless_since = memory.now
            until = memory.now + memory.policy.max_unsupported_s
            memory.set_timer(until, Timer.UNSUPPORTED, queue)
        if memory.now >= queue.hopeless_since + memory.policy.max_unsupported_s:
            queue.hopeless_since = None
            _give_up(memory, queue)


def _is_hopeless(memory: Memory, queue: ReadyQueue) -> bool:
    return queue.waiting() is not None and not is_offered(memory.offers, queue.key)


def _give_up(memory: Memory, queue: ReadyQueue) -> None:
    hours = memory.policy.max_unsupported_s / 3600
    message = (
        f"no agent can build it, and none could for {hours:.3g} h: it asks for "
        f"{asked(queue.key)}; start an agent that offers this, or build for another system"
    )
    while (project := queue.waiting()) is not None:
        step = queue.pop(project)
        if step.state is State.READY:
            steps.fail(memory, step, Cause(Outcome.UNSUPPORTED, message, checked(step.id)))
