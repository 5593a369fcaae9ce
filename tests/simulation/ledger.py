"""The safety oracle: an independent account of what was made durable, said and published.

It hears of every commit that applied, every order that left, and every narinfo that was put. What
it finds wrong first ends the run. It keeps the accounts for the economy oracle as well.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from grange.ports import PublishedOutput
from grange.scheduler import effects as do
from grange.scheduler.core import FAILURES_MAX
from grange.scheduler.facts import (
    AgentId,
    AttemptId,
    BuildId,
    Cause,
    Limits,
    Outcome,
    Policy,
    StepId,
    check_of,
    checked,
    is_check,
)
from grange.store.hash import Hash
from grange.store.path import StorePath
from tests.simulation.graph import Graph

LOST_NEWS_S: Final = 120.0  # at most, until all who saw a path's info know that it is lost
AFTERMATH_S: Final = 45.0  # a lease, and what was late on its way


class Ledger:
    def __init__(self, graph: Graph, now: Callable[[], float], policy: Policy) -> None:
        self.graph = graph
        self.policy = policy
        self._now = now
        self.violation = ""  # the first
        self.attempts: dict[AttemptId, tuple[StepId, AgentId]] = {}
        self.open: dict[AttemptId, tuple[StepId, AgentId]] = {}  # attempts that have not ended
        self.ended: Counter[Outcome] = Counter()
        self.revived = 0  # attempts whose agents were lost and came back with them
        self._lost: set[AttemptId] = set()  # ended, and may be revived
        self.succeeded: set[AttemptId] = set()
        self.roots: dict[BuildId, StepId] = {}
        self._limits: dict[BuildId, Limits] = {}
        self._checks: set[BuildId] = set()  # builds that want theirs compared
        self._compared: set[StepId] = set()  # steps that a check found to be the same
        self.hanging: set[AttemptId] = set()  # come no further by themselves
        self.outcomes: dict[BuildId, Outcome] = {}  # of finished builds
        self.accepted: set[BuildId] = set()  # submissions that were answered
        self.may_cancel: set[BuildId] = set()  # somebody has asked for it
        self.may_retry: set[BuildId] = set()
        self.may_trouble = False  # agents, networks or disks may fail: builds may for that reason
        self.uploads: Counter[StorePath] = Counter()
        self.aborts = 0
        self.injected: set[AttemptId] = set()  # attempts that their agent gave up by itself
        self.away: set[AgentId] = set()  # cut off, or thought so by the coordinator
        self._decided: Sequence[do.JournalEffect] = ()  # what was to be committed last
        self._away_then: frozenset[AgentId] = frozenset()  # when that was decided
        self._trouble_until: dict[AgentId, float] = {}
        self._offered: dict[str, float] = {}  # when an agent of this system was last heard
        self._tries: Counter[StepId] = Counter()  # builds that failed by themselves
        self._content: dict[StorePath, Hash] = {}
        self._narinfos: set[StorePath] = set()
        self._lost_steps: dict[StepId, float] = {}  # when outputs of it were last found lost
        self.robbed: set[AttemptId] = set()  # attempts whose inputs were
        self.kept: dict[StorePath, PublishedOutput] = {}  # what is committed of each path
        self._failed: set[StepId] = set()  # remembered failures
        self._spoilt: Counter[StepId] = Counter()  # tries that infrastructure spoilt
        self._seconds: Counter[StepId] = Counter()  # tries that went on beside another
        self._owner = {path: node for node in graph.nodes.values() for path in node.outputs}

    def blame(self, message: str) -> None:
        self.violation = self.violation or f"{self._now():.3f} s: {message}"

    def _demand(self, holds: bool, message: str, oracle: str = "safety") -> None:
        if not holds:
            self.blame(f"{oracle}: {message}")

    def plan(self, build: BuildId, root: StepId, limits: Limits, *, is_check: bool) -> None:
        """Somebody is going to want this."""
        self.roots[build] = root
        self._limits[build] = limits
        if is_check:
            self._checks.add(build)

    def is_published(self, step: StepId) -> bool:
        """Never where it is a check: that has nothing to publish."""
        return not is_check(step) and self._narinfos.issuperset(self.graph.nodes[step].outputs)

    def was_published(self, step: StepId) -> bool:
        """It is, or it was before it was lost."""
        return self.is_published(step) or step in self._lost_steps

    def forgotten(self, paths: Sequence[StorePath]) -> None:
        """The farm knows that these are lost: they may be made anew, and otherwise."""
        for path in paths:
            self._lost_steps[self._owner[path].step] = self._now()
            self._narinfos.discard(path)
            self._content.pop(path, None)
            self.kept.pop(path, None)

    # --- what became durable --------------------------------------------------------------

    def decided(self, effects: Sequence[do.JournalEffect]) -> None:
        """These are to be committed, perhaps again: they rest on what is known the first time."""
        if effects is not self._decided:
            self._decided, self._away_then = effects, frozenset(self.away)

    def committed(self, effects: Sequence[do.JournalEffect]) -> None:
        """Never raises: the farm would take it for a failure of its disk."""
        try:
            self._book(effects)
        except Exception as error:
            self.blame(f"safety: what was committed makes no sense: {error!r} in {effects}")

    def _book(self, effects: Sequence[do.JournalEffect]) -> None:
        troubled = {effect.step for effect in effects if isinstance(effect, do.SaveStepTroubled)}
        for effect in effects:
            match effect:
                case do.SaveAttempt(attempt, step, agent, _):
                    self._demand(attempt not in self.attempts, f"attempt {attempt} twice")
                    is_there = (
                        self.was_published(checked(step))
                        if is_check(step)
                        else not self.is_published(step)
                    )
                    self._demand(
                        is_there,
                        f"attempt {attempt} of {step}, which is published or to be compared",
                    )
                    self._excuse_second(step, attempt)
                    self._count_second(step)
                    self.attempts[attempt] = self.open[attempt] = (step, agent)
                case do.SaveAttemptEnded(attempt, step, outcome, message, _, _):
                    self._ended(attempt, outcome, message, step in troubled)
                case do.SaveAttemptRevived(attempt):
                    self._revived(attempt)
                case do.SavePaths(step, attempt, infos):
                    self._saved(step, infos)
                case do.SaveStepDone(step, _):
                    self._demand(self.was_published(step), f"step {step} is done, unpublished")
                case do.SaveStepFailed(step, cause, _):
                    self._failed.add(step)
                    self._demand(
                        self._is_right_to_fail(step, cause), f"good step {step} failed: {cause}"
                    )
                case do.SaveFailureForgotten(step):
                    self._failed.discard(step)
                    self._spoilt.pop(step, None)
                    self._tries.pop(step, None)
                case do.SaveBuildFinished(build, outcome, cause, _):
                    self._demand(
                        build not in self.outcomes,
                        f"build {build} ended twice: {self.outcomes.get(build)}, {outcome}",
                    )
                    self.outcomes[build] = outcome
                    self._judge(build, outcome, cause)
                    self._forget_checks()
                case do.SaveBuildReopened(build):
                    self._demand(build in self.may_retry, f"nobody asked for {build} again")
                    self.outcomes.pop(build, None)
                    self._spoilt.clear()
                case _:
                    pass

    def _ended(self, attempt: AttemptId, outcome: Outcome, message: str, is_counted: bool) -> None:
        step, agent = self.open.pop(attempt, (StepId(0), ""))
        self._demand(bool(agent), f"{attempt} ended twice or before it began")
        self.ended[outcome] += 1
        self._tries[step] += outcome is Outcome.BUILD_FAILED
        self._lost.discard(attempt)
        if outcome is Outcome.AGENT_LOST:
            self._lost.add(attempt)
        if outcome.is_success:
            self.succeeded.add(attempt)
            if is_check(step):
                self._compared.add(checked(step))
        if outcome.is_infrastructure and (is_counted or self._is_wanted(step)):
            self._spoilt[step] += 1
            most = FAILURES_MAX + self._seconds[step]  # the last failure waits for those beside it
            self._demand(self._spoilt[step] <= most, f"{step} is tried for ever", "economy")
        self._demand(
            outcome is not Outcome.INPUTS_MISSING or attempt in self.robbed,
            f"attempt {attempt} was sent where its inputs were not: {message}",
        )
        if outcome.is_infrastructure or outcome in (Outcome.AGENT_LOST, Outcome.RETURNED):
            is_excused = attempt in self.injected or attempt in self.hanging
            self._demand(
                is_excused or self._is_troubled(AgentId(agent)),
                f"attempt {attempt} on the healthy agent {agent} ended as {outcome}: {message}",
                "economy",
            )

    def _revived(self, attempt: AttemptId) -> None:
        self._demand(attempt in self._lost, f"{attempt} is revived and was not lost")
        if attempt not in self._lost:
            return
        self._count_second(self.attempts[attempt][0])
        step, _ = self.open[attempt] = self.attempts[attempt]
        self._demand(not self.is_published(step), f"{attempt} of published {step} is revived")
        self._lost.discard(attempt)
        self.ended[Outcome.AGENT_LOST] -= 1
        self.revived += 1

    def _count_second(self, step: StepId) -> None:
        self._seconds[step] += any(same == step for same, _ in self.open.values())

    def _is_wanted(self, step: StepId) -> bool:
        """Whether a build that was accepted and goes on needs the step."""
        return any(self._wanting(step))

    def _wanting(self, step: StepId) -> Iterator[BuildId]:
        """The builds that were accepted, go on and need the step."""
        for build in self.accepted:
            if build in self.outcomes:
                continue
            if is_check(step):
                if build in self._checks and check_of(self.roots[build]) == step:
                    yield build
            elif any(step == needed.step for needed in self.graph.closure(self.roots[build])):
                yield build

    def _is_right_to_fail(self, step: StepId, cause: Cause) -> bool:
        """Its builds fail anywhere, or it overran the limits of all builds that want it."""
        node = self.graph.nodes[step]
        if cause.outcome is not Outcome.TIMED_OUT:
            is_tried = self._tries[step] >= self.policy.build_tries
            return (node.is_doomed or node.is_flaky) and is_tried
        limit_s = cause.limit or 0
        is_over = [0 < self._limits[each].build_s <= limit_s for each in self._wanting(step)]
        # What was lost is built again for whoever missed it: others may have done without so far.
        is_for_all = any(is_over) if step in self._lost_steps else all(is_over)
        return 0 < limit_s < node.build_s and is_for_all

    def _saved(self, step: StepId, infos: Sequence[PublishedOutput]) -> None:
        outputs = {info.narinfo.info.path for info in infos}
        self._demand(
            outputs == {*self.graph.nodes[step].outputs}, f"only some outputs of {step} saved"
        )
        for info in infos:
            path, content = info.narinfo.info.path, info.narinfo.info.nar_hash
            first = self._content.setdefault(path, content)
            self.kept[path] = info
            self._demand(first == content, f"the content of {path} changed")

    def _judge(self, build: BuildId, outcome: Outcome, cause: Cause | None) -> None:
        """Whether a build may end like this."""
        root = self.roots[build]
        blamed = cause.step if cause is not None else None
        if outcome.is_success:
            lost_at = self._lost_steps.get(root, -math.inf)
            right = self.is_published(root) or self._now() - lost_at < LOST_NEWS_S
            right = right and (build not in self._checks or root in self._compared)
        elif outcome is Outcome.CANCELLED:
            right = build in self.may_cancel
        elif outcome is Outcome.NOT_DETERMINISTIC:
            right = build in self._checks and self.graph.nodes[root].is_fickle and blamed == root
        elif outcome is Outcome.TIMED_OUT and build in self._checks and self.was_published(root):
            limit_s = self._limits[build].build_s
            right = 0 < limit_s < self.graph.nodes[root].build_s and blamed == root
        elif outcome is Outcome.BUILD_FAILED and build in self._checks and self.was_published(root):
            right = self.graph.nodes[root].is_flaky and blamed == root
        elif cause is not None and cause.outcome is Outcome.UNSUPPORTED and blamed is not None:
            right = self._is_right_to_wait_no_more(root, blamed)
        elif outcome.is_remembered or blamed in self._failed:
            self._demand(blamed in self._failed, f"the failure of {blamed} is not remembered")
            needed = self.graph.closure(root)
            right = any(node.step == blamed for node in needed)
            right = right and (outcome is Outcome.DEPENDENCY_FAILED) == (blamed != root)
            right = right and self._is_within(build, cause)
        else:
            right = self.may_trouble
        self._demand(right, f"build {build} of {root} ended as {outcome}, blamed on {blamed}")

    def _is_within(self, build: BuildId, cause: Cause | None) -> bool:
        """Whether the build allows no more than was too little, where a limit is what failed it."""
        if cause is None or cause.limit is None:
            return True
        return 0 < self._limits[build].build_s <= cause.limit

    def _is_right_to_wait_no_more(self, root: StepId, blamed: StepId) -> bool:
        """No agent that could build what is blamed was heard for so long."""
        last_s = self._offered.get(self.graph.nodes[blamed].system, 0.0)
        is_needed = any(node.step == blamed for node in self.graph.closure(root))
        return is_needed and self._now() - last_s >= self.policy.max_unsupported_s

    # --- what was said and published ------------------------------------------------------

    def sent(self, order: do.StartBuild) -> None:
        self._demand(
            self.open.get(order.attempt) == (order.step, order.agent),
            f"order for attempt {order.attempt} left for {order.agent} without a lasting record",
        )

    def taken(self, agent: AgentId, attempt: AttemptId) -> None:
        """An agent begins this attempt."""
        self._demand(
            self.attempts.get(attempt, (0, ""))[1] == agent, f"{attempt} is not {agent}'s attempt"
        )

    def put(self, output: PublishedOutput) -> None:
        """A narinfo is put, or is there already."""
        path, content = output.narinfo.info.path, output.narinfo.info.nar_hash
        self._demand(self._content.get(path) == content, f"{path} published without its record")
        for needed in self._owner[path].inputs:
            self._demand(self.was_published(needed), f"{path} published before its input {needed}")
        self._narinfos.add(path)

    # --- what excuses waste ---------------------------------------------------------------

    def restarted(self) -> None:
        """The coordinator starts; what spoilt a check was in its memory alone."""
        for step in [step for step in self._spoilt if is_check(step)]:
            del self._spoilt[step]

    def _forget_checks(self) -> None:
        """The next to want a check that nobody wants any more has tries of its own."""
        for step in [step for step in self._spoilt if is_check(step)]:
            if not self._is_wanted(step):
                del self._spoilt[step]

    def trouble(self, agent: AgentId, for_s: float) -> None:
        """Something happened to this agent that may cost it attempts for a while."""
        until = self._now() + for_s
        self._trouble_until[agent] = max(until, self._trouble_until.get(agent, 0.0))

    def offered(self, systems: Sequence[str]) -> None:
        """An agent that builds for these, and that the farm let in, was heard."""
        self._offered.update(dict.fromkeys(systems, self._now()))

    def recovered(self, agent: AgentId) -> None:
        """It is back; what it missed meanwhile shows within a lease and some heartbeats."""
        self._trouble_until[agent] = self._now() + AFTERMATH_S

    def held_up(self, for_s: float) -> None:
        """The farm itself stood still: what is late already will be that much later."""
        for agent, until in self._trouble_until.items():
            if until >= self._now():
                self._trouble_until[agent] = until + for_s

    def _is_troubled(self, agent: AgentId) -> bool:
        return self._trouble_until.get(agent, 0.0) >= self._now()

    def _excuse_second(self, step: StepId, attempt: AttemptId) -> None:
        """A step may be tried twice at once only where the agent that has it was cut off."""
        for other, (same, agent) in self.open.items():
            if same == step and agent not in self._away_then:
                self._demand(
                    False,
                    f"attempt {attempt} of {step} begins, and {other} runs on healthy {agent}",
                    "economy",
                )

    def wasted(self) -> int:
        """Attempts beyond the first of each step."""
        return len(self.attempts) - len({step for step, _ in self.attempts.values()})
