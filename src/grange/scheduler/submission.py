"""Builds: what they want, and what follows for the steps at and below their roots."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import reduce

from grange.scheduler import effects as do
from grange.scheduler import events as on
from grange.scheduler import steps, telling
from grange.scheduler.facts import NO_LIMITS, Cause, Limits, Outcome, QueueKey, StepId, StepSpec
from grange.scheduler.matching import is_final, misfit
from grange.scheduler.memory import Memory, Timer
from grange.scheduler.ready import ReadyQueue
from grange.scheduler.state import Bounds, Build, Past, State, Step
from grange.scheduler.urgency import lift, offer_locally, urgency


def submit(memory: Memory, event: on.BuildsSubmitted) -> None:
    """Create the steps that are new, let builds want their roots, and drop what nobody wants."""
    # Of several builds, the most patient may yet see a step succeed that overran another's limit.
    wanted = reduce(Limits.most_generous, [wish.limits for wish in event.wishes] or [NO_LIMITS])
    doomed = doomed_steps(
        memory, event.steps, dict(event.remembered), wanted, is_retry=event.is_retry
    )
    known_seq = memory.last_seq
    new = create_steps(memory, event.steps, doomed, is_retry=event.is_retry)
    for wish in event.wishes:
        root = _grant_wish(memory, wish, doomed, known_seq, is_retry=event.is_retry)
        if root is None:
            continue
        lent = memory.builds[wish.build].urgency
        if root.seq > known_seq:
            root.priority = max(root.priority, lent)  # and what it needs: below
            memory.widen(root, wish.limits)
        else:
            lift(memory, root, lent, root.path_s, wish.project, wanted=wish.limits)
    settle_new(memory, new, known_seq)


def settle_new(memory: Memory, new: list[Step], known_seq: int) -> None:
    """Tell what new steps need that it is wanted, and how urgently; then let them wait or go.

    `new` has inputs first, and what wants them is told already; older steps end at `known_seq`.
    """
    for step in reversed(new):
        if step.wanted == 0:
            steps.drop(memory, step)
            continue
        for needed in step.inputs:
            urge(memory, needed, step, is_new=needed.seq > known_seq)
    for step in new:
        if step.state is State.WAITING and step.missing == 0:
            steps.make_ready(memory, step)
        elif step.state is State.WAITING:
            offer_locally(step)


def urge(memory: Memory, needed: Step, step: Step, *, is_new: bool) -> None:
    """Raise what `step` needs to its rank and limits; what a new step needs is told later."""
    path_s = needed.expected_s + step.path_s
    if not is_new:
        lift(memory, needed, step.priority, path_s, step.project, wanted=step.bounds.wanted)
        return
    # This runs for every edge of a submission, where a call costs as much as all the rest.
    if needed.path_s < path_s:  # noqa: PLR1730
        needed.path_s = path_s
    if needed.priority < step.priority:  # noqa: PLR1730
        needed.priority = step.priority
    if needed.project != step.project:
        _claim(memory, needed, step.project)
    if needed.first is None:
        needed.first = step.first
    if needed.bounds is not step.bounds:
        memory.widen(needed, step.bounds.wanted)


def doomed_steps(
    memory: Memory,
    specs: Sequence[StepSpec],
    remembered: Mapping[StepId, Cause],
    wanted: Limits,
    *,
    is_retry: bool = False,
) -> dict[StepId, Cause]:
    """The steps that cannot succeed: each with the known failure at or below it.

    A failure at a limit dooms nothing that is now wanted under a larger one.
    """
    doomed: dict[StepId, Cause] = {}
    for spec in specs:
        if spec.id in memory.steps or memory.settled.is_done(spec.id):
            continue
        cause = memory.settled.failure(spec.id) or remembered.get(spec.id)
        if cause is not None and is_retry:
            memory.settled.forget(spec.id)
            memory.out.append(do.SaveFailureForgotten(spec.id))
        elif cause is not None and is_final(cause, spec.limits.strictest(wanted)):
            doomed[spec.id] = replace(cause, step=spec.id)
        elif doomed:
            below = next((doomed[i] for i in spec.inputs if i in doomed), None)
            if below is not None:
                doomed[spec.id] = below
    return doomed


def _grant_wish(
    memory: Memory,
    wish: on.Wish,
    doomed: Mapping[StepId, Cause],
    known_seq: int,
    *,
    is_retry: bool,
) -> Step | None:
    """The step that the build now wants; None where it has ended or was known already."""
    ended = memory.ended_builds.outcome(wish.build)
    if wish.build in memory.builds or (ended is not None and (ended.is_success or not is_retry)):
        return None  # said twice, or ended while this was on its way
    if is_retry:
        memory.ended_builds.forget(wish.build)
        memory.out.append(do.SaveBuildReopened(wish.build, wish.not_before))
    cause = doomed.get(wish.root) if wish.root is not None else None
    root = memory.steps.get(wish.root) if wish.root is not None else None
    if cause is not None and wish.root is not None:
        steps.finish_build(memory, wish.build, *steps.blame(wish.root, cause))
    elif root is None:
        steps.finish_build(memory, wish.build, Outcome.CACHED, None)
    else:
        build = Build(wish.build, wish.project, wish.priority, root, wish.not_before)
        memory.builds[wish.build] = build
        memory.accounts[wish.project].queued += 1
        build.urgency = urgency(memory, build)
        if build.not_before > memory.now:
            memory.set_timer(build.not_before, Timer.DEFERRED, build)
        root.builds = (*root.builds, build)
        root.wanted += 1
        if root.seq > known_seq:
            _claim(memory, root, wish.project)
        root.first = root.first or build.id
        if root.attempts:
            telling.started(memory, root, root.attempts[0])
        return root
    return None


def _claim(memory: Memory, step: Step, project: str) -> None:
    """A new step counts for the first project that wants it, or for one that may run more."""
    accounts = memory.accounts
    if not step.project or accounts[step.project].running_max < accounts[project].running_max:
        step.project = project


def create_steps(
    memory: Memory,
    specs: Sequence[StepSpec],
    doomed: Mapping[StepId, Cause],
    *,
    is_retry: bool = False,
) -> list[Step]:
    """Those that are neither known nor doomed nor done meanwhile; inputs first, as `specs`."""
    new: list[Step] = []
    known = memory.steps
    asked: QueueKey | None = None  # by the step before: mostly the same, and hashing it costs
    for spec in specs:
        if spec.id in known or spec.id in doomed or memory.settled.is_done(spec.id):
            continue
        if asked is not spec.queue:
            asked = spec.queue
            key = _queue(memory, asked).key
        memory.last_seq += 1
        step = Step(spec.id, key, memory.last_seq)
        step.expected_s = step.path_s = spec.expected_s
        if not is_retry:
            step.failures, step.losses = spec.failures, spec.losses
            if spec.tries:
                step.past = Past(tries=spec.tries)
        if spec.limits != NO_LIMITS:
            step.bounds = Bounds(spec.limits, None, spec.limits)
        step.avoid = spec.avoid
        step.inputs = inputs = tuple([known[i] for i in spec.inputs if i in known])
        step.missing = len(inputs)
        for needed in inputs:
            needed.dependants.append(step)
            needed.wanted += 1
            step.unbuilt += needed.home is None
        known[spec.id] = step
        new.append(step)
    return new


def _queue(memory: Memory, key: QueueKey) -> ReadyQueue:
    queue = memory.queues.get(key)
    if queue is None:
        queue = memory.queues[key] = ReadyQueue(key, memory.policy.step_order)
        queue.agents = [a for a in memory.agents.values() if not misfit(a.spec, key)]
    return queue


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
