"""The tables of elastic capacity: what they come to, and how what is wrong in them is named."""

from pathlib import Path
from typing import get_args

import pytest
from pydantic import BaseModel

from grange.capacity.facts import Market, Offering, ReadyBy
from grange.cli.capacity_tables import AloneFile, AloneTables, CapacityFile, read_alone_file
from grange.cli.farm_file import FarmFile, read_farm_file
from grange.errors import OperatorError
from grange.scheduler.facts import Limits

POOL = """
[pools.x86]
cloud = "local"
systems = ["x86_64-linux"]
"""
HAPROXY = '[haproxy]\nsocket = "/run/haproxy.sock"\n'
COMMAND = 'local.command = ["sshd", "-D"]\n'


EC2 = """
[capacity]
farm = "ci"
[pools.big]
cloud = "ec2"
systems = ["x86_64-linux", "i686-linux"]
types."c7i.4xlarge" = { on_demand = 0.7, vcpus = 16 }
types."m7i.4xlarge" = { vcpus = 16 }
ec2.image = "ami-0a1b"
ec2.subnets = { "eu-central-1a" = "subnet-0a", "eu-central-1b" = "subnet-0b" }
"""


def of_farm(folder: Path, text: str) -> CapacityFile:
    return farm_file(folder, text).capacity


def farm_file(folder: Path, text: str) -> FarmFile:
    path = folder / "farm.toml"
    path.write_text(text)
    return read_farm_file(path, Limits())


def alone(folder: Path, text: str) -> AloneFile:
    path = folder / "autoscaler.toml"
    path.write_text(text)
    return read_alone_file(path)


def test_a_farm_without_pools_has_no_elastic_capacity(tmp_path: Path) -> None:
    assert of_farm(tmp_path, "").pools == ()


def test_what_a_pool_says_comes_before_what_holds_by_itself(tmp_path: Path) -> None:
    text = (
        POOL
        + """
features = ["kvm"]
mandatory_features = ["big"]
tags = ["blue"]
min = 1
max = 5
warm = 2
capacity = 4
idle_s = 60.5
hourly_budget = 2
types.large = { on_demand = 0.4, spot = 0.1, vcpus = 8 }
timeouts = { boot_s = 30 }
[capacity]
farm = "ci"
vcpus_max = 64
"""
    )
    file = of_farm(tmp_path, text)
    assert (file.rules.farm, file.rules.ready_by) == ("ci", ReadyBy.AGENT)
    assert file.rules.vcpus_max == 64
    assert file.rules.reload_s == 0, "there is no balancer that could hide sessions"
    [pool] = file.pools
    assert (pool.name, pool.min, pool.max, pool.warm, pool.capacity) == ("x86", 1, 5, 2, 4)
    assert pool.features == ("big", "kvm"), "what is mandatory is offered"
    assert pool.mandatory_features == ("big",)
    assert pool.tags == ("blue",)
    assert (pool.market, pool.fallback) == (Market.ON_DEMAND, None), "processes have no other"
    assert pool.offerings == (Offering("large", "here", 0.1, 0.4, 8),)
    assert (pool.idle_s, pool.hourly_budget) == (60.5, 2)
    assert pool.timeouts.boot_s == 30
    assert pool.timeouts.bind_s == 600, "an agent's whole start is in it"


def test_of_ec2_each_type_is_to_be_had_in_each_zone(tmp_path: Path) -> None:
    text = EC2 + "ec2.volume_gb = 100\nec2.more = { EbsOptimized = true }\n[ec2]\nregion = 'x'"
    file = of_farm(tmp_path, text)
    [pool] = file.pools
    assert [(each.type, each.zone) for each in pool.offerings] == [
        ("c7i.4xlarge", "eu-central-1a"),
        ("c7i.4xlarge", "eu-central-1b"),
        ("m7i.4xlarge", "eu-central-1a"),
        ("m7i.4xlarge", "eu-central-1b"),
    ]
    assert (pool.market, pool.fallback) == (Market.SPOT, Market.ON_DEMAND)
    assert file.ec2.farm == file.rules.farm == "ci"
    assert file.ec2.region == "x"
    assert file.rules.settle_s > 0
    assert file.local.pools == {}
    of_ec2 = file.ec2_pools[pool.name]
    assert of_ec2.pool is pool
    assert (of_ec2.image, of_ec2.volume_gb) == ("ami-0a1b", 100)
    assert of_ec2.more == {"EbsOptimized": True}
    fewer = of_farm(tmp_path, text.replace('subnet-0a", ', 'subnet-0c", '))
    assert fewer.pools[0].config_hash == pool.config_hash
    other = of_farm(tmp_path, text.replace("ami-0a1b", "ami-0a1c"))
    assert other.pools[0].config_hash != pool.config_hash


def test_alone_it_binds_servers_and_has_doors(tmp_path: Path) -> None:
    text = POOL + COMMAND + HAPROXY + '[daemon]\nsocket_mode = "600"\nstate_dir = "state"\n'
    file = alone(tmp_path, text)
    assert file.capacity.rules.ready_by is ReadyBy.SERVER
    assert file.capacity.pools[0].timeouts.bind_s == 120
    assert file.haproxy.socket == "/run/haproxy.sock"
    assert file.capacity.rules.reload_s == 600
    told = alone(tmp_path, text.replace(HAPROXY, HAPROXY + 'master_socket = "/run/master"\n'))
    assert told.capacity.rules.reload_s == 0, "its master says what old workers hold"
    assert file.wiring.pools == file.capacity.pools
    assert file.socket == Path("/run/grange/autoscaler.sock")
    assert (file.socket_mode, file.state_dir) == (0o600, tmp_path / "state")


def test_with_an_overlay_instances_have_its_addresses(tmp_path: Path) -> None:
    plain = alone(tmp_path, POOL + COMMAND + HAPROXY + '[overlay]\nkind = "none"\n')
    assert (plain.overlay, plain.capacity.rules.has_overlay) == (None, False)
    text = '[overlay]\nkind = "tailscale"\ntag = "tag:ci"\nkey_file = "key"\n'
    file = alone(tmp_path, POOL + COMMAND + HAPROXY + text)
    assert file.capacity.rules.has_overlay
    assert file.overlay is not None
    assert (file.overlay.tag, file.overlay.key_file) == ("tag:ci", tmp_path / "key")


def test_what_shapes_an_instance_makes_another_of_it_and_what_limits_it_does_not(
    tmp_path: Path,
) -> None:
    def hash_of(text: str, pool: str = POOL) -> str:
        return of_farm(tmp_path, pool + text).pools[0].config_hash

    before = hash_of("")
    for same in ("max = 7", "idle_s = 1", "types.huge = { vcpus = 3 }", "uses_max = 3"):
        assert hash_of(same) == before
    others = {
        hash_of("capacity = 2"),
        hash_of('features = ["kvm"]'),
        hash_of('local.agent_options = ["--no-sandbox"]'),
        hash_of('local.environment = { A = "b" }'),
        hash_of('[capacity]\ncoordinator = "farm.example:7381"'),
        hash_of("", POOL.replace("x86_64", "i686")),
    }
    assert len(others - {before}) == 6


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("mx = 3", r"pools\.x86\.mx is not known; cloud, systems, .*max, "),
        ("min = 3\nmax = 2", r"pools\.x86 is wrong: min is 3 and max 2"),
        ("warm = 3\nmax = 2", r"pools\.x86 is wrong: warm is 3 and max 2"),
        ("capacity = 0", r"pools\.x86\.capacity is 0: .*greater than or equal to 1"),
        ("max = 10001", r"pools\.x86\.max is 10001"),
        ('idle_s = "10m"', r"pools\.x86\.idle_s is '10m'"),
        ("idle_s = nan", r"pools\.x86\.idle_s is nan"),
        ("hourly_budget = -1", r"pools\.x86\.hourly_budget is -1"),
        ("hourly_budget = 1", r"pools\.x86 is wrong: it has a budget and no prices"),
        (
            "min = 2\nmax = 2\nhourly_budget = 1\ntypes.a = { spot = 0.6, on_demand = 1 }",
            r"hourly_budget is \$1\.00, and 2 slots cost at least \$1\.20 an hour",
        ),
        (
            "min = 1\nmonthly_budget = 10\ntypes.a = { on_demand = 1 }",
            r"monthly_budget is \$10\.00, and min = 1 slots cost at least \$744\.00",
        ),
        (
            "min = 1\ntypes.a = { vcpus = 8 }\n[capacity]\nvcpus_max = 4",
            r"capacity\.vcpus_max is 4, and min of x86 asks for 8",
        ),
        ('market = "spot"\nfallback = "spot"', "fallback is the market itself, spot"),
        ('market = "free"', r"pools\.x86\.market is 'free': .*'spot' or 'on-demand'"),
        ("types.a = { price = 3 }", r"pools\.x86\.types\.a\.price is not known; spot, on_demand"),
        ('local.command = ["x"]\nlocal.agent_options = ["y"]', "agent_options are for agents"),
        ('[capacity]\ncoordinator = "farm"', r"capacity\.coordinator is wrong: 'farm' is not HOST"),
        ('[capacity]\ncoordinator = ["a:1", "b"]', r"capacity\.coordinator is wrong: 'b' is not"),
        ('[capacity]\nfarm = "a b"', r"capacity\.farm is 'a b'"),
        ('[haproxy]\nsocket = "/s"', "haproxy is not known"),
        ('[pools.Big]\ncloud = "local"\nsystems = ["a"]', "'Big' cannot name a pool"),
        ('[pools.b]\ncloud = "moon"\nsystems = ["a"]', r"pools\.b\.cloud is 'moon': .*'ec2'"),
        ('[pools.b]\ncloud = "local"', r"pools\.b\.systems is missing"),
        ('[pools.b]\ncloud = "local"\nsystems = []', r"pools\.b\.systems is \[\]"),
        ('[pools.b]\ncloud = "local"\nsystems = ["a", "a"]', "systems names a twice"),
        ('ec2.image = "ami-1"\nec2.subnets.a = "subnet-1"', r"take \[pools.NAME.ec2\] out"),
        (EC2.replace("ami-0a1b", "debian"), r"pools\.big\.ec2\.image is 'debian'"),
        (EC2.replace('farm = "ci"', ""), "capacity.farm is missing: instances bear it as a tag"),
        (EC2.replace("c7i", "c7g"), r"types names c7g\.4xlarge, whose CPU is aarch64, and systems"),
        (EC2.replace("x86_64", "aarch64"), r"c7i\.4xlarge, whose CPU is x86_64, .* aarch64-linux"),
        (EC2 + 'features = ["kvm"]', r"features names kvm, and c7i\.4xlarge has no /dev/kvm"),
        ('[pools.b]\ncloud = "ec2"\nsystems = ["a"]', r"\[pools.NAME.ec2\] is missing"),
    ],
)
def test_what_is_wrong_in_the_farms_file_is_named(
    tmp_path: Path, text: str, complaint: str
) -> None:
    with pytest.raises(OperatorError, match=complaint) as told:
        of_farm(tmp_path, POOL + text)
    assert str(tmp_path / "farm.toml") in str(told.value)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (HAPROXY, "there is no pool; add a"),
        (POOL + COMMAND, "haproxy is missing"),
        (POOL + HAPROXY, r"pools\.x86\.local\.command is missing: without a farm"),
        (POOL + COMMAND + HAPROXY + 'backend = "all"', r"haproxy\.backend is 'all'"),
        (POOL + COMMAND + HAPROXY + '[daemon]\nlisten = "::1:7"', "name a tokens_file"),
        (POOL + COMMAND + HAPROXY + '[daemon]\nsocket_mode = "rw"', r"daemon\.socket_mode is 'rw'"),
        (POOL + COMMAND + HAPROXY + "[retries]\nbackoff_s = 1", "retries is not known"),
        (
            POOL + COMMAND + HAPROXY + '[overlay]\ntag = "tag:x"',
            "overlay is wrong: kind is missing",
        ),
        (POOL + COMMAND + HAPROXY + '[overlay]\nkind = "headscale"', "api is missing: the URL"),
        (POOL + COMMAND + HAPROXY + '[overlay]\nkind = "moon"', r"overlay\.kind is 'moon'"),
        ("[pools", "is not TOML"),
    ],
)
def test_what_is_wrong_in_a_file_of_its_own_is_named(
    tmp_path: Path, text: str, complaint: str
) -> None:
    with pytest.raises(OperatorError, match=complaint) as told:
        alone(tmp_path, text)
    assert str(tmp_path / "autoscaler.toml") in str(told.value)


def test_hooks_and_pools_have_names_of_their_own_rules(tmp_path: Path) -> None:
    hook = '[hooks."a b"]\nevents = ["build-failed"]\ncommand = ["x"]'
    with pytest.raises(OperatorError, match="'a b' cannot name a hook"):
        of_farm(tmp_path, POOL + hook)


def test_pools_are_read_anew_and_the_rest_takes_a_restart(tmp_path: Path) -> None:
    def needs(text: str, before: str = POOL) -> list[str]:
        return farm_file(tmp_path, text).needs_start(farm_file(tmp_path, before))

    assert needs(POOL + "max = 3\nlocal.agent_options = ['--no-sandbox']") == []
    assert needs(POOL + "[capacity]\ninterval_s = 1") == ["[capacity]"]
    assert needs(POOL + "[local]\nboot_s = 1") == ["[local]"]
    assert needs("") == ["whether there are [pools]"]


def test_every_key_is_in_the_operators_page() -> None:
    page = (Path(__file__).parents[2] / "docs/operating/capacity.md").read_text()
    reference = page.partition("## The file")[2]

    def keys(model: type[BaseModel]) -> set[str]:
        found = set(model.model_fields)
        for each in model.model_fields.values():
            for kind in (each.annotation, *get_args(each.annotation)):
                if isinstance(kind, type) and issubclass(kind, BaseModel):
                    found |= keys(kind)
        return found

    known = keys(AloneTables)
    assert {"spot", "image", "subnets", "agent_options", "client_id", "listen"} <= known
    shown = {
        word for mark in ("`", "`[", "types = { ") for word in known if mark + word in reference
    }
    shown |= {word for word in known if f"{word} =" in reference}
    assert not known - shown
