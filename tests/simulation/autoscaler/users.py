"""Who uses the autoscaler's door: asks for a place, connects, renews, releases; and asks again."""

import asyncio
import random
from dataclasses import replace
from typing import TYPE_CHECKING

from grange.autoscaler.sights import Told
from grange.capacity.events import OperatorSaid, Verb
from grange.capacity.facts import Claim, Need, ReservationState, ServerMode, SlotId
from grange.errors import NotFoundError, OutsideError
from tests.simulation.autoscaler.doors import SimWorkforce
from tests.simulation.capacity.balancer import Session
from tests.simulation.capacity.users import OVER, Build
from tests.simulation.capacity.world import RENEW_S, SYSTEM

if TYPE_CHECKING:
    from tests.simulation.autoscaler.world import World

AGAIN_S = 2.0


async def use(world: "World", build: Build) -> None:
    """Until the build is done, or has had its tries."""
    await asyncio.sleep(max(0.0, build.arrives_at - world.now))
    while not build.is_done:
        try:
            await _try(world, build)
        except (OutsideError, NotFoundError):  # the daemon is down, or has forgotten
            await asyncio.sleep(AGAIN_S)


async def _try(world: "World", build: Build) -> None:
    claim = Claim(build.key, SYSTEM, build.features, build.project, is_on_demand=build.tries == 2)
    told = await world.api().reserve(claim)
    if world.rng.random() < 0.1:  # the answer was lost: asking twice is asking once
        again = await world.api().reserve(claim)
        assert again.reservation.id == told.reservation.id, "asked twice, and got two"
    world.audit.told(told)
    renew_at = world.now + RENEW_S
    while build.session is None:
        state = told.reservation.state
        if state in OVER:
            build.again()
            return
        if build.is_cancelled and state is ReservationState.PENDING:
            await world.api().release(told.reservation.id)
            build.is_done = True
            return
        if state is ReservationState.READY and told.reservation.slot is not None:
            _connect(world, build, told.reservation.slot, told)
            if build.session is not None:
                break
            await asyncio.sleep(AGAIN_S)
        if world.now >= renew_at:
            renew_at = world.now + RENEW_S
            told = await world.api().renew(told.reservation.id)
        else:
            told = await world.api().wait(told.reservation.id, told.version, 5.0)
        world.audit.told(told)
    await _work(world, build, told, renew_at)


def _connect(world: "World", build: Build, slot: SlotId, told: Told) -> None:
    row = world.balancer.rows.get(slot)
    if row and row.mode is ServerMode.READY and world.balancer.is_healthy(row, world.now):
        world.audit.connecting(slot, row)
        build.session = Session(slot, row.address, world.now + build.runs_s)
        world.balancer.sessions.append(build.session)


async def _work(world: "World", build: Build, told: Told, renew_at: float) -> None:
    """Until the session ends, or is ended. What goes wrong with the lease does not end it."""
    session = build.session
    assert session is not None
    while session in world.balancer.sessions:
        await asyncio.sleep(1.0)
        if world.now >= renew_at and not build.is_careless:
            renew_at = world.now + RENEW_S
            try:
                await world.api().renew(told.reservation.id)
            except (OutsideError, NotFoundError):
                pass
    is_whole = session.ends_at <= world.now
    while not build.is_careless:
        try:
            await world.api().release(told.reservation.id)
            break
        except OutsideError:
            await asyncio.sleep(AGAIN_S)
        except NotFoundError:
            break
    if is_whole:
        build.is_done = True
    else:
        build.again()


async def operate(world: "World", until_s: float) -> None:
    """People steer it now and then; in the end all is as it was."""
    rng = random.Random(f"{world.seed} people")
    while world.now < until_s:
        await asyncio.sleep(rng.uniform(20.0, 120.0))
        try:
            await _steer(world, rng)
        except (OutsideError, NotFoundError):
            pass
    while True:
        try:
            world.api().change_pools(world.pools)
            await world.api().say(OperatorSaid(Verb.RESUME))
            return
        except OutsideError:
            await asyncio.sleep(AGAIN_S)


async def _steer(world: "World", rng: random.Random) -> None:
    scaler = world.api()
    pool = rng.choice(world.pools)
    slot = rng.choice([each.slot.id for each in scaler.slots()])
    match rng.randrange(7):
        case 0:
            await scaler.say(OperatorSaid(Verb.DRAIN, slot=slot, by="ada"))
        case 1:
            await scaler.say(OperatorSaid(Verb.UNDRAIN, slot=slot, by="ada"))
        case 2:
            await scaler.say(OperatorSaid(Verb.PAUSE, pool=pool.name))
        case 3:
            await scaler.say(OperatorSaid(Verb.RESUME))
        case 4:
            await scaler.say(OperatorSaid(Verb.PREWARM, pool=pool.name, slots=1, for_s=60.0))
        case 5:
            await scaler.hint("expected", Need(SYSTEM, pool.features, waiting=2), 60.0)
        case _:
            changed = rng.choice(["", "another"])
            scaler.change_pools([replace(each, config_hash=changed) for each in world.pools])
            await scaler.reconcile_now()


async def farm(world: "World", build: Build) -> None:
    """The scheduler gives it to an agent as soon as there is one that takes work."""
    await asyncio.sleep(max(0.0, build.arrives_at - world.now))
    while not build.is_done:
        there = {each.slot: each for each in SimWorkforce.world_presences(world)}
        if build.agent is None:
            for slot, each in there.items():
                pool = next(p for p in world.pools if slot.startswith(p.name))
                if (
                    not each.is_draining
                    and each.running < pool.capacity
                    and set(build.features) <= set(pool.features)
                ):
                    build.agent, build.ends_at = slot, world.now + build.runs_s
                    break
        elif build.agent not in there:
            build.agent = None
        elif world.now >= build.ends_at:
            build.is_done = True
        await asyncio.sleep(1.0)
