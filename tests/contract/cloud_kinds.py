"""The clouds that the contract is tried on, and what each can be made to do."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Final, Protocol

import boto3
from moto.server import ThreadedMotoServer

from grange.capacity.facts import (
    Instance,
    InstanceId,
    InstanceState,
    LaunchOrder,
    Market,
    Offering,
    Pool,
    PoolName,
    SlotId,
)
from grange.cloud.ec2.cloud import Ec2Cloud
from grange.cloud.ec2.settings import Ec2Pool, Ec2Settings
from grange.cloud.local import LocalCloud, LocalCommand
from grange.errors import GrangeError
from grange.ports import Clock, Cloud
from tests.fake_ec2.server import serving
from tests.fake_ec2.world import FakeEc2

LIVE: Final = (InstanceState.PENDING, InstanceState.RUNNING)
QUEUE: Final = "http://127.0.0.1/123456789012/grange"
CREDENTIALS: Final = ("AKFAKE", "fake-secret")


class CloudKind(Protocol):
    """A cloud, and the power over it that tests need."""

    failure: GrangeError | None  # of what a launch asks its caller for

    @property
    def cloud(self) -> Cloud: ...

    @property
    def pool(self) -> Pool: ...

    async def reborn(self) -> None:
        """Whoever looked after it has died, and another has taken over."""

    def ahead(self, by_s: float) -> None:
        """Time goes by, where it is ours."""

    def interrupt(self, id_: InstanceId, after_s: float) -> None: ...

    async def close(self) -> None: ...


def order(
    kind: CloudKind,
    number: int = 1,
    *,
    generation: int = 1,
    market: Market = Market.SPOT,
    offerings: tuple[Offering, ...] | None = None,
) -> LaunchOrder:
    return LaunchOrder(
        SlotId(f"{kind.pool.name}-{number}"),
        generation,
        f"token-{number}-{generation}",
        kind.pool,
        market,
        kind.pool.offerings if offerings is None else offerings,
    )


async def launched(kind: CloudKind, number: int = 1, **more: Any) -> Instance:
    said = await kind.cloud.launch(order(kind, number, **more))
    assert isinstance(said.answer, Instance), said
    return said.answer


async def until(kind: CloudKind, id_: InstanceId, wanted: Callable[[Instance], bool]) -> Instance:
    """The instance as it is listed, once it is so; time goes by meanwhile, where it is ours."""
    while True:
        for each in await kind.cloud.instances():
            if each.id == id_ and wanted(each):
                return each
        kind.ahead(1.0)
        await asyncio.sleep(0.01)


class LocalKind:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.ahead_s = 0.0
        self.failure: GrangeError | None = None
        self.pool = Pool(
            PoolName("local"),
            ("x86_64-linux",),
            offerings=(Offering("process", "here", 0.1, 0.3, 2),),
            config_hash="c0",
        )
        self.cloud: Cloud = self._born()

    def monotonic_s(self) -> float:
        return time.monotonic() + self.ahead_s

    def wall_s(self) -> float:
        return time.time() + self.ahead_s

    def _born(self) -> LocalCloud:
        return LocalCloud(self._folder, self._command, clock=self, notice_poll_s=0.01)

    async def _command(self, order: LaunchOrder) -> LocalCommand:
        if self.failure is not None:
            raise self.failure
        return LocalCommand(("/bin/sleep", "600"), {})

    async def reborn(self) -> None:
        await self.cloud.close()
        self.cloud = self._born()

    def ahead(self, by_s: float) -> None:
        self.ahead_s += by_s

    def interrupt(self, id_: InstanceId, after_s: float) -> None:
        self._born().interrupt(id_, after_s)

    async def close(self) -> None:
        for each in await self.cloud.instances():
            await self.cloud.terminate(each.id)
        while any(
            each.state is not InstanceState.TERMINATED for each in await self.cloud.instances()
        ):
            self.ahead(1.0)
            await asyncio.sleep(0.01)


class Ec2Kind:
    """On whichever EC2 answers at `url`."""

    def __init__(self, url: str, pool: Ec2Pool, clock: Clock, queue: str = "") -> None:
        self.settings = Ec2Settings(
            "farm", region="us-east-1", endpoint=url, sqs_url=queue, notice_poll_s=0.02
        )
        self.ec2_pool = pool
        self.clock = clock
        self.failure: GrangeError | None = None
        self.user_data = "#cloud-config\n"
        self.world: FakeEc2 | None = None
        self.cloud: Ec2Cloud = self._born()

    @property
    def pool(self) -> Pool:
        return self.ec2_pool.pool

    def _born(self) -> Ec2Cloud:
        pools = {self.pool.name: self.ec2_pool}
        return Ec2Cloud(self.settings, pools, self._user_data, clock=self.clock, session=session())

    async def _user_data(self, order: LaunchOrder) -> str:
        if self.failure is not None:
            raise self.failure
        return self.user_data

    async def reborn(self) -> None:
        await self.cloud.close()
        self.cloud = self._born()

    def ahead(self, by_s: float) -> None:
        if self.world is not None:
            self.world.clock.ahead(by_s)

    def interrupt(self, id_: InstanceId, after_s: float) -> None:
        assert self.world is not None
        self.world.interrupt(id_, after_s)

    async def close(self) -> None:
        await self.cloud.close()


@cache
def session() -> boto3.Session:
    """Of all tests: reading what EC2 is takes it a second."""
    return boto3.Session(*CREDENTIALS)


def ec2_pool(image: str, subnets: dict[str, str], **more: Any) -> Ec2Pool:
    offerings = (
        Offering("m5.large", "us-east-1a", 0.04, 0.096, 2),
        Offering("c5.large", "us-east-1b", 0.03, 0.085, 2),
    )
    pool = Pool(
        PoolName("x86"),
        ("x86_64-linux",),
        offerings=offerings,
        config_hash="c1",
        is_zonal=False,
    )
    return Ec2Pool(pool, image, subnets, **more)


@asynccontextmanager
async def fake_kind(world: FakeEc2, **more: Any) -> AsyncIterator[Ec2Kind]:
    async with serving(world) as url:
        subnets = {zone: subnet for subnet, zone in world.subnets.items()}
        kind = Ec2Kind(url, ec2_pool("ami-1", subnets, **more), world.clock, QUEUE)
        kind.world = world
        yield kind
        await kind.close()


@contextmanager
def moto_ec2() -> Iterator[str]:
    """The URL of moto's EC2."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    try:
        yield f"http://{host}:{port}"
    finally:
        server.stop()


def moto_pool(url: str) -> Ec2Pool:
    """Of the image and the subnets that moto begins with."""
    client = session().client("ec2", endpoint_url=url, region_name="us-east-1")
    subnets = {
        each["AvailabilityZone"]: each["SubnetId"] for each in client.describe_subnets()["Subnets"]
    }
    image = next(
        each["ImageId"]
        for each in client.describe_images()["Images"]
        if each["Architecture"] == "x86_64"
    )
    client.close()
    return ec2_pool(image, subnets)
