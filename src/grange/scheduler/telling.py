"""What hooks are told of: nothing but the kinds that the policy says somebody wants.

Every attempt and step comes by here, so a farm that nobody listens to is asked the cheapest way.
"""

from grange.scheduler.effects import SaveFarmEvent
from grange.scheduler.facts import AgentId, BuildId, Cause, EventKind, Outcome, StepId
from grange.scheduler.memory import Memory
from grange.scheduler.state import Attempt, Step


def started(memory: Memory, step: Step, attempt: Attempt) -> None:
    """An agent got the step: builds whose root it is begin, each once."""
    if not (tells := memory.policy.tells) or EventKind.BUILD_STARTED not in tells:
        return
    for build in step.builds:
        if build.is_started:
            continue
        build.is_started = True
        memory.out.append(
            SaveFarmEvent(
                EventKind.BUILD_STARTED,
                memory.now,
                build.id,
                build.project,
                step.id,
                attempt.id,
                attempt.agent.spec.id,
            )
        )


def build_ended(memory: Memory, build: BuildId, outcome: Outcome, cause: Cause | None) -> None:
    kind = EventKind.BUILD_FAILED
    if outcome.is_success:
        kind = EventKind.BUILD_SUCCEEDED
    elif outcome is Outcome.CANCELLED:
        kind = EventKind.BUILD_CANCELLED
    if kind in memory.policy.tells:
        event = SaveFarmEvent(kind, memory.now, build, outcome=outcome, cause=cause)
        memory.out.append(event)


def step_ended(
    memory: Memory, step: Step, outcome: Outcome, cause: Cause | None, attempt: Attempt | None
) -> None:
    """It was built, or is given up for a reason of its own."""
    if not (tells := memory.policy.tells) or EventKind.STEP_FINISHED not in tells:
        return
    memory.out.append(
        SaveFarmEvent(
            EventKind.STEP_FINISHED,
            memory.now,
            step.first,
            step.project,
            step.id,
            None if attempt is None else attempt.id,
            None if attempt is None else attempt.agent.spec.id,
            outcome,
            cause,
        )
    )


def forgotten_step_ended(memory: Memory, step: StepId) -> None:
    """A publication that a restart had interrupted is complete."""
    if EventKind.STEP_FINISHED in memory.policy.tells:
        outcome = Outcome.SUCCEEDED
        event = SaveFarmEvent(EventKind.STEP_FINISHED, memory.now, step=step, outcome=outcome)
        memory.out.append(event)


def inputs_missing(
    memory: Memory,
    attempt: Attempt,
    message: str,
    missing: tuple[str, ...],
    rebuilt: tuple[StepId, ...],
) -> None:
    step = attempt.step
    if EventKind.INPUTS_MISSING not in memory.policy.tells:
        return
    memory.out.append(
        SaveFarmEvent(
            EventKind.INPUTS_MISSING,
            memory.now,
            step.first,
            step.project,
            step.id,
            attempt.id,
            attempt.agent.spec.id,
            Outcome.INPUTS_MISSING,
            message=message,
            missing=missing,
            rebuilt=rebuilt,
        )
    )


def agent(memory: Memory, kind: EventKind, id_: AgentId, message: str) -> None:
    """It joined or was lost, and why."""
    if kind in memory.policy.tells:
        memory.out.append(SaveFarmEvent(kind, memory.now, agent=id_, message=message))
