"""From the journal to a running scheduler.

Recovery is submission once more: the walk from every unfinished build's root finds what is still to
be done. Attempts are taken over as they were committed; the agents will say how they stand.
"""

from collections.abc import Awaitable, Callable, Sequence

from grange.ports import Journal, PublishedOutput, StepNode
from grange.scheduler.core import Scheduler
from grange.scheduler.effects import Effect
from grange.scheduler.events import AgentAwaited, BuildsSubmitted, Event, OutputsPublished, Wish

Publish = Callable[[Sequence[PublishedOutput]], Awaitable[None]]
"""Puts the narinfos of committed outputs where clients look, if absent."""


def submission(
    nodes: list[StepNode], wishes: tuple[Wish, ...], *, is_retry: bool = False
) -> BuildsSubmitted:
    """The event for builds whose roots' walk found `nodes`."""
    return BuildsSubmitted(
        wishes,
        tuple([node.spec for node in nodes]),
        tuple([(node.spec.id, node.remembered) for node in nodes if node.remembered is not None]),
        is_retry,
    )


async def recover(
    journal: Journal, publish: Publish, now: float, lease_s: float
) -> tuple[Scheduler, list[Effect]]:
    """A scheduler that goes on where the journal ends, and what it wants done first."""
    past = await journal.recover()
    core = Scheduler(next_attempt=past.next_attempt, lease_s=lease_s)
    events: list[Event] = []
    for entry in past.unpublished:
        await publish(entry.outputs)
        events.append(OutputsPublished(entry.step))
    nodes = await journal.unfinished_graph(
        list(dict.fromkeys(build.drv_path for build in past.builds))
    )
    unfinished = {node.spec.id for node in nodes}
    wishes = tuple(
        Wish(
            build.id,
            build.root if build.root in unfinished else None,
            build.project,
            build.priority,
        )
        for build in past.builds
    )
    if wishes:
        events.append(submission(nodes, wishes))
    events += [AgentAwaited(agent.spec, agent.attempts) for agent in past.agents]
    return core, core.handle(max(now, past.clock_s), events)
