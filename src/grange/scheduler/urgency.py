"""How urgent steps are: each as the most urgent of the builds that want it, up and down.

A build that is not to be begun lends no urgency at all: deferred, or of a paused project. A step
that only such builds want is held back, and one that others want too is not.
"""

import heapq
from collections.abc import Iterable

from grange.scheduler.facts import Limits, is_check
from grange.scheduler.memory import Memory
from grange.scheduler.ready import entry, is_ready_at
from grange.scheduler.state import PRIORITY_NONE, Build, State, Step


def rank_builds(memory: Memory, builds: Iterable[Build]) -> None:
    """Let the steps of these builds be as urgent as what is now ruled for them."""
    lowered = []
    for build in builds:
        old, build.urgency = build.urgency, urgency(memory, build)
        if build.urgency > old:
            lift(memory, build.root, build.urgency, build.root.path_s, build.project)
        elif build.urgency < old:
            lowered.append(build.root)
    lower(memory, lowered)


def urgency(memory: Memory, build: Build) -> int:
    """The priority that the build lends to what it needs."""
    account = memory.accounts[build.project]
    if account.pause is not None or build.not_before > memory.now:
        return PRIORITY_NONE
    return build.priority + account.rule.priority


def lift(
    memory: Memory,
    step: Step,
    priority: int,
    path_s: float,
    project: str,
    *,
    wanted: Limits | None = None,
) -> None:
    """Raise a step's rank and limits, and those of all it needs, to at least this.

    Of the projects that want it, it counts for the first, or for one that may run more at once.
    """
    running_max = memory.accounts[project].running_max
    todo = [(step, path_s)]
    while todo:
        step, path_s = todo.pop()
        is_widened = memory.widen(step, wanted)
        is_raised = step.priority < priority or step.path_s < path_s
        is_given = (
            step.project != project and memory.accounts[step.project].running_max < running_max
        )
        if not is_raised and not is_widened and not is_given:
            continue
        step.priority = max(step.priority, priority)
        step.path_s = max(step.path_s, path_s)
        if is_given:
            step.project = project
        if is_raised or is_given:
            reoffer(memory, step)
        for needed in step.inputs:
            if needed.state < State.PUBLISHING:
                todo.append((needed, needed.expected_s + step.path_s))


def lower(memory: Memory, steps: Iterable[Step]) -> None:
    """Let these be no more urgent than whatever wants them, and so on for all they need.

    Dependants come before what they need, because the way to the end grows from one to the next.
    """
    todo = {step.seq: step for step in steps}
    heap = [(step.path_s, step.seq) for step in todo.values()]
    heapq.heapify(heap)
    while heap:
        step = todo.pop(heapq.heappop(heap)[1])
        if step.state >= State.PUBLISHING:
            continue
        priority = _wanted_priority(step)
        if priority >= step.priority:
            continue
        step.priority = priority
        reoffer(memory, step)
        for needed in step.inputs:
            if needed.state < State.PUBLISHING and needed.seq not in todo:
                todo[needed.seq] = needed
                heapq.heappush(heap, (needed.path_s, needed.seq))


def _wanted_priority(step: Step) -> int:
    most = PRIORITY_NONE
    for build in step.builds:
        most = max(most, build.urgency)
    for dependant in step.dependants:
        if dependant.state < State.PUBLISHING:
            most = max(most, dependant.priority)
    return most


def reoffer(memory: Memory, step: Step) -> None:
    """Where it waits to be begun, let it wait with the rank it has now."""
    if step.state is State.READY:
        memory.queues[step.queue].push(step)
    else:
        offer_locally(step)


def offer_locally(step: Step) -> None:
    """Let it wait at the agent that has all its inputs, if one has."""
    if step.state is not State.WAITING or step.unbuilt or not step.missing:
        return
    if is_check(step.id):
        return  # it can be compared only with what is published
    home = next((needed.home for needed in step.inputs if needed.home is not None), None)
    if home is not None and is_ready_at(step, home):
        heapq.heappush(home.local, entry(step, home.order))
