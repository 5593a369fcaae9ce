"""How inputs reach a real store, from a cache that lies, stalls and fails."""

import asyncio
from collections.abc import Iterable
from pathlib import Path

import pytest
import zstandard

import grange.agent.fetch
from grange.scheduler.facts import Outcome
from grange.store.hash import Hash
from grange.store.keys import SecretKey
from grange.store.nar import nar_of_text
from grange.store.path import NIX_STORE, StorePath
from grange.wire.messages import Orders
from tests.integration.scripted_farm import ScriptedFarm, bench, path_named

pytestmark = pytest.mark.peer


def publish(farm: ScriptedFarm, name: str, references: Iterable[StorePath] = ()) -> StorePath:
    """A text that names its references; they are published before."""
    path = path_named(name)
    farm.publish(path, nar_of(name, references), references)
    return path


def nar_of(name: str, references: Iterable[StorePath] = ()) -> bytes:
    return nar_of_text("\n".join((name, *map(NIX_STORE.show, references))).encode())


async def test_fetches_a_closure_once_for_all(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        base = publish(b.farm, "base")
        middle = publish(b.farm, "middle", [base])
        top = publish(b.farm, "top", [middle])
        publish(b.farm, "unrelated")
        gate = asyncio.Event()
        b.farm.before_nar = lambda _: gate
        orders = [
            b.farm.order(b.drv(f"use{i}", f"cat {NIX_STORE.show(base)} > $out", inputs=[top]))
            for i in range(2)
        ]
        await b.farm.until(lambda: len(b.farm.nar_requests) == 3 and b.farm.requisites_asked == 2)
        gate.set()
        for id_ in orders:
            await b.delivered(id_)
        assert len(b.farm.nar_requests) == 3
        assert all(built.usage.fetch_s for built in b.farm.built)
        assert nar_of_text(b"base") in b.farm.uploads.values()


async def test_fetches_many_and_deep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory for a few only: those that hold it must be the ones that others wait for."""
    monkeypatch.setattr(grange.agent.fetch, "MEMORY_BYTES", 3000)
    async with bench(tmp_path) as b:
        chain: list[StorePath] = []
        for i in range(120):
            chain.append(publish(b.farm, f"link{i}", chain[-2:]))
        for i, path in enumerate(chain[-3:]):
            script = f"cat {NIX_STORE.show(chain[0])} > $out"
            await b.delivered(b.farm.order(b.drv(f"use{i}", script, inputs=[path])))
        assert len(b.farm.nar_requests) == 120


async def test_streams_what_is_big(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        small = publish(b.farm, "small")
        big = path_named("big")
        text = NIX_STORE.show(small).encode() * 100_000
        b.farm.publish(big, nar_of_text(text), [small])
        last = publish(b.farm, "last", [big])
        script = f"cat {NIX_STORE.show(big)} > $out"
        await b.delivered(b.farm.order(b.drv("use", script, inputs=[last])))
        assert nar_of_text(text) in b.farm.uploads.values()


@pytest.mark.parametrize("size", [10, 3_000_000])
@pytest.mark.parametrize("lie", ["signature", "hash", "short", "long", "junk"])
async def test_lies_are_refused(tmp_path: Path, lie: str, size: int) -> None:
    async with bench(tmp_path) as b:
        path = path_named("liar")
        nar = nar_of_text(b"x" * size)
        if lie == "signature":
            stranger = SecretKey.generate("farm-1", bytes(32))
            b.farm.publish(path, nar, key=stranger)
        elif lie == "hash":
            b.farm.publish(path, nar, nar_hash=Hash.of("sha256", b"another"))
        else:
            b.farm.publish(path, nar)
            (name,) = b.farm.nars
            b.farm.nars[name] = {
                "short": zstandard.compress(nar[:-8]),
                "long": zstandard.compress(nar + bytes(8)),
                "junk": b"no zstd at all",
            }[lie]
        id_ = b.farm.order(b.drv("use", "echo > $out", inputs=[path]))
        outcome, message = await b.failure(id_)
        assert path in message
        if lie == "signature":
            assert outcome is Outcome.FETCH_FAILED
        else:  # the farm is to look whether it has lost the right bytes
            assert outcome is Outcome.INPUTS_MISSING
            assert b.farm.failed[id_].missing == (path,)
            assert len(b.farm.nar_requests) == 2
        async with await b.store.connect() as daemon:
            assert not await daemon.query_valid_paths([path])
        await b.delivered(b.farm.order(b.drv("after", "echo > $out")))


@pytest.mark.parametrize("size", [10, 3_000_000])
async def test_bytes_spoilt_on_the_road_are_fetched_again(tmp_path: Path, size: int) -> None:
    async with bench(tmp_path) as b:
        path = path_named("spoilt-once")
        nar = nar_of_text(b"x" * size)
        b.farm.publish(path, nar)
        (name,) = b.farm.nars
        right, b.farm.nars[name] = b.farm.nars[name], zstandard.compress(nar[:-9] + bytes(9))

        def mend(_: str) -> None:
            if len(b.farm.nar_requests) == 2:
                b.farm.nars[name] = right

        b.farm.before_nar = mend
        await b.delivered(b.farm.order(b.drv("use", "echo > $out", inputs=[path])))
        assert len(b.farm.nar_requests) == 2


async def test_one_lie_spoils_nothing_else(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        good = [publish(b.farm, f"good{i}") for i in range(5)]
        bad = path_named("bad")
        b.farm.publish(bad, nar_of("bad"), nar_hash=Hash.of("sha256", b"another"))
        spoilt = b.farm.order(b.drv("spoilt", "echo > $out", inputs=[bad]))
        fine = b.farm.order(b.drv("fine", "echo > $out", inputs=good))
        assert (await b.failure(spoilt))[0] is Outcome.INPUTS_MISSING
        assert b.farm.failed[spoilt].missing == (bad,)
        await b.delivered(fine)


@pytest.mark.parametrize("where", ["coordinator", "narinfo", "nar"])
async def test_what_is_missing_is_named(tmp_path: Path, where: str) -> None:
    async with bench(tmp_path) as b:
        path = publish(b.farm, "gone")
        if where == "coordinator":
            b.farm.closure.clear()
        elif where == "narinfo":
            b.farm.narinfos.clear()
        else:
            b.farm.nars.clear()
        outcome, message = await b.failure(b.farm.order(b.drv("use", "echo > $out", inputs=[path])))
        assert outcome is Outcome.INPUTS_MISSING
        assert path in message


async def test_a_broken_download_goes_on_where_it_broke(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        path = path_named("broken")
        text = bytes(range(256)) * 40_000
        b.farm.publish(path, nar_of_text(text))
        b.farm.break_after = 1000
        script = f"cat {NIX_STORE.show(path)} > $out"
        await b.delivered(b.farm.order(b.drv("use", script, inputs=[path])))
        assert nar_of_text(text) in b.farm.uploads.values()
        assert len(b.farm.nar_requests) == 2


@pytest.mark.parametrize("sent", [0, 1000])
async def test_a_download_goes_on_at_once_at_the_next_leader(tmp_path: Path, sent: int) -> None:
    """The last one hangs, in the midst of an answer or before it."""
    async with bench(tmp_path) as b:
        path = path_named("frozen")
        text = bytes(range(256)) * 40_000
        b.farm.publish(path, nar_of_text(text))
        never = asyncio.Event()
        b.farm.before_nar = lambda _: never
        b.farm.hang_after = sent
        script = f"cat {NIX_STORE.show(path)} > $out"
        id_ = b.farm.order(b.drv("use", script, inputs=[path]))
        await b.farm.until(lambda: len(b.farm.nar_requests) == 1)
        b.farm.before_nar = lambda _: None
        b.farm.hang_after = 0
        b.farm.url = b.farm.url.replace("127.0.0.1", "localhost")  # another to the agent
        b.farm.cut()
        await b.delivered(id_)
        assert nar_of_text(text) in b.farm.uploads.values()
        assert len(b.farm.nar_requests) == 2
        never.set()


async def test_a_cache_that_stays_ill_fails_the_fetch(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        path = publish(b.farm, "ill")
        b.farm.nar_status = 503
        outcome, message = await b.failure(b.farm.order(b.drv("use", "echo > $out", inputs=[path])))
        assert outcome is Outcome.FETCH_FAILED
        assert "503" in message


async def test_aborting_one_leaves_the_flight_to_the_other(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        path = publish(b.farm, "shared")
        gate = asyncio.Event()
        b.farm.before_nar = lambda _: gate
        first, second = (
            b.farm.order(b.drv(f"use{i}", "echo > $out", inputs=[path])) for i in range(2)
        )
        flights = b.agent._fetcher._flights
        await b.farm.until(lambda: path in flights and flights[path].wanted == 2)
        await b.farm.until(lambda: bool(b.farm.nar_requests))
        b.farm.say(Orders(0, aborts=(first,)))
        await b.farm.until(lambda: [id_ for id_, _ in b.farm.beats[-1].attempts] == [second])
        gate.set()
        await b.delivered(second)
        assert len(b.farm.nar_requests) == 1


async def test_aborted_and_ordered_anew_it_is_fetched_anew(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        path = publish(b.farm, "again")
        never = asyncio.Event()
        b.farm.before_nar = lambda _: never
        first = b.farm.order(b.drv("use", "echo > $out", inputs=[path]))
        await b.farm.until(lambda: bool(b.farm.nar_requests))
        b.farm.before_nar = lambda _: None
        b.farm.say(Orders(0, aborts=(first,)))
        await b.delivered(b.farm.order(b.drv("use", "echo > $out", inputs=[path])))
        never.set()


async def test_inputs_collected_meanwhile_are_fetched_again(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        path = publish(b.farm, "fleeting")
        use = f"cat {NIX_STORE.show(path)} > $out"
        await b.delivered(b.farm.order(b.drv("one", use, inputs=[path])))
        present = set(b.agent._attempts._present)
        await b.forgotten()
        await b.agent._collect(1 << 60)
        assert not b.store.physical_path(path).exists()
        b.agent._attempts._present |= present  # as if another program had collected it
        await b.delivered(b.farm.order(b.drv("two", use, inputs=[path])))
        assert len(b.farm.nar_requests) == 2
