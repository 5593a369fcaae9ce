"""What the farm tells its autoscaler, and which agents it believes to sit in slots."""

import asyncio
from base64 import b64encode
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from uuid import uuid4

import pytest

from grange.capacity.effects import SetAgent
from grange.capacity.facts import (
    InstanceId,
    LaunchOrder,
    Market,
    Need,
    Pool,
    PoolName,
    Presence,
    Slot,
    SlotId,
    SlotState,
)
from grange.coordinator.accounts import AccountKeeper
from grange.coordinator.doorkeeper import Doorkeeper, Shown
from grange.coordinator.loop import WriterLoop
from grange.coordinator.tokens import HookTokens
from grange.coordinator.workforce import DRAINED, KEPT_S, FarmWorkforce
from grange.db.connect import MEMORY
from grange.db.journal import SqliteJournal
from grange.errors import OutsideError, UnauthenticatedError
from grange.identity import ANONYMOUS
from grange.ports import PublishedOutput
from grange.scheduler import events as on
from grange.scheduler.effects import Effect, JournalEffect
from grange.scheduler.facts import (
    AgentId,
    AgentSpec,
    BuildId,
    Measurements,
    Policy,
    QueueKey,
    StepId,
    StepSpec,
)
from tests.unit.test_doorkeeper import FakeClock
from tests.unit.test_scheduler import spec

POOL = Pool(PoolName("x86"), ("x86_64-linux",), ("kvm",), tags=("big",))
SLOT = SlotId("x86-1")
GONE_S = 900.0


class NoActor:
    """Does nothing of what is decided."""

    def act(self, effects: Sequence[Effect]) -> None: ...
    async def publish(self, outputs: Sequence[PublishedOutput]) -> None: ...
    def reset(self) -> None: ...


class Forgetful(SqliteJournal):
    """Accounts are kept, and builds, which nobody has put there, are not."""

    async def commit(self, effects: Sequence[JournalEffect]) -> None: ...


class Place:
    """A farm's loop, its accounts, and who sits in its slots."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.journal = Forgetful.open(MEMORY)
        accounts = self.journal.accounts
        self.door = Doorkeeper(accounts, self.clock, HookTokens(b"k" * 32, self.clock), ANONYMOUS)
        self.loop = WriterLoop(
            self.journal, self.clock, lease_s=30, policy=Policy(max_unsupported_s=60)
        )
        self.keeper = AccountKeeper(accounts, self.door, self.loop, lambda _agent, _why: None)
        self.workforce = FarmWorkforce(self.loop, accounts, self.keeper, b"s" * 32)
        self.seats: dict[SlotId, Slot] = {}
        self.workforce.seat = self.seats.get
        self.agents: dict[AgentId, AgentSpec] = {}

    def sit(self, token: str, slot: SlotId = SLOT) -> InstanceId:
        instance = InstanceId(f"i-{token}")
        self.seats[slot] = Slot(slot, POOL.name, SlotState.BINDING, token=token, instance=instance)
        return instance

    async def register(self, token: str, agent: AgentId | None = None) -> AgentId:
        """An agent with the token that was given to the launch."""
        id_ = agent or AgentId(str(uuid4()))
        credential = b64encode(f"{id_}:{'p' * 40}".encode()).decode()
        shown = Shown(f"Basic {credential}", await self.workforce.registration(order(token)), "ci")
        who = await self.door.identify(shown, "")
        assert who.agent == id_
        return id_

    async def join(self, id_: AgentId, *, refuses: str = "") -> None:
        """It joins, and says a first word."""
        self.agents[id_] = said = replace(spec(id_, jobs=2), id=id_)
        await self.loop.settle(on.AgentJoined(said))
        await self.hear(id_, refuses=refuses)

    async def hear(self, id_: AgentId, *, refuses: str = "", is_draining: bool = False) -> None:
        session = self.agents[id_].session
        now = Measurements(refuses=refuses)
        await self.loop.settle(on.AgentHeard(id_, session, 0, (), now, is_draining))

    async def want(self, *ids: int, queue: QueueKey | None = None) -> None:
        queue = queue or QueueKey("x86_64-linux", (), ("big",))
        for id_ in ids:
            step, build = StepSpec(StepId(id_), queue, (), 1.0), BuildId(str(uuid4()))
            wish = on.Wish(build, step.id, "p", 0)
            await self.loop.settle(on.BuildsSubmitted((wish,), (step,)))


def order(token: str) -> LaunchOrder:
    return LaunchOrder(SLOT, 1, token, POOL, Market.SPOT, ())


@pytest.fixture
async def place() -> AsyncIterator[Place]:
    place = Place()
    working = asyncio.create_task(place.loop.run(NoActor()))
    await place.loop.ready.wait()
    yield place
    working.cancel()
    await asyncio.wait((working,))


async def test_the_token_of_a_launch_is_the_same_each_time_and_good_for_one_agent(
    place: Place,
) -> None:
    tokens = [await place.workforce.registration(order(each)) for each in ("t1", "t1", "t2")]
    assert tokens[0] == tokens[1] != tokens[2]
    first = await place.register("t1")
    await place.register("t1", first)  # it came again, and has its password
    with pytest.raises(UnauthenticatedError, match="registered all agents that it may"):
        await place.register("t1")
    await place.register("t2")
    other = FarmWorkforce(place.loop, place.journal.accounts, place.keeper, b"o" * 32)
    assert await other.registration(order("t1")) != tokens[0]


async def test_an_unused_token_is_not_good_for_ever(place: Place) -> None:
    await place.workforce.registration(order("t1"))
    place.clock.now += 10_000
    with pytest.raises(UnauthenticatedError, match="has expired"):
        await place.register("t1")


async def test_an_agent_sits_where_its_launch_says_and_has_the_pools_tags(place: Place) -> None:
    id_ = await place.register("t1")
    await place.join(id_)
    assert await place.workforce.presences() == (), "nobody is known to sit there"
    instance = place.sit("t1")
    assert await place.workforce.presences() == (Presence(SLOT, instance, 0, False),)
    await place.want(1)
    assert await place.workforce.presences() == (Presence(SLOT, instance, 1, False),)
    place.sit("t2")
    assert await place.workforce.presences() == (), "it is the agent of an earlier tenant"


async def test_an_agent_that_people_set_up_sits_nowhere(place: Place) -> None:
    place.sit("t1")
    account = await place.keeper.new_agent("slot x86-1 launch t1", "slot x86-1 launch t1")
    await place.join(account.id)
    assert await place.workforce.presences() == ()


async def test_one_that_is_cut_off_or_silent_is_not_here(place: Place) -> None:
    id_ = await place.register("t1")
    place.sit("t1")
    await place.loop.settle(on.AgentJoined(replace(spec(id_), id=id_)))
    assert await place.workforce.presences() == (), "it has not said a word"
    await place.join(id_)
    assert await place.workforce.presences()
    await place.want(1)
    [presence] = await place.workforce.presences()
    assert presence.running == 1
    await place.loop.settle(on.AgentCut(id_, "s1"))
    assert await place.workforce.presences() == (), "whatever it has"


async def test_one_that_refuses_work_is_full_or_of_no_use(place: Place) -> None:
    id_ = await place.register("t1")
    instance = place.sit("t1")
    await place.join(id_, refuses="no room")
    assert await place.workforce.presences() == ()
    await place.hear(id_)
    await place.want(1)
    await place.hear(id_, refuses="no room")
    assert await place.workforce.presences() == (Presence(SLOT, instance, 2, False),)


async def test_it_is_drained_and_taken_back_and_an_operators_pause_stays(place: Place) -> None:
    id_ = await place.register("t1")
    instance = place.sit("t1")
    await place.join(id_)
    await place.workforce.set_agent(SetAgent(SLOT, InstanceId("i-other"), True))
    assert not (await place.workforce.presences())[0].is_draining, "it sits there no more"
    for _ in range(2):
        await place.workforce.set_agent(SetAgent(SLOT, instance, True))
        assert await place.workforce.presences() == (Presence(SLOT, instance, 0, True),)
    assert place.loop.core is not None
    assert place.loop.core.agents[id_].pause == DRAINED
    await place.workforce.set_agent(SetAgent(SLOT, instance, False))
    assert await place.workforce.presences() == (Presence(SLOT, instance, 0, False),)
    await place.loop.settle(on.AgentRuled(id_, None, True, "a look at its disk"))
    for is_draining in (False, True, False):
        await place.workforce.set_agent(SetAgent(SLOT, instance, is_draining))
        assert place.loop.core.agents[id_].pause == "a look at its disk"
    assert await place.workforce.presences() == (Presence(SLOT, instance, 0, True),)


async def test_one_that_is_leaving_by_itself_takes_no_work(place: Place) -> None:
    id_ = await place.register("t1")
    instance = place.sit("t1")
    await place.join(id_)
    await place.hear(id_, is_draining=True)
    assert await place.workforce.presences() == (Presence(SLOT, instance, 0, True),)


async def test_needs_are_by_kind_and_what_is_built_in_runs_on_some_pool(place: Place) -> None:
    await place.want(1, 2)
    await place.want(3, queue=QueueKey("builtin"))
    assert await place.workforce.needs() == (
        Need("x86_64-linux", (), ("big",), 2, 0, "p"),
        Need("builtin", (), (), 1, 0, "p"),
    )
    place.workforce.offer((POOL,))
    assert {each.system for each in await place.workforce.needs()} == {"x86_64-linux"}


async def test_who_may_be_taken_away_is_told_by_where_agents_sit(place: Place) -> None:
    own = (await place.keeper.new_agent("ci-1", "ada")).id
    full, spot, early = [await place.register(each) for each in ("t1", "t2", "t3")]
    for token, market in (("t2", Market.SPOT), ("t1", Market.ON_DEMAND)):
        place.sit(token)
        id_ = full if token == "t1" else spot
        place.seats[SLOT] = replace(place.seats[SLOT], market=market)
        await place.join(id_)
        assert await judged(place) == {id_: market is Market.ON_DEMAND}
        await place.loop.settle(on.AgentLeft(id_, "s1"))
    for id_ in (own, spot, early):
        await place.join(id_)
    assert await judged(place) == {own: True, spot: False, early: False}, "neither sits there"
    place.loop.rule(Policy(max_unsupported_s=50), {})  # made anew from the journal
    for _ in range(2):
        await place.loop.settle(on.Tick())
    await place.join(own)
    assert await judged(place) == {own: True}


async def judged(place: Place) -> dict[AgentId, bool]:
    await place.workforce.judge()
    assert place.loop.core is not None
    return dict(place.loop.core.judged)


async def test_a_last_try_is_asked_for_on_demand_of_pools_that_can(place: Place) -> None:
    arm = replace(POOL, name=PoolName("arm"), systems=("arm",))
    place.workforce.offer((replace(POOL, fallback=None), arm))
    for id_, queue in ((1, QueueKey("x86_64-linux", (), ("big",))), (2, QueueKey("builtin"))):
        step = StepSpec(StepId(id_), queue, (), 1.0, losses=Policy().losses_max - 1)
        wish = on.Wish(BuildId(str(uuid4())), step.id, "p", 0)
        await place.loop.settle(on.BuildsSubmitted((wish,), (step,)))
    assert await place.workforce.needs() == (
        Need("x86_64-linux", (), ("big",), 1, 0, "p"),
        Need("arm", (), (), 1, 0, "p", is_on_demand=True),
    )


async def test_what_a_pool_at_zero_could_build_waits_after_a_restart_too(place: Place) -> None:
    """And what none could build does not."""
    place.workforce.offer((POOL, replace(POOL, name=PoolName("arm"), systems=("arm",), max=0)))
    place.loop.rule(Policy(max_unsupported_s=50), {})  # made anew from the journal
    for _ in range(2):  # what is told next is heard before that, and the other after it
        await place.loop.settle(on.Tick())
    assert place.loop.core is not None
    assert place.loop.core.policy.max_unsupported_s == 50
    await place.want(1)
    await place.want(2, queue=QueueKey("arm"))
    place.clock.now += 100
    await place.loop.settle(on.Tick())
    assert list(place.loop.core.steps) == [StepId(1)]


async def test_agents_whose_instances_are_gone_are_forgotten_after_a_while(place: Place) -> None:
    stays, goes, people = await place.register("t1"), await place.register("t2"), "ci-3"
    await place.keeper.new_agent(people, "ada")
    place.sit("t1")
    place.sit("t2", SlotId("x86-2"))

    async def left() -> set[str]:
        await place.workforce.forget_gone(GONE_S)
        return {each.id for each in await place.journal.accounts.agents() if each.name != people}

    place.seats[SLOT] = replace(place.seats[SLOT], state=SlotState.READY)
    assert await left() == {stays, goes}, "one by its slot's state, one that is not seen there yet"
    place.clock.now += GONE_S
    assert await left() == {stays}, "its launch was for x86-1, where another sits"
    place.seats[SLOT] = replace(place.seats[SLOT], state=SlotState.EMPTY)
    await place.join(stays)
    for _ in range(2):
        place.clock.now += GONE_S
        await place.hear(stays)
        assert await left() == {stays}, "it is still here"
    await place.loop.settle(on.AgentLeft(stays, "s1"))
    assert await left() == {stays}, "it left just now"
    place.clock.now += GONE_S
    assert await left() == set()
    assert place.loop.core is not None
    assert not place.loop.core.agent_rules, "nor are there rules for it"
    assert [each.name for each in await place.journal.accounts.agents()] == [people]
    assert await place.journal.accounts.agent(stays), "for people who look"
    place.clock.now += KEPT_S + 10_000
    await left()
    assert await place.journal.accounts.agent(stays) is None
    assert await place.journal.accounts.credentials() == []


async def test_nothing_is_told_by_a_farm_that_does_not_lead() -> None:
    idle = Place()
    with pytest.raises(OutsideError):
        await idle.workforce.needs()
    with pytest.raises(OutsideError):
        await idle.workforce.presences()
