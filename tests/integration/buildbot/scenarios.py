"""What becomes of reservations, whatever becomes of builds. Run by trial, from pytest."""

from typing import Any
from unittest import mock

from buildbot.process.results import (
    CANCELLED,
    EXCEPTION,
    FAILURE,
    RETRY,
    SKIPPED,
    SUCCESS,
)
from buildbot.util.twisted import async_to_deferred
from twisted.internet import defer
from twisted.internet.error import ConnectionLost

from grange.buildbot import steps
from tests.integration.buildbot.stage import BUILDER, EVAL, Stage, will_build


class Gated(Stage):
    """One build, and how it ends."""

    @async_to_deferred
    async def test_a_build_that_succeeds_waits_and_releases(self) -> None:
        self.daemon.is_generous = False
        await self.start()
        await self.request()
        await self.until_waiting("no instance is free")
        assert not self.works.pending
        self.daemon.grant(self.daemon.only())
        build = await self.end(SUCCESS)
        await self.daemon.until(lambda: self.daemon.states() == ["released"])

        assert build["results"] == SUCCESS
        found = await self.steps_of(build)
        assert not found["capacity"]["hidden"]
        assert "no instance is free" in await self.log_of(found["capacity"])
        assert found["capacity release"]["hidden"]
        asked = self.daemon.only().request
        assert (asked.system, asked.features, asked.project) == ("x86_64-linux", [], "org/repo")
        assert asked.by == f"{BUILDER} #1"
        assert (await self.properties_of(build))["grange_slot"] == "x86-1"

    @async_to_deferred
    async def test_a_build_that_fails_by_itself_stays_failed(self) -> None:
        await self.start(loss_wait_s=0)
        await self.request()
        build = await self.end(FAILURE)
        await self.daemon.until(lambda: self.daemon.states() == ["released"])
        assert build["results"] == FAILURE
        assert (await self.steps_of(build))["capacity release"]["hidden"]

    @async_to_deferred
    async def test_a_build_with_an_exception_releases(self) -> None:
        await self.start()
        await self.request()
        build = await self.end(EXCEPTION)
        await self.daemon.until(lambda: self.daemon.states() == ["released"])
        assert build["results"] == EXCEPTION

    @async_to_deferred
    async def test_what_is_cached_asks_for_nothing(self) -> None:
        await self.start()
        await self.request(cacheStatus="cached")
        build = await self.end(SUCCESS)
        assert self.daemon.held == {}
        gate = (await self.steps_of(build))["capacity"]
        assert (gate["results"], gate["hidden"], build["results"]) == (SKIPPED, True, SUCCESS)

    @async_to_deferred
    async def test_what_nix_would_only_download_asks_for_nothing(self) -> None:
        path = "/nix/store/" + "1" * 32 + "-hello"
        await self.start(plan=f"this path will be fetched (1.00 MiB download):\n  {path}\n")
        await self.request()
        build = await self.end(SUCCESS)
        assert self.daemon.held == {}
        assert (await self.steps_of(build))["capacity"]["hidden"]

    @async_to_deferred
    async def test_a_build_is_told_where_to_build(self) -> None:
        lines = "builders = ssh-ng://{slot} {system} - 4 1 {features}"
        await self.start(nix_config=lines, features=["kvm", "big"])
        await self.request()
        await self.end(SUCCESS)
        (env,) = self.envs
        assert env["NIX_CONFIG"] == "builders = ssh-ng://x86-1 x86_64-linux - 4 1 big,kvm"

    @async_to_deferred
    async def test_a_fault_of_the_gate_stops_no_build(self) -> None:
        await self.start()
        with mock.patch.object(steps, "look", side_effect=AssertionError("a bug")):
            await self.request()
            build = await self.end(SUCCESS)
        assert len(self.flushLoggedErrors(AssertionError)) == 1
        assert build["results"] == SUCCESS
        assert "for a fault of the gate" in (await self.steps_of(build))["capacity"]["state_string"]

    @async_to_deferred
    async def test_leases_are_renewed_while_the_build_runs(self) -> None:
        self.daemon.lease_s = 1.5
        await self.start()
        await self.request()
        work = await self.works.get()
        await self.daemon.until(lambda: self.daemon.only().beats >= 3)
        await self.daemon.stop()
        self.daemon.only().beats = 0
        self.daemon.listen()
        await self.daemon.until(lambda: self.daemon.only().beats >= 2)
        work.callback(SUCCESS)
        await self.daemon.until(lambda: self.daemon.states() == ["released"])


class Refused(Stage):
    """Builds that have no capacity, or are not to have it."""

    @async_to_deferred
    async def test_who_is_cancelled_while_waiting_takes_the_demand_back(self) -> None:
        self.daemon.is_generous = False
        await self.start()
        await self.request()
        step = await self.until_waiting("no instance is free")
        await self.stop_build(step["buildid"])
        build = await self.finished.get()
        await self.daemon.until(lambda: self.daemon.states() == ["cancelled"])
        assert build["results"] == CANCELLED
        assert (await self.steps_of(build))["capacity"]["results"] == CANCELLED

    @async_to_deferred
    async def test_who_is_cancelled_while_asking_takes_back_what_arrives(self) -> None:
        self.daemon.is_slow = defer.Deferred()
        await self.start()
        await self.request()
        await self.daemon.until(lambda: "POST reservations" in self.daemon.calls)
        await self.stop_build(1)
        assert (await self.finished.get())["results"] == CANCELLED
        self.daemon.is_slow.callback(None)
        await self.daemon.until(lambda: self.daemon.states() == ["released"])

    @async_to_deferred
    async def test_a_daemon_that_is_down_is_waited_for(self) -> None:
        await self.start(is_up=False)
        await self.request()
        step = await self.until_waiting("cannot be asked")
        assert not self.works.pending
        self.daemon.listen()
        build = await self.end(SUCCESS)
        assert build["results"] == SUCCESS
        assert "cannot be asked" in await self.log_of(step)
        await self.daemon.until(lambda: self.daemon.states() == ["released"])

    @async_to_deferred
    async def test_a_daemon_that_forgets_is_asked_again(self) -> None:
        self.daemon.is_generous = False
        await self.start()
        await self.request()
        await self.until_waiting("no instance is free")
        await self.daemon.stop()
        (key,) = (held.request.key for held in self.daemon.held.values())
        self.daemon.held.clear()
        self.daemon.is_generous = True
        self.daemon.listen()
        build = await self.end(SUCCESS)
        assert build["results"] == SUCCESS
        assert self.daemon.only().request.key == key

    @async_to_deferred
    async def test_by_choice_builds_go_on_without_a_daemon(self) -> None:
        await self.start(is_up=False, when_down="proceed", down_s=0.2)
        await self.request()
        build = await self.end(SUCCESS)
        assert build["results"] == SUCCESS
        gate = (await self.steps_of(build))["capacity"]
        assert gate["state_string"].startswith("built without a reservation: the autoscaler")

    @async_to_deferred
    async def test_by_choice_builds_fail_without_a_daemon(self) -> None:
        await self.start(is_up=False, when_down="fail", down_s=0.2)
        await self.request()
        build = await self.finished.get()
        assert build["results"] == FAILURE
        assert (await self.steps_of(build))["capacity"]["state_string"].startswith("gave up")

    @async_to_deferred
    async def test_what_nobody_offers_fails_with_the_reason(self) -> None:
        self.daemon.is_generous = False
        await self.start()
        await self.request()
        await self.until_waiting("no instance is free")
        self.daemon.set(self.daemon.only(), "failed", "no pool offers kvm")
        build = await self.finished.get()
        assert build["results"] == FAILURE
        state = (await self.steps_of(build))["capacity"]["state_string"]
        assert state == "impossible: no pool offers kvm"

    @async_to_deferred
    async def test_a_lease_that_lapsed_is_asked_for_anew(self) -> None:
        self.daemon.is_generous = False
        await self.start()
        await self.request()
        await self.until_waiting("no instance is free")
        self.daemon.is_generous = True
        first = self.daemon.only()
        self.daemon.set(first, "expired", "it was not renewed")
        build = await self.end(SUCCESS)
        assert build["results"] == SUCCESS
        second = self.daemon.held["2"]
        assert second.request.key == f"{first.request.key}:1"

    @async_to_deferred
    async def test_a_refused_token_is_waited_with_and_a_bad_request_is_not(self) -> None:
        self.daemon.refusal = (403, "this token may not build")
        await self.start()
        await self.request()
        await self.until_waiting("this token may not build")
        self.daemon.refusal = (400, "size 1 is more than any slot has")
        build = await self.finished.get()
        assert build["results"] == FAILURE
        state = (await self.steps_of(build))["capacity"]["state_string"]
        assert state == "refused: size 1 is more than any slot has"


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


class Told(Stage):
    """What the autoscaler hears of work that is coming, and how often."""

    @async_to_deferred
    async def test_requests_that_no_worker_has_taken_are_demand(self) -> None:
        self.daemon.is_generous = False
        await self.start(demand_s=1, size=2)
        for _ in range(3):
            await self.request()
        await self.request(cacheStatus="cached")
        await self.daemon.until(lambda: bool(self.daemon.held))
        await self.daemon.until(lambda: [h.waiting for h in self.daemon.hints.values()] == [4])
        (hint,) = self.daemon.hints.values()
        assert (hint.system, hint.project, hint.for_s) == ("x86_64-linux", "org/repo", 3)
        builds = await self.master.data.get(("buildrequests",))
        for each in builds:
            await self.master.data.control("cancel", {}, ("buildrequests", each["buildrequestid"]))
        await self.daemon.until(lambda: [h.waiting for h in self.daemon.hints.values()] == [0])

    @async_to_deferred
    async def test_an_evaluation_prepares_capacity(self) -> None:
        await self.start(eval_hints={"x86_64-linux": 4, "aarch64-linux": 2}, demand_s=1)
        await self.request(EVAL)
        work = await self.works.get()
        await self.daemon.until(lambda: len(self.daemon.hints) == 2)
        hints = {hint.system: hint.waiting for hint in self.daemon.hints.values()}
        assert hints == {"x86_64-linux": 4, "aarch64-linux": 2}
        assert self.daemon.held == {}
        work.callback(SUCCESS)
        await self.daemon.until(
            lambda: [hint.waiting for hint in self.daemon.hints.values()] == [0, 0]
        )

    @async_to_deferred
    async def test_a_master_that_is_configured_again_has_one_gate(self) -> None:
        config = self.config()
        config["configurators"] *= 2
        self.daemon.listen()
        await self.start_master(config)
        changed = self.config(features=["kvm"])
        changed["workers"] = config["workers"]
        changed["protocols"] = config["protocols"]
        self.master.config_loader.config_dict = changed
        await self.master.reconfig()
        await self.request()
        build = await self.end(SUCCESS)
        names = list(await self.steps_of(build))
        assert names == ["worker_preparation", "capacity", "Build flake attr", "capacity release"]
        assert self.daemon.only().request.features == ["kvm"]


class Looked(Stage):
    """What a reservation asks for."""

    def closure(self) -> str:
        """A plan of three derivations, of which two want features."""
        kvm = self.add_drv("test", requiredSystemFeatures="kvm nixos-test")
        big = self.add_drv("big", __json='{"requiredSystemFeatures": ["big-parallel"]}')
        path = self.store.show(self.store.parse(self.drv))
        fetched = f"this path will be fetched (0.10 MiB download):\n  {path[:-4]}\n"
        return will_build(kvm, big, self.drv) + fetched

    @async_to_deferred
    async def test_features_of_all_that_is_to_be_built_are_asked_for(self) -> None:
        await self.start(plan=self.closure(), features=["fast"])
        await self.request(system="wrong")
        await self.end(SUCCESS)
        asked = self.daemon.only().request
        assert asked.system == "x86_64-linux"
        assert asked.features == ["big-parallel", "fast", "kvm", "nixos-test"]

    @async_to_deferred
    async def test_what_a_master_does_not_have_is_read_by_the_worker(self) -> None:
        await self.start(plan=self.closure())
        with mock.patch("grange.buildbot.look.drv_on_master", return_value=None):
            await self.request(system="wrong")
            await self.end(SUCCESS)
        asked = self.daemon.only().request
        assert asked.system == "x86_64-linux"
        assert asked.features == ["big-parallel", "kvm", "nixos-test"]

    @async_to_deferred
    async def test_where_nix_cannot_be_asked_the_derivation_itself_counts(self) -> None:
        drv = self.add_drv("test", requiredSystemFeatures="kvm")
        await self.start(plan="I have learnt new words:\n")
        await self.request(drv_path=drv)
        build = await self.end(SUCCESS)
        assert self.daemon.only().request.features == ["kvm"]
        log = await self.log_of((await self.steps_of(build))["capacity"])
        assert "features of inputs are not known" in log

    @async_to_deferred
    async def test_features_that_can_be_no_features_are_refused(self) -> None:
        drv = self.add_drv("odd", __json='{"requiredSystemFeatures": ["kvm\\nbuilders = x"]}')
        await self.start(plan=will_build(drv), nix_config="builders = a {features}")
        await self.request(drv_path=drv)
        build = await self.finished.get()
        assert build["results"] == FAILURE
        assert self.daemon.held == {}
        state = (await self.steps_of(build))["capacity"]["state_string"]
        assert state.startswith("refused: String should match")

    @async_to_deferred
    async def test_without_a_derivation_the_property_counts(self) -> None:
        await self.start()
        await self.request(drv_path=None, system="aarch64-linux")
        await self.end(SUCCESS)
        assert self.daemon.only().request.system == "aarch64-linux"

    @async_to_deferred
    async def test_what_has_no_system_at_all_is_built_without(self) -> None:
        await self.start()
        await self.request(drv_path=None, system=None)
        build = await self.end(SUCCESS)
        assert self.daemon.held == {}
        state = (await self.steps_of(build))["capacity"]["state_string"]
        assert state.startswith("built without a reservation: it has neither")
