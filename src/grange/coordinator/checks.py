"""Builds that check: what is published is built once more, elsewhere if there is an elsewhere."""

from collections.abc import Sequence

from grange.ports import BuildRecord, Journal, StepNode
from grange.scheduler.facts import AgentId, Outcome, QueueKey, StepId, StepSpec, check_of


async def check_steps(
    journal: Journal, builds: Sequence[BuildRecord], nodes: Sequence[StepNode]
) -> list[StepSpec]:
    """The steps that check the roots of those of `builds` that want it, each once.

    `nodes` are the unfinished steps below these builds.
    """
    roots = list(dict.fromkeys(build.root for build in builds if build.is_check))
    if not roots:
        return []
    unfinished = {node.spec.id: node.spec for node in nodes}
    found = []
    for root, record in (await journal.steps(roots)).items():
        spec = unfinished.get(root)
        agents, build_s = await _built_by(journal, root)
        found.append(
            StepSpec(
                check_of(root),
                QueueKey(record.system, record.features),
                inputs=() if spec is None else (root,),
                expected_s=build_s if spec is None else spec.expected_s,
                limits=record.limits,
                avoid=agents,
            )
        )
    return found


async def _built_by(journal: Journal, step: StepId) -> tuple[tuple[AgentId, ...], float]:
    """The agents that built the step, and how long the last took (seconds)."""
    built = [
        attempt
        for attempt in await journal.attempts(step)
        if attempt.outcome is Outcome.SUCCEEDED and not attempt.is_check
    ]
    build_s = built[-1].usage.build_s if built else None
    return tuple(dict.fromkeys(attempt.agent for attempt in built)), build_s or 0.0
