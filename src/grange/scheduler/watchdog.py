"""Attempts that stand still: each phase has a time without progress, and most a longest one.

An agent that lives renews its lease whatever becomes of its attempts; so what each of them does is
looked at with every heartbeat. A farm that was itself held up begins to count anew.
"""

from typing import assert_never

from grange.scheduler import attempts
from grange.scheduler import effects as do
from grange.scheduler.facts import AttemptId, Outcome, Phase
from grange.scheduler.memory import Memory
from grange.scheduler.state import Agent, Attempt

Verdict = tuple[Outcome, str]


def note(memory: Memory, progress: tuple[tuple[AttemptId, int], ...]) -> None:
    """Take in how far each attempt is, as its agent counts it."""
    for id_, count in progress:
        attempt = memory.attempts.get(id_)
        if attempt is not None and attempt.progress != count:
            attempt.progress = count
            attempt.moved = memory.now
            if attempt.phase >= Phase.BUILT:
                attempt.agent.upload_moved = memory.now


def check(memory: Memory, agent: Agent) -> None:
    """Stop what stands still on this agent, so that it may be tried elsewhere."""
    for attempt in list(agent.attempts.values()):
        if attempt.id not in memory.attempts:
            continue  # ended with one before it
        verdict = _verdict(memory, attempt)
        if verdict is None:
            continue
        outcome, message = verdict
        memory.out.append(do.AbortAttempt(agent.spec.id, attempt.id))
        if outcome is Outcome.RETURNED:
            attempts.shun(attempt.step, agent)
        message = f"agent {agent.spec.name} {message}; it was told to stop"
        attempts.conclude(memory, attempt, outcome, message)


def _verdict(memory: Memory, attempt: Attempt) -> Verdict | None:
    """What it fails as, and what to say of its agent; None where it is in time."""
    policy = memory.policy
    for_s = memory.now - max(attempt.since, memory.held_up)
    still_s = _still_s(memory, attempt)
    match attempt.phase:
        case Phase.SENT | Phase.STORED:
            return None  # the listing in heartbeats tells; and nothing is left to do
        case Phase.QUEUED:
            if still_s > policy.queue_stall_s:
                return Outcome.RETURNED, f"did not begin for {still_s:.0f} s"
        case Phase.FETCHING:
            if still_s > policy.fetch_stall_s:
                return Outcome.FETCH_FAILED, f"fetched nothing of the inputs for {still_s:.0f} s"
            if for_s > policy.fetch_max_s:
                return Outcome.FETCH_FAILED, f"has not fetched the inputs within {for_s:.0f} s"
        case Phase.BUILDING:
            return _build_verdict(attempt, for_s, still_s, policy.build_grace_s)
        case Phase.BUILT | Phase.UPLOADING:
            if still_s > policy.upload_stall_s:
                return Outcome.UPLOAD_FAILED, f"uploaded nothing for {still_s:.0f} s"
            if for_s > policy.upload_max_s:
                return Outcome.UPLOAD_FAILED, f"has not uploaded the outputs within {for_s:.0f} s"
        case _:
            assert_never(attempt.phase)
    return None


def _build_verdict(
    attempt: Attempt, for_s: float, still_s: float, grace_s: float
) -> Verdict | None:
    """The agent enforces the limits; where it has not, the fault is its own."""
    # Of an attempt that an older release sent only what its step may use now is known.
    limits = attempt.limits if attempt.is_limit_known else attempt.step.limits
    if limits.build_s and for_s > limits.build_s + grace_s:
        message = f"builds for {for_s:.0f} s and has not stopped at the limit of {limits.build_s} s"
        return Outcome.AGENT_FAILED, message
    if limits.silent_s and still_s > limits.silent_s + grace_s:
        message = (
            f"reports nothing of the build for {still_s:.0f} s and has not stopped it at the "
            f"limit of {limits.silent_s} s of silence"
        )
        return Outcome.AGENT_FAILED, message
    return None


def _still_s(memory: Memory, attempt: Attempt) -> float:
    """How long it made no progress. An upload may wait while others of the agent move on."""
    agent = attempt.agent
    if not agent.spec.is_grange:
        return 0.0  # its dialect cannot tell
    moved = attempt.moved
    if attempt.phase in (Phase.BUILT, Phase.UPLOADING):
        moved = max(moved, agent.upload_moved)
    return memory.now - max(moved, memory.held_up)
