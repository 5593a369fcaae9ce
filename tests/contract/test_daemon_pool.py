"""The pool: bounded, warm, and rid of connections that are broken or worn out."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from grange.daemon import Daemon, DaemonPool, GcAction
from grange.errors import OutsideError
from tests.contract.test_daemon_store import made_up
from tests.peers import NixStore

pytestmark = pytest.mark.peer


class Maker:
    """Connects, and remembers what it made."""

    def __init__(self, store: NixStore) -> None:
        self.store = store
        self.made: list[Daemon] = []
        self.failure: Exception | None = None

    async def __call__(self) -> Daemon:
        if self.failure is not None:
            raise self.failure
        self.made.append(await self.store.connect())
        return self.made[-1]


@pytest.fixture
async def maker(nix_store: NixStore) -> AsyncIterator[Maker]:
    maker = Maker(nix_store)
    yield maker
    assert all(daemon.is_broken for daemon in maker.made), "the pool left a connection open"


async def test_a_connection_is_used_again(maker: Maker) -> None:
    async with DaemonPool(maker, 2) as pool:
        for _ in range(3):
            async with pool.lease() as daemon:
                await daemon.find_roots()
        assert len(maker.made) == 1
        async with pool.lease() as one, pool.lease() as two:
            assert one is not two
        assert len(maker.made) == 2


async def test_no_more_than_its_bound(maker: Maker) -> None:
    async with DaemonPool(maker, 1) as pool:
        got = asyncio.Event()

        async def second() -> None:
            async with pool.lease():
                got.set()

        async with pool.lease():
            waiting = asyncio.create_task(second())
            for _ in range(10):
                await asyncio.sleep(0)
            assert not got.is_set()
        await waiting
        assert len(maker.made) == 1


async def test_broken_and_worn_ones_are_replaced(maker: Maker) -> None:
    async with DaemonPool(maker, 1, builds_max=2) as pool:
        async with pool.lease() as daemon:
            await daemon.aclose()
        async with pool.lease() as daemon:
            daemon.builds_done = 1
        async with pool.lease() as again:
            assert again is daemon
            daemon.builds_done = 2
        async with pool.lease() as fresh:
            assert fresh is not daemon
            assert daemon.is_broken
        assert len(maker.made) == 3


async def test_a_failure_to_connect_frees_the_place(maker: Maker) -> None:
    async with DaemonPool(maker, 1) as pool:
        maker.failure = OutsideError("no daemon")
        with pytest.raises(OutsideError, match="no daemon"):
            async with pool.lease():
                pass
        maker.failure = None
        async with pool.lease() as daemon:
            assert not daemon.is_broken


async def test_an_idle_one_that_died_is_not_handed_out(maker: Maker) -> None:
    async with DaemonPool(maker, 1) as pool:
        async with pool.lease() as daemon:
            pass
        await daemon.aclose()
        async with pool.lease() as other:
            await other.find_roots()


async def test_retiring_all_frees_what_they_pinned(maker: Maker) -> None:
    info, nar = made_up("a")
    async with DaemonPool(maker, 3) as pool:
        async with pool.lease() as keeper, pool.lease() as importer:
            await importer.add_multiple_to_store([(info, nar)], check_signatures=False)
            assert await keeper.collect_garbage(GcAction.RETURN_DEAD) == ((), 0)
        async with pool.lease() as leased:
            await pool.retire_all()
            assert not leased.is_broken
            idle = importer if leased is keeper else keeper
            assert idle.is_broken
        async with pool.lease() as fresh:
            assert fresh not in {keeper, importer}
            paths, _ = await fresh.collect_garbage(GcAction.RETURN_DEAD)
            assert set(paths) <= {info.path}
        await pool.retire_all()
        async with pool.lease() as fresh:
            paths, _ = await fresh.collect_garbage(GcAction.RETURN_DEAD)
            assert paths == (info.path,)
