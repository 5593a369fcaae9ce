"""What instances are started with, and where they find the farm."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from grange.capacity.facts import LaunchOrder, Market, Need, Offering, PoolName, SlotId
from grange.cli.capacity_tables import CapacityFile
from grange.cli.config import Address, ServeConfig
from grange.cli.farm_file import FarmFile, TlsPaths, read_farm_file
from grange.db.capacity import SqlCapacity
from grange.errors import FencedError, OperatorError, OutsideError
from grange.main_capacity import FarmCapacity, agent_command, coordinators_of
from grange.main_clouds import filled
from grange.ports import CapacityRecord, CapacityStore
from grange.scheduler.facts import Limits, QueueKey
from tests.unit.test_coordinator_workforce import NoActor, Place

FARM = "http://farm.example:7381"
OTHER = "http://other.example:7381"
FILE = """
[capacity]
farm = "ci"
[pools.here]
cloud = "local"
systems = ["x86_64-linux", "i686-linux"]
features = ["kvm"]
mandatory_features = ["big"]
tags = ["blue"]
capacity = 3
local.agent_options = ["--no-sandbox"]
local.environment = { NIX_CONFIG = "cores = 1" }
[pools.there]
cloud = "local"
systems = ["x86_64-linux"]
local.command = ["sleep", "1"]
[pools.far]
cloud = "ec2"
systems = ["x86_64-linux"]
types."c7i.large" = { spot = 0.1 }
ec2.image = "ami-1"
ec2.subnets.a = "subnet-1"
[pools.own]
cloud = "ec2"
systems = ["x86_64-linux"]
types."c7i.large" = { spot = 0.1 }
ec2.image = "ami-1"
ec2.subnets.a = "subnet-1"
ec2.user_data = "own.sh"
[ec2]
region = "eu-nowhere-1"
"""


def file_of(folder: Path, text: str = FILE) -> FarmFile:
    path = folder / "farm.toml"
    path.write_text(text)
    (folder / "own.sh").write_text("#!/bin/sh\njoin @COORDINATOR@ @REGISTRATION@ as @SLOT@\n")
    return read_farm_file(path, Limits())


@pytest.fixture
async def place() -> AsyncIterator[Place]:
    place = Place()
    working = asyncio.create_task(place.loop.run(NoActor()))
    await place.loop.ready.wait()
    yield place
    working.cancel()
    await asyncio.wait((working,))


def capacity_of(
    place: Place, file: CapacityFile, folder: Path, store: CapacityStore | None = None
) -> FarmCapacity:
    farm: Any = SimpleNamespace(
        loop=place.loop,
        accounts=place.journal.accounts,
        keeper=place.keeper,
        metrics=SimpleNamespace(registry=CollectorRegistry()),
        while_leading=[],
    )
    return FarmCapacity(
        farm,
        file,
        clock=place.clock,
        store=store or place.journal.capacity,
        key=b"k" * 32,
        state=folder,
        coordinators=[FARM, OTHER],
    )


def order(file: CapacityFile, pool: str, token: str = "t1") -> LaunchOrder:
    [found] = [each for each in file.pools if each.name == pool]
    slot = SlotId(f"{pool}-1")
    return LaunchOrder(slot, 1, token, found, Market.SPOT, found.offerings)


async def test_a_local_instance_is_an_agent_that_offers_what_its_pool_says(
    place: Place, tmp_path: Path
) -> None:
    file = file_of(tmp_path).capacity
    capacity = capacity_of(place, file, tmp_path)
    asked = order(file, "here")
    command = await capacity.command(asked)
    assert await capacity.command(asked) == command, "asked again it is the same"
    words = " ".join(command.argv)
    assert " ".join(agent_command(asked, [FARM, OTHER])) in words
    assert words.endswith("--no-sandbox"), "what operators add comes last, and holds"
    for said in (
        f"--coordinator {FARM} --coordinator {OTHER}",
        "--name here-1",
        "--max-jobs 3",
        "--system x86_64-linux --system i686-linux",
        "--feature big --feature kvm",
        "--mandatory-feature big",
    ):
        assert said in words
    token = command.env["GRANGE_REGISTRATION"]
    assert token not in words
    assert "cores = 1\nextra-system-features = big kvm" in command.env["NIX_CONFIG"]
    other = await capacity.command(order(file, "here", "t2"))
    assert other.env["GRANGE_REGISTRATION"] != token
    assert (await capacity.command(order(file, "there"))).argv == ("sleep", "1")
    await capacity.close()


async def test_user_data_has_the_launchs_own_token_and_is_the_same_each_time(
    place: Place, tmp_path: Path
) -> None:
    file = file_of(tmp_path).capacity
    capacity = capacity_of(place, file, tmp_path)
    for pool in ("far", "own"):
        text = await capacity.user_data(order(file, pool))
        assert text == await capacity.user_data(order(file, pool))
        assert text != await capacity.user_data(order(file, pool, "t2"))
        assert f"{pool}-1" in text
        assert f"{FARM} --coordinator {OTHER}" in text
        assert "grange_" in text
        assert "@" not in text.replace("user@", "").split("runcmd")[0][:200]
    assert (await capacity.user_data(order(file, "own"))).startswith("#!/bin/sh\njoin http://farm")
    assert (await capacity.user_data(order(file, "far"))).startswith("#cloud-config")
    await capacity.close()


async def test_pools_that_are_read_anew_hold_at_once(place: Place, tmp_path: Path) -> None:
    file = file_of(tmp_path).capacity
    capacity = capacity_of(place, file, tmp_path)
    asked = order(file, "there")
    less = {name: each for name, each in file.local.pools.items() if name != "there"}
    pools = tuple(each for each in file.pools if each.name != "there")
    capacity.change(replace(file, pools=pools, local=replace(file.local, pools=less)))
    with pytest.raises(OperatorError, match="is no pool of local processes any more"):
        await capacity.command(asked)
    with pytest.raises(OutsideError, match="does not lead"):
        capacity.autoscaler()
    await capacity.close()


def test_a_word_of_user_data_that_is_not_known_is_told(tmp_path: Path) -> None:
    asked = order(file_of(tmp_path).capacity, "own")
    assert filled("@SLOT@ of @POOL@, a@b.c, @X", asked, word="w") == "own-1 of own, a@b.c, @X"
    with pytest.raises(OperatorError, match=r"asks for @TOKEN@; there are @SLOT@, .*@WORD@"):
        filled("@TOKEN@", asked, word="w")


@pytest.mark.parametrize(
    ("listens", "said", "is_tls", "found"),
    [
        ("127.0.0.1:7381", None, False, "http://127.0.0.1:7381"),
        ("0.0.0.0:7381", None, False, "http://127.0.0.1:7381"),
        ("[::]:7381", None, True, "https://127.0.0.1:7381"),
        ("[::1]:7381", None, False, "http://[::1]:7381"),
        ("127.0.0.1:0", "farm.example:1", True, "https://farm.example:1"),
        ("127.0.0.1:0", "http://farm.example:1", True, "http://farm.example:1"),
    ],
)
def test_where_instances_find_the_farm(
    tmp_path: Path, listens: str, said: str | None, is_tls: bool, found: str
) -> None:
    text = '[pools.here]\ncloud = "local"\nsystems = ["a"]\n'
    text += "" if said is None else f'[capacity]\ncoordinator = "{said}"\n'
    file = file_of(tmp_path, text)
    if is_tls:
        file = replace(file, tls=TlsPaths(tmp_path, tmp_path))
    assert coordinators_of(ServeConfig(agents=Address.parse(listens), farm=file)) == (found,)


def test_a_farm_that_instances_could_not_find_does_not_start(tmp_path: Path) -> None:
    file = file_of(tmp_path)
    with pytest.raises(OperatorError, match=r"instances of far, own cannot reach a farm at http"):
        coordinators_of(ServeConfig(agents=Address("127.0.0.1", 7381), farm=file))
    local = file_of(tmp_path, '[pools.a]\ncloud = "local"\nsystems = ["a"]\n[capacity]\nca = "x"')
    with pytest.raises(OperatorError, match=r"ca in \[capacity\] is for a farm with \[tls\]"):
        coordinators_of(ServeConfig(agents=Address("127.0.0.1", 7381), farm=local))
    tls = TlsPaths(tmp_path, tmp_path, tmp_path / "agents-ca.pem")
    with pytest.raises(OperatorError, match="asks agents for certificates, and instances"):
        coordinators_of(ServeConfig(farm=replace(local, tls=tls)))
    with pytest.raises(OperatorError, match="cannot know on which port"):
        coordinators_of(ServeConfig(agents=Address("127.0.0.1", 0), farm=file))


@pytest.mark.timeout(60)
async def test_what_offerings_cost_is_told_to_the_autoscaler(place: Place, tmp_path: Path) -> None:
    file = file_of(tmp_path).capacity
    capacity = capacity_of(place, file, tmp_path)
    told: asyncio.Queue[Any] = asyncio.Queue()
    autoscaler: Any = SimpleNamespace(change_pools=told.put_nowait)
    clouds: Any = capacity.clouds

    async def appraise(offerings: tuple[Offering, ...]) -> tuple[Offering, ...]:
        return tuple([replace(each, price_spot=0.7) for each in offerings])

    clouds._ec2.appraise = appraise
    keeping = asyncio.create_task(capacity.clouds.keep_prices(autoscaler))
    pools = {pool.name: pool for pool in await told.get()}
    assert [each.price_spot for each in pools[PoolName("far")].offerings] == [0.7]
    assert pools[PoolName("here")] == next(each for each in file.pools if each.name == "here")
    fewer = {name: each for name, each in file.ec2_pools.items() if name == "far"}
    capacity.clouds.change(replace(file, pools=file.pools[:3], ec2_pools=fewer))
    assert [pool.name for pool in await told.get()] == ["here", "there", "far"]
    keeping.cancel()
    await asyncio.wait((keeping,))
    await capacity.close()


async def test_why_a_step_waits_is_asked_of_the_pools_that_could_serve_it(
    place: Place, tmp_path: Path
) -> None:
    capacity = capacity_of(place, file_of(tmp_path).capacity, tmp_path)
    [said] = capacity.words(QueueKey("x86_64-linux"))
    assert "the pools cannot be asked: this coordinator does not lead" in said
    capacity._current = SimpleNamespace(explain_pool=lambda name: f"why {name}")  # type: ignore[assignment]
    assert capacity.words(QueueKey("x86_64-linux")) == [
        f"pool {name}: why {name}" for name in ("there", "far", "own")
    ]
    assert capacity.words(QueueKey("i686-linux", ("big",))) == ["pool here: why here"]
    assert capacity.words(QueueKey("aarch64-linux")) == []
    await capacity.close()


async def test_an_autoscaler_that_fails_begins_anew_and_is_given_up_to_another_leader(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("grange.main_capacity.AGAIN_S", 0.0)
    file = file_of(tmp_path, '[pools.a]\ncloud = "local"\nsystems = ["a"]\n').capacity
    errors: list[Exception] = [
        ValueError("a bug"),
        OperatorError("a wrong"),
        FencedError("b leads"),
    ]

    class Store(SqlCapacity):
        async def recall(self, now: float) -> CapacityRecord:
            raise errors.pop(0)

    store = Store(place.journal.capacity._engine)
    capacity = capacity_of(place, file, tmp_path, store)
    with pytest.raises(ExceptionGroup) as ended:
        await capacity.run()
    assert ended.value.subgroup(FencedError)
    assert not errors
    with pytest.raises(OutsideError, match="begins anew soon: ValueError"):
        capacity.autoscaler()
    await capacity.close()


async def test_work_of_a_new_kind_is_looked_at_soon_and_once(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("grange.main_capacity.WATCH_S", 0.0)
    capacity = capacity_of(place, file_of(tmp_path).capacity, tmp_path)
    asked: list[str] = []
    looked = asyncio.Event()

    async def needs() -> tuple[Need, ...]:
        asked.append("")
        if len(asked) >= 10:
            looked.set()
        return tuple(waiting)

    async def judge() -> None:
        judged.append(len(waiting))

    judged: list[int] = []
    waiting = [Need("arm", running=3)]
    capacity._workforce.needs = needs  # type: ignore[method-assign]
    capacity._workforce.judge = judge  # type: ignore[method-assign]
    told: list[int] = []
    autoscaler: Any = SimpleNamespace(look_soon=lambda: told.append(len(waiting)))
    watching = asyncio.create_task(capacity.watch(autoscaler))

    async def often() -> None:
        asked.clear()
        looked.clear()
        await looked.wait()

    await often()
    assert told == [], "it runs already"
    waiting.append(Need("x86", waiting=1))
    await often()
    assert told == [2]
    waiting[1] = Need("x86", waiting=9)
    await often()
    assert told == [2], "more of the same waits for the next round"
    waiting.append(Need("x86", ("kvm",), waiting=1))
    await often()
    assert told == [2, 3]
    waiting.append(Need("x86", ("kvm",), waiting=1, is_on_demand=True))
    await often()
    assert told == [2, 3, 4], "what is there for the others may be of no use to it"
    assert set(judged) == {1, 2, 3, 4}, "and each look says who lasts"
    watching.cancel()
    await asyncio.wait((watching,))
    await capacity.close()
