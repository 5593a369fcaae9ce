"""Attempts: how they start, come along, and fail; and how many tries a step has."""

from dataclasses import replace
from typing import Final

from grange.scheduler import aside, lasting, steps, telling
from grange.scheduler import effects as do
from grange.scheduler import events as on
from grange.scheduler.facts import AgentId, AttemptId, Cause, Outcome, Phase, checked
from grange.scheduler.matching import is_avoiding_all, is_final
from grange.scheduler.memory import Memory
from grange.scheduler.settled import Loss
from grange.scheduler.state import Agent, Attempt, State, Step

DOUBLINGS_MAX: Final = 64  # of a back-off: more would leave the numbers before the farm is patient
_FLAKY: Final = (Outcome.BUILD_FAILED, Outcome.FAILED_WITH_OUTPUT)  # may go away by themselves


def start(memory: Memory, step: Step, agent: Agent) -> None:
    """Send the step to the agent, which has room for it."""
    id_ = memory.next_attempt
    memory.next_attempt = AttemptId(id_ + 1)
    agent.orders += 1
    agent.free -= 1
    attempt = assign(memory, id_, step, agent, order=agent.orders)
    memory.out.append(do.SaveAttempt(id_, step.id, agent.spec.id, memory.now, attempt.limits))
    memory.out.append(do.StartBuild(agent.spec.id, id_, step.id, attempt.order, attempt.limits))
    telling.started(memory, step, attempt)
    steps.show(memory, step, attempt)


def assign(memory: Memory, id_: AttemptId, step: Step, agent: Agent, *, order: int) -> Attempt:
    """Enter a new attempt into every account."""
    account = memory.accounts.charge(step.project)
    attempt = Attempt(id_, step, agent, account, order=order, now=memory.now)
    memory.attempts[id_] = agent.attempts[id_] = attempt
    agent.occupied += 1
    step.attempts = (*step.attempts, attempt)
    step.state = State.ACTIVE
    return attempt


def adopt(memory: Memory, id_: AttemptId, step: Step, agent: Agent) -> Attempt:
    """Enter an attempt that was sent long ago, with what limits may be told later."""
    attempt = assign(memory, id_, step, agent, order=0)
    attempt.is_limit_known = False
    for build in step.builds:
        build.is_started = True
    return attempt


def of_agent(memory: Memory, agent: AgentId, id_: AttemptId, phase: Phase) -> Attempt | None:
    """An agent may speak of its own attempts only; of others it is told to let go.

    `phase` is how far it says that the attempt has come.
    """
    attempt = memory.attempts.get(id_) or _revive(memory, agent, id_, phase)
    if attempt is None or attempt.agent.spec.id != agent:
        memory.out.append(do.AbortAttempt(agent, id_))
        return None
    return attempt


def _revive(memory: Memory, agent_id: AgentId, id_: AttemptId, phase: Phase) -> Attempt | None:
    """The agent was thought lost and still has the attempt: its work counts, if it is of use.

    It comes back as building at most: what it has built, the agent tells with `OutputsBuilt`.
    """
    loss = memory.given_up.loss(id_)
    agent = memory.agents.get(agent_id)
    step = memory.steps.get(loss.step) if loss is not None else None
    if loss is None or agent is None or step is None or loss.agent != agent_id:
        return None
    if step.state >= State.PUBLISHING or step.stored is not None:
        return None
    if step.is_covered and phase < Phase.BUILDING:
        return None  # it has no start to speak of on the attempt that took its place
    if any(each.state is not State.DONE and each.home is not agent for each in step.inputs):
        return None  # it was built on outputs that are lost
    return _take_back(memory, id_, loss, step, agent, phase=phase)


def _revive_stored(memory: Memory, id_: AttemptId) -> Attempt | None:
    """Its agent was lost while its last bytes came in: the farm has them all, and needs no agent.

    It counts for the agent as it was, which nobody else knows any more.
    """
    loss = memory.given_up.loss(id_)
    step = memory.steps.get(loss.step) if loss is not None else None
    if loss is None or loss.gone is None or step is None:
        return None
    if step.state >= State.PUBLISHING or step.stored is not None or step.missing:
        return None
    return _take_back(memory, id_, loss, step, loss.gone, phase=Phase.BUILDING)


def _take_back(
    memory: Memory, id_: AttemptId, loss: Loss, step: Step, agent: Agent, *, phase: Phase
) -> Attempt:
    """It goes on under its old number, and its loss is given back."""
    memory.given_up.forget(id_)
    attempt = adopt(memory, id_, step, agent)
    if loss.limits is not None:
        attempt.limits, attempt.is_limit_known = loss.limits, True
    attempt.enter(min(phase, Phase.BUILDING), memory.now)
    attempt.build_since = memory.now
    step.losses = max(0, step.losses - 1)
    if loss.phase is Phase.BUILDING:
        step.past = replace(step.past, kills=max(0, step.past.kills - 1))
    memory.out.append(do.SaveAttemptRevived(id_))
    steps.save_troubles(memory, step)
    steps.show(memory, step, attempt)
    return attempt


def give_up(memory: Memory, event: on.AttemptsGivenUp) -> None:
    """Remember whose attempts an earlier life of the farm gave up."""
    for id_, step, agent in event.attempts:
        memory.given_up.remember(id_, Loss(step, agent, Phase.SENT, None))


def recall_limits(memory: Memory, event: on.LimitsRecalled) -> None:
    """What an earlier life of the farm wrote down of its attempts, under way or given up."""
    for id_, limits in event.limits:
        attempt, loss = memory.attempts.get(id_), memory.given_up.loss(id_)
        if attempt is not None:
            attempt.limits, attempt.is_limit_known = limits, True
        elif loss is not None:
            memory.given_up.remember(id_, replace(loss, limits=limits))


def reached(memory: Memory, event: on.PhaseReached) -> None:
    attempt = of_agent(memory, event.agent, event.attempt, event.phase)
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
    attempt.enter(phase, memory.now)
    steps.show(memory, attempt.step, attempt)


def built(memory: Memory, event: on.OutputsBuilt) -> None:
    """It leaves its place on the agent, and dependants may start there."""
    attempt = of_agent(memory, event.agent, event.attempt, Phase.BUILDING)
    if attempt is None or attempt.phase >= Phase.BUILT:
        return
    step, agent = attempt.step, attempt.agent
    attempt.enter(Phase.BUILT, memory.now)
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
    attempt = memory.attempts.get(event.attempt) or _revive_stored(memory, event.attempt)
    if attempt is None:
        return
    step = attempt.step
    if step.state >= State.PUBLISHING or step.stored is not None:
        return
    if attempt.phase < Phase.BUILT:
        attempt.agent.occupied -= 1
        attempt.agent.delivering += 1
    attempt.enter(Phase.STORED, memory.now)
    aside.succeeded(attempt.agent)
    step.stored = (attempt, event.infos)
    step.state = State.ACTIVE
    if step.missing == 0:
        steps.publish(memory, step)
    else:
        steps.show(memory, step, attempt)


def failed(memory: Memory, event: on.AttemptFailed) -> None:
    attempt = own_unfinished(memory, event.agent, event.attempt)
    if attempt is not None:
        attempt.usage = event.usage
        memory.out.append(do.SettleAttempt(event.agent, event.attempt, False))
        if event.missing:
            telling.inputs_missing(memory, attempt, event.message, event.missing, ())
        conclude(memory, attempt, event.outcome, event.message)


def own_unfinished(memory: Memory, agent: AgentId, id_: AttemptId) -> Attempt | None:
    """The attempt that its agent says has failed; None where that is no news any more."""
    attempt = memory.attempts.get(id_)
    if attempt is None or attempt.agent.spec.id != agent:
        memory.out.append(do.SettleAttempt(agent, id_, False))
        return None
    if attempt.phase is Phase.STORED:
        return None  # too late to fail: the farm has every byte
    return attempt


def conclude(memory: Memory, attempt: Attempt, outcome: Outcome, message: str) -> None:
    """It failed. Is the derivation to blame, no other try; is an agent, one from the budget."""
    step = attempt.step
    steps.end_attempt(memory, attempt, outcome, message)
    if step.state >= State.PUBLISHING or step.stored is not None:
        return
    if outcome.is_remembered:
        _blame_build(memory, step, attempt, outcome, message)
    elif outcome.is_infrastructure:
        _trouble(memory, step, attempt, Cause(outcome, message, checked(step.id), attempt.id))
    if step.state < State.PUBLISHING:
        steps.requeue(memory, step)


def _blame_build(
    memory: Memory, step: Step, attempt: Attempt, outcome: Outcome, message: str
) -> None:
    """The build itself failed: for good, unless it may use more now or has tries left."""
    if outcome.is_limit and not attempt.is_limit_known:
        return  # it may have overrun less than what it may use now
    limit = attempt.limits.of(outcome) or None
    cause = Cause(outcome, message, checked(step.id), attempt.id, limit)
    if not is_final(cause, step.limits):
        return
    if outcome in _FLAKY:
        step.past = replace(step.past, tries=step.past.tries + 1)
        if step.past.tries < memory.policy.build_tries:
            steps.save_troubles(memory, step)
            return
    steps.fail(memory, step, cause)


def _trouble(memory: Memory, step: Step, attempt: Attempt, cause: Cause) -> None:
    """An infrastructure failure: try elsewhere, at once if there is an elsewhere."""
    agent = attempt.agent
    if not count_failure(memory, step, cause):
        return
    if cause.outcome is not Outcome.INPUTS_MISSING:
        aside.failed(memory, agent, step, cause)
    shun(step, agent)
    if is_avoiding_all(step, lasting.able(memory, step), memory.now):
        step.avoid = ()
        doublings = min(step.failures - 1, DOUBLINGS_MAX)
        policy = memory.policy
        wait_s = min(policy.backoff_max_s, policy.backoff_s * policy.backoff_factor**doublings)
        step.not_before = memory.now + wait_s


def count_failure(memory: Memory, step: Step, cause: Cause) -> bool:
    """Whether the step has tries left after one more failure.

    After the last it is given up, unless another attempt is under way that may yet succeed.
    """
    step.failures += 1
    steps.save_troubles(memory, step)
    if step.failures < memory.policy.failures_max or step.is_covered:
        return True
    message = f"given up after {step.failures} failures; the last: {cause.message}"
    steps.fail(memory, step, replace(cause, message=message))
    return False


def shun(step: Step, agent: Agent) -> None:
    """Other agents are to try the step first."""
    if agent.spec.id not in step.avoid:
        step.avoid = (*step.avoid, agent.spec.id)


def lose(memory: Memory, attempt: Attempt) -> None:
    """Its agent is gone: an immediate try elsewhere, from a budget of its own."""
    step = attempt.step
    message = f"agent {attempt.agent.spec.name} was lost in phase {attempt.phase.name.lower()}"
    steps.end_attempt(memory, attempt, Outcome.AGENT_LOST, message)
    limits = attempt.limits if attempt.is_limit_known else None
    loss = Loss(step.id, attempt.agent.spec.id, attempt.phase, limits, attempt.agent)
    memory.given_up.remember(attempt.id, loss)
    if step.state >= State.PUBLISHING or step.stored is not None:
        return
    step.losses += 1
    if attempt.phase is Phase.BUILDING:
        step.past = replace(step.past, kills=step.past.kills + 1)
    steps.save_troubles(memory, step)
    if step.losses >= memory.policy.losses_max and not step.attempts:
        message = f"given up after {step.losses} agents were lost under it; {message}"
        cause = Cause(Outcome.AGENT_LOST, message, checked(step.id), attempt.id)
        steps.fail(memory, step, cause)
    else:
        steps.requeue(memory, step)
