"""What is asked for, what is told of work to come, and what is configured. Run by trial, from
pytest."""

import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

from buildbot.config.master import FileLoader
from buildbot.configurators import ConfiguratorBase
from buildbot.plugins import schedulers, util, worker
from buildbot.process.results import FAILURE, SUCCESS
from buildbot.util.twisted import async_to_deferred

from grange.buildbot.keeper import CapacityKeeper
from grange.buildbot.policy import KEEPER
from tests.integration.buildbot.stage import BUILDER, EVAL, Stage, Work, will_build

DOCS = Path(__file__).parents[3] / "docs/operating/buildbot.md"


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
        # The next evaluation will bring as many.
        await self.request(EVAL)
        await self.daemon.until(lambda: len(self.daemon.hints) == 2)
        assert [*self.daemon.hints.values()][1].waiting >= 4

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
        await self.request()
        names = ["worker_preparation", "capacity", "Build flake attr", "capacity release"]
        assert list(await self.steps_of(await self.end(SUCCESS))) == names
        await self.configure_again(self.config(features=["kvm"]))
        await self.request()
        assert list(await self.steps_of(await self.end(SUCCESS))) == names
        assert [held.request.features for held in self.daemon.held.values()] == [[], ["kvm"]]

    @async_to_deferred
    async def test_who_is_configured_away_releases_and_hinders_nothing(self) -> None:
        await self.start()
        await self.request()
        work = await self.works.get()
        await self.configure_again({**self.config(), "configurators": []})
        await self.daemon.until(lambda: self.daemon.states() == ["released"])
        work.callback(SUCCESS)
        assert (await self.finished.get())["results"] == SUCCESS


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


class _NixConfigurator(ConfiguratorBase):
    """As far as the gate sees of buildbot-nix's."""

    def __init__(self, settings: dict[str, str]) -> None:
        super().__init__()
        self.name = settings["builder"]

    def configure(self, config_dict: dict[str, Any]) -> None:
        super().configure(config_dict)
        self.workers.append(worker.Worker("local1", "secret"))
        self.schedulers.append(schedulers.ForceScheduler("force", builderNames=[self.name]))
        factory = util.BuildFactory([Work()])
        self.builders.append(
            util.BuilderConfig(name=self.name, workernames=["local1"], factory=factory)
        )


class Documented(Stage):
    def test_the_master_cfg_of_the_documentation_is_one(self) -> None:
        (said,) = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)
        folder = Path(self.folder)
        settings = folder / "settings.json"
        settings.write_text(f'{{"builder": "{BUILDER}"}}')
        (folder / "master.cfg").write_text(said.replace("/etc/buildbot-nix.json", str(settings)))
        nix = ModuleType("buildbot_nix")
        nix.__dict__["NixConfigurator"] = _NixConfigurator
        nix.__dict__["BuildbotNixConfig"] = mock.Mock(model_validate=dict)
        with mock.patch.dict(sys.modules, {"buildbot_nix": nix}):
            config = FileLoader(self.folder, "master.cfg").loadConfig()
        (builder,) = (each for each in config.builders if each.name == BUILDER)
        names = [step.step_class.name for step in builder.factory.steps]
        assert names == ["capacity", "Build flake attr", "capacity release"]
        keeper = config.services[KEEPER]
        assert isinstance(keeper, CapacityKeeper)
        assert keeper.settings.eval_hints == {"x86_64-linux": 4}
