"""Inputs that the farm has lost: they are built again, and what needed them waits."""

from grange.scheduler import attempts, steps, submission, telling
from grange.scheduler import effects as do
from grange.scheduler import events as on
from grange.scheduler.facts import NO_LIMITS, Cause, Outcome, checked
from grange.scheduler.memory import Memory
from grange.scheduler.state import State, Step


def inputs_lost(memory: Memory, event: on.InputsLost) -> None:
    """The attempt ends at no agent's cost; the step's own budget ends what would go on for ever."""
    attempt = attempts.own_unfinished(memory, event.agent, event.attempt)
    if attempt is None:
        return
    step = attempt.step
    attempt.usage = event.usage
    memory.out.append(do.SettleAttempt(event.agent, event.attempt, False))
    telling.inputs_missing(memory, attempt, event.message, event.missing, event.lost)
    steps.end_attempt(memory, attempt, Outcome.INPUTS_MISSING, event.message)
    if step.state >= State.PUBLISHING or step.stored is not None:
        return
    cause = Cause(Outcome.INPUTS_MISSING, event.message, checked(step.id), event.attempt)
    if attempts.count_failure(memory, step, cause) and _rebuild(memory, step, event):
        steps.requeue(memory, step)


def outputs_collected(memory: Memory, event: on.OutputsCollected) -> None:
    """Whoever asks for them from now on has them built again."""
    for id_ in event.steps:
        memory.settled.forget_done(id_)


def _rebuild(memory: Memory, step: Step, event: on.InputsLost) -> bool:
    """Let the step need what is lost; whether it still may succeed."""
    for id_ in event.lost:
        memory.settled.forget_done(id_)
    wanted = step.bounds.wanted or NO_LIMITS
    doomed = submission.doomed_steps(memory, event.steps, dict(event.remembered), wanted)
    cause = next((doomed[id_] for id_ in event.lost if id_ in doomed), None)
    if cause is not None:
        telling.step_ended(memory, step, Outcome.DEPENDENCY_FAILED, cause, None)
        steps.sink(memory, step, cause)
        return False
    known_seq = memory.last_seq
    new = submission.create_steps(memory, event.steps, doomed)
    for id_ in event.lost:
        needed = memory.steps.get(id_)
        if needed is None or needed is step or needed in step.inputs:
            continue
        step.inputs = (*(each for each in step.inputs if each.id != id_), needed)
        needed.dependants.append(step)
        needed.wanted += 1
        step.missing += 1
        step.unbuilt += needed.home is None
        submission.urge(memory, needed, step, is_new=needed.seq > known_seq)
    submission.settle_new(memory, new, known_seq)
    return True
