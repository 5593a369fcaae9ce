"""Between coordinator and agents: tunnels that break, uploads, and where narinfos are put.

Implements `grange.coordinator.loop.Actor` as `grange.coordinator.outbox` and `delivery` do, on a
wire that keeps order, loses nothing but by breaking, and may break or hold back at any time.
"""

import asyncio
import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from grange.coordinator.loop import WriterLoop
from grange.coordinator.publications import Publications
from grange.coordinator.repair import Repairs
from grange.errors import OutsideError
from grange.ports import PublishedOutput
from grange.scheduler import effects as do
from grange.scheduler import events as on
from grange.scheduler.facts import AgentId, AgentSpec, AttemptId, is_check
from grange.store.path import StorePath
from grange.wire.messages import Failed
from tests.simulation.audit import audit
from tests.simulation.store import Store
from tests.simulation.world import World

LATENCY_S: Final = 0.2  # at most
GAP_S: Final = 1e-4  # between messages, to keep their order
PUBLISHED_AT_ONCE: Final = 8  # steps
SLOW_S: Final = 60.0  # at most, that an object takes where it is slow
NOTICE_S: Final = 15.0  # at most, until an end notices that the other is gone


async def _nothing() -> None:
    pass


@dataclass(slots=True)
class Orders:
    number: int = 0
    starts: list[do.StartBuild] = field(default_factory=list)
    aborts: list[AttemptId] = field(default_factory=list)
    grants: list[AttemptId] = field(default_factory=list)
    settled: list[AttemptId] = field(default_factory=list)


class Dialer(Protocol):
    """An agent as its tunnels see it."""

    id: AgentId

    def joined(self, tunnel: "Tunnel") -> None: ...
    def refused(self, tunnel: "Tunnel") -> None: ...
    def cut_off(self, tunnel: "Tunnel") -> None: ...
    def take(self, orders: Orders) -> None: ...


class Tunnel:
    def __init__(self, network: "Network", agent: Dialer, spec: AgentSpec) -> None:
        self.spec = spec
        self.agent = agent
        self.is_open = True
        self._network = network
        self._world = network.world
        self._free_s = [0.0, 0.0]  # when the last message up, down arrives

    def up(self, events: Sequence[on.Event]) -> None:
        self._world.loop.call_at(self._arrival(0), self._arrive_up, events)

    def down(self, what: "Orders | str") -> None:
        self._world.loop.call_at(self._arrival(1), self._arrive_down, what)

    def _arrival(self, way: int) -> float:
        earliest = self._world.loop.time() + self._world.soon(LATENCY_S)
        self._free_s[way] = max(earliest, self._free_s[way] + GAP_S)
        return self._free_s[way]

    def _arrive_up(self, events: Sequence[on.Event]) -> None:
        if self.is_open:
            self._network.hear(self, events)

    def _arrive_down(self, what: "Orders | str") -> None:
        if not self.is_open:
            return
        if isinstance(what, Orders):
            self.agent.take(what)
        elif what == "joined":
            self.agent.joined(self)
        else:
            self.close(what)

    def stall(self, for_s: float, ways: Sequence[int] = (0, 1)) -> None:
        """Nothing gets through for a while, and nobody finds the tunnel broken."""
        until = self._world.loop.time() + for_s
        for way in ways:
            self._free_s[way] = max(until, self._free_s[way])

    def break_off(self, *, noticed_s: float = NOTICE_S) -> None:
        """What is under way is lost; each end finds out in its own time."""
        if self.is_open:
            self.is_open = False
            self._world.ledger.away.add(self.spec.id)
            self._world.ledger.trouble(self.spec.id, math.inf)
            self._world.after(self._world.soon(noticed_s), self._network.depart, self)
            self._world.after(self._world.soon(noticed_s), self.agent.cut_off, self)

    def close(self, reason: str) -> None:
        """Both ends agree that it is over."""
        if self.is_open:
            self.is_open = False
            self._network.depart(self)
            if reason == "refused":
                self.agent.refused(self)
            else:
                self.agent.cut_off(self)


class Network:
    def __init__(self, world: World, store: Store) -> None:
        self.world = world
        self.store = store
        self.repairs: Repairs | None = None  # of the coordinator's present life
        self.missing: dict[AttemptId, tuple[StorePath, ...]] = {}  # what agents could not fetch
        self.loop: WriterLoop | None = None  # of the coordinator's present life
        self._knocking: dict[tuple[AgentId, str], Tunnel] = {}
        self.lines: dict[AgentId, Tunnel] = {}
        self._orders: dict[AgentId, Orders] = {}
        self._granted: dict[AttemptId, set[int]] = {}  # and which outputs have come
        self._said: set[AttemptId] = set()  # that they are built, to this life
        self._built: set[AttemptId] = set()  # no longer in a place, as some life was told
        self._publications: Publications | None = None  # of the coordinator's present life
        self._publishing: asyncio.Task[None] | None = None
        self.putting: Callable[[], Awaitable[None]] = _nothing  # before a narinfo is put

    def serve(self, loop: WriterLoop, repairs: Repairs) -> None:
        """A life of the coordinator begins; it lasts until `crash`."""
        self.loop, self.repairs = loop, repairs
        self._publications = Publications(self.publish, loop.tell, at_once=PUBLISHED_AT_ONCE)
        self._publishing = self.world.loop.create_task(self._publications.run())

    # --- tunnels --------------------------------------------------------------------------

    def dial(self, agent: Dialer, spec: AgentSpec) -> Tunnel | None:
        """None where no coordinator answers."""
        if self.loop is None:
            return None
        tunnel = Tunnel(self, agent, spec)
        older = self._knocking.pop((spec.id, spec.session), None)
        if older is not None:
            older.close("a newer one came")
        self._knocking[spec.id, spec.session] = tunnel
        self.loop.tell(on.AgentJoined(spec))
        broken = self.lines.get(spec.id)
        if broken is not None and not broken.is_open and self.world.chance(0.5):
            self.depart(broken)  # both news come with the network's return, in this order
        return tunnel

    def depart(self, tunnel: Tunnel) -> None:
        key = tunnel.spec.id, tunnel.spec.session
        if self._knocking.get(key) is tunnel:
            del self._knocking[key]
        if self.lines.get(tunnel.spec.id) is tunnel and self.loop is not None:
            del self.lines[tunnel.spec.id]
            self._orders.pop(tunnel.spec.id, None)
            self.tell_cut(*key)

    def tell_cut(self, agent: AgentId, session: str) -> None:
        """Its tunnel has closed; or an older one, and the news comes late."""
        assert self.loop is not None
        self.world.ledger.away.add(agent)
        self.loop.tell(on.AgentCut(agent, session))

    def hear(self, tunnel: Tunnel, events: Sequence[on.Event]) -> None:
        if self.lines.get(tunnel.spec.id) is not tunnel or self.loop is None:
            return
        if self.loop.core is not None and tunnel.spec.id in self.loop.core.agents:
            self.world.ledger.offered(tunnel.spec.systems)
        for event in events:
            self.world.note(event)
            if isinstance(event, on.AttemptFailed):
                self._failed(event)
            else:
                self.loop.tell(event)
            if isinstance(event, on.AgentHeard):
                self.world.ledger.away.discard(tunnel.spec.id)
            if isinstance(event, on.OutputsBuilt):
                self._built.add(event.attempt)
                self._said.add(event.attempt)
                self._found_same(event.attempt)
                wait_s = self._slowness(0.5)
                self.world.after(wait_s, self._grant, event.agent, event.attempt)

    def _failed(self, event: on.AttemptFailed) -> None:
        assert self.loop is not None
        assert self.repairs is not None
        missing = self.missing.get(event.attempt)
        if missing is None:
            self.loop.tell(event)
        else:
            told = Failed(event.attempt, event.outcome, event.message, event.usage, missing)
            self.repairs.failed(event.agent, told)

    def crash(self) -> None:
        """The coordinator's process is gone, with all it knew."""
        self.loop = None
        if self._publishing is not None:
            self._publishing.cancel()
        self._publications = self._publishing = None
        for tunnel in [*self._knocking.values(), *self.lines.values()]:
            tunnel.break_off(noticed_s=NOTICE_S)
        self._forget()

    def _forget(self) -> None:
        self._knocking.clear()
        self.lines.clear()
        self._orders.clear()
        self._granted.clear()
        self._said.clear()

    def _found_same(self, attempt: AttemptId) -> None:
        """A check that built anything at all has found no difference."""
        assert self.loop is not None
        if is_check(self.world.ledger.attempts[attempt][0]):
            self.loop.tell(on.OutputsStored(attempt, ()))

    # --- deliveries -----------------------------------------------------------------------

    def _grant(self, agent: AgentId, attempt: AttemptId) -> None:
        known = self.world.ledger.open.get(attempt)
        if self.loop is None or known is None or known[1] != agent or is_check(known[0]):
            return
        came = self._granted.setdefault(attempt, set())
        if len(came) == len(self.world.graph.nodes[known[0]].outputs):
            self._stored(attempt)  # said again
        elif agent in self.lines:
            self._orders_for(agent).grants.append(attempt)
            self._flush()

    def put(self, attempt: AttemptId, index: int) -> bool:
        """One output comes in whole; False where it is not let in, or cannot be kept."""
        if self.loop is None or attempt not in self._granted:
            return False
        if self.world.chance(self.world.rates.unstored_p):
            return False
        node = self.world.graph.nodes[self.world.ledger.attempts[attempt][0]]
        self.world.ledger.uploads[node.outputs[index]] += 1
        self._granted[attempt].add(index)
        if len(self._granted[attempt]) == len(node.outputs):
            self.world.after(self._slowness(0.0), self._stored, attempt)
        return True

    def _slowness(self, usual_s: float) -> float:
        is_slow = self.world.chance(self.world.rates.slow_store_p)
        return self.world.soon(SLOW_S if is_slow else usual_s)

    def _stored(self, attempt: AttemptId) -> None:
        if self.loop is None or attempt not in self._granted:
            return  # it ended, or the process did, while the last bytes were looked at
        node = self.world.graph.nodes[self.world.ledger.attempts[attempt][0]]
        self._built.add(attempt)
        self.world.note(f"stored {attempt}")
        # What is published already is fetched before a build, and stays as it is.
        kept = self.world.ledger.kept
        outputs = [kept.get(new.narinfo.info.path, new) for new in node.made_by(attempt)]
        self.store.keep(outputs)
        self.loop.tell(on.OutputsStored(attempt, tuple(outputs)))

    # --- the actor ------------------------------------------------------------------------

    def act(self, effects: Sequence[do.Effect]) -> None:
        for effect in effects:
            self.world.note(effect)
            self._act(effect)
        self._flush()
        if self.loop is not None and self.loop.core is not None:
            fault = audit(self.loop.core)
            if fault:
                self.world.ledger.blame(f"safety: {fault}")

    def _act(self, effect: do.Effect) -> None:
        ledger = self.world.ledger
        match effect:
            case do.StartBuild():
                ledger.sent(effect)
                self._check_places(effect.agent)
                if effect.agent in self.lines:
                    orders = self._orders_for(effect.agent)
                    orders.starts.append(effect)
                    orders.number = effect.order
            case do.AbortAttempt(agent, attempt):
                ledger.aborts += attempt not in ledger.succeeded  # else it was settled a moment ago
                self._orders_for(agent).aborts.append(attempt)
            case do.SettleAttempt(agent, attempt, _):
                self._orders_for(agent).settled.append(attempt)
            case do.SaveAttemptEnded(attempt=attempt):
                self._granted.pop(attempt, None)
            case do.SaveAttemptRevived(attempt) if attempt in self._said:
                # What its agent said of it came before the farm knew of it again.
                self._grant(ledger.attempts[attempt][1], attempt)
            case do.PublishOutputs():
                assert self._publications is not None
                self._publications.add(effect)
            case do.AcceptAgent():
                self._accept(effect)
            case do.RefuseAgent(agent, session):
                self._refuse(agent, session)
            case _:
                pass

    def _accept(self, effect: do.AcceptAgent) -> None:
        assert self.loop is not None
        tunnel = self._knocking.pop((effect.agent, effect.session), None)
        if tunnel is None:
            self.tell_cut(effect.agent, effect.session)
            return
        if tunnel.is_open:
            self.world.ledger.recovered(effect.agent)
        older = self.lines.pop(effect.agent, None)
        self.lines[effect.agent] = tunnel
        self._orders.pop(effect.agent, None)
        if older is not None:
            older.close("a newer one took over")
        tunnel.down("joined")

    def _refuse(self, agent: AgentId, session: str) -> None:
        tunnel = self._knocking.pop((agent, session), None)
        line = self.lines.get(agent)
        if tunnel is not None:
            tunnel.down("refused")
        elif line is not None and line.spec.session == session:
            line.down("no longer known")

    def _check_places(self, agent: AgentId) -> None:
        assert self.loop is not None
        assert self.loop.core is not None
        known = self.loop.core.agents.get(agent)
        held = [id_ for id_, (_, owner) in self.world.ledger.open.items() if owner == agent]
        if known and len([id_ for id_ in held if id_ not in self._built]) > known.spec.max_jobs:
            self.world.ledger.blame(f"safety: {agent} gets more attempts than it has places")

    def _orders_for(self, agent: AgentId) -> Orders:
        return self._orders.setdefault(agent, Orders())

    def _flush(self) -> None:
        waiting, self._orders = self._orders, {}
        for agent, orders in waiting.items():
            if agent in self.lines:
                self.lines[agent].down(orders)

    def reset(self) -> None:
        self.world.note("reset")
        self.world.ledger.restarted()
        if self._publications is not None:
            self._publications.clear()
        for tunnel in [*self._knocking.values(), *self.lines.values()]:
            self.world.ledger.trouble(tunnel.spec.id, math.inf)
            tunnel.down("starting over")
        self._forget()

    # --- narinfos -------------------------------------------------------------------------

    async def publish(
        self, outputs: Sequence[PublishedOutput], check: Callable[[], Awaitable[None]] = _nothing
    ) -> None:
        """`check` is waited for before each is put, and may raise."""
        for output in outputs:
            is_slow = self.world.chance(self.world.rates.slow_put_p)
            await asyncio.sleep(self.world.soon(SLOW_S if is_slow else 1.0))
            await self.putting()
            await check()
            if self.world.chance(self.world.rates.put_p):
                raise OutsideError("the simulated store takes no narinfo")
            self.world.ledger.put(output)
            self.store.put(output)
            await asyncio.sleep(self.world.soon(0.2))
