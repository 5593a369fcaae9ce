"""From the journal to a running scheduler.

Recovery is submission once more: the walk from every unfinished build's root finds what is still to
be done. Attempts are taken over as they were committed; the agents will say how they stand.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

from grange.coordinator.checks import check_steps
from grange.ports import BuildRecord, Journal, PublishedOutput, Rulings, StepNode
from grange.scheduler.core import Scheduler
from grange.scheduler.effects import Effect
from grange.scheduler.events import (
    AgentAwaited,
    AgentRuled,
    AttemptsGivenUp,
    BuildsSubmitted,
    Event,
    FarmPaused,
    LimitsRecalled,
    OffersChanged,
    OutputsPublished,
    ProjectPaused,
    ProjectsChanged,
    UsesRecalled,
    Wish,
)
from grange.scheduler.facts import Offer, Policy, ProjectRule, StepSpec, check_of

Publish = Callable[[Sequence[PublishedOutput]], Awaitable[None]]
"""Puts the narinfos of committed outputs where clients look, if absent."""


def submission(
    nodes: Sequence[StepNode],
    builds: Sequence[BuildRecord],
    tags: tuple[str, ...],
    *,
    checks: Sequence[StepSpec] = (),
    is_retry: bool = False,
) -> BuildsSubmitted:
    """The event for builds, all with these tags, whose roots' walk found `nodes`.

    `checks` are the steps that check the roots of those builds that want it.
    """
    specs = [*[node.spec for node in nodes], *checks]
    if tags:
        specs = [replace(spec, queue=replace(spec.queue, tags=tags)) for spec in specs]
    unfinished = {spec.id for spec in specs}
    return BuildsSubmitted(
        tuple(
            [
                Wish(
                    build.id,
                    root if root in unfinished else None,
                    build.project,
                    build.priority,
                    build.limits,
                    build.not_before,
                )
                for build in builds
                for root in (check_of(build.root) if build.is_check else build.root,)
            ]
        ),
        tuple(specs),
        tuple([(node.spec.id, node.remembered) for node in nodes if node.remembered is not None]),
        is_retry,
    )


async def recover(
    journal: Journal,
    publish: Publish,
    now: float,
    lease_s: float,
    policy: Policy | None = None,
    *,
    rules: Mapping[str, ProjectRule] = MappingProxyType({}),
    offers: tuple[Offer, ...] = (),
) -> tuple[Scheduler, list[Effect]]:
    """A scheduler that goes on where the journal ends, and what it wants done first.

    `lease_s` takes the place of the policy's; `rules` are the projects'; `offers`
    agents that may appear.
    """
    past = await journal.recover()
    core = Scheduler(next_attempt=past.next_attempt, lease_s=lease_s, policy=policy)
    events = [*_rulings(past.rulings, rules), OffersChanged(offers)]
    for entry in past.unpublished:
        await publish(entry.outputs)
        events.append(OutputsPublished(entry.step, entry.attempt))
    by_tags: dict[tuple[str, ...], list[BuildRecord]] = {}
    for build in past.builds:
        by_tags.setdefault(build.tags, []).append(build)
    for tags, builds in by_tags.items():
        roots = list(dict.fromkeys(build.drv_path for build in builds))
        nodes = await journal.unfinished_graph(roots)
        checks = await check_steps(journal, builds, nodes)
        events.append(submission(nodes, builds, tags, checks=checks))
    events += [AgentAwaited(agent.spec, agent.attempts) for agent in past.agents]
    if past.given_up:
        events.append(AttemptsGivenUp(past.given_up))
    events.append(LimitsRecalled(past.limits))
    return core, core.handle(max(now, past.clock_s), events)


def _rulings(past: Rulings, rules: Mapping[str, ProjectRule]) -> list[Event]:
    """What held before: before any build is known, so that none is begun against it."""
    events: list[Event] = [ProjectsChanged(rules), UsesRecalled(past.uses, past.uses_at)]
    if past.farm_pause is not None:
        events.append(FarmPaused(True, past.farm_pause))
    events += [ProjectPaused(project, True, reason) for project, reason in past.project_pauses]
    events += [
        AgentRuled(agent, rule.tags, rule.is_paused, rule.reason) for agent, rule in past.agents
    ]
    return events
