"""The scheduler: takes in events, answers with effects, and knows when it wants to be woken.

Rules of the file: nothing here asks for the time or for chance; every change of a step's state
happens in a method of this class; iteration is always over lists and insertion-ordered dicts, so
that the same events give the same effects in every process.

A build wants its root; a wanted step wants its inputs. `Step.wanted` counts both kinds, and a step
nobody wants is dropped unless an attempt of it is under way and useful.
"""

import heapq
from collections.abc import Iterable, Mapping
from dataclasses import replace
from enum import Enum
from typing import Final, assert_never

from grange.scheduler import effects as do
from grange.scheduler import events as on
from grange.scheduler.facts import (
    AgentId,
    AgentSpec,
    AttemptId,
    BuildId,
    Cause,
    Outcome,
    Phase,
    QueueKey,
    StepId,
    Usage,
)
from grange.scheduler.matching import choose, misfit, refusal
from grange.scheduler.ready import Rank, ReadyQueue, entry, is_ready_at, local_head
from grange.scheduler.settled import EndedBuilds, Settled
from grange.scheduler.state import Agent, Attempt, Build, State, Step

LATE_S: Final = 2.0  # woken later than this after its deadline, the farm itself was held up
LEASE_S: Final = 30.0  # three missed heartbeats
RECONNECT_S: Final = 2.0  # an agent cut off for longer may have its steps tried elsewhere as well
FAILURES_MAX: Final = 5  # tries of a step that agents, networks or disks may spoil
LOSSES_MAX: Final = 5  # agents that may vanish under a step
BACKOFF_S: Final = 5.0  # doubled with each failure; only where no other agent can take the step
BACKOFF_MAX_S: Final = 300.0


class Timer(Enum):
    LEASE = "lease"  # of an agent
    CUT = "cut"  # an agent's tunnel closed a while ago
    BACKOFF = "backoff"  # of a step


class Scheduler:
    """Call `handle` with what happened; act on what it returns, in order."""

    def __init__(self, *, next_attempt: AttemptId, lease_s: float = LEASE_S) -> None:
        self.lease_s = lease_s
        self.steps: dict[StepId, Step] = {}
        self.builds: dict[BuildId, Build] = {}
        self.agents: dict[AgentId, Agent] = {}
        self.attempts: dict[AttemptId, Attempt] = {}
        self.queues: dict[QueueKey, ReadyQueue] = {}
        self._next_attempt = int(next_attempt)
        self._next_seq = 0
        self._timers: list[tuple[float, int, Timer, Agent | Step]] = []
        self._timer_seq = 0
        self._used: dict[str, int] = {}  # running attempts by project
        self.settled = Settled()
        self._ended_builds = EndedBuilds()
        self._now = 0.0
        self._held_up = 0.0  # when the farm itself was last held up
        self._out: list[do.Effect] = []

    # --- the door -------------------------------------------------------------------------

    def handle(self, now: float, events: Iterable[on.Event]) -> list[do.Effect]:
        """Take in what happened, in order; `now` (s) never runs backwards."""
        deadline = self.next_deadline()
        self._now = max(self._now, now)
        if deadline is not None and self._now - deadline > LATE_S:
            self._renew_all()
        for event in events:
            self._take(event)
        self._wake()
        self._dispatch()
        out, self._out = self._out, []
        return out

    @property
    def now(self) -> float:
        """The latest time it was told, seconds."""
        return self._now

    def next_deadline(self) -> float | None:
        """When to send a `Tick` at the latest; None for never."""
        return self._timers[0][0] if self._timers else None

    def _take(self, event: on.Event) -> None:
        match event:
            case on.OutputsBuilt():
                self._built(event)
            case on.OutputsStored():
                self._stored(event)
            case on.OutputsPublished():
                self._published(event.step)
            case on.PhaseReached():
                attempt = self._attempt_of(event.agent, event.attempt)
                if attempt is not None:
                    self._advance(attempt, event.phase)
            case on.AgentHeard():
                self._heard(event)
            case on.AttemptFailed():
                self._attempt_failed(event)
            case on.BuildsSubmitted():
                self._submit(event)
            case on.BuildCancelled():
                self._cancel(event)
            case on.AgentJoined():
                self._join(event.spec)
            case on.AgentAwaited():
                self._await_agent(event)
            case on.AgentCut():
                self._cut(event)
            case on.AgentLeft():
                self._left(event)
            case on.Tick():
                pass
            case _:
                assert_never(event)

    # --- builds ---------------------------------------------------------------------------

    def _submit(self, event: on.BuildsSubmitted) -> None:
        doomed = self._doomed(event)
        new = self._create_steps(event, doomed)
        for wish in event.wishes:
            self._grant_wish(wish, doomed, is_retry=event.is_retry)
        fresh = set(map(id, new))
        for step in reversed(new):
            if step.wanted == 0:
                self._drop(step)
                continue
            for needed in step.inputs:
                path_s = needed.expected_s + step.path_s
                if id(needed) in fresh:
                    needed.path_s = max(needed.path_s, path_s)
                    needed.priority = max(needed.priority, step.priority)
                    needed.project = needed.project or step.project
                else:
                    self._lift(needed, step.priority, path_s)
        for step in new:
            if step.state is State.WAITING and step.missing == 0:
                self._make_ready(step)
            elif step.state is State.WAITING:
                self._offer_locally(step)

    def _doomed(self, event: on.BuildsSubmitted) -> dict[StepId, Cause]:
        """The steps that cannot succeed: each with the known failure at or below it."""
        remembered = dict(event.remembered)
        doomed: dict[StepId, Cause] = {}
        for spec in event.steps:
            if spec.id in self.steps or self.settled.is_done(spec.id):
                continue
            cause = self.settled.failure(spec.id) or remembered.get(spec.id)
            if cause is not None and event.is_retry:
                self.settled.forget(spec.id)
                self._out.append(do.SaveFailureForgotten(spec.id))
            elif cause is not None:
                doomed[spec.id] = replace(cause, step=spec.id)
            else:
                below = next((doomed[i] for i in spec.inputs if i in doomed), None)
                if below is not None:
                    doomed[spec.id] = below
        return doomed

    def _grant_wish(self, wish: on.Wish, doomed: Mapping[StepId, Cause], *, is_retry: bool) -> None:
        ended = self._ended_builds.outcome(wish.build)
        if wish.build in self.builds or (ended is not None and (ended.is_success or not is_retry)):
            return  # said twice, or ended while this was on its way
        if is_retry:
            self._ended_builds.forget(wish.build)
            self._out.append(do.SaveBuildReopened(wish.build))
        cause = doomed.get(wish.root) if wish.root is not None else None
        root = self.steps.get(wish.root) if wish.root is not None else None
        if cause is not None and wish.root is not None:
            self._finish_build(wish.build, *_blame(wish.root, cause))
        elif root is None:
            self._finish_build(wish.build, Outcome.CACHED, None)
        else:
            build = Build(wish.build, wish.project, wish.priority, root)
            self.builds[wish.build] = build
            root.builds = (*root.builds, build)
            root.wanted += 1
            root.project = root.project or wish.project
            self._lift(root, wish.priority, root.path_s)

    def _create_steps(
        self, event: on.BuildsSubmitted, doomed: Mapping[StepId, Cause]
    ) -> list[Step]:
        new: list[Step] = []
        for spec in event.steps:
            if spec.id in self.steps or spec.id in doomed or self.settled.is_done(spec.id):
                continue
            self._next_seq += 1
            step = Step(spec.id, self._queue(spec.queue).key, self._next_seq)
            step.expected_s = step.path_s = spec.expected_s
            step.failures, step.losses = (0, 0) if event.is_retry else (spec.failures, spec.losses)
            step.inputs = tuple([self.steps[i] for i in spec.inputs if i in self.steps])
            for needed in step.inputs:
                needed.dependants.append(step)
                needed.wanted += 1
                step.missing += 1
                step.unbuilt += needed.home is None
            self.steps[spec.id] = step
            new.append(step)
        return new

    def _lift(self, step: Step, priority: int, path_s: float) -> None:
        """Raise a step's rank, and that of all it needs, to at least this."""
        todo = [(step, path_s)]
        while todo:
            step, path_s = todo.pop()
            if step.priority >= priority and step.path_s >= path_s:
                continue
            step.priority = max(step.priority, priority)
            step.path_s = max(step.path_s, path_s)
            if step.state is State.READY:
                self.queues[step.queue].push(step)
            else:
                self._offer_locally(step)  # where it waits for a place, with its new rank
            for needed in step.inputs:
                if needed.state < State.PUBLISHING:
                    todo.append((needed, needed.expected_s + step.path_s))

    def _cancel(self, event: on.BuildCancelled) -> None:
        build = self.builds.get(event.build)
        cause = Cause(Outcome.CANCELLED, f"cancelled by {event.by}")
        if build is None:
            if self._ended_builds.outcome(event.build) is None:  # its submission is on its way
                self._finish_build(event.build, Outcome.CANCELLED, cause)
            return
        self._finish_build(build.id, Outcome.CANCELLED, cause)
        build.root.builds = tuple([other for other in build.root.builds if other is not build])
        self._unwant(build.root, is_abort=True)

    def _finish_build(self, build: BuildId, outcome: Outcome, cause: Cause | None) -> None:
        self.builds.pop(build, None)
        self._ended_builds.finish(build, outcome)
        self._out.append(do.SaveBuildFinished(build, outcome, cause, self._now))
        self._out.append(do.ShowBuild(build, outcome, cause))

    # --- steps ----------------------------------------------------------------------------

    def _queue(self, key: QueueKey) -> ReadyQueue:
        queue = self.queues.get(key)
        if queue is None:
            queue = self.queues[key] = ReadyQueue(key)
            queue.agents = [a for a in self.agents.values() if not misfit(a.spec, key)]
        return queue

    def _make_ready(self, step: Step) -> None:
        step.state = State.READY
        self.queues[step.queue].push(step)

    def _offer_locally(self, step: Step) -> None:
        """Let it wait at the agent that has all its inputs, if one has."""
        if step.state is not State.WAITING or step.unbuilt or not step.missing:
            return
        home = next((needed.home for needed in step.inputs if needed.home is not None), None)
        if home is not None and is_ready_at(step, home):
            heapq.heappush(home.local, entry(step))

    def _unwant(self, step: Step, *, is_abort: bool) -> None:
        """One reason less to want it; at none, it goes, and its own wishes with it."""
        todo = [step]
        while todo:
            step = todo.pop()
            step.wanted -= 1
            if step.wanted > 0 or step.state >= State.PUBLISHING:
                continue
            if step.attempts and not is_abort:
                continue  # it runs already, and what it makes will be of use
            step.state = State.DROPPED
            step.home = None
            step.stored = None
            for attempt in step.attempts:
                self._abort(attempt, Outcome.CANCELLED, "nobody wants its outputs any more")
            del self.steps[step.id]
            todo += step.inputs
            self._show(step, None)

    def _drop(self, step: Step) -> None:
        """Drop a step that nobody wants from the start or any more."""
        step.wanted += 1
        self._unwant(step, is_abort=True)

    def _requeue(self, step: Step) -> None:
        """It has no attempt to hope for: wait, queue or drop it."""
        if step.state >= State.PUBLISHING or step.stored is not None:
            return
        if any(not attempt.agent.is_suspect for attempt in step.attempts):
            return
        if step.wanted <= 0:
            if not step.attempts:
                self._drop(step)
            return
        step.state = State.WAITING
        if step.missing:
            self._offer_locally(step)
        elif step.not_before > self._now:
            step.state = State.BACKING_OFF
            self._set_timer(step.not_before, Timer.BACKOFF, step)
        else:
            self._make_ready(step)
        self._show(step, None)

    def _lose_home(self, step: Step) -> None:
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
                    self._out.append(do.AbortAttempt(attempt.agent.spec.id, attempt.id))
                    self._strike(attempt, Outcome.CANCELLED, "its inputs were lost undelivered")
                todo.append(dependant)
                if dependant.state is State.ACTIVE:
                    dependant.state = State.WAITING
                    self._show(dependant, None)
                if dependant.wanted <= 0:
                    unwanted.append(dependant)  # only because it ran already was it kept
        for step in unwanted:
            if step.state < State.PUBLISHING:
                self._drop(step)

    def _fail(self, step: Step, cause: Cause) -> None:
        """It cannot succeed: so cannot whatever needs it. `cause.step` is the step itself."""
        if cause.outcome.is_remembered:
            self.settled.fail(step.id, cause)
            self._out.append(do.SaveStepFailed(step.id, cause, self._now))
        elif step.failures or step.losses:
            self._out.append(
                do.SaveFailureForgotten(step.id)
            )  # the next build has tries of its own
        todo = [step]
        while todo:
            failed = todo.pop()
            if failed.state >= State.PUBLISHING:
                continue
            failed.state = State.FAILED
            self.steps.pop(failed.id, None)
            failed.home = None
            failed.stored = None
            for attempt in failed.attempts:
                self._abort(attempt, Outcome.CANCELLED, "an input of it failed")
            for build in failed.builds:
                self._finish_build(build.id, *_blame(failed.id, cause))
            failed.builds = ()
            self._show(failed, None, cause)
            todo += failed.dependants
            for needed in failed.inputs:
                if needed.state < State.PUBLISHING:
                    self._unwant(needed, is_abort=False)

    def _publish(self, step: Step) -> None:
        assert step.stored is not None
        attempt, infos = step.stored
        step.state = State.PUBLISHING
        # Other agents keep their copies until this one can be fetched: dependants may run on them.
        self._out.append(do.SavePaths(step.id, attempt.id, infos))
        self._out.append(do.PublishOutputs(step.id, infos))
        self._show(step, attempt)

    def _published(self, id_: StepId) -> None:
        step = self.steps.get(id_)
        if step is None:
            # A publication that a restart had interrupted.
            self.settled.finish(id_)
            self._out.append(do.SaveStepDone(id_, None))
            return
        attempt = step.stored[0] if step.stored else None
        build_s = attempt.usage.build_s if attempt else None
        self._out.append(do.SaveStepDone(id_, build_s))
        self.settled.finish(id_)
        step.state = State.DONE
        del self.steps[id_]
        for other in step.attempts:
            if other is not attempt:
                self._abort(other, Outcome.CANCELLED, "its outputs were published meanwhile")
        if attempt is not None:
            self._end(attempt, Outcome.SUCCEEDED, "")
            self._out.append(do.SettleAttempt(attempt.agent.spec.id, attempt.id, True))
        for build in step.builds:
            self._finish_build(build.id, Outcome.SUCCEEDED, None)
        self._show(step, attempt)
        for dependant in step.dependants:
            if dependant.state >= State.PUBLISHING:
                continue
            dependant.missing -= 1
            dependant.unbuilt -= step.home is None
            if dependant.missing:
                self._offer_locally(dependant)
            elif dependant.stored is not None:
                self._publish(dependant)
            elif dependant.state is State.WAITING:
                self._make_ready(dependant)
        step.home = None
        step.stored = None
        step.inputs = ()
        step.builds = ()
        step.dependants = []

    # --- attempts -------------------------------------------------------------------------

    def _attempt_of(self, agent: AgentId, id_: AttemptId) -> Attempt | None:
        """An agent may speak of its own attempts only; of others it is told to let go."""
        attempt = self.attempts.get(id_)
        if attempt is None or attempt.agent.spec.id != agent:
            self._out.append(do.AbortAttempt(agent, id_))
            return None
        return attempt

    def _start(self, step: Step, agent: Agent) -> None:
        id_ = AttemptId(self._next_attempt)
        self._next_attempt += 1
        agent.orders += 1
        agent.free -= 1
        agent.occupied += 1
        attempt = Attempt(id_, step, agent, agent.orders, self._now)
        self.attempts[id_] = agent.attempts[id_] = attempt
        step.attempts = (*step.attempts, attempt)
        step.state = State.ACTIVE
        self._used[step.project] = self._used.get(step.project, 0) + 1
        self._out.append(do.SaveAttempt(id_, step.id, agent.spec.id, self._now))
        self._out.append(do.StartBuild(agent.spec.id, id_, step.id, attempt.order))
        self._show(step, attempt)

    def _advance(self, attempt: Attempt, phase: Phase) -> None:
        """An attempt only ever moves forward; what is not news is ignored."""
        if phase <= attempt.phase or phase is Phase.STORED:
            return
        if phase >= Phase.BUILT and attempt.phase < Phase.BUILT:
            return  # the agent will say what it built
        if phase is Phase.BUILDING:
            attempt.build_since = self._now
            for needed in attempt.step.inputs:
                needed.held_by(attempt.agent)
        attempt.phase = phase
        self._show(attempt.step, attempt)

    def _built(self, event: on.OutputsBuilt) -> None:
        attempt = self._attempt_of(event.agent, event.attempt)
        if attempt is None or attempt.phase >= Phase.BUILT:
            return
        step, agent = attempt.step, attempt.agent
        attempt.phase = Phase.BUILT
        attempt.usage = event.usage
        agent.occupied -= 1
        agent.delivering += 1
        if (build_s := event.usage.build_s) is not None:
            agent.build_s = (
                build_s if agent.build_s is None else 0.8 * agent.build_s + 0.2 * build_s
            )
        self._show(step, attempt)
        if step.state is not State.ACTIVE or step.home is not None:
            return
        step.nar_bytes = event.nar_bytes
        self._settle_home(step, agent)

    def _stored(self, event: on.OutputsStored) -> None:
        attempt = self.attempts.get(event.attempt)
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
            self._publish(step)
        else:
            self._show(step, attempt)

    def _attempt_failed(self, event: on.AttemptFailed) -> None:
        attempt = self.attempts.get(event.attempt)
        if attempt is None or attempt.agent.spec.id != event.agent:
            self._out.append(do.SettleAttempt(event.agent, event.attempt, False))
            return
        if attempt.phase is Phase.STORED:
            return  # too late to fail: the farm has every byte
        step, outcome = attempt.step, event.outcome
        attempt.usage = event.usage
        self._end(attempt, outcome, event.message)
        self._out.append(do.SettleAttempt(event.agent, event.attempt, False))
        if step.state >= State.PUBLISHING or step.stored is not None:
            return
        if outcome.is_remembered:
            cause = Cause(outcome, event.message, step.id, event.attempt)
            self._fail(step, cause)
            return
        if outcome.is_infrastructure:
            self._trouble(step, attempt, Cause(outcome, event.message, step.id, event.attempt))
        if step.state < State.PUBLISHING:
            self._requeue(step)

    def _trouble(self, step: Step, attempt: Attempt, cause: Cause) -> None:
        """An infrastructure failure: try elsewhere, at once if there is an elsewhere."""
        step.failures += 1
        agent = attempt.agent.spec.id
        if agent not in step.avoid:
            step.avoid = (*step.avoid, agent)
        self._out.append(do.SaveStepTroubled(step.id, step.failures, step.losses))
        if step.failures >= FAILURES_MAX:
            message = f"given up after {step.failures} failures; the last: {cause.message}"
            self._fail(step, Cause(cause.outcome, message, step.id, attempt.id))
        elif self._is_avoiding_all(step):
            step.avoid = ()
            wait_s = min(BACKOFF_MAX_S, BACKOFF_S * 2.0 ** (step.failures - 1))
            step.not_before = self._now + wait_s

    def _is_avoiding_all(self, step: Step) -> bool:
        """No agent that takes work is left to try; one that refuses may do so for ever."""
        return all(
            agent.spec.id in step.avoid
            for agent in self.queues[step.queue].agents
            if agent.is_connected and not agent.is_draining and not agent.refusal
        )

    def _abort(self, attempt: Attempt, outcome: Outcome, message: str) -> None:
        self._out.append(do.AbortAttempt(attempt.agent.spec.id, attempt.id))
        self._end(attempt, outcome, message)

    def _end(self, attempt: Attempt, outcome: Outcome, message: str) -> None:
        """Forget the attempt and what it left on its agent; its step is the caller's business."""
        self._strike(attempt, outcome, message)
        if outcome is not Outcome.SUCCEEDED and attempt.step.home is attempt.agent:
            self._lose_home(attempt.step)

    def _strike(self, attempt: Attempt, outcome: Outcome, message: str) -> None:
        step, agent = attempt.step, attempt.agent
        del self.attempts[attempt.id]
        del agent.attempts[attempt.id]
        if attempt.phase < Phase.BUILT:
            agent.occupied -= 1
        else:
            agent.delivering -= 1
        assert agent.occupied >= 0
        assert agent.delivering >= 0
        step.attempts = tuple([other for other in step.attempts if other is not attempt])
        self._used[step.project] -= 1
        if not self._used[step.project]:
            del self._used[step.project]
        self._out.append(
            do.SaveAttemptEnded(attempt.id, step.id, outcome, message, attempt.usage, self._now)
        )

    def _lose(self, attempt: Attempt) -> None:
        """Its agent is gone: an immediate try elsewhere, from a budget of its own."""
        step = attempt.step
        message = f"agent {attempt.agent.spec.name} was lost in phase {attempt.phase.name.lower()}"
        self._end(attempt, Outcome.AGENT_LOST, message)
        if step.state >= State.PUBLISHING or step.stored is not None:
            return
        step.losses += 1
        self._out.append(do.SaveStepTroubled(step.id, step.failures, step.losses))
        if step.losses >= LOSSES_MAX and not step.attempts:
            message = f"given up after {step.losses} agents were lost under it; {message}"
            self._fail(step, Cause(Outcome.AGENT_LOST, message, step.id, attempt.id))
        else:
            self._requeue(step)

    # --- agents ---------------------------------------------------------------------------

    def _join(self, spec: AgentSpec) -> None:
        agent = self.agents.get(spec.id)
        if agent is not None and agent.spec.session != spec.session:
            is_heir = spec.previous_session == agent.spec.session and not agent.is_connected
            if not is_heir and agent.lease_until > self._now:
                reason = (
                    f"agent {spec.id} is already here in another session, whose lease ends in "
                    f"{agent.lease_until - self._now:.0f} s; if two machines share one state "
                    "directory, give one of them its own"
                )
                self._out.append(do.RefuseAgent(spec.id, spec.session, reason))
                return
            self._forget_agent(agent)
            agent = None
        if agent is None:
            agent = Agent(spec, 0.0)
            self.agents[spec.id] = agent
            self._enlist(agent)
        elif agent.spec != spec:
            agent.spec = spec
            self._enlist(agent)
        agent.is_connected = True
        for attempt in agent.attempts.values():
            attempt.order = 0  # of a tunnel that is no more: the first heartbeat tells its fate
        self._renew(agent)
        self._unsuspect(agent)
        self._out.append(do.SaveAgent(spec, self._now))
        self._out.append(do.AcceptAgent(spec.id, spec.session))

    def _await_agent(self, event: on.AgentAwaited) -> None:
        agent = Agent(event.spec, self._now)
        self.agents[event.spec.id] = agent
        self._enlist(agent)
        self._renew(agent)
        for id_, step_id in event.attempts:
            step = self.steps.get(step_id)
            if step is None or step.state >= State.PUBLISHING:
                self._out.append(
                    do.SaveAttemptEnded(
                        id_, step_id, Outcome.CANCELLED, "its outputs are there", Usage(), self._now
                    )
                )
                continue
            attempt = Attempt(id_, step, agent, 0, self._now)
            self.attempts[id_] = agent.attempts[id_] = attempt
            agent.occupied += 1
            step.attempts = (*step.attempts, attempt)
            step.state = State.ACTIVE
            self._used[step.project] = self._used.get(step.project, 0) + 1
        for attempt in list(agent.attempts.values()):
            for needed in attempt.step.inputs:
                self._infer_built(needed, agent)

    def _infer_built(self, step: Step, agent: Agent) -> None:
        """A dependant of it was sent to the agent before it was done: so it was built there."""
        if step.state is not State.ACTIVE or step.home is not None:
            return
        for attempt in step.attempts:
            if attempt.agent is agent and attempt.phase < Phase.BUILT:
                attempt.phase = Phase.BUILT
                agent.occupied -= 1
                agent.delivering += 1
                self._settle_home(step, agent)

    def _settle_home(self, step: Step, agent: Agent) -> None:
        """The step's outputs are on this agent: what needs them may start there."""
        step.home = agent
        step.held_by(agent)
        for dependant in step.dependants:
            if dependant.state < State.PUBLISHING:
                dependant.unbuilt -= 1
                self._offer_locally(dependant)

    def _enlist(self, agent: Agent) -> None:
        for queue in self.queues.values():
            if agent in queue.agents:
                queue.agents.remove(agent)
            if not misfit(agent.spec, queue.key):
                queue.agents.append(agent)

    def _renew(self, agent: Agent) -> None:
        agent.lease_until = self._now + self.lease_s
        if not agent.is_timed:
            agent.is_timed = True
            self._set_timer(agent.lease_until, Timer.LEASE, agent)

    def _renew_all(self) -> None:
        """The farm was held up, by its journal or its machine: nobody could have renewed."""
        self._held_up = self._now
        for agent in self.agents.values():
            self._renew(agent)

    def _agent(self, id_: AgentId, session: str) -> Agent | None:
        agent = self.agents.get(id_)
        return agent if agent is not None and agent.spec.session == session else None

    def _heard(self, event: on.AgentHeard) -> None:
        agent = self._agent(event.agent, event.session)
        if agent is None:
            reason = "nothing was heard of it for a whole lease; it may join again at once"
            self._out.append(do.RefuseAgent(event.agent, event.session, reason))
            return
        if not agent.is_connected:
            # The end of its older tunnel was told only after the join on this one.
            agent.is_connected = True
            self._unsuspect(agent)
        agent.heard = self._now
        agent.orders = max(agent.orders, event.orders_seen)  # it may have seen an earlier core's
        self._renew(agent)
        agent.is_draining = event.is_draining
        agent.measurements = event.measurements
        agent.refusal = refusal(agent.spec, event.measurements)
        listed = dict(event.attempts)
        for id_, phase in event.attempts:
            attempt = self._attempt_of(event.agent, id_)
            if attempt is not None:
                self._advance(attempt, phase)
        for attempt in list(agent.attempts.values()):
            if attempt.id in listed or attempt.phase is Phase.STORED:
                continue
            if attempt.id not in self.attempts:
                continue  # ended by the loss of one before it
            is_overdue = self._now - max(attempt.sent, self._held_up) > 2 * self.lease_s
            if attempt.order <= event.orders_seen or is_overdue:
                self._unlisted(attempt)

    def _unlisted(self, attempt: Attempt) -> None:
        """The agent does not know an attempt it should: the order never arrived, or it forgot."""
        if attempt.phase > Phase.SENT:
            self._lose(attempt)
            return
        step = attempt.step
        self._end(attempt, Outcome.RETURNED, "the order never reached the agent")
        self._requeue(step)

    def _cut(self, event: on.AgentCut) -> None:
        agent = self._agent(event.agent, event.session)
        if agent is not None and agent.is_connected:
            agent.is_connected = False
            agent.cut_since = self._now
            self._set_timer(self._now + RECONNECT_S, Timer.CUT, agent)

    def _left(self, event: on.AgentLeft) -> None:
        agent = self._agent(event.agent, event.session)
        if agent is not None:
            self._forget_agent(agent, is_goodbye=True)

    def _forget_agent(self, agent: Agent, *, is_goodbye: bool = False) -> None:
        """It holds no attempt any more; after a goodbye those it never received cost nothing."""
        agent.is_connected = False
        agent.is_suspect = True
        del self.agents[agent.spec.id]
        for queue in self.queues.values():
            if agent in queue.agents:
                queue.agents.remove(agent)
        for attempt in list(agent.attempts.values()):
            if attempt.id not in self.attempts or attempt.phase is Phase.STORED:
                continue
            if is_goodbye:
                self._unlisted(attempt)
            else:
                self._lose(attempt)
        agent.local = []

    def _suspect(self, agent: Agent) -> None:
        """Cut off for a while: let others try what it holds, without taking it away."""
        agent.is_suspect = True
        for attempt in list(agent.attempts.values()):
            if attempt.phase is not Phase.STORED:
                self._requeue(attempt.step)

    def _unsuspect(self, agent: Agent) -> None:
        if not agent.is_suspect:
            return
        agent.is_suspect = False
        for attempt in agent.attempts.values():
            if attempt.step.state < State.ACTIVE:
                attempt.step.state = State.ACTIVE
                self._show(attempt.step, attempt)

    # --- time and dispatch ----------------------------------------------------------------

    def _set_timer(self, at: float, kind: Timer, subject: Agent | Step) -> None:
        self._timer_seq += 1
        heapq.heappush(self._timers, (at, self._timer_seq, kind, subject))

    def _wake(self) -> None:
        while self._timers and self._timers[0][0] <= self._now:
            _, _, kind, subject = heapq.heappop(self._timers)
            if isinstance(subject, Step):
                if subject.state is State.BACKING_OFF and subject.not_before <= self._now:
                    self._make_ready(subject)
            elif self.agents.get(subject.spec.id) is subject:
                self._watch_agent(kind, subject)

    def _watch_agent(self, kind: Timer, agent: Agent) -> None:
        if agent.lease_until <= self._now:
            self._forget_agent(agent)
        elif kind is Timer.LEASE:
            self._set_timer(agent.lease_until, Timer.LEASE, agent)
        elif not agent.is_connected and self._now - agent.cut_since >= RECONNECT_S:
            self._suspect(agent)

    def _dispatch(self) -> None:
        """Give ready steps to agents with room, best step first."""
        lanes: list[tuple[Rank, int, str, ReadyQueue | Agent]] = []
        for agent in self.agents.values():
            agent.free = agent.room(self._now)
            if agent.local and agent.free > 0:
                rank = local_head(agent, self._used)
                if rank is not None:
                    lanes.append((rank, len(lanes), "", agent))
        for queue in self.queues.values():
            if queue.projects and any(agent.free > 0 for agent in queue.agents):
                head = queue.head(self._used)
                if head is not None:
                    lanes.append((head[0], len(lanes), head[1], queue))
        heapq.heapify(lanes)
        held_back: list[Step] = []
        while lanes:
            _, lane, project, source = heapq.heappop(lanes)
            if isinstance(source, Agent):
                if source.free <= 0:
                    continue
                self._start(heapq.heappop(source.local)[3], source)
                rank = local_head(source, self._used)
                if rank is not None:
                    heapq.heappush(lanes, (rank, lane, "", source))
                continue
            step = source.pop(project)
            chosen = choose(step, source.agents)
            if chosen is not None:
                self._start(step, chosen)
            else:
                if self._is_avoiding_all(step):
                    step.avoid = ()
                held_back.append(step)
                if not any(agent.free > 0 for agent in source.agents):
                    continue
            head = source.head(self._used)
            if head is not None:
                heapq.heappush(lanes, (head[0], lane, head[1], source))
        for step in held_back:
            self.queues[step.queue].push(step)

    def _show(self, step: Step, attempt: Attempt | None, cause: Cause | None = None) -> None:
        if attempt is None:
            news = do.ShowStep(step.id, step.state.name, None, None, None, None, cause)
        else:
            news = do.ShowStep(
                step.id,
                step.state.name,
                attempt.agent.spec.id,
                attempt.id,
                attempt.phase,
                attempt.usage.build_s,
                cause,
            )
        self._out.append(news)


def _blame(root: StepId, cause: Cause) -> tuple[Outcome, Cause]:
    """A build's outcome where a step at or below its root failed for `cause`."""
    return (cause.outcome if root == cause.step else Outcome.DEPENDENCY_FAILED), cause
