"""An agent as the coordinator meets it: what `grange.agent` does, without doing any of it."""

from collections.abc import Callable
from typing import Any, Final

from grange.scheduler import events as on
from grange.scheduler.effects import StartBuild
from grange.scheduler.facts import (
    AgentId,
    AgentSpec,
    AttemptId,
    Measurements,
    Outcome,
    Phase,
    Usage,
    checked,
    is_check,
)
from tests.simulation.graph import FLAKY_P, Node
from tests.simulation.network import Network, Orders, Tunnel
from tests.simulation.world import World

HEARTBEAT_S: Final = 10.0
REDIAL_S: Final = 5.0  # at most
REPEAT_S: Final = 60.0  # at most, until news is told again
HICCUPS: Final = (Outcome.FETCH_FAILED, Outcome.AGENT_FAILED, Outcome.OUTPUT_NOT_REMOVED)


class Try:
    """One attempt on this agent."""

    def __init__(self, order: StartBuild, node: Node) -> None:
        self.id = order.attempt
        self.node = node
        self.is_check = is_check(order.step)
        self.limits = order.limits
        self.progress = 0
        self.is_built = False  # its outputs are in the agent's store, whatever came of the upload
        self.is_uploaded = False
        self.hangs_in: Phase | None = None  # it comes no further than this
        self.phase = Phase.QUEUED
        self.end: on.OutputsBuilt | on.AttemptFailed | None = None  # told until settled
        self.grants = 0  # only the upload that the latest one began still counts

    @property
    def is_made(self) -> bool:
        return isinstance(self.end, on.OutputsBuilt)

    @property
    def is_hanging(self) -> bool:
        return self.phase is self.hangs_in


class SimAgent:
    def __init__(
        self, world: World, network: Network, name: str, systems: tuple[str, ...], max_jobs: int
    ) -> None:
        self.id = AgentId(name)
        self._world = world
        self._network = network
        self._systems = systems
        self._max_jobs = max_jobs
        self._life = 0  # counts starts of the process; what an earlier one had planned is void
        self._ended: list[str] = []  # sessions that no join has taken the place of yet
        self.is_alive = False
        self.is_gone = False  # for good
        self.tunnel: Tunnel | None = None
        self.tries: dict[AttemptId, Try] = {}
        self.refuses = ""
        self.is_broken = False  # fails at whatever it is given
        self._asleep_until = 0.0

    # --- the process ----------------------------------------------------------------------

    def boot(self) -> None:
        if self.is_alive or self.is_gone:
            return
        if self._life:
            self._ended.append(f"{self.id}-{self._life}")
        self._life += 1
        self.is_alive = True
        self.is_draining = False
        self.tries = {}
        self._settled: set[AttemptId] = set()
        self._waiting: list[Try] = []  # for a place
        self._building = 0
        self._orders_seen = 0
        self._joined: Tunnel | None = None
        self._dial()
        self._later(HEARTBEAT_S, self._beat)

    def kill(self) -> None:
        self._world.note(f"{self.id} dies")
        self._stop()
        if self.tunnel is not None:
            self.tunnel.break_off()
        self._world.ledger.trouble(self.id, float("inf"))

    def _stop(self) -> None:
        self.is_alive = False
        self._ended.append(f"{self.id}-{self._life}")
        self._life += 1
        self.tries = {}

    def heal(self) -> None:
        """Nothing fails any more: builds that stood still go on, or are stopped at their limits."""
        self.refuses = ""
        self.is_broken = False
        for attempt in self.tries.values():
            if attempt.hangs_in is Phase.BUILDING:
                is_stuck = attempt.is_hanging
                attempt.hangs_in = None
                if is_stuck:
                    self._build(attempt)
        self.boot()

    def drain(self) -> None:
        self.is_draining = True
        self.beat_once()
        self._leave_when_done()

    def _leave_when_done(self) -> None:
        if self.is_draining and self.is_alive and not self.tries and self._joined is not None:
            session = self._joined.spec.session
            tunnel = self._joined
            tunnel.up([on.AgentLeft(self.id, session)])
            self._world.ledger.trouble(self.id, float("inf"))  # an order may be on its way
            self._stop()
            self._world.after(1.0, tunnel.close, "left")
            self._world.after(10.0 + self._world.soon(60.0), self.boot)

    def sleep(self, for_s: float) -> None:
        """The machine does nothing for a while; whatever was due meanwhile is late."""
        self._asleep_until = self._world.loop.time() + for_s
        if self.tunnel is not None:
            self.tunnel.stall(for_s)

    def _later(self, delay_s: float, call: Callable[..., None], *arguments: Any) -> None:
        """Unless the process dies before."""
        life = self._life

        def run() -> None:
            if self._life != life or not self.is_alive:
                return
            if self._world.loop.time() < self._asleep_until:
                self._world.loop.call_at(self._asleep_until, run)
            else:
                call(*arguments)

        self._world.after(delay_s, run)

    # --- the tunnel -----------------------------------------------------------------------

    def _dial(self) -> None:
        if self.tunnel is not None:
            return
        previous = self._ended[-1] if self._ended else ""
        spec = AgentSpec(
            id=self.id,
            name=self.id,
            session=f"{self.id}-{self._life}",
            previous_session=previous,
            systems=self._systems,
            features=(),
            mandatory_features=(),
            max_jobs=self._max_jobs,
            cpus=4,
            memory_bytes=1 << 30,
        )
        self.tunnel = self._network.dial(self, spec)
        if self.tunnel is None:
            self._later(self._world.soon(REDIAL_S), self._dial)

    def joined(self, tunnel: Tunnel) -> None:
        if self.tunnel is not tunnel or not self.is_alive:
            return
        self._joined = tunnel
        self._ended = []
        self.beat_once()
        tunnel.up([attempt.end for attempt in self.tries.values() if attempt.end is not None])
        self._leave_when_done()

    def refused(self, tunnel: Tunnel) -> None:
        if self._ended:
            self._ended.append(self._ended.pop(0))
        self.cut_off(tunnel)

    def cut_off(self, tunnel: Tunnel) -> None:
        if self.tunnel is tunnel:
            self.tunnel = None
            self._joined = None
            if self.is_alive:
                self._later(self._world.soon(REDIAL_S), self._dial)

    def _tell(self, event: on.Event) -> None:
        if self._joined is not None:
            self._joined.up([event])

    def _beat(self) -> None:
        self.beat_once()
        self._later(HEARTBEAT_S, self._beat)

    def beat_once(self) -> None:
        if self._joined is None:
            return
        listed = tuple((attempt.id, attempt.phase) for attempt in self.tries.values())
        session = self._joined.spec.session
        measurements = Measurements(refuses=self.refuses)
        for each in self.tries.values():
            each.progress += not (each.is_hanging or each.is_uploaded)
        progress = tuple((each.id, each.progress) for each in self.tries.values())
        self._tell(
            on.AgentHeard(
                self.id,
                session,
                self._orders_seen,
                listed,
                measurements,
                self.is_draining,
                progress,
            )
        )

    # --- attempts -------------------------------------------------------------------------

    def take(self, orders: Orders) -> None:
        if not self.is_alive:
            return
        for start in orders.starts:
            self._start(start)
        for id_ in orders.grants:
            self._upload(id_)
        for id_ in [*orders.settled, *orders.aborts]:
            self._drop(id_)
        self._orders_seen = max(self._orders_seen, orders.number)
        self._leave_when_done()

    def _start(self, order: StartBuild) -> None:
        id_ = order.attempt
        self._world.ledger.taken(self.id, id_)
        if id_ in self.tries or id_ in self._settled:
            return
        attempt = self.tries[id_] = Try(order, self._world.graph.nodes[checked(order.step)])
        if self.is_draining:
            self._fail(attempt, Outcome.RETURNED, "about to leave")
            return
        if self._world.chance(self._world.rates.hang_p):
            phases = [
                Phase.FETCHING,
                Phase.UPLOADING,
                *([Phase.BUILDING] * (order.limits.build_s > 0)),
            ]
            attempt.hangs_in = self._world.random.choice(phases)
        self._reach(attempt, Phase.FETCHING)
        self._during(attempt, self._world.soon(1.0), self._fetched)

    def _during(self, attempt: Try, delay_s: float, call: Callable[..., None], *more: Any) -> None:
        """Unless the attempt is over before."""

        def run() -> None:
            if self.tries.get(attempt.id) is not attempt or self._has_failed(attempt):
                return
            if not attempt.is_hanging:
                call(attempt, *more)

        self._later(delay_s, run)

    def _has_failed(self, attempt: Try) -> bool:
        return isinstance(attempt.end, on.AttemptFailed)

    def _fetched(self, attempt: Try) -> None:
        made = [other for other in self.tries.values() if other.is_built and not other.is_check]
        here = {other.node.step for other in made}
        needed = (*attempt.node.inputs, *([attempt.node.step] * attempt.is_check))
        nodes = [self._world.graph.nodes[step] for step in needed if step not in here]
        missing = [
            each for node in nodes for each in node.outputs if not self._network.store.serves(each)
        ]
        if missing:
            if all(self._world.ledger.was_published(node.step) for node in nodes):
                self._world.ledger.robbed.add(attempt.id)
            self._network.missing[attempt.id] = tuple(missing)
            self._fail(attempt, Outcome.INPUTS_MISSING, f"{missing[0]} is nowhere")
            return
        self._waiting.append(attempt)
        self._fill_places()

    def _fill_places(self) -> None:
        while self._waiting and self._building < self._max_jobs:
            attempt = self._waiting.pop(0)
            if attempt.id not in self.tries or attempt.is_hanging:
                continue
            self._building += 1
            self._reach(attempt, Phase.BUILDING)
            self._build(attempt)

    def _build(self, attempt: Try) -> None:
        limit_s = attempt.limits.build_s
        if limit_s and attempt.node.build_s > limit_s:
            self._during(attempt, limit_s, self._fail, Outcome.TIMED_OUT, "too long")
        else:
            self._during(attempt, attempt.node.build_s, self._built)

    def _free_place(self, attempt: Try) -> None:
        if attempt.phase is Phase.BUILDING and attempt.end is None:
            self._building -= 1
            self._later(0.0, self._fill_places)

    def _built(self, attempt: Try) -> None:
        if attempt.phase is not Phase.BUILDING:
            return  # built already: it stood still, was healed, and both ends came
        if attempt.node.is_doomed:
            self._fail(attempt, Outcome.BUILD_FAILED, "exit 1")
        elif attempt.node.is_flaky and self._world.chance(FLAKY_P):
            self._fail(attempt, Outcome.BUILD_FAILED, "exit 1, this time")
        elif self.is_broken:
            self._fail(attempt, Outcome.AGENT_OUT_OF_DISK, "a simulated wreck")
        elif attempt.is_check and attempt.node.is_fickle:
            self._fail(attempt, Outcome.NOT_DETERMINISTIC, "out/a differs")
        elif self._world.chance(self._world.rates.attempt_p):
            outcome = self._world.random.choice(HICCUPS)
            self._fail(attempt, outcome, "a simulated hiccup")
        else:
            self._free_place(attempt)
            attempt.is_built = True
            attempt.phase = Phase.BUILT
            usage = Usage(build_s=attempt.node.build_s)
            attempt.end = on.OutputsBuilt(self.id, attempt.id, 100, usage)
            self._tell_of(attempt, attempt.end)

    def _upload(self, id_: AttemptId) -> None:
        attempt = self.tries.get(id_)
        if attempt is None or not attempt.is_made:
            return
        attempt.phase = Phase.UPLOADING
        if attempt.is_hanging:
            self._world.ledger.hanging.add(attempt.id)
        attempt.is_uploaded = False
        attempt.grants += 1
        self._during(attempt, attempt.node.upload_s, self._uploaded, 0, attempt.grants)

    def _uploaded(self, attempt: Try, index: int, grant: int) -> None:
        if grant != attempt.grants:
            return
        if self._world.chance(self._world.rates.upload_p):
            self._fail(attempt, Outcome.UPLOAD_FAILED, "a simulated hiccup")
        elif not self._network.put(attempt.id, index):
            assert attempt.end is not None
            self._tell(attempt.end)  # which asks for a new grant
        elif index + 1 < len(attempt.node.outputs):
            self._during(attempt, attempt.node.upload_s, self._uploaded, index + 1, grant)
        else:
            attempt.is_uploaded = True

    def _reach(self, attempt: Try, phase: Phase) -> None:
        attempt.phase = phase
        if attempt.is_hanging:
            self._world.ledger.hanging.add(attempt.id)
        self._tell_of(attempt, on.PhaseReached(self.id, attempt.id, phase))

    def _tell_of(self, attempt: Try, news: on.Event) -> None:
        self._tell(news)
        if self._world.chance(self._world.rates.repeat_p):

            def again() -> None:
                if attempt.id in self.tries:
                    self._tell(news)

            self._later(self._world.soon(REPEAT_S), again)

    def _fail(self, attempt: Try, outcome: Outcome, message: str) -> None:
        self._free_place(attempt)
        self._world.ledger.injected.add(attempt.id)
        attempt.end = on.AttemptFailed(self.id, attempt.id, outcome, message)
        self._tell_of(attempt, attempt.end)

    def _drop(self, id_: AttemptId) -> None:
        self._settled.add(id_)
        attempt = self.tries.pop(id_, None)
        if attempt is not None:
            self._free_place(attempt)
