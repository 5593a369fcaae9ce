"""The one answer to "why is this step not running?", from the same code that decides (D12)."""

from dataclasses import dataclass, replace
from typing import Final, assert_never

from grange.scheduler.core import Scheduler
from grange.scheduler.facts import Phase, StepId
from grange.scheduler.matching import asked, misfit
from grange.scheduler.ready import is_ready_at
from grange.scheduler.state import DELIVERING_MAX, PRIORITY_NONE, Agent, Build, State, Step

TOLD_MAX: Final = 20  # inputs or agents named in one answer

_PHASE_WORDS: Final = {
    Phase.SENT: "has been assigned to",
    Phase.QUEUED: "waits for a place at",
    Phase.FETCHING: "has its inputs fetched by",
    Phase.BUILDING: "is being built by",
    Phase.BUILT: "is built, and about to be uploaded by",
    Phase.UPLOADING: "is built, and being uploaded by",
    Phase.STORED: "is built and verified, and waits for its inputs' publication, by",
}


@dataclass(frozen=True, slots=True)
class Answer:
    """For a person: a sentence and further lines; `waits_for` lets the caller name the steps."""

    state: State
    sentence: str
    details: tuple[str, ...] = ()
    waits_for: tuple[StepId, ...] = ()  # unfinished inputs, the first few


def why(core: Scheduler, id_: StepId, now: float) -> Answer | None:
    """None where the step is not in the scheduler: it is done, failed, or nobody wants it."""
    step = core.steps.get(id_)
    if step is None:
        return None
    answer = _answer(core, step, now)
    if answer is None or not step.is_suspect:
        return answer
    line = f"{step.past.kills} agents were lost while they built it: it may be what kills them."
    return replace(answer, details=(line, *answer.details))


def _answer(core: Scheduler, step: Step, now: float) -> Answer | None:
    match step.state:
        case State.WAITING | State.READY if step.priority == PRIORITY_NONE:
            return _held_back(core, step, now)
        case State.WAITING:
            return _waiting(step, now)
        case State.READY:
            return _bounded(core, step) or _ready(core, step, now)
        case State.BACKING_OFF:
            return Answer(
                step.state,
                f"It failed {step.failures} times for reasons of agents, not its own; "
                f"the next try is in {_span(step.not_before - now)}.",
            )
        case State.ACTIVE:
            lines = [
                f"It {_PHASE_WORDS[attempt.phase]} {attempt.agent.spec.name} "
                f"(attempt {attempt.id}, sent {_span(now - attempt.sent)} ago)."
                for attempt in step.attempts
            ]
            return Answer(step.state, lines[0] if lines else "Verified.", tuple(lines[1:]))
        case State.PUBLISHING:
            return Answer(step.state, "It is built and verified, and being published.")
        case State.DONE | State.FAILED | State.DROPPED:
            return None
        case _:
            assert_never(step.state)


def _held_back(core: Scheduler, step: Step, now: float) -> Answer:
    """All builds that want it are deferred, or of paused projects."""
    reasons: dict[str, None] = {}
    for build in _builds_of(step):
        pause = core.accounts[build.project].pause
        if pause is not None:
            reasons[f"Project {build.project} is paused{_because(pause)}."] = None
        else:
            wait = _span(build.not_before - now)
            reasons[f"Build {build.id} is deferred: it begins in {wait}."] = None
    sentence, *more = list(reasons)[:TOLD_MAX] or ["No build that may begin wants it."]
    return Answer(step.state, sentence, tuple(more))


def _builds_of(step: Step) -> list[Build]:
    """The unfinished builds that want it, nearest first."""
    seen = {step.seq}
    above = [step]
    builds: list[Build] = []
    for each in above:
        builds += each.builds
        for dependant in each.dependants:
            if dependant.seq not in seen and dependant.state < State.PUBLISHING:
                seen.add(dependant.seq)
                above.append(dependant)
    return builds


def _bounded(core: Scheduler, step: Step) -> Answer | None:
    """What operators rule keeps it from any agent; None where nothing does."""
    if core.pause is not None:
        return Answer(
            step.state,
            f"The farm is paused{_because(core.pause)}; `grange resume` lets it go on.",
        )
    account = core.accounts[step.project]
    if not account.is_full:
        return None
    return Answer(
        step.state,
        f"Project {step.project} has {account.running} attempts running, "
        f"and may have {account.running_max} at once (running_max).",
    )


def _because(reason: str) -> str:
    return f" ({reason})" if reason else ""


def _waiting(step: Step, now: float) -> Answer:
    unfinished = [needed for needed in step.inputs if needed.state is not State.DONE]
    waits_for = tuple([needed.id for needed in unfinished[:TOLD_MAX]])
    home = next((needed.home for needed in unfinished if needed.home is not None), None)
    if home is not None and is_ready_at(step, home):
        return Answer(
            step.state,
            f"Its inputs are built on {home.spec.name} and not published yet: "
            f"it waits for a place there or for their publication.",
            (_agent_line(home, now),),
            waits_for,
        )
    count = len(unfinished)
    return Answer(
        step.state,
        f"It waits for {count} input{'s' * (count != 1)} that {'are' if count != 1 else 'is'} "
        "not built yet.",
        (),
        waits_for,
    )


def _ready(core: Scheduler, step: Step, now: float) -> Answer:
    agents = list(core.agents.values())
    if not agents and not core.is_offered(step.queue):
        return Answer(step.state, "No agent is connected; start one with `grange agent run`.")
    fitting = [agent for agent in agents if not misfit(agent.spec, step.queue)]
    details = []
    for agent in agents[:TOLD_MAX]:
        reason = misfit(agent.spec, step.queue) or _taken_away(core, agent, step)
        details.append(f"{agent.spec.name}: {reason}" if reason else _agent_line(agent, now, step))
    if not fitting:
        return Answer(step.state, _unfit(core, step, now), tuple(details))
    if core.must_last(step):
        lasting = [agent for agent in fitting if core.judged.get(agent.spec.id)]
        if not any(agent.room(now) > 0 for agent in lasting):
            return Answer(step.state, _last(step, lasting), tuple(details))
    able = [agent for agent in fitting if agent.room(now) > 0]
    if able:
        sentence = "It is about to be sent to an agent."
    elif not any(agent.takes_work(now) for agent in fitting):
        sentence = f"None of the {len(fitting)} agents that fit takes work now."
    else:
        sentence = f"It waits for a place: {len(fitting)} agents fit, none has room."
    return Answer(step.state, sentence, tuple(details))


def _taken_away(core: Scheduler, agent: Agent, step: Step) -> str:
    """Why the last try of `step` does not go to that agent; "" where it may."""
    if not core.must_last(step) or (lasts := core.judged.get(agent.spec.id)):
        return ""
    if lasts is None:
        return "it is not known yet whether a cloud may take it away, and this is the last try"
    return "a cloud may take it away, and this is the last try"


def _last(step: Step, lasting: list[Agent]) -> str:
    """What its last try waits for."""
    lost = step.losses + len(step.attempts)
    sentence = f"Agents were lost under it {lost} times, and its last try waits for one that lasts"
    if lasting:
        return f"{sentence}: {len(lasting)} that no cloud takes away fit, none has room."
    return f"{sentence}: those that fit may be taken away, and one that is not may appear."


def _unfit(core: Scheduler, step: Step, now: float) -> str:
    """No agent that is here fits: could one appear, and how long may that take?"""
    needs = asked(step.queue)
    if core.is_offered(step.queue):
        return f"No agent here can build it, but one that can may appear: it asks for {needs}."
    sentence = f"No agent can build it: it asks for {needs}."
    since = core.queues[step.queue].hopeless_since
    if since is None:
        return sentence
    left = _span(since + core.policy.max_unsupported_s - now)
    return f"{sentence} It fails in {left} unless one that can joins."


def _agent_line(agent: Agent, now: float, step: Step | None = None) -> str:
    name = agent.spec.name
    if not agent.is_connected:
        return f"{name}: it is cut off"
    if agent.is_draining:
        return f"{name}: it is draining"
    if agent.pause is not None:
        return f"{name}: it is paused{_because(agent.pause)}"
    if agent.refusal:
        return f"{name}: {agent.refusal}"
    if now < agent.aside_until:
        return f"{name}: it is set aside for {_span(agent.aside_until - now)}: {agent.aside_reason}"
    if step is not None and agent.spec.id in step.avoid:
        return f"{name}: it failed this step before, so others go first"
    if agent.delivering >= DELIVERING_MAX:
        return f"{name}: it has {agent.delivering} builds yet to deliver"
    if agent.asides:
        return f"{name}: it takes one attempt at a time until one succeeds: {agent.aside_reason}"
    places = agent.spec.max_jobs
    return f"{name}: {min(agent.occupied, places)} of {places} places taken"


def _span(seconds: float) -> str:
    """As people say it, rounded: what is left of it changes anyway."""
    whole = max(0, round(seconds))
    if whole < 120:
        return f"{whole} s"
    return f"{round(whole / 60)} min" if whole < 7200 else f"{round(whole / 3600)} h"
