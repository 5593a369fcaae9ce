"""Which store and daemon the agent builds with, and what they can do."""

import asyncio
import json
import os
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from grange.daemon import BuildStatus, Daemon, DaemonError, Options
from grange.errors import OperatorError
from grange.store.basic import BasicDerivation, BasicOutput
from grange.store.path import StoreDir, StorePath

_SETTINGS_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class Store:
    """A store, named as Nix names stores.

    "" or "daemon": this machine's, by a ``nix-daemon --stdio`` of our own. "unix:PATH": by the
    daemon behind a socket. "/DIR" or "local?root=/DIR": one below a directory.
    """

    uri: str
    store_dir: StoreDir
    nix_config: str  # lines of nix.conf for daemons of our own, such as "sandbox = true"

    def __post_init__(self) -> None:
        if self.uri not in {"", "daemon"} and not self.uri.startswith(("unix:", "/", _LOCAL)):
            raise OperatorError(
                f"{self.uri!r} is no store an agent can build in; leave it empty for this"
                " machine's, or write unix:SOCKET or the absolute path of a root directory"
            )

    @property
    def is_others(self) -> bool:
        """Whether the daemon runs already, so that we neither start it nor set it up."""
        return self.uri.startswith("unix:")

    @property
    def root(self) -> Path:
        """What store paths are below: "/" unless the store is out of its usual place."""
        if self.uri.startswith(("/", _LOCAL)):
            return Path(self.uri.removeprefix(_LOCAL))
        return Path("/")

    @property
    def folder(self) -> Path:
        """Where the store's paths are."""
        return self.root / self.store_dir.root.lstrip("/")

    def physical(self) -> Callable[[StorePath], str]:
        """Tells where a store path lies in the file system of this machine."""
        prefix = f"{self.folder}/"
        return lambda path: prefix + path

    @property
    def environment(self) -> Mapping[str, str]:
        lines = (
            os.environ.get("NIX_CONFIG", ""),
            "substituters =",  # what to fetch, and whom to believe, the farm says
            "sandbox-fallback = false",  # never quietly without the sandbox that was asked for
            self.nix_config,
        )
        return {**os.environ, "NIX_CONFIG": "\n".join(filter(None, lines)) + "\n"}

    async def connect(self) -> Daemon:
        """A new connection; raises OperatorError, DaemonGone."""
        if self.is_others:
            path = self.uri.removeprefix("unix:").removeprefix("//")
            return await Daemon.connect_unix(path, self.store_dir)
        command = ["nix-daemon", "--stdio"]
        if self.root != Path("/"):
            command += ["--store", str(self.root)]
        return await Daemon.connect_stdio(command, self.store_dir, environment=self.environment)

    async def prove_builds(self, daemon: Daemon) -> None:
        """Return if `daemon`, which trusts us, can start a builder; else OperatorError.

        It is asked for a builtin that no Nix has. The builder is to say so, sandbox and all.
        """
        path = StorePath(f"{'0' * 32}-grange-trial")
        outputs = {"out": BasicOutput(path)}
        trial = BasicDerivation(outputs, (), "builtin", "builtin:grange-trial", (), {"out": ""})
        await daemon.set_options(Options())
        try:
            result = await daemon.build_derivation(
                StorePath(f"{path}.drv"), trial, on_log=lambda _: None
            )
        except DaemonError as error:
            message = error.message
        else:
            if result.status is BuildStatus.PERMANENT_FAILURE:
                return
            message = result.error_msg.removeprefix("error: ")
        # Nix moves a store to its usual place by a sandbox, whatever the setting.
        and_store = "" if self.root == Path("/") else ", in the system's store (no --store)"
        raise OperatorError(
            f"this machine's Nix cannot start builders: {message}; if it may not make sandboxes,"
            " as in many containers, allow it to make namespaces"
            f" or start the agent with --no-sandbox{and_store}"
        )

    async def settings(self) -> "Settings":
        """What this machine's Nix is set to; what the kernel says where Nix does not tell."""
        for words in (("config", "show"), ("show-config",)):
            command = ("nix", "--extra-experimental-features", "nix-command", *words, "--json")
            found = await self._ask_nix(command)
            if found is not None:
                return found
        return Settings((f"{platform.machine()}-linux",), ())

    async def _ask_nix(self, command: tuple[str, ...]) -> "Settings | None":
        try:
            process = await asyncio.create_subprocess_exec(
                *command,
                env=self.environment,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
            )
            async with asyncio.timeout(_SETTINGS_S):
                answer, _ = await process.communicate()
            settings = json.loads(answer)
            system = settings["system"]["value"]
            extra = settings.get("extra-platforms", {}).get("value", [])
            features = settings.get("system-features", {}).get("value", [])
            return Settings((system, *sorted(set(extra) - {system})), tuple(sorted(features)))
        except (OSError, TimeoutError, ValueError, KeyError, TypeError):
            return None


@dataclass(frozen=True, slots=True)
class Settings:
    systems: tuple[str, ...]
    features: tuple[str, ...]


_LOCAL: Final = "local?root="
