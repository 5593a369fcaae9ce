"""What becomes of reservations, whatever becomes of builds. Run by trial, from pytest."""

from dataclasses import replace
from unittest import mock

import pytest
from buildbot.process.results import (
    CANCELLED,
    EXCEPTION,
    FAILURE,
    SKIPPED,
    SUCCESS,
)
from buildbot.util.twisted import async_to_deferred
from twisted.internet import defer

from grange.buildbot import steps
from grange.buildbot.policy import reservation_key
from grange.client import capacity_requests as requests
from grange.client.capacity_models import ReserveRequest
from grange.errors import OutsideError
from tests.integration.buildbot.stage import BUILDER, Stage


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
        gate = (await self.steps_of(build))["capacity"]
        assert gate["results"] == CANCELLED
        assert gate["state_string"] == "waiting: no instance is free (cancelled)"

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
    async def test_a_key_of_an_earlier_database_is_left_alone(self) -> None:
        await self.start()
        await self.daemon.until(lambda: "GET reservations" in self.daemon.calls)
        earlier = self.daemon.adopt(reservation_key(self.keeper.master_name, 1, 1))
        assert await self.request() == 1
        await self.end(SUCCESS)
        await self.daemon.until(lambda: self.daemon.states() == ["ready", "released"])
        assert self.daemon.held["2"].request.key == f"{earlier.request.key}:1"

    @async_to_deferred
    async def test_what_answers_in_its_place_is_waited_with(self) -> None:
        self.daemon.refusal, self.daemon.is_prose = (404, "<h1>It works!</h1>"), True
        await self.start()
        await self.request()
        await self.until_waiting("does not speak the capacity API")
        self.daemon.refusal, self.daemon.redirects = None, 100
        await self.until_waiting("redirects in circles")
        self.daemon.redirects = 2
        assert (await self.end(SUCCESS))["results"] == SUCCESS

    @async_to_deferred
    async def test_who_says_nothing_is_not_waited_for_beyond_its_time(self) -> None:
        self.daemon.is_slow = defer.Deferred()
        await self.start()
        asked = requests.reserve(ReserveRequest(key="k", system="s"))
        with pytest.raises(OutsideError, match="no answer came"):
            await self.keeper.caller.call(replace(asked, answer_s=0.2), requests.read_reservation)

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
