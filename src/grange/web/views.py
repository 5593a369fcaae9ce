"""From the farm's records to the shapes of the API."""

from collections.abc import Sequence
from dataclasses import asdict

from grange.client.models import (
    AgentState,
    AgentView,
    AttemptView,
    BuildView,
    CauseView,
    LimitsView,
    ProjectView,
    StepState,
    StepView,
    UsageView,
    Why,
)
from grange.client.words import explain, words_of
from grange.coordinator.farm import Farm
from grange.ports import AttemptRecord, BuildRecord, StepNode, StepRecord, StepSummary
from grange.scheduler.core import Scheduler
from grange.scheduler.effects import ShowStep
from grange.scheduler.facts import Cause, Outcome, Phase, StepId, checked
from grange.scheduler.state import Agent, State, Step
from grange.scheduler.why import why
from grange.store.path import StorePath

_PHASES = {
    Phase.SENT: StepState.ASSIGNED,
    Phase.QUEUED: StepState.ASSIGNED,
    Phase.FETCHING: StepState.FETCHING,
    Phase.BUILDING: StepState.BUILDING,
    Phase.BUILT: StepState.UPLOADING,
    Phase.UPLOADING: StepState.UPLOADING,
    Phase.STORED: StepState.PUBLISHING,
}
_STATES = {
    State.WAITING: StepState.WAITING,
    State.READY: StepState.READY,
    State.BACKING_OFF: StepState.BACKING_OFF,
    State.PUBLISHING: StepState.PUBLISHING,
    State.DONE: StepState.DONE,
    State.FAILED: StepState.FAILED,
    State.DROPPED: StepState.CANCELLED,
}


def step_state(state: State, phase: Phase | None) -> StepState:
    if state is State.ACTIVE:
        return _PHASES[phase if phase is not None else Phase.SENT]
    return _STATES[state]


class Views:
    """Reads the scheduler where a step is live, and the journal where it is not."""

    def __init__(self, farm: Farm) -> None:
        self._farm = farm
        self._show = farm.settings.store_dir.show

    @property
    def core(self) -> Scheduler:
        return self._farm.core

    async def builds(self, records: Sequence[BuildRecord]) -> list[BuildView]:
        steps = {record.root for record in records}
        steps |= {checked(r.cause.step) for r in records if r.cause and r.cause.step is not None}
        known = await self._farm.journal.steps(list(steps))
        return [self._build(record, known) for record in records]

    def _build(self, record: BuildRecord, steps: dict[StepId, StepRecord]) -> BuildView:
        root = steps.get(record.root)
        return BuildView(
            id=record.id,
            drv_path=self._show(record.drv_path),
            outputs=self._outputs(root.outputs) if root else {},
            project=record.project,
            priority=record.priority,
            tags=list(record.tags),
            submitted_by=record.submitted_by,
            created=record.created,
            finished=record.finished,
            outcome=record.outcome.value if record.outcome else None,
            cause=self._cause(record.cause, steps) if record.cause else None,
            limits=LimitsView(**asdict(record.limits)),
            is_check=record.is_check,
            not_before=record.not_before,
        )

    def _cause(self, cause: Cause, steps: dict[StepId, StepRecord]) -> CauseView:
        id_ = checked(cause.step) if cause.step is not None else None
        step = steps.get(id_) if id_ is not None else None
        words = words_of(cause.outcome)
        return CauseView(
            outcome=cause.outcome.value,
            message=cause.message,
            step=id_,
            drv_path=self._show(step.drv_path) if step else None,
            attempt=cause.attempt,
            limit=cause.limit,
            words=explain(cause),
            fault=words.fault,
            advice=words.advice,
        )

    def _outputs(self, outputs: Sequence[tuple[str, StorePath]]) -> dict[str, str]:
        return {name: self._show(path) for name, path in outputs}

    def summary(self, step: StepSummary) -> StepView:
        """A step as the journal has it, brought up to date."""
        view = StepView(
            id=step.step,
            drv_path=self._show(step.drv_path),
            name=step.name,
            system=step.system,
            outputs=self._outputs(step.outputs),
            state=StepState.DONE if step.is_done else StepState.CANCELLED,
        )
        if step.attempt is not None:
            view.agent_name = step.attempt.agent_name
            view.attempt = step.attempt.id
            view.started = step.attempt.started
            view.since = step.attempt.ended or step.attempt.started
            view.build_s = step.attempt.usage.build_s
            view.outcome = step.attempt.outcome.value if step.attempt.outcome else None
            view.message = step.attempt.message
            if not step.is_done and _is_given_up(step.attempt.outcome):
                view.state = StepState.FAILED
        if step.cause is not None and not step.is_done:
            self._fail(view, step.cause)
        return self.live(view)

    def node(self, node: StepNode) -> StepView:
        """A step that is not done, as it stands now."""
        view = StepView(
            id=node.spec.id,
            drv_path=self._show(node.drv_path),
            name=node.drv_path.name.removesuffix(".drv"),
            system=node.spec.queue.system,
            outputs={},
            state=StepState.CANCELLED,
        )
        if node.remembered is not None:
            self._fail(view, node.remembered)
        return self.live(view)

    def check(self, check: StepId, record: StepRecord) -> StepView:
        """The step that builds `record` again to compare, as it stands now."""
        view = StepView(
            id=check,
            drv_path=self._show(record.drv_path),
            name=f"{record.name} (check)",
            system=record.system,
            outputs={},
            state=StepState.CANCELLED,
        )
        return self.live(view)

    def live(self, view: StepView) -> StepView:
        """Bring a view up to date with the scheduler."""
        id_ = StepId(view.id)
        step = self.core.steps.get(id_)
        if step is None:
            if self.core.settled.is_done(id_):
                view.state = StepState.DONE
            elif (cause := self.core.settled.failure(id_)) is not None:
                self._fail(view, cause)
            return view
        attempt = step.attempts[-1] if step.attempts else None
        view.state = step_state(step.state, attempt.phase if attempt else None)
        view.outcome, view.message = None, ""
        view.words = view.fault = view.advice = ""
        view.is_suspect = step.is_suspect
        if attempt is not None:
            view.agent_name = attempt.agent.spec.name
            view.attempt = attempt.id
            view.started = attempt.sent
            view.since = attempt.sent
            view.build_s = attempt.usage.build_s
        return view

    def news(self, view: StepView, news: ShowStep) -> StepView:
        """Bring a view up to date with what a watch heard."""
        view.state = step_state(State[news.state], news.phase)
        view.since = self._farm.loop.now()
        view.is_suspect = news.is_suspect
        if news.attempt is not None:
            if view.attempt != news.attempt:
                view.started = view.since
            view.attempt = news.attempt
            view.build_s = news.build_s
            agent = self.core.agents.get(news.agent) if news.agent is not None else None
            view.agent_name = agent.spec.name if agent else view.agent_name
        if view.state is StepState.FAILED:
            cause = self.core.settled.failure(StepId(view.id)) or news.cause
            if cause is not None:
                self._fail(view, cause)
        return view

    def _fail(self, view: StepView, cause: Cause) -> None:
        step = checked(StepId(view.id))
        is_own = cause.step is None or cause.step == step
        if view.id < 0 and self.core.settled.failure(step) is not None:
            is_own = False  # there is nothing to compare with
        if not is_own:
            cause = Cause(Outcome.DEPENDENCY_FAILED, "")
        words = words_of(cause.outcome)
        view.state = StepState.FAILED
        view.outcome, view.message = cause.outcome.value, cause.message
        view.words, view.fault, view.advice = explain(cause), words.fault, words.advice
        if is_own and cause.attempt is not None:
            view.attempt = cause.attempt

    def attempt(self, record: AttemptRecord) -> AttemptView:
        live = self.core.attempts.get(record.id)
        return AttemptView(
            id=record.id,
            step=record.step,
            drv_path=self._show(record.drv_path),
            agent=record.agent,
            agent_name=record.agent_name,
            started=record.started,
            ended=record.ended,
            phase=live.phase.name.lower() if live else None,
            outcome=record.outcome.value if record.outcome else None,
            message=record.message,
            usage=UsageView(**asdict(record.usage)),
            is_check=record.is_check,
        )

    async def why(self, id_: StepId, record: StepRecord) -> Why:
        answer = why(self.core, id_, self._farm.loop.now())
        drv_path = self._show(record.drv_path)
        if answer is None:
            return await self._why_not_live(id_, record, drv_path)
        step = self.core.steps[id_]
        phase = step.attempts[-1].phase if step.attempts else None
        waits_for = await self._farm.journal.steps(list(answer.waits_for))
        names = [
            f"waits for {self._show(other.drv_path)}: "
            f"{self.live(_bare(other)).state.value} (step {i})"
            for i, other in waits_for.items()
        ]
        return Why(
            step=id_,
            drv_path=drv_path,
            state=step_state(answer.state, phase),
            answer=answer.sentence,
            details=[*answer.details, *names, *self._pools(step)],
        )

    def _pools(self, step: Step) -> Sequence[str]:
        """What the pools say that could start an agent for it."""
        return self._farm.pool_words(step.queue) if step.state is State.READY else ()

    async def _why_not_live(self, id_: StepId, record: StepRecord, drv_path: str) -> Why:
        if record.is_done:
            return Why(
                step=id_,
                drv_path=drv_path,
                state=StepState.DONE,
                answer="It is done: its outputs are in the cache.",
                details=[self._show(path) for _, path in record.outputs],
            )
        [node] = [
            node
            for node in await self._farm.journal.unfinished_graph([record.drv_path])
            if node.spec.id == id_
        ]
        if node.remembered is not None:
            return Why(
                step=id_,
                drv_path=drv_path,
                state=StepState.FAILED,
                answer=f"It failed before ({explain(node.remembered)}), and the farm "
                "remembers: `grange retry` of a build that needs it tries again.",
                details=[node.remembered.message],
            )
        return Why(
            step=id_,
            drv_path=drv_path,
            state=StepState.CANCELLED,
            answer="No unfinished build wants it.",
            details=[],
        )

    def project(self, name: str) -> ProjectView:
        rule = self._farm.rule_of(name)
        account = self.core.accounts.get(name)
        view = ProjectView(
            name=name,
            share=rule.share,
            priority=rule.priority,
            running=0,
            running_max=rule.running_max,
            queued=0,
            queued_max=rule.queued_max,
            agent_s=0.0,
            use=0.0,
        )
        if account is not None:
            view.running, view.queued, view.pause = account.running, account.queued, account.pause
            view.agent_s, view.use = self.core.use(account)
        return view

    def agent(self, agent: Agent) -> AgentView:
        spec, now = agent.spec, agent.measurements
        heard = agent.heard is not None
        state, detail = _agent_state(agent, self._farm.loop.now())
        return AgentView(
            id=spec.id,
            name=spec.name,
            state=state,
            is_set_aside=state == "refusing" and not agent.refusal,
            detail=detail,
            systems=list(spec.systems),
            features=list(spec.features),
            mandatory_features=list(spec.mandatory_features),
            tags=list(spec.tags),
            mandatory_tags=list(spec.mandatory_tags),
            max_jobs=spec.max_jobs,
            places_used=min(agent.occupied, spec.max_jobs),
            attempts=list(agent.attempts),
            cpus=spec.cpus,
            memory_bytes=spec.memory_bytes,
            speed_factor=spec.speed_factor,
            nix_version=spec.nix_version,
            load1=now.load1 if heard else None,
            memory_used_bytes=now.memory_used_bytes if heard else None,
            store_free_percent=now.store_free_percent if heard else None,
            cpu_pressure=now.cpu_pressure,
            memory_pressure=now.memory_pressure,
            io_pressure=now.io_pressure,
            last_heard=agent.heard,
        )


def _agent_state(agent: Agent, now: float) -> tuple[AgentState, str]:
    if not agent.is_connected:
        left_s = max(0.0, agent.lease_until - now)
        return "cut off", f"it is given up in {left_s:.0f} s unless it comes back"
    if agent.is_draining:
        return "draining", "it finishes what it has and takes nothing new"
    if agent.pause is not None:
        return "paused", agent.pause or "it finishes what it has and gets nothing new"
    if agent.refusal:
        return "refusing", agent.refusal
    if agent.aside_reason:
        left_s = agent.aside_until - now
        wait = f"no work for {left_s:.0f} s" if left_s > 0 else "one attempt to see whether it can"
        return "refusing", f"it gets {wait}, since {agent.aside_reason}"
    return "connected", ""


def _is_given_up(outcome: Outcome | None) -> bool:
    """Whether an attempt that nothing followed was an agent's or the world's fault."""
    return outcome is not None and (outcome.is_infrastructure or outcome is Outcome.AGENT_LOST)


def _bare(record: StepRecord) -> StepView:
    return StepView(
        id=record.step,
        drv_path=record.drv_path,
        name=record.name,
        system=record.system,
        outputs={},
        state=StepState.DONE if record.is_done else StepState.CANCELLED,
    )
