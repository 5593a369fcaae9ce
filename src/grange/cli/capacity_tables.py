"""The tables of elastic capacity: [capacity], [pools.NAME], those of clouds, and of HAProxy.

They stand in the farm's file (`grange serve --config`), where instances are agents of the farm, or
in a file of their own (`grange autoscaler --config`), where they are servers behind HAProxy.
"""

import operator
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Final, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from grange.autoscaler.wiring import Wiring
from grange.capacity.facts import Pool, PoolName, ReadyBy, Rules
from grange.cli.pool_tables import LocalPool, PoolTable
from grange.cli.tables import Table, Text, faults, toml
from grange.client.capacity import SOCKET
from grange.cloud.ec2.settings import Ec2Pool, Ec2Settings
from grange.cloud.haproxy import HaproxySettings
from grange.cloud.overlay import TailscaleSettings
from grange.errors import OperatorError

POOLS_MAX: Final = 100
RELOAD_S: Final = 600.0  # where HAProxy's master cannot be asked what its old workers hold
FARM: Final = "grange"  # where nobody else's instances can be met
NAME: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?")  # part of slots' and servers' names
_TAILSCALE: Final = TailscaleSettings()
_COORDINATOR: Final = re.compile(r"(https?://)?(\[[0-9a-fA-F:]+\]|[^\s/:]+):\d{1,5}")

Pools = Annotated[dict[str, PoolTable], Field(max_length=POOLS_MAX)]


class _Local(Table):
    folder: Text | None = None
    boot_s: Annotated[float, Field(ge=0, le=3600)] = 0.0
    grace_s: Annotated[float, Field(ge=0, le=86_400)] = 60.0


class _Ec2(Table):
    region: str = ""
    profile: str = ""
    endpoint: Annotated[str, Field(pattern=r"^(https?://[^/]+.*)?$")] = ""
    sqs_url: Annotated[str, Field(pattern=r"^(https?://[^/]+.*)?$")] = ""
    launches_at_once: Annotated[int, Field(ge=1, le=100)] = 8
    notice_poll_s: Annotated[float, Field(ge=1, le=3600)] = 10.0
    settle_s: Annotated[float, Field(ge=0, le=3600)] = 60.0

    def settings(self, farm: str) -> Ec2Settings:
        return Ec2Settings(farm, **self.model_dump(exclude={"settle_s"}))


class _Capacity(Table):
    farm: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")] | None = None
    coordinator: Text | Annotated[list[Text], Field(min_length=1, max_length=16)] | None = None
    ca: Text | None = None
    interval_s: Annotated[float, Field(ge=0.1, le=300)] = 5.0
    vcpus_max: Annotated[int, Field(ge=0, le=10_000_000)] = 0
    kept_s: Annotated[float, Field(ge=60, le=604_800)] = 3600.0

    @field_validator("coordinator")
    @classmethod
    def _are_addresses(cls, said: str | list[str] | None) -> str | list[str] | None:
        for text in _each(said):
            if not _COORDINATOR.fullmatch(text):
                raise ValueError(
                    f"{text!r} is not HOST:PORT or https://HOST:PORT, as instances see it"
                )
        return said


def _each(said: str | list[str] | None) -> tuple[str, ...]:
    if said is None:
        return ()
    return (said,) if isinstance(said, str) else tuple(said)


class CapacityTables(Table):
    """What the tables say together. No pools: there is no elastic capacity."""

    capacity: _Capacity = _Capacity()
    pools: Annotated[dict[str, PoolTable], Field(max_length=POOLS_MAX)] = Field(
        default_factory=dict
    )
    local: _Local = _Local()
    ec2: _Ec2 = _Ec2()

    @field_validator("pools")
    @classmethod
    def _pools_have_plain_names(cls, pools: dict[str, PoolTable]) -> dict[str, PoolTable]:
        for name in pools:
            if not NAME.fullmatch(name):
                raise ValueError(
                    f"{name!r} cannot name a pool: it takes small letters, digits and - within, 40 "
                    "at most, for slots and servers are named after it"
                )
        return pools

    @model_validator(mode="after")
    def _capacity_fits(self) -> Self:
        if said := _vcpus(self.capacity.vcpus_max, self.pools):
            raise ValueError(said)
        if self.capacity.farm is None and any(each.cloud == "ec2" for each in self.pools.values()):
            raise ValueError(
                "capacity.farm is missing: instances bear it as a tag, and those of a farm of the "
                "same name in this account would be taken for this one's; choose a name"
            )
        return self

    def capacity_file(
        self, folder: Path, ready_by: ReadyBy, reload_s: float = 0.0
    ) -> "CapacityFile":
        """Relative paths are relative to `folder`; `reload_s` is as in `Rules`."""
        said, farm = self.capacity, self.capacity.farm or FARM
        shared = [farm, ready_by.value, said.coordinator, said.ca]
        texts = {name: each.user_data(folder) for name, each in self.pools.items()}
        pools = [
            each.pool(name, ready_by, [*shared, texts[name]]) for name, each in self.pools.items()
        ]
        of_ec2 = {each.name for each in pools if self.pools[each.name].cloud == "ec2"}
        return CapacityFile(
            Rules(
                farm,
                ready_by,
                settle_s=self.ec2.settle_s if of_ec2 else 0.0,
                reload_s=reload_s,
                vcpus_max=said.vcpus_max,
                kept_s=said.kept_s,
            ),
            tuple(pools),
            interval_s=said.interval_s,
            coordinators=_each(said.coordinator),
            ca=None if said.ca is None else folder / said.ca,
            local=LocalSettings(
                None if self.local.folder is None else folder / self.local.folder,
                self.local.boot_s,
                self.local.grace_s,
                {
                    PoolName(name): each.local.settings()
                    for name, each in self.pools.items()
                    if each.cloud == "local"
                },
            ),
            ec2=self.ec2.settings(farm),
            ec2_pools={
                pool.name: self.pools[pool.name].of_ec2(pool)
                for pool in pools
                if pool.name in of_ec2
            },
            user_data={PoolName(name): text for name, text in texts.items() if text is not None},
        )


def _vcpus(most: int, pools: dict[str, PoolTable]) -> str:
    """Whether all pools' least fits within `most`; "" where it does."""
    least = {
        name: pool.min * min(each.vcpus for each in pool.types.values())
        for name, pool in pools.items()
        if pool.types and pool.min
    }
    if most and sum(least.values()) > most:
        return (
            f"capacity.vcpus_max is {most}, and min of {', '.join(sorted(least))} asks for "
            f"{sum(least.values())}; raise it, or lower min"
        )
    return ""


class _Haproxy(Table):
    socket: Text
    master_socket: str = ""
    backend: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.:-]*\{pool\}[A-Za-z0-9_.:-]*$")] = (
        "grange-{pool}"
    )
    ssh_port: Annotated[int, Field(ge=1, le=65_535)] = 22
    hard_stop_s: Annotated[float, Field(ge=60, le=604_800)] = 21_600.0
    reload_s: Annotated[float, Field(ge=0, le=604_800)] | None = None
    host: Text = "127.0.0.1"
    port_first: Annotated[int, Field(ge=1, le=65_535)] = 22_000
    user: Text = "nix"
    state_file: Text = "/var/lib/haproxy/grange.state"


class _Daemon(Table):
    socket: Text = str(SOCKET)
    socket_mode: Annotated[str, Field(pattern=r"^0?[0-7]{3}$")] = "0660"
    listen: Text | None = None
    tokens_file: Text | None = None
    state_dir: Text = "/var/lib/grange-autoscaler"

    @model_validator(mode="after")
    def _is_guarded(self) -> Self:
        if self.listen is not None and self.tokens_file is None:
            raise ValueError(
                "listen is open to other programs: name a tokens_file that says who may ask "
                "(docs/operating/capacity.md)"
            )
        return self


class _Overlay(Table):
    kind: Literal["none", "tailscale", "headscale"] = "none"
    tag: Annotated[str, Field(pattern=r"^tag:[A-Za-z0-9-]+$")] = _TAILSCALE.tag
    socket: Text = _TAILSCALE.socket
    api: Annotated[str, Field(pattern=r"^https?://[^/]+.*$")] | None = None
    key_file: Text | None = None
    client_id: str = ""
    client_secret_file: Text | None = None

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        if self.kind == "none" and self.model_fields_set - {"kind"}:
            raise ValueError('kind is missing; say "tailscale" or "headscale"')
        if self.kind == "headscale" and self.api is None:
            raise ValueError("api is missing: the URL of the headscale server")
        if bool(self.client_id) is not (self.client_secret_file is not None):
            raise ValueError("client_id and client_secret_file go together; name both")
        return self

    def settings(self, folder: Path) -> TailscaleSettings | None:
        if self.kind == "none":
            return None
        secret = self.client_secret_file
        return TailscaleSettings(
            self.tag,
            self.socket,
            self.kind,
            self.api or _TAILSCALE.api,
            None if self.key_file is None else folder / self.key_file,
            self.client_id,
            None if secret is None else folder / secret,
        )


class AloneTables(CapacityTables):
    """The file of `grange autoscaler`."""

    haproxy: _Haproxy
    overlay: _Overlay = _Overlay()
    daemon: _Daemon = _Daemon()


@dataclass(frozen=True, slots=True)
class LocalSettings:
    folder: Path | None = None  # of instances; None: in the state directory
    boot_s: float = 0.0
    grace_s: float = 60.0
    pools: Mapping[PoolName, LocalPool] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class CapacityFile:
    """What the tables say, as the autoscaler and its drivers take it."""

    rules: Rules = Rules(FARM, ReadyBy.AGENT, reload_s=0.0)
    pools: tuple[Pool, ...] = ()  # none: there is no elastic capacity
    interval_s: float = 5.0
    coordinators: tuple[str, ...] = ()  # as instances reach them; none: where it listens for agents
    ca: Path | None = None  # of the farm's certificate, for instances
    local: LocalSettings = field(default_factory=LocalSettings)
    ec2: Ec2Settings = Ec2Settings(FARM)
    ec2_pools: Mapping[PoolName, Ec2Pool] = field(default_factory=dict)
    user_data: Mapping[PoolName, str] = field(default_factory=dict)  # that operators wrote

    @property
    def coordinator(self) -> str | None:
        """The first of them."""
        return self.coordinators[0] if self.coordinators else None

    def needs_start(self, old: "CapacityFile") -> list[str]:
        """What is said otherwise than in `old` and takes a restart to hold."""
        differs = {
            "[capacity]": (self.rules, self.interval_s, self.coordinators, self.ca)
            != (old.rules, old.interval_s, old.coordinators, old.ca),
            "[local]": replace(self.local, pools={}) != replace(old.local, pools={}),
            "[ec2]": self.ec2 != old.ec2,
            "whether there are [pools]": bool(self.pools) != bool(old.pools),
            "whether there are pools of ec2": bool(self.ec2_pools) != bool(old.ec2_pools),
        }
        return [name for name, is_so in differs.items() if is_so]


@dataclass(frozen=True, slots=True)
class AloneFile:
    """The file of `grange autoscaler`."""

    capacity: CapacityFile
    haproxy: HaproxySettings
    wiring: Wiring
    state_file: str  # of HAProxy
    socket: Path
    socket_mode: int
    state_dir: Path
    listen: str | None = None  # host:port
    tokens_file: Path | None = None
    overlay: TailscaleSettings | None = None  # None: instances have the addresses of their clouds

    def needs_start(self, old: "AloneFile") -> list[str]:
        """What is said otherwise than in `old` and takes a restart to hold."""
        of_daemon = operator.attrgetter("socket", "socket_mode", "state_dir", "listen")
        differs = {
            "[haproxy]": self.haproxy != old.haproxy,
            "[overlay]": self.overlay != old.overlay,
            "[daemon]": of_daemon(self) != of_daemon(old) or self.tokens_file != old.tokens_file,
        }
        said = [name for name, is_so in differs.items() if is_so]
        return said + self.capacity.needs_start(old.capacity)


def read_alone_file(path: Path) -> AloneFile:
    """Read TOML. Raises OperatorError for a file that cannot be read, a key that is not known, or
    a value that makes no sense."""
    try:
        said = AloneTables.model_validate(toml(path))
    except ValidationError as error:
        raise faults(path, error, AloneTables) from None
    if not said.pools:
        raise OperatorError(f"{path}: there is no pool; add a [pools.NAME] section")
    folder, daemon, haproxy = path.parent, said.daemon, said.haproxy
    for name, pool in said.pools.items():
        if pool.cloud == "local" and pool.local.command is None:
            raise OperatorError(
                f"{path}: pools.{name}.local.command is missing: without a farm there is nothing "
                "that its processes would be agents of; name a program to run, such as an sshd"
            )
    reload_s = haproxy.reload_s
    if reload_s is None:
        reload_s = 0.0 if haproxy.master_socket else RELOAD_S
    file = said.capacity_file(folder, ReadyBy.SERVER, reload_s)
    if said.overlay.kind != "none":
        file = replace(file, rules=replace(file.rules, has_overlay=True))
    return AloneFile(
        file,
        HaproxySettings(
            haproxy.socket,
            haproxy.master_socket,
            haproxy.backend,
            haproxy.ssh_port,
            haproxy.hard_stop_s,
        ),
        Wiring(file.pools, haproxy.host, haproxy.port_first, haproxy.user),
        haproxy.state_file,
        folder / daemon.socket,
        int(daemon.socket_mode, 8),
        folder / daemon.state_dir,
        daemon.listen,
        None if daemon.tokens_file is None else folder / daemon.tokens_file,
        said.overlay.settings(folder),
    )
