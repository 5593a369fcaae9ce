"""The planner and the driver as they are, against an EC2 that refuses, loses answers, lags and
takes instances away, while whoever looks after it dies and begins anew."""

import asyncio
import itertools
import random
from collections import Counter
from collections.abc import Sequence
from typing import Final

import pytest

from grange.capacity import effects as do
from grange.capacity import events as on
from grange.capacity.core import Capacity
from grange.capacity.facts import (
    Instance,
    InstanceId,
    LaunchOrder,
    Market,
    Need,
    Observation,
    Offering,
    Pool,
    PoolName,
    Presence,
    ReadyBy,
    Rules,
    SlotId,
    SlotState,
    Timeouts,
)
from grange.cloud.ec2.cloud import Ec2Cloud
from grange.cloud.ec2.settings import Ec2Pool, Ec2Settings
from grange.errors import OutsideError
from tests.contract.cloud_kinds import session
from tests.fake_ec2.server import serving
from tests.fake_ec2.world import LOST, FakeEc2, Fault
from tests.simulation.capacity.world import Disk

STEP_S: Final = 5.0
BOOT_S: Final = 20.0
SYSTEM: Final = "x86_64-linux"
REFUSALS: Final = (
    ("InsufficientInstanceCapacity", 500),
    ("MaxSpotInstanceCountExceeded", 400),
    ("SpotMaxPriceTooLow", 400),
    ("RequestLimitExceeded", 503),
    ("InternalError", 500),
    ("UnauthorizedOperation", 403),
    ("SomethingNew", 500),
    ("SomethingNew", 400),
)
LAUNCHES: Final = ("ec2:RunInstances", "ec2:CreateFleet")
VACANT: Final = (SlotState.EMPTY, SlotState.COOLING)


def pools(world: FakeEc2) -> tuple[Pool, ...]:
    def offering(type_: str, zone: str) -> Offering:
        spot, full = (world.price_of(type_, each) for each in (Market.SPOT, Market.ON_DEMAND))
        return Offering(type_, zone, spot, full, world.types[type_].vcpus)

    types = ("m5.large", "c5.large")
    wide = tuple(offering(*each) for each in itertools.product(types, world.zones))
    terms = Timeouts(launch_s=60, boot_s=120, bind_s=120)
    more = {"idle_s": 60.0, "batch_s": 0.0, "timeouts": terms, "config_hash": "c"}
    return (
        Pool(PoolName("wide"), (SYSTEM,), offerings=wide, max=4, is_zonal=False, **more),  # type: ignore[arg-type]
        Pool(PoolName("kvm"), (SYSTEM,), ("kvm",), ("kvm",), offerings=wide[:1], max=2, **more),  # type: ignore[arg-type]
    )


class Farm:
    """One life after the other of planner and driver, round by round."""

    def __init__(self, seed: int, world: FakeEc2, url: str) -> None:
        self.rng = random.Random(seed)
        self.world = world
        self.pools = pools(world)
        subnets = {zone: subnet for subnet, zone in world.subnets.items()}
        self.ec2_pools = {each.name: Ec2Pool(each, "ami-1", subnets) for each in self.pools}
        self.settings = Ec2Settings("farm", region="us-east-1", endpoint=url)
        self.disk = Disk()
        self.needs: tuple[Need, ...] = ()
        self.told: list[on.Event] = []
        self.draining: set[InstanceId] = set()
        self.lives = 0
        self.begin()

    def begin(self) -> None:
        self.lives += 1
        self.told.clear()
        self.cloud = Ec2Cloud(
            self.settings, self.ec2_pools, self.user_data, clock=self.world.clock, session=session()
        )
        rules = Rules("farm", ReadyBy.AGENT, settle_s=self.world.lag_s)
        self.core = Capacity(rules, self.pools)
        self.handle([self.disk.recalled(self.world.clock.now)])

    async def user_data(self, order: LaunchOrder) -> str:
        return f"#!/bin/sh\n: {order.token}\n"

    def handle(self, events: Sequence[on.Event]) -> list[do.Effect]:
        effects = self.core.handle(self.world.clock.now, events)
        for each in effects:
            if isinstance(each, do.Save):
                self.disk.save(each)
        return [each for each in effects if not isinstance(each, do.Save)]

    async def round(self) -> None:
        self.world.clock.ahead(STEP_S)
        try:
            listed: tuple[Instance, ...] | None = await self.cloud.instances()
        except OutsideError:
            listed = None
        seen = Observation(listed, None, self.presences(), needs=self.needs)
        told, self.told = self.told, []
        acts = self.handle([*told, on.Observed(seen)])
        await asyncio.gather(*(self.act(each) for each in acts))
        self.audit()

    async def act(self, act: do.Effect) -> None:
        match act:
            case do.Launch(order):
                said = await self.cloud.launch(order)
                self.told.append(
                    on.LaunchAnswered(
                        order.slot, order.token, said.answer, said.message, said.failed
                    )
                )
            case do.Terminate(_, instance):
                try:
                    await self.cloud.terminate(instance)
                except OutsideError:
                    pass  # said again
            case do.SetAgent(_, instance, is_draining):
                (self.draining.add if is_draining else self.draining.discard)(instance)
            case _:
                pass  # nobody waits, and nothing is bound

    async def die(self) -> None:
        """At times with all that was written down: what the tags say is all there is."""
        await self.cloud.close()
        if self.rng.random() < 0.3:
            self.disk = Disk()
        self.begin()

    def presences(self) -> tuple[Presence, ...]:
        """Agents join once their instances have booted, and have nothing to do."""
        return tuple(
            Presence(
                SlotId(each.tags["grange:slot"]), InstanceId(each.id), 0, each.id in self.draining
            )
            for each in self.world.live()
            if each.runs_at + BOOT_S <= self.world.clock.now
        )

    def audit(self) -> None:
        live = self.world.live()
        seats = Counter((each.tags["grange:slot"], each.tags["grange:generation"]) for each in live)
        assert all(number == 1 for number in seats.values()), seats
        for pool in self.pools:
            own = [each for each in live if each.tags["grange:pool"] == pool.name]
            assert len(own) <= pool.max, f"{len(own)} instances of {pool.name}"
        assert all(each.tags["grange:farm"] == "farm" for each in live)

    def is_quiet(self) -> bool:
        return not self.world.live() and all(each.state in VACANT for each in self.core.slots())


def troubles(farm: Farm) -> None:
    """What befalls a call from now on."""
    draws = random.Random(farm.rng.random())

    def chaos(action: str) -> Fault | None:
        drawn = draws.random()
        if action in LAUNCHES:
            if drawn < 0.15:
                return Fault(action, LOST, is_applied=True)
            if drawn < 0.2:
                return Fault(action, LOST)
            if drawn < 0.4:
                code, status = draws.choice(REFUSALS)
                return Fault(action, code, "by chance", status)
        elif drawn < 0.1:
            return Fault(action, draws.choice((LOST, "RequestLimitExceeded")), status=503)
        return None

    farm.world.chaos = chaos


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_nothing_is_launched_twice_and_nothing_is_left(seed: int) -> None:
    world = FakeEc2(seed, lag_s=12.0, pending_s=7.0, ending_s=6.0)
    async with serving(world) as url:
        farm = Farm(seed, world, url)
        troubles(farm)
        for number in range(60):
            if number % 12 == 0:
                wanted = farm.rng.randrange(7), farm.rng.randrange(3)
                kvm = Need(SYSTEM, ("kvm",), waiting=wanted[1])
                farm.needs = (Need(SYSTEM, waiting=wanted[0]), kvm)
            if farm.rng.random() < 0.08:
                await farm.die()
            live = world.live()
            if live and farm.rng.random() < 0.1:
                taken = farm.rng.choice(live)
                world.interrupt(taken.id, farm.rng.choice((0.0, 120.0)), farm.rng.random() < 0.5)
            await farm.round()
        assert farm.lives > 1
        assert len(world.machines) > 3

        world.chaos = lambda _: None
        farm.needs = ()
        rounds = itertools.count()
        while not farm.is_quiet():
            assert next(rounds) < 240, [each for each in farm.core.slots() if each.instance]
            await farm.round()
        before = len(world.calls)
        for _ in range(5):
            await farm.round()
        assert {action for action, _ in world.calls[before:]} == {"ec2:DescribeInstances"}

        farm.needs = (Need(SYSTEM, waiting=2),)  # it works again
        while not [each for each in farm.core.slots() if each.state is SlotState.READY]:
            assert next(rounds) < 900
            await farm.round()
        await farm.cloud.close()
