"""The tables that say what pools of instances there are: [pools.NAME]."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import Field, model_validator

from grange.capacity.facts import Market, Offering, Pool, PoolName, ReadyBy, Timeouts
from grange.cli.tables import Table, Text
from grange.cloud.ec2.settings import Ec2Pool
from grange.errors import OperatorError

SLOTS_MAX: Final = 10_000  # of a pool: what the plan was measured with
JOIN_S: Final = 600.0  # from running to joined: all of the machine's own start is in it
_GRAVITON: Final = re.compile(r"(a1|[a-z]+\d+[a-z]*g[a-z]*)[.-]")  # types whose CPU is ARM's
_CPUS: Final = ("x86_64-", "i686-"), ("aarch64-", "armv7l-", "armv6l-")
_PARTS_MAX: Final = 50  # types, zones, systems, features of a pool

Names = Annotated[list[Text], Field(max_length=_PARTS_MAX)]
Slots = Annotated[int, Field(ge=0, le=SLOTS_MAX)]
Dollars = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Subnet = Annotated[str, Field(pattern=r"^subnet-[0-9a-f]+$")]
MarketName = Literal["spot", "on-demand"]


@dataclass(frozen=True, slots=True)
class LocalPool:
    """What an instance of a pool of local processes runs."""

    command: tuple[str, ...] = ()  # (): an agent of the farm
    agent_options: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)


class _Timeouts(Table):
    launch_s: Annotated[float, Field(ge=1, le=86_400)] | None = None
    boot_s: Annotated[float, Field(ge=1, le=86_400)] | None = None
    bind_s: Annotated[float, Field(ge=1, le=86_400)] | None = None
    drain_s: Annotated[float, Field(ge=1, le=604_800)] | None = None
    terminate_s: Annotated[float, Field(ge=1, le=86_400)] | None = None
    lease_s: Annotated[float, Field(ge=5, le=86_400)] | None = None

    def timeouts(self, ready_by: ReadyBy) -> Timeouts:
        said = self.model_dump(exclude_none=True)
        return Timeouts(**({"bind_s": JOIN_S} if ready_by is ReadyBy.AGENT else {}) | said)


class _Type(Table):
    spot: Dollars | None = None
    on_demand: Dollars | None = None
    vcpus: Annotated[int, Field(ge=0, le=100_000)] = 0


class _LocalPool(Table):
    command: Annotated[list[Text], Field(min_length=1)] | None = None
    agent_options: list[Text] = Field(default_factory=list)
    environment: dict[str, str] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _is_one_thing(self) -> Self:
        if self.command is not None and self.agent_options:
            raise ValueError("agent_options are for agents, and command says what runs instead")
        return self

    def settings(self) -> LocalPool:
        options = tuple(self.agent_options)
        return LocalPool(tuple(self.command or ()), options, self.environment)


class _Ec2Pool(Table):
    image: Annotated[str, Field(pattern=r"^ami-[0-9a-f]+$")]
    subnets: Annotated[dict[Text, Subnet], Field(min_length=1, max_length=_PARTS_MAX)]
    user_data: Text | None = None  # a file
    security_groups: list[Annotated[str, Field(pattern=r"^sg-[0-9a-f]+$")]] = Field(
        default_factory=list
    )
    instance_profile: str = ""
    key_name: str = ""
    volume_gb: Annotated[int, Field(ge=0, le=65_536)] = 0
    volume_type: Text = "gp3"
    volume_iops: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    volume_mb_s: Annotated[int, Field(ge=0, le=100_000)] = 0
    device: Text = "/dev/xvda"
    public: bool | None = None
    price_max: Dollars | None = None
    tags: dict[Text, str] = Field(default_factory=dict)
    more: dict[Text, Any] = Field(default_factory=dict)


class PoolTable(Table):
    cloud: Literal["ec2", "local"]
    systems: Annotated[Names, Field(min_length=1)]
    features: Names = Field(default_factory=list)
    mandatory_features: Names = Field(default_factory=list)
    tags: Names = Field(default_factory=list)
    market: MarketName | None = None
    fallback: MarketName | Literal["none"] | None = None
    types: Annotated[dict[str, _Type], Field(max_length=_PARTS_MAX)] = Field(default_factory=dict)
    min: Slots = 0
    max: Slots = 1
    warm: Slots = 0
    capacity: Annotated[int, Field(ge=1, le=1000)] = 1
    launches_max: Annotated[int, Field(ge=1, le=1000)] = 8
    launch_rate: Annotated[float, Field(gt=0, le=1000)] = 1.0
    batch_s: Annotated[float, Field(ge=0, le=3600)] = 3.0
    patience_s: Annotated[float, Field(ge=0, le=86_400)] = 0.0
    idle_s: Annotated[float, Field(ge=0, le=604_800)] = 600.0
    life_min_s: Annotated[float, Field(ge=0, le=604_800)] = 120.0
    age_max_s: Annotated[float, Field(ge=60, le=31_536_000)] = 86_400.0
    uses_max: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    hourly_budget: Dollars | None = None
    monthly_budget: Dollars | None = None
    nested_virtualization: bool = False
    timeouts: _Timeouts = _Timeouts()
    local: _LocalPool = _LocalPool()
    ec2: _Ec2Pool | None = None

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        for said in (_driver(self), _sizes(self), _markets(self), _means(self)):
            if said:
                raise ValueError(said)
        return self

    @property
    def markets(self) -> tuple[Market, Market | None]:
        """What is asked for first, and what where that has none."""
        market = Market(self.market or ("on-demand" if self.cloud == "local" else "spot"))
        if self.fallback is None:
            return market, Market.ON_DEMAND if market is Market.SPOT else None
        return market, None if self.fallback == "none" else Market(self.fallback)

    def offerings(self) -> tuple[Offering, ...]:
        types = self.types or {"process": _Type()}
        zones = ["here"] if self.ec2 is None else list(self.ec2.subnets)
        return tuple(
            [
                Offering(name, zone, each.spot, each.on_demand, each.vcpus)
                for name, each in types.items()
                for zone in zones
            ]
        )

    def user_data(self, folder: Path) -> str | None:
        """The text that its instances are to begin with; None: as Grange makes it.

        Raises OperatorError for a file that cannot be read.
        """
        if self.ec2 is None or self.ec2.user_data is None:
            return None
        path = folder / self.ec2.user_data
        try:
            return path.read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise OperatorError(f"user data in {path} cannot be read: {error}") from error

    def config_hash(self, shared: object) -> str:
        """Of all that shapes an instance, `shared` by all pools and its own: another one has
        drifted. Limits, money and what may be chosen from do not shape it."""
        own = self.model_dump(
            mode="json",
            include={
                "cloud", "systems", "features", "mandatory_features", "capacity",
                "nested_virtualization", "local", "ec2",
            },
            exclude={"ec2": {"subnets", "price_max"}},
        )  # fmt: skip
        text = json.dumps([own, shared], sort_keys=True)
        return sha256(text.encode()).hexdigest()[:16]

    def of_ec2(self, pool: Pool) -> Ec2Pool:
        """What EC2 is to know of `pool`, which this table made."""
        said = self.ec2
        assert said is not None
        return Ec2Pool(
            pool,
            said.image,
            said.subnets,
            tuple(said.security_groups),
            said.instance_profile,
            said.key_name,
            said.volume_gb,
            said.volume_type,
            said.volume_iops,
            said.volume_mb_s,
            said.device,
            said.public,
            said.price_max,
            said.tags,
            said.more,
        )

    def pool(self, name: str, ready_by: ReadyBy, shared: object) -> Pool:
        return Pool(
            PoolName(name),
            tuple(self.systems),
            tuple(sorted({*self.features, *self.mandatory_features})),
            tuple(self.mandatory_features),
            tuple(self.tags),
            *self.markets,
            self.offerings(),
            self.min,
            self.max,
            self.warm,
            self.capacity,
            self.launches_max,
            self.launch_rate,
            self.batch_s,
            self.idle_s,
            self.life_min_s,
            self.age_max_s,
            self.uses_max,
            self.hourly_budget,
            self.monthly_budget,
            self.nested_virtualization,
            self.timeouts.timeouts(ready_by),
            self.config_hash(shared),
            patience_s=self.patience_s,
            is_zonal=self.ec2 is None or len(self.ec2.subnets) == 1,
        )


def _sizes(pool: PoolTable) -> str:
    """What is wrong with its numbers; "" for nothing."""
    if pool.min > pool.max:
        return f"min is {pool.min} and max {pool.max}; max must be at least min"
    if pool.warm > pool.max:
        return f"warm is {pool.warm} and max {pool.max}; max must be at least warm"
    return ""


def _markets(pool: PoolTable) -> str:
    """What keeps its slots from ever being paid for."""
    market, fallback = pool.markets
    if fallback is market:
        return f'fallback is the market itself, {market}; say "none", or the other one'
    prices = [
        price
        for each in pool.types.values()
        for price in (each.spot, each.on_demand)
        if price is not None
    ]
    if pool.hourly_budget is None and pool.monthly_budget is None:
        return ""
    if not prices:
        return "it has a budget and no prices; name spot and on_demand in types, dollars an hour"
    least = min(prices)
    if pool.hourly_budget is not None and pool.hourly_budget < max(1, pool.min) * least:
        return (
            f"hourly_budget is ${pool.hourly_budget:.2f}, and {max(1, pool.min)} slots cost at "
            f"least ${max(1, pool.min) * least:.2f} an hour; raise it, or lower min"
        )
    month_h = 31 * 24
    if pool.monthly_budget is not None and pool.monthly_budget < pool.min * least * month_h:
        return (
            f"monthly_budget is ${pool.monthly_budget:.2f}, and min = {pool.min} slots cost at "
            f"least ${pool.min * least * month_h:.2f} in a month; raise it, or lower min"
        )
    return ""


def _driver(pool: PoolTable) -> str:
    """What its cloud lacks, or is said to another."""
    if pool.cloud == "ec2" and pool.ec2 is None:
        return "[pools.NAME.ec2] is missing; it names image and subnets at least"
    if pool.cloud == "ec2" and not pool.types:
        return 'types is missing; name instance types, such as types."c7i.4xlarge" = { vcpus = 16 }'
    other = "local" if pool.cloud == "ec2" else "ec2"
    if other in pool.model_fields_set:
        return f'cloud is {pool.cloud}; take [pools.NAME.{other}] out, or set cloud = "{other}"'
    return ""


def _means(pool: PoolTable) -> str:
    """What it promises and could not keep."""
    twice = {each for each in pool.systems if pool.systems.count(each) > 1}
    if twice:
        return f"systems names {', '.join(sorted(twice))} twice"
    if pool.cloud != "ec2":
        return ""
    for name in pool.types:
        is_arm = _GRAVITON.match(name) is not None
        if strangers := [each for each in pool.systems if each.startswith(_CPUS[not is_arm])]:
            return (
                f"types names {name}, whose CPU is {_CPUS[is_arm][0].rstrip('-')}, and systems "
                f"{', '.join(strangers)}; make a pool for each CPU"
            )
        has_kvm = pool.nested_virtualization or ".metal" in name
        if "kvm" in {*pool.features, *pool.mandatory_features} and not has_kvm:
            return (
                f"features names kvm, and {name} has no /dev/kvm; set nested_virtualization = true "
                "with types that know it (c8i, m8i, r8i), or name .metal types only"
            )
    return ""
