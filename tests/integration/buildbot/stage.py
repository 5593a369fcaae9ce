"""A real master and worker in this process, with a gated builder like buildbot-nix's."""

import os
import stat
import warnings
from collections.abc import Mapping
from shutil import rmtree
from tempfile import mkdtemp
from typing import Any

from buildbot.plugins import schedulers, util
from buildbot.process.buildstep import BuildStep
from buildbot.process.results import SUCCESS
from buildbot.test.util.integration import RunMasterBase
from twisted.internet import defer, reactor

from grange.buildbot.configurator import CapacityConfigurator
from grange.buildbot.keeper import CapacityKeeper
from grange.buildbot.policy import KEEPER
from grange.store.derivation import Derivation, Output, unparse
from grange.store.hash import base32_encode
from grange.store.path import StoreDir, StorePath
from tests.integration.buildbot.scripted import ScriptedDaemon

# Buildbot's own test tools make all warnings errors for the whole process when they are imported,
# those of its libraries about each other too.
warnings.resetwarnings()

BUILDER = "org/repo/nix-build"
EVAL = "org/repo/nix-eval"


def will_build(*drvs: str) -> str:
    """As Nix says it."""
    return f"these {len(drvs)} derivations will be built:\n" + "".join(f"  {d}\n" for d in drvs)


class Work(BuildStep):
    """What the build does: as a test says."""

    name = "Build flake attr"
    haltOnFailure = True  # noqa: N815
    flunkOnFailure = True  # noqa: N815
    stage: "Stage"

    async def _work(self) -> int:
        stage = type(self).stage
        stage.envs.append(dict(self.build.env))
        self._verdict: defer.Deferred[int] = defer.Deferred()
        stage.works.put(self._verdict)
        try:
            return await self._verdict
        except defer.CancelledError:
            return SUCCESS

    def run(self) -> "defer.Deferred[int]":
        return defer.ensureDeferred(self._work())

    def interrupt(self, reason: Any) -> "defer.Deferred[None]":
        interrupted = super().interrupt(reason)
        self._verdict.cancel()
        return interrupted


class Stage(RunMasterBase):
    timeout = 60
    db_url = "sqlite://"  # in memory, which is several times faster

    def setUp(self) -> None:
        self.folder = mkdtemp(prefix="grange-")  # names of sockets are short: not under trial's
        self.addCleanup(rmtree, self.folder)
        self.socket = f"{self.folder}/s"
        self.daemon = ScriptedDaemon(reactor, self.socket)
        self.works: defer.DeferredQueue[defer.Deferred[int]] = defer.DeferredQueue()
        self.envs: list[dict[str, str]] = []
        self.finished: defer.DeferredQueue[dict[str, Any]] = defer.DeferredQueue()
        Work.stage = self
        self.store = StoreDir(f"{self.folder}/store")
        os.mkdir(self.store.root)
        self.drv = self.add_drv("hello")
        self.addCleanup(lambda: defer.ensureDeferred(self.daemon.stop()))

    # --- A master -------------------------------------------------------------------------------

    def add_drv(self, name: str, **env: str) -> str:
        """The path of a new derivation in the store."""
        path = StorePath(f"{base32_encode(name.encode().rjust(20))}-{name}.drv")
        output = self.store.parse(f"{self.store.root}/{path.removesuffix('.drv')}")
        outputs = {"out": Output(output, "", "")}
        drv = Derivation(name, outputs, {}, (), "x86_64-linux", "/bin/sh", (), env)
        with open(self.store.show(path), "wb") as file:
            file.write(unparse(drv, self.store))
        return self.store.show(path)

    def config(self, plan: str | None = None, **settings: Any) -> dict[str, Any]:
        path = self.fake_nix(plan or will_build(self.drv))
        settings = {
            "url": f"unix:{self.socket}",
            "store_dir": self.store.root,
            **settings,
        }
        env = {"PATH": f"{path}:{os.environ['PATH']}"}
        return {
            "builders": [
                util.BuilderConfig(
                    name=name,
                    workernames=["local1"],
                    factory=util.BuildFactory([Work()]),
                    env=env,
                    collapseRequests=False,
                )
                for name in (BUILDER, EVAL)
            ],
            "schedulers": [schedulers.ForceScheduler("force", builderNames=[BUILDER, EVAL])],
            "configurators": [CapacityConfigurator(**settings)],
            "multiMaster": False,
            "db_url": self.db_url,
        }

    def fake_nix(self, plan: str) -> str:
        """A folder with a nix-store that says what `plan` is."""
        folder = mkdtemp(dir=self.folder)
        with open(f"{folder}/plan", "w", encoding="utf-8") as file:
            file.write(plan)
        script = f"{folder}/nix-store"
        with open(script, "w", encoding="utf-8") as file:
            file.write(f"#!/bin/sh\nexec cat {folder}/plan >&2\n")
        os.chmod(script, stat.S_IRWXU)
        return folder

    async def start(self, *, is_up: bool = True, plan: str | None = None, **settings: Any) -> None:
        if is_up:
            self.daemon.listen()
        await self.start_master(self.config(plan, **settings))

    async def start_master(self, config: dict[str, Any]) -> None:
        await self.setup_master(config, basedir=f"{self.folder}/master")
        await self.master.mq.startConsuming(
            lambda _, build: self.finished.put(build), ("builds", None, "finished")
        )

    async def configure_again(self, config: dict[str, Any]) -> None:
        """With the same workers."""
        before = self.master.config_loader.config_dict
        kept = {name: before[name] for name in ("workers", "protocols")}
        self.master.config_loader.config_dict = {**config, **kept}
        await self.master.reconfig()

    @property
    def keeper(self) -> CapacityKeeper:
        found = self.master.service_manager.namedServices[KEEPER]
        assert isinstance(found, CapacityKeeper)
        return found

    # --- Builds ---------------------------------------------------------------------------------

    async def request(self, builder: str = BUILDER, **said: Any) -> int:
        """Ask for a build; its build request."""
        properties = {
            "drv_path": self.drv,
            "system": "x86_64-linux",
            "cacheStatus": "notBuilt",
            **said,
        }
        builderid = await self.master.data.updates.findBuilderId(builder)
        source = dict.fromkeys(("codebase", "repository", "project"), "")
        _, requests = await self.master.data.updates.addBuildset(
            waited_for=False,
            builderids=[builderid],
            sourcestamps=[{**source, "branch": None, "revision": None}],
            properties={name: (value, "test") for name, value in properties.items()},
        )
        return int(requests[builderid])

    async def end(self, result: int) -> dict[str, Any]:
        """Have the build that works, or will, end so; the build as it finished."""
        work = await self.works.get()
        work.callback(result)
        return await self.finished.get()

    async def steps_of(self, build: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        steps = await self.master.data.get(("builds", build["buildid"], "steps"))
        return {step["name"]: step for step in steps}

    async def log_of(self, step: Mapping[str, Any]) -> str:
        found = await self.master.data.get(
            ("steps", step["stepid"], "logs", "capacity", "contents")
        )
        return str(found["content"])

    async def properties_of(self, build: Mapping[str, Any]) -> dict[str, Any]:
        found = await self.master.data.get(("builds", build["buildid"], "properties"))
        return {name: value for name, (value, _) in found.items()}

    async def stop_build(self, build: int) -> None:
        await self.master.data.control("stop", {"reason": "superseded"}, ("builds", build))

    async def until_waiting(self, text: str) -> dict[str, Any]:
        """A gate's step, once its status says so."""
        seen: defer.Deferred[dict[str, Any]] = defer.Deferred()

        def look(_: Any, step: dict[str, Any]) -> None:
            if text in step["state_string"] and not seen.called:
                seen.callback(step)

        consumer = await self.master.mq.startConsuming(look, ("steps", None, None))
        found = await seen
        consumer.stopConsuming()
        return found

    def lose_worker(self) -> None:
        self.master.workers.workers["local1"].conn.loseConnection()
