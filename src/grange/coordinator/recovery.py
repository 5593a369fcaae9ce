"""From the journal to a running scheduler.

Recovery is submission once more: the walk from every unfinished build's root finds what is still to
be done. Attempts are taken over as they were committed; the agents will say how they stand.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

from grange.ports import BuildRecord, Journal, PublishedOutput, StepNode
from grange.scheduler.core import Scheduler
from grange.scheduler.effects import Effect
from grange.scheduler.events import AgentAwaited, BuildsSubmitted, Event, OutputsPublished, Wish

Publish = Callable[[Sequence[PublishedOutput]], Awaitable[None]]
"""Puts the narinfos of committed outputs where clients look, if absent."""


def submission(
    nodes: Sequence[StepNode],
    builds: Sequence[BuildRecord],
    tags: tuple[str, ...],
    *,
    is_retry: bool = False,
) -> BuildsSubmitted:
    """The event for builds, all with these tags, whose roots' walk found `nodes`."""
    specs = [node.spec for node in nodes]
    if tags:
        specs = [replace(spec, queue=replace(spec.queue, tags=tags)) for spec in specs]
    unfinished = {spec.id for spec in specs}
    return BuildsSubmitted(
        tuple(
            [
                Wish(
                    build.id,
                    build.root if build.root in unfinished else None,
                    build.project,
                    build.priority,
                )
                for build in builds
            ]
        ),
        tuple(specs),
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
    by_tags: dict[tuple[str, ...], list[BuildRecord]] = {}
    for build in past.builds:
        by_tags.setdefault(build.tags, []).append(build)
    for tags, builds in by_tags.items():
        roots = list(dict.fromkeys(build.drv_path for build in builds))
        events.append(submission(await journal.unfinished_graph(roots), builds, tags))
    events += [AgentAwaited(agent.spec, agent.attempts) for agent in past.agents]
    return core, core.handle(max(now, past.clock_s), events)
