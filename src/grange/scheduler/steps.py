"""What becomes of steps: ready, dropped, published, done or failed; and how their attempts end.

A build wants its root; a wanted step wants its inputs. `Step.wanted` counts both kinds, and a step
nobody wants is dropped unless an attempt of it is under way and useful.
"""

from typing import Final

from grange.scheduler import effects as do
from grange.scheduler import events as on
from grange.scheduler import lasting, telling
from grange.scheduler.facts import BuildId, Cause, Outcome, Phase, StepId, Usage, checked, is_check
from grange.scheduler.memory import Memory, Timer
from grange.scheduler.state import Agent, Attempt, State, Step
from grange.scheduler.urgency import lower, offer_locally

SUPERSEDED: Final = "its outputs were published meanwhile"

_NAMES: Final = tuple([state.name for state in State])  # asking an enum costs more


def make_ready(memory: Memory, step: Step) -> None:
    step.state = State.READY
    lasting.note(memory, step)
    memory.queues[step.queue].push(step)


def requeue(memory: Memory, step: Step) -> None:
    """It has no attempt to hope for: wait, queue or drop it."""
    if step.state >= State.PUBLISHING or step.stored is not None:
        return
    if step.is_covered:
        return
    if step.wanted <= 0:
        if not step.attempts:
            drop(memory, step)
        return
    step.state = State.WAITING
    if step.missing:
        offer_locally(step)
    elif step.not_before > memory.now:
        step.state = State.BACKING_OFF
        memory.set_timer(step.not_before, Timer.BACKOFF, step)
    else:
        make_ready(memory, step)
    show(memory, step, None)


def unwant(memory: Memory, step: Step, *, is_abort: bool) -> None:
    """One reason less to want it; at none, it goes, and its own wishes with it.

    What others want still is no more urgent than they say.
    """
    todo = [step]
    spared: dict[int, Step] = {}
    while todo:
        step = todo.pop()
        step.wanted -= 1
        if step.wanted > 0 or step.state >= State.PUBLISHING:
            spared[step.seq] = step
            continue
        if step.attempts and not is_abort:
            spared[step.seq] = step
            continue  # it runs already, and what it makes will be of use
        step.state = State.DROPPED
        step.home = None
        step.stored = None
        for attempt in step.attempts:
            _abort_attempt(memory, attempt, Outcome.CANCELLED, "nobody wants its outputs any more")
        del memory.steps[step.id]
        todo += step.inputs
        show(memory, step, None)
    lower(memory, spared.values())


def drop(memory: Memory, step: Step) -> None:
    """Drop a step that nobody wants from the start or any more."""
    step.wanted += 1
    unwant(memory, step, is_abort=True)


def settle_home(step: Step, agent: Agent) -> None:
    """The step's outputs are on this agent: what needs them may start there."""
    step.home = agent
    step.held_by(agent)
    for dependant in step.dependants:
        if dependant.state < State.PUBLISHING:
            dependant.unbuilt -= 1
            if not dependant.unbuilt:
                offer_locally(dependant)


def _lose_home(memory: Memory, step: Step) -> None:
    """Its unpublished outputs are gone from its agent, and what was built on them with them."""
    todo = [step]
    unwanted: list[Step] = []
    while todo:
        step = todo.pop()
        if step.state is State.PUBLISHING and step.stored is not None:
            step.home = step.stored[0].agent
            continue
        if step.home is None or step.state >= State.PUBLISHING:
            continue
        step.home = None
        for dependant in step.dependants:
            if dependant.state >= State.PUBLISHING:
                continue
            dependant.unbuilt += 1
            dependant.stored = None
            for attempt in dependant.attempts:
                memory.out.append(do.AbortAttempt(attempt.agent.spec.id, attempt.id))
                _strike_attempt(
                    memory, attempt, Outcome.CANCELLED, "its inputs were lost undelivered"
                )
            todo.append(dependant)
            if dependant.state is State.ACTIVE:
                dependant.state = State.WAITING
                show(memory, dependant, None)
            if dependant.wanted <= 0:
                unwanted.append(dependant)  # only because it ran already was it kept
    for step in unwanted:
        if step.state < State.PUBLISHING:
            drop(memory, step)


def fail(memory: Memory, step: Step, cause: Cause) -> None:
    """It cannot succeed: so cannot whatever needs it. `cause.step` is the step itself."""
    if is_check(step.id):
        pass  # the step that it checks stays as it was
    elif cause.outcome.is_remembered:
        memory.settled.fail(step.id, cause)
        memory.out.append(do.SaveStepFailed(step.id, cause, memory.now))
    elif step.failures or step.losses or step.past.tries:
        memory.out.append(do.SaveFailureForgotten(step.id))  # the next build has tries of its own
    telling.step_ended(memory, step, cause.outcome, cause, None)
    sink(memory, step, cause)


def sink(memory: Memory, step: Step, cause: Cause) -> None:
    """It and whatever needs it ends for `cause`, which may be another step's."""
    todo = [step]
    while todo:
        failed = todo.pop()
        if failed.state >= State.PUBLISHING:
            continue
        failed.state = State.FAILED
        memory.steps.pop(failed.id, None)
        failed.home = None
        failed.stored = None
        for attempt in failed.attempts:
            _abort_attempt(memory, attempt, Outcome.CANCELLED, "an input of it failed")
        for build in failed.builds:
            finish_build(memory, build.id, *blame(failed.id, cause))
        failed.builds = ()
        show(memory, failed, None, cause)
        todo += failed.dependants
        for needed in failed.inputs:
            if needed.state < State.PUBLISHING:
                unwant(memory, needed, is_abort=False)


def save_troubles(memory: Memory, step: Step) -> None:
    """What it has behind it outlives the farm's process; checks begin anew."""
    if not is_check(step.id):
        effect = do.SaveStepTroubled(step.id, step.failures, step.losses, step.past.tries)
        memory.out.append(effect)


def publish(memory: Memory, step: Step) -> None:
    """Its outputs are stored and its inputs published: now its own may be.

    A check's need not: they were compared, and it is done.
    """
    assert step.stored is not None
    if is_check(step.id):
        _finish(memory, step)
        return
    attempt, infos = step.stored
    step.state = State.PUBLISHING
    # Other agents keep their copies until this one can be fetched: dependants may run on them.
    memory.out.append(do.SavePaths(step.id, attempt.id, infos))
    memory.out.append(do.PublishOutputs(step.id, infos))
    show(memory, step, attempt)


def published(memory: Memory, event: on.OutputsPublished) -> None:
    """It is done: so are builds of it, and what needs it misses one input less."""
    id_ = event.step
    step = memory.steps.get(id_)
    if step is None:
        # A publication that a restart had interrupted.
        memory.settled.finish(id_)
        memory.out.append(do.SaveStepDone(id_, None))
        telling.forgotten_step_ended(memory, id_)
        if event.attempt is not None:
            done = Outcome.SUCCEEDED, "", Usage()
            memory.out.append(do.SaveAttemptEnded(event.attempt, id_, *done, memory.now))
        return
    build_s = step.stored[0].usage.build_s if step.stored else None
    memory.out.append(do.SaveStepDone(id_, build_s))
    memory.settled.finish(id_)
    _finish(memory, step)


def _finish(memory: Memory, step: Step) -> None:
    attempt = step.stored[0] if step.stored else None
    step.state = State.DONE
    del memory.steps[step.id]
    for other in step.attempts:
        if other is not attempt:
            _abort_attempt(memory, other, Outcome.CANCELLED, SUPERSEDED)
    if attempt is not None:
        end_attempt(memory, attempt, Outcome.SUCCEEDED, "")
        memory.out.append(do.SettleAttempt(attempt.agent.spec.id, attempt.id, True))
    telling.step_ended(memory, step, Outcome.SUCCEEDED, None, attempt)
    for build in step.builds:
        finish_build(memory, build.id, Outcome.SUCCEEDED, None)
    show(memory, step, attempt)
    for dependant in step.dependants:
        if dependant.state >= State.PUBLISHING:
            continue
        if attempt is not None and is_check(dependant.id):
            builder = attempt.agent.spec.id
            dependant.avoid = (*dependant.avoid, builder)  # another's word is worth more
        dependant.missing -= 1
        dependant.unbuilt -= step.home is None
        if dependant.missing:
            if not dependant.unbuilt:
                offer_locally(dependant)
        elif dependant.stored is not None:
            publish(memory, dependant)
        elif dependant.state is State.WAITING:
            make_ready(memory, dependant)
    step.home = None
    step.stored = None
    step.inputs = ()
    step.builds = ()
    step.dependants = []


def end_attempt(memory: Memory, attempt: Attempt, outcome: Outcome, message: str) -> None:
    """Forget the attempt and what it left on its agent; its step is the caller's business."""
    _strike_attempt(memory, attempt, outcome, message)
    if outcome is not Outcome.SUCCEEDED and attempt.step.home is attempt.agent:
        _lose_home(memory, attempt.step)


def _abort_attempt(memory: Memory, attempt: Attempt, outcome: Outcome, message: str) -> None:
    memory.out.append(do.AbortAttempt(attempt.agent.spec.id, attempt.id))
    end_attempt(memory, attempt, outcome, message)


def _strike_attempt(memory: Memory, attempt: Attempt, outcome: Outcome, message: str) -> None:
    """Take it out of every account."""
    step, agent = attempt.step, attempt.agent
    del memory.attempts[attempt.id]
    del agent.attempts[attempt.id]
    if attempt.phase < Phase.BUILT:
        agent.occupied -= 1
    else:
        agent.delivering -= 1
    assert agent.occupied >= 0
    assert agent.delivering >= 0
    step.attempts = tuple([other for other in step.attempts if other is not attempt])
    memory.accounts.discharge(attempt.account)
    memory.out.append(
        do.SaveAttemptEnded(attempt.id, step.id, outcome, message, attempt.usage, memory.now)
    )


def finish_build(memory: Memory, build: BuildId, outcome: Outcome, cause: Cause | None) -> None:
    known = memory.builds.pop(build, None)
    if known is not None:
        memory.accounts[known.project].queued -= 1
    memory.ended_builds.finish(build, outcome)
    memory.out.append(do.SaveBuildFinished(build, outcome, cause, memory.now))
    telling.build_ended(memory, build, outcome, cause)
    memory.out.append(do.ShowBuild(build, outcome, cause))


def show(memory: Memory, step: Step, attempt: Attempt | None, cause: Cause | None = None) -> None:
    if attempt is None:
        news = do.ShowStep(
            step.id, _NAMES[step.state], None, None, None, None, cause, step.is_suspect
        )
    else:
        news = do.ShowStep(
            step.id,
            _NAMES[step.state],
            attempt.agent.spec.id,
            attempt.id,
            attempt.phase,
            attempt.usage.build_s,
            cause,
            step.is_suspect,
        )
    memory.out.append(news)


def blame(root: StepId, cause: Cause) -> tuple[Outcome, Cause]:
    """A build's outcome where a step at or below its root failed for `cause`."""
    return (cause.outcome if checked(root) == cause.step else Outcome.DEPENDENCY_FAILED), cause
