"""Attempts: how they start, come along, and fail; and how many tries a step has."""

from typing import Final

from grange.scheduler import effects as do
from grange.scheduler import events as on
from grange.scheduler import steps
from grange.scheduler.facts import AgentId, AttemptId, Cause, Outcome, Phase
from grange.scheduler.matching import is_avoiding_all
from grange.scheduler.memory import Memory
from grange.scheduler.state import Agent, Attempt, State, Step

FAILURES_MAX: Final = 5  # tries of a step that agents, networks or disks may spoil
LOSSES_MAX: Final = 5  # agents that may vanish under a step
BACKOFF_S: Final = 5.0  # doubled with each failure; only where no other agent can take the step
BACKOFF_MAX_S: Final = 300.0


def start(memory: Memory, step: Step, agent: Agent) -> None:
    """Send the step to the agent, which has room for it."""
    id_ = memory.next_attempt
    memory.next_attempt = AttemptId(id_ + 1)
    agent.orders += 1
    agent.free -= 1
    attempt = assign(memory, id_, step, agent, order=agent.orders)
    memory.out.append(do.SaveAttempt(id_, step.id, agent.spec.id, memory.now))
    memory.out.append(do.StartBuild(agent.spec.id, id_, step.id, attempt.order))
    steps.show(memory, step, attempt)


def assign(memory: Memory, id_: AttemptId, step: Step, agent: Agent, *, order: int) -> Attempt:
    """Enter a new attempt into every account."""
    attempt = Attempt(id_, step, agent, order, memory.now)
    memory.attempts[id_] = agent.attempts[id_] = attempt
    agent.occupied += 1
    step.attempts = (*step.attempts, attempt)
    step.state = State.ACTIVE
    memory.used[step.project] = memory.used.get(step.project, 0) + 1
    return attempt


def of_agent(memory: Memory, agent: AgentId, id_: AttemptId) -> Attempt | None:
    """An agent may speak of its own attempts only; of others it is told to let go."""
    attempt = memory.attempts.get(id_)
    if attempt is None or attempt.agent.spec.id != agent:
        memory.out.append(do.AbortAttempt(agent, id_))
        return None
    return attempt


def reached(memory: Memory, event: on.PhaseReached) -> None:
    attempt = of_agent(memory, event.agent, event.attempt)
    if attempt is not None:
        advance(memory, attempt, event.phase)


def advance(memory: Memory, attempt: Attempt, phase: Phase) -> None:
    """An attempt only ever moves forward; what is not news is ignored."""
    if phase <= attempt.phase or phase is Phase.STORED:
        return
    if phase >= Phase.BUILT and attempt.phase < Phase.BUILT:
        return  # the agent will say what it built
    if phase is Phase.BUILDING:
        attempt.build_since = memory.now
        for needed in attempt.step.inputs:
            needed.held_by(attempt.agent)
    attempt.phase = phase
    steps.show(memory, attempt.step, attempt)


def built(memory: Memory, event: on.OutputsBuilt) -> None:
    """It leaves its place on the agent, and dependants may start there."""
    attempt = of_agent(memory, event.agent, event.attempt)
    if attempt is None or attempt.phase >= Phase.BUILT:
        return
    step, agent = attempt.step, attempt.agent
    attempt.phase = Phase.BUILT
    attempt.usage = event.usage
    agent.occupied -= 1
    agent.delivering += 1
    if (build_s := event.usage.build_s) is not None:
        agent.build_s = build_s if agent.build_s is None else 0.8 * agent.build_s + 0.2 * build_s
    steps.show(memory, step, attempt)
    if step.state is not State.ACTIVE or step.home is not None:
        return
    step.nar_bytes = event.nar_bytes
    steps.settle_home(step, agent)


def stored(memory: Memory, event: on.OutputsStored) -> None:
    """The first attempt to come so far is the one that is published."""
    attempt = memory.attempts.get(event.attempt)
    if attempt is None:
        return
    step = attempt.step
    if step.state >= State.PUBLISHING or step.stored is not None:
        return
    if attempt.phase < Phase.BUILT:
        attempt.agent.occupied -= 1
        attempt.agent.delivering += 1
    attempt.phase = Phase.STORED
    step.stored = (attempt, event.infos)
    step.state = State.ACTIVE
    if step.missing == 0:
        steps.publish(memory, step)
    else:
        steps.show(memory, step, attempt)


def failed(memory: Memory, event: on.AttemptFailed) -> None:
    """The derivation is to blame: no other try. An agent is: another, from the step's budget."""
    attempt = memory.attempts.get(event.attempt)
    if attempt is None or attempt.agent.spec.id != event.agent:
        memory.out.append(do.SettleAttempt(event.agent, event.attempt, False))
        return
    if attempt.phase is Phase.STORED:
        return  # too late to fail: the farm has every byte
    step, outcome = attempt.step, event.outcome
    attempt.usage = event.usage
    steps.end_attempt(memory, attempt, outcome, event.message)
    memory.out.append(do.SettleAttempt(event.agent, event.attempt, False))
    if step.state >= State.PUBLISHING or step.stored is not None:
        return
    if outcome.is_remembered:
        cause = Cause(outcome, event.message, step.id, event.attempt)
        steps.fail(memory, step, cause)
        return
    if outcome.is_infrastructure:
        _trouble(memory, step, attempt, Cause(outcome, event.message, step.id, event.attempt))
    if step.state < State.PUBLISHING:
        steps.requeue(memory, step)


def _trouble(memory: Memory, step: Step, attempt: Attempt, cause: Cause) -> None:
    """An infrastructure failure: try elsewhere, at once if there is an elsewhere.

    After the last try it is given up, unless another attempt is under way that may yet succeed.
    """
    step.failures += 1
    agent = attempt.agent.spec.id
    if agent not in step.avoid:
        step.avoid = (*step.avoid, agent)
    memory.out.append(do.SaveStepTroubled(step.id, step.failures, step.losses))
    if step.failures >= FAILURES_MAX and not step.is_covered:
        message = f"given up after {step.failures} failures; the last: {cause.message}"
        steps.fail(memory, step, Cause(cause.outcome, message, step.id, attempt.id))
    elif is_avoiding_all(step, memory.queues[step.queue].agents):
        step.avoid = ()
        wait_s = min(BACKOFF_MAX_S, BACKOFF_S * 2.0 ** (step.failures - 1))
        step.not_before = memory.now + wait_s


def lose(memory: Memory, attempt: Attempt) -> None:
    """Its agent is gone: an immediate try elsewhere, from a budget of its own."""
    step = attempt.step
    message = f"agent {attempt.agent.spec.name} was lost in phase {attempt.phase.name.lower()}"
    steps.end_attempt(memory, attempt, Outcome.AGENT_LOST, message)
    if step.state >= State.PUBLISHING or step.stored is not None:
        return
    step.losses += 1
    memory.out.append(do.SaveStepTroubled(step.id, step.failures, step.losses))
    if step.losses >= LOSSES_MAX and not step.attempts:
        message = f"given up after {step.losses} agents were lost under it; {message}"
        steps.fail(memory, step, Cause(Outcome.AGENT_LOST, message, step.id, attempt.id))
    else:
        steps.requeue(memory, step)
