"""Builds: what they want, and what follows for the steps at and below their roots."""

from collections.abc import Mapping
from dataclasses import replace

from grange.scheduler import effects as do
from grange.scheduler import events as on
from grange.scheduler import steps
from grange.scheduler.facts import Cause, Outcome, QueueKey, StepId
from grange.scheduler.matching import misfit
from grange.scheduler.memory import Memory
from grange.scheduler.ready import ReadyQueue
from grange.scheduler.state import Build, State, Step


def submit(memory: Memory, event: on.BuildsSubmitted) -> None:
    """Create the steps that are new, let builds want their roots, and drop what nobody wants."""
    doomed = _doomed(memory, event)
    new = _create_steps(memory, event, doomed)
    fresh = set(map(id, new))
    for wish in event.wishes:
        root = _grant_wish(memory, wish, doomed, is_retry=event.is_retry)
        if root is not None and id(root) in fresh:
            root.priority = max(root.priority, wish.priority)  # and what it needs: below
        elif root is not None:
            _lift(memory, root, wish.priority, root.path_s)
    for step in reversed(new):
        if step.wanted == 0:
            steps.drop(memory, step)
            continue
        for needed in step.inputs:
            path_s = needed.expected_s + step.path_s
            if id(needed) in fresh:
                needed.path_s = max(needed.path_s, path_s)
                needed.priority = max(needed.priority, step.priority)
                needed.project = needed.project or step.project
            else:
                _lift(memory, needed, step.priority, path_s)
    for step in new:
        if step.state is State.WAITING and step.missing == 0:
            steps.make_ready(memory, step)
        elif step.state is State.WAITING:
            steps.offer_locally(step)


def _doomed(memory: Memory, event: on.BuildsSubmitted) -> dict[StepId, Cause]:
    """The steps that cannot succeed: each with the known failure at or below it."""
    remembered = dict(event.remembered)
    doomed: dict[StepId, Cause] = {}
    for spec in event.steps:
        if spec.id in memory.steps or memory.settled.is_done(spec.id):
            continue
        cause = memory.settled.failure(spec.id) or remembered.get(spec.id)
        if cause is not None and event.is_retry:
            memory.settled.forget(spec.id)
            memory.out.append(do.SaveFailureForgotten(spec.id))
        elif cause is not None:
            doomed[spec.id] = replace(cause, step=spec.id)
        else:
            below = next((doomed[i] for i in spec.inputs if i in doomed), None)
            if below is not None:
                doomed[spec.id] = below
    return doomed


def _grant_wish(
    memory: Memory, wish: on.Wish, doomed: Mapping[StepId, Cause], *, is_retry: bool
) -> Step | None:
    """The step that the build now wants; None where it has ended or was known already."""
    ended = memory.ended_builds.outcome(wish.build)
    if wish.build in memory.builds or (ended is not None and (ended.is_success or not is_retry)):
        return None  # said twice, or ended while this was on its way
    if is_retry:
        memory.ended_builds.forget(wish.build)
        memory.out.append(do.SaveBuildReopened(wish.build))
    cause = doomed.get(wish.root) if wish.root is not None else None
    root = memory.steps.get(wish.root) if wish.root is not None else None
    if cause is not None and wish.root is not None:
        steps.finish_build(memory, wish.build, *steps.blame(wish.root, cause))
    elif root is None:
        steps.finish_build(memory, wish.build, Outcome.CACHED, None)
    else:
        build = Build(wish.build, wish.project, wish.priority, root)
        memory.builds[wish.build] = build
        root.builds = (*root.builds, build)
        root.wanted += 1
        root.project = root.project or wish.project
        return root
    return None


def _create_steps(
    memory: Memory, event: on.BuildsSubmitted, doomed: Mapping[StepId, Cause]
) -> list[Step]:
    new: list[Step] = []
    for spec in event.steps:
        if spec.id in memory.steps or spec.id in doomed or memory.settled.is_done(spec.id):
            continue
        memory.last_seq += 1
        step = Step(spec.id, _queue(memory, spec.queue).key, memory.last_seq)
        step.expected_s = step.path_s = spec.expected_s
        step.failures, step.losses = (0, 0) if event.is_retry else (spec.failures, spec.losses)
        step.inputs = tuple([memory.steps[i] for i in spec.inputs if i in memory.steps])
        for needed in step.inputs:
            needed.dependants.append(step)
            needed.wanted += 1
            step.missing += 1
            step.unbuilt += needed.home is None
        memory.steps[spec.id] = step
        new.append(step)
    return new


def _queue(memory: Memory, key: QueueKey) -> ReadyQueue:
    queue = memory.queues.get(key)
    if queue is None:
        queue = memory.queues[key] = ReadyQueue(key)
        queue.agents = [a for a in memory.agents.values() if not misfit(a.spec, key)]
    return queue


def _lift(memory: Memory, step: Step, priority: int, path_s: float) -> None:
    """Raise a step's rank, and that of all it needs, to at least this."""
    todo = [(step, path_s)]
    while todo:
        step, path_s = todo.pop()
        if step.priority >= priority and step.path_s >= path_s:
            continue
        step.priority = max(step.priority, priority)
        step.path_s = max(step.path_s, path_s)
        if step.state is State.READY:
            memory.queues[step.queue].push(step)
        else:
            steps.offer_locally(step)  # where it waits for a place, with its new rank
        for needed in step.inputs:
            if needed.state < State.PUBLISHING:
                todo.append((needed, needed.expected_s + step.path_s))


def cancel(memory: Memory, event: on.BuildCancelled) -> None:
    build = memory.builds.get(event.build)
    cause = Cause(Outcome.CANCELLED, f"cancelled by {event.by}")
    if build is None:
        if memory.ended_builds.outcome(event.build) is None:  # its submission is on its way
            steps.finish_build(memory, event.build, Outcome.CANCELLED, cause)
        return
    steps.finish_build(memory, build.id, Outcome.CANCELLED, cause)
    build.root.builds = tuple([other for other in build.root.builds if other is not build])
    steps.unwant(memory, build.root, is_abort=True)
