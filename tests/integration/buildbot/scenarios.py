"""What becomes of reservations, whatever becomes of builds. Run by trial, from pytest."""

from buildbot.process.results import CANCELLED, EXCEPTION, FAILURE, RETRY, SUCCESS
from buildbot.util.twisted import async_to_deferred

from tests.integration.buildbot.stage import BUILDER, DRV, Stage


class Gated(Stage):
    @async_to_deferred
    async def test_a_build_that_succeeds_waits_and_releases(self) -> None:
        self.daemon.is_generous = False
        await self.start()
        await self.request()
        await self.daemon.until(lambda: len(self.daemon.held) == 1)
        await self.until_waiting("no instance is free")
        assert not self.works.pending
        self.daemon.grant(self.daemon.only())
        build = await self.end(SUCCESS)
        await self.daemon.until(lambda: self.daemon.states() == ["released"])

        assert build["results"] == SUCCESS
        steps = await self.steps_of(build)
        assert not steps["capacity"]["hidden"]
        assert "no instance is free" in await self.log_of(steps["capacity"])
        assert steps["capacity release"]["hidden"]
        asked = self.daemon.only().request
        assert (asked.system, asked.project, asked.by) == ("x86_64-linux", "org/repo", f"{BUILDER} #1")
        assert (await self.properties_of(build))["grange_slot"] == "x86-1"
