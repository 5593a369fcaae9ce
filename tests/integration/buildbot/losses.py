"""What becomes of builds that lose what they stand on. Run by trial, from pytest."""

from typing import Any
from unittest import mock

from buildbot.process.results import EXCEPTION, FAILURE, RETRY, SUCCESS
from buildbot.util.twisted import async_to_deferred
from twisted.internet.error import ConnectionLost

from grange.buildbot import steps
from tests.integration.buildbot.stage import Stage, will_build


class Lost(Stage):
    """Slots, workers and masters that go away."""

    async def lose(self, why: str = "spot interruption") -> dict[str, Any]:
        """The build that runs loses its slot, and fails for it; as it finished."""
        work = await self.works.get()
        (held,) = (held for held in self.daemon.held.values() if held.state == "ready")
        self.daemon.set(held, "lost", why)
        work.callback(FAILURE)
        return await self.finished.get()

    @async_to_deferred
    async def test_a_build_whose_slot_was_lost_is_tried_again(self) -> None:
        await self.start()
        request = await self.request()
        first = await self.lose()
        second = await self.end(SUCCESS)
        assert (first["results"], second["results"]) == (RETRY, SUCCESS)
        assert {first["buildrequestid"], second["buildrequestid"]} == {request}
        release = (await self.steps_of(first))["capacity release"]
        assert release["state_string"].endswith("x86-1 was lost under it: spot interruption")
        assert not release["hidden"]
        keys = [held.request.key for held in self.daemon.held.values()]
        assert [key.rsplit(":", 2)[1:] for key in keys] == [
            [str(request), "1"],
            [str(request), "2"],
        ]
        assert not any(held.request.is_on_demand for held in self.daemon.held.values())

    @async_to_deferred
    async def test_the_last_attempt_is_on_demand_and_no_failure_of_the_build(self) -> None:
        await self.start(attempts_max=3)
        await self.request()
        results = [(await self.lose())["results"] for _ in range(3)]
        assert results == [RETRY, RETRY, EXCEPTION]
        asked = [held.request.is_on_demand for held in self.daemon.held.values()]
        assert asked == [False, False, True]

    @async_to_deferred
    async def test_a_loss_that_the_daemon_learns_of_late_counts(self) -> None:
        await self.start(loss_wait_s=30)
        await self.request()
        work = await self.works.get()
        work.callback(FAILURE)
        held = self.daemon.only()
        await self.daemon.until(lambda: bool(held.waiting))
        self.daemon.set(held, "lost", "the instance is gone")
        assert (await self.finished.get())["results"] == RETRY

    @async_to_deferred
    async def test_a_worker_lost_while_building_releases(self) -> None:
        await self.start(demand_s=1)
        await self.request()
        await self.works.get()
        self.lose_worker()
        build = await self.finished.get()
        await self.daemon.until(lambda: self.daemon.states() == ["released"])
        assert build["results"] == RETRY
        # Nobody takes the request now, which is told of.
        await self.daemon.until(lambda: [hint.waiting for hint in self.daemon.hinted] == [1])

    @async_to_deferred
    async def test_a_worker_lost_while_looked_through_is_no_fault(self) -> None:
        await self.start()
        with mock.patch.object(steps, "look", side_effect=ConnectionLost()):
            await self.request()
            assert (await self.finished.get())["results"] == RETRY
        await self.end(SUCCESS)
        await self.daemon.until(lambda: self.daemon.states() == ["released"])

    @async_to_deferred
    async def test_a_worker_lost_while_waiting_takes_the_demand_back(self) -> None:
        self.daemon.is_generous = False
        await self.start()
        await self.request()
        await self.until_waiting("no instance is free")
        self.lose_worker()
        assert (await self.finished.get())["results"] == RETRY
        await self.daemon.until(lambda: self.daemon.states() == ["cancelled"])

    @async_to_deferred
    async def test_a_master_that_stops_releases(self) -> None:
        await self.start()
        await self.request()
        await self.works.get()
        await self.tested_master.shutdown()
        assert self.daemon.states() == ["released"]

    @async_to_deferred
    async def test_a_master_that_waits_stops(self) -> None:
        self.daemon.is_generous = False
        await self.start()
        await self.request()
        await self.until_waiting("no instance is free")
        await self.tested_master.shutdown()
        assert self.daemon.states() == ["cancelled"]

    @async_to_deferred
    async def test_what_a_master_left_is_released_when_it_comes_back(self) -> None:
        self.db_url = f"sqlite:///{self.folder}/state.sqlite"
        await self.start()
        request = await self.request()
        await self.works.get()
        await self.daemon.stop()  # so that nothing of the end reaches it
        await self.tested_master.shutdown()
        assert self.daemon.states() == ["ready"]
        others = self.daemon.adopt("buildbot:other-host:/srv:1:1")
        await self.start_master(self.config())
        self.daemon.listen()
        await self.daemon.until(lambda: self.daemon.held["1"].state == "released")
        build = await self.end(SUCCESS)
        assert build["buildrequestid"] == request
        assert others.state == "ready"
        again = self.daemon.held["3"]
        assert again.request.key.endswith(f":{request}:2")


class OverTheWire(Stage):
    """With a worker that comes by TCP, as those of a farm do."""

    proto = "pb"

    @async_to_deferred
    async def test_a_worker_that_comes_back_builds_again(self) -> None:
        await self.start()
        request = await self.request()
        await self.works.get()
        self.lose_worker()
        first = await self.finished.get()
        second = await self.end(SUCCESS)
        assert (first["results"], second["results"]) == (RETRY, SUCCESS)
        assert {first["buildrequestid"], second["buildrequestid"]} == {request}
        await self.daemon.until(lambda: self.daemon.states() == ["released", "released"])

    @async_to_deferred
    async def test_derivations_arrive_whole(self) -> None:
        drv = self.add_drv("long", requiredSystemFeatures="kvm", text="x" * 100_000)
        await self.start(plan=will_build(drv))
        with mock.patch("grange.buildbot.look.drv_on_master", return_value=None):
            await self.request(drv_path=drv, system="wrong")
            await self.end(SUCCESS)
        asked = self.daemon.only().request
        assert (asked.system, asked.features) == ("x86_64-linux", ["kvm"])
