"""The gate before the autoscaler itself, in place of a scripted one. Run by trial, from pytest."""

import os
import sys
from hashlib import sha256
from pathlib import Path
from typing import Any

from buildbot.process.results import FAILURE, RETRY, SUCCESS
from buildbot.util.twisted import async_to_deferred
from twisted.internet import defer, reactor
from twisted.internet.protocol import ProcessProtocol
from twisted.python.failure import Failure

from grange.client import capacity_requests as requests
from grange.client.capacity_models import ReservationView, SlotVerb, SlotVerbRequest
from tests.integration.buildbot.stage import Stage, will_build

ROOT = str(Path(__file__).parents[3])
TOKEN = "grange_0123456789abcdef"


class _Daemon(ProcessProtocol):
    transport: Any

    def __init__(self) -> None:
        self.url: defer.Deferred[str] = defer.Deferred()
        self.ended: defer.Deferred[None] = defer.Deferred()

    def outReceived(self, data: bytes) -> None:  # noqa: N802 - Twisted's names
        if not self.url.called:
            self.url.callback(data.decode().split()[0])

    def errReceived(self, data: bytes) -> None:  # noqa: N802
        sys.stderr.write(data.decode())

    def processEnded(self, reason: Failure) -> None:  # noqa: N802
        if not self.url.called:
            self.url.errback(reason)
        self.ended.callback(None)

    async def end(self) -> None:
        self.transport.closeStdin()
        await self.ended


class Real(Stage):
    def setUp(self) -> None:
        super().setUp()
        self.token_file = f"{self.folder}/token"
        for name, text in (
            ("tokens", f"{sha256(TOKEN.encode()).hexdigest()} submit,read ci\n"),
            ("token", f"{TOKEN}\n"),
        ):
            with open(f"{self.folder}/{name}", "w", encoding="utf-8") as file:
                file.write(text)

    async def begin(self) -> str:
        """The daemon's URL for who has a token."""
        daemon = _Daemon()
        argv = [sys.executable, "-m", "tests.integration.buildbot.real_daemon", self.folder]
        spawn: Any = reactor
        spawn.spawnProcess(daemon, sys.executable, argv, env={**os.environ, "PYTHONPATH": ROOT})
        self.addCleanup(lambda: defer.ensureDeferred(daemon.end()))
        return await daemon.url

    async def reservations(self, *states: str) -> list[ReservationView]:
        asked = requests.reservations(states)
        return await self.keeper.caller.call(asked, requests.read_reservations)

    async def until_ended(self, number: int) -> list[str]:
        """States of all reservations, the oldest first, once so many have ended."""
        while len(await self.reservations("pending", "ready")) > 0:
            await self.keeper.caller.call(requests.reconcile_now(), requests.read_done)
        found = await self.reservations()
        assert len(found) == number
        return [view.state.value for view in found]

    @async_to_deferred
    async def test_a_build_whose_slot_is_terminated_is_tried_on_another(self) -> None:
        await self.begin()
        kvm = self.add_drv("test", requiredSystemFeatures="kvm")
        await self.start(is_up=False, plan=will_build(kvm), loss_wait_s=30)
        await self.request(drv_path=kvm)
        work = await self.works.get()
        (held,) = await self.reservations("ready")
        assert held.slot is not None
        verb = SlotVerbRequest(reason="a test", by="test")
        asked = requests.say_of_slot(held.slot, SlotVerb.TERMINATE, verb)
        await self.keeper.caller.call(asked, requests.read_done)
        work.callback(FAILURE)
        first = await self.finished.get()
        second = await self.end(SUCCESS)
        assert (first["results"], second["results"]) == (RETRY, SUCCESS)
        assert first["buildrequestid"] == second["buildrequestid"]
        assert await self.until_ended(2) == ["lost", "released"]

    @async_to_deferred
    async def test_over_tcp_a_token_is_shown_and_features_nobody_offers_are_told_of(self) -> None:
        url = await self.begin()
        drv = self.add_drv("odd", requiredSystemFeatures="quantum")
        plan = will_build(drv)
        await self.start(is_up=False, plan=plan, url=url, token_file=self.token_file)
        await self.request(drv_path=drv)
        build = await self.finished.get()
        state = (await self.steps_of(build))["capacity"]["state_string"]
        assert build["results"] == FAILURE
        assert "quantum" in state
