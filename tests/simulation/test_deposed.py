"""A leader that is deposed in the middle of deleting, and the one that follows it; virtual time."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from grange.coordinator.holds import DELETE_S, Holds
from grange.coordinator.keep import RetentionRules
from grange.coordinator.sweep import Sweep
from grange.errors import OutsideError
from grange.ports import Collected, ObjectEntry, Shelf, StoreOptions
from grange.store.path import NIX_STORE
from tests.simulation.virtual import VirtualClock, run_virtually

KEY = "nar/" + "0" * 52 + ".nar.zst"


class Bucket:
    """Deletions take as long as they take; one that was given up does nothing."""

    def __init__(self) -> None:
        self.held = {KEY}
        self.takes_s = 0.0

    async def size(self, key: str) -> int | None:
        return 1 if key in self.held else None

    async def delete(self, key: str) -> None:
        await asyncio.sleep(self.takes_s)
        self.held.discard(key)

    async def list(self) -> AsyncIterator[ObjectEntry]:
        for key in sorted(self.held):
            yield ObjectEntry(key, 1, 0.0)


class Nothing:
    """A journal in which no path is."""

    async def stored_paths(self) -> list[object]:
        return []

    async def used_urls(self, urls: object) -> set[str]:
        return set()

    async def narinfo(self, hash_part: str) -> None:
        return None


def sweeper(bucket: Any, is_leading: Callable[[], bool]) -> Sweep:
    nothing: Any = Nothing()
    return Sweep(
        journal=nothing,
        retained=nothing,
        shelves=[Shelf("bucket", bucket, StoreOptions(), is_bucket=True)],
        publisher=nothing,
        holds=Holds(bucket),
        clock=VirtualClock(asyncio.get_running_loop(), 1e9),
        key_names=["farm-1"],
        store_dir=NIX_STORE,
        is_leading=is_leading,
    )


async def due(sweep: Sweep) -> None:
    await sweep.look(RetentionRules(orphan_hours=0))
    await sweep.delete_due(0.0)


def test_one_that_leads_no_more_deletes_nothing() -> None:
    async def main() -> None:
        bucket = Bucket()
        leads = False
        sweep = sweeper(bucket, lambda: leads)
        with pytest.raises(OutsideError, match="leads no more"):
            await due(sweep)
        part = "1" * 32
        bucket.held.add(f"{part}.narinfo")
        with pytest.raises(OutsideError, match="leads no more"):
            await sweep.dropped(Collected((), (), (f"{part}.narinfo",), (), frozenset()))
        assert bucket.held == {KEY, f"{part}.narinfo"}
        leads = True
        await sweep.dropped(Collected((), (), (f"{part}.narinfo",), (), frozenset()))
        await due(sweep)
        assert bucket.held == set()

    run_virtually(main())


def test_a_deletion_is_given_up_before_the_next_leader_counts_on_the_file() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        bucket = Bucket()
        for takes_s, is_there in ((DELETE_S - 0.1, False), (DELETE_S + 0.1, True)):
            bucket.held, bucket.takes_s = {KEY}, takes_s
            deleting = asyncio.create_task(due(sweeper(bucket, lambda: True)))
            await asyncio.sleep(0.01)  # it is on its way
            began = loop.time()
            following = Holds(bucket)  # type: ignore[arg-type]
            following.begin(after_another=True)
            if is_there:
                await following.hold(KEY)
            else:
                with pytest.raises(OutsideError, match="upload it again"):
                    await following.hold(KEY)
            assert loop.time() - began == pytest.approx(DELETE_S)
            (outcome,) = await asyncio.gather(deleting, return_exceptions=True)
            assert isinstance(outcome, OutsideError) is is_there
            assert (KEY in bucket.held) is is_there

    run_virtually(main())


def test_nobody_waits_where_no_other_can_have_led() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        bucket: Any = Bucket()
        for holds in (Holds(bucket), Holds(bucket)):
            holds.begin(after_another=False)
            await holds.hold(KEY)
        late = Holds(bucket)
        late.begin(after_another=True)
        await asyncio.sleep(DELETE_S)
        before = loop.time()
        await late.hold(KEY)
        assert loop.time() == before

    run_virtually(main())
