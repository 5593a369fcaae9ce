"""What would keep a farm from using EC2 as it is told to, found before it is needed."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, Final

from grange.capacity.facts import LaunchOrder, Market, SlotId
from grange.cloud.ec2 import failures, listing, rights, template
from grange.cloud.ec2.calls import Calls, RefusedError
from grange.cloud.ec2.settings import Ec2Pool, Ec2Settings

_ALLOWED: Final = "DryRunOperation"
_ARCHITECTURES: Final = {
    "x86_64-linux": "x86_64",
    "i686-linux": "x86_64",
    "aarch64-linux": "arm64",
}
_PAGES_MAX: Final = 20
_NESTED: Final = "nested-virtualization"


async def troubles(
    settings: Ec2Settings, pools: Sequence[Ec2Pool], calls: Calls
) -> tuple[str, ...]:
    """Each once; the first that concerns all pools hides what depends on it."""
    asked = _Asked(calls)
    whole = [each async for each in _of_farm(settings, asked)]
    if asked.is_refused_at_all:
        return tuple(dict.fromkeys(whole))
    found = await asyncio.gather(
        *(_launches(settings, pool, asked) for pool in pools),
        *(look(pool, asked) for pool in pools for look in (_image, _network, _types)),
    )
    return tuple(dict.fromkeys([*whole, *(text for texts in found for text in texts)]))


class _Asked:
    """Calls whose failure is a sentence."""

    def __init__(self, calls: Calls) -> None:
        self.calls = calls
        self.is_refused_at_all = False  # no credentials, no network: more of the same follows

    async def dry(self, what: str, operation: str, *fine: str, **params: Any) -> str | None:
        """A call that changes nothing; `fine` are codes that come of there being nothing."""
        try:
            await self.calls.ask("ec2", operation, DryRun=True, **params)
        except RefusedError as error:
            if error.refused.code in (_ALLOWED, *fine):
                return None
            return await self._sentence(what, error)
        return None

    async def found(self, what: str, call: Callable[[], Awaitable[Any]]) -> tuple[Any, str | None]:
        try:
            return await call(), None
        except RefusedError as error:
            return None, await self._sentence(what, error)

    async def _sentence(self, what: str, error: RefusedError) -> str:
        refused = error.refused
        if refused.is_ours or not refused.status or refused.code == "AuthFailure":
            self.is_refused_at_all = True
        return str(await rights.raised(self.calls, what, error))


async def _of_farm(settings: Ec2Settings, asked: _Asked) -> AsyncIterator[str]:
    """Rights that all pools need, and the queue."""
    mine = [{"Name": f"tag:{template.FARM}", "Values": [settings.farm]}]
    listed, said = await asked.found(
        "list its instances",
        lambda: asked.calls.ask("ec2", "describe_instances", Filters=mine, MaxResults=5),
    )
    if said:
        yield said
    if asked.is_refused_at_all:
        return
    made, said = await asked.found(
        "look for launch templates",
        lambda: asked.calls.ask("ec2", "describe_launch_templates", Filters=mine),
    )
    if said:
        yield said
    calls: list[tuple[str, str, dict[str, Any]]] = [
        ("look for spot interruptions", "describe_spot_instance_requests", {})
    ]
    # A policy that goes by tags says yes to what bears them only: nothing else tells of it.
    for each in listing.instances_of(listed["Reservations"])[:1] if listed else ():
        id_ = each["InstanceId"]
        calls.append(("end its instances", "terminate_instances", {"InstanceIds": [id_]}))
        calls.append(("read what instances printed", "get_console_output", {"InstanceId": id_}))
    for each in made["LaunchTemplates"][:1] if made else ():
        named = {"LaunchTemplateName": each["LaunchTemplateName"]}
        calls.append(("delete old launch templates", "delete_launch_template", named))
    gone = (*failures.NO_SUCH_INSTANCE, *failures.TEMPLATE_GONE)
    for denied in await asyncio.gather(
        *(asked.dry(what, operation, *gone, **params) for what, operation, params in calls)
    ):
        if denied:
            yield denied
    if settings.sqs_url:
        said = await _queue(settings, asked)
        if said:
            yield said


async def _queue(settings: Ec2Settings, asked: _Asked) -> str | None:
    _, said = await asked.found(
        f"read the queue {settings.sqs_url}",
        lambda: asked.calls.ask(
            "sqs", "get_queue_attributes", QueueUrl=settings.sqs_url, AttributeNames=["QueueArn"]
        ),
    )
    return said


async def _launches(settings: Ec2Settings, pool: Ec2Pool, asked: _Asked) -> list[str]:
    """Both ways to launch, and the template, with all that a launch of this pool names."""
    offerings = [each for each in pool.pool.offerings if pool.subnet(each.zone)]
    if not offerings:
        return []  # `_network` tells
    name = pool.pool.name
    order = LaunchOrder(
        SlotId(f"{name}-1"), 1, "dry-run", pool.pool, pool.pool.market, tuple(offerings[:1])
    )
    data = template.template_data(settings.farm, pool, Market.ON_DEMAND)
    run = template.run_params(settings.farm, pool, order, "")
    del run["LaunchTemplate"]  # it need not be there yet
    if "NetworkInterfaces" in run:
        data.pop("NetworkInterfaces")
    fleet = template.fleet_params(settings.farm, pool, order, "")
    made = template.template_params(settings.farm, pool, pool.pool.market)
    said = await asyncio.gather(
        asked.dry(f"launch instances of pool {name}", "run_instances", **(data | run)),
        asked.dry(
            f"launch fleets of pool {name}", "create_fleet", *failures.TEMPLATE_GONE, **fleet
        ),
        asked.dry(
            f"make the launch template of pool {name}",
            "create_launch_template",
            "InvalidLaunchTemplateName.AlreadyExistsException",
            **made,
        ),
    )
    return [each for each in said if each]


async def _image(pool: Ec2Pool, asked: _Asked) -> list[str]:
    name = pool.pool.name
    found, said = await asked.found(
        f"look for image {pool.image} of pool {name}",
        lambda: asked.calls.ask("ec2", "describe_images", ImageIds=[pool.image]),
    )
    if said:
        return [said]
    images = found["Images"]
    if not images:
        return [f"pool {name}: there is no image {pool.image} in this region; see its image"]
    (image,) = images
    if image["State"] != "available":
        return [f"pool {name}: image {pool.image} is {image['State']}, and not available yet"]
    problems = []
    wanted = {_ARCHITECTURES[each] for each in pool.pool.systems if each in _ARCHITECTURES}
    if wanted and image["Architecture"] not in wanted:
        systems = ", ".join(pool.pool.systems)
        problems.append(
            f"pool {name}: image {pool.image} is for {image['Architecture']}, and the pool for "
            f"{systems}; name another image or other systems"
        )
    root = image.get("RootDeviceName", pool.device)
    if pool.volume_gb and root != pool.device:
        problems.append(
            f"pool {name}: the root volume of image {pool.image} is {root}, and not {pool.device}; "
            f'set device = "{root}", or its size stays as it is and there is a second volume'
        )
    return problems


async def _network(pool: Ec2Pool, asked: _Asked) -> list[str]:
    name = pool.pool.name
    zones = dict.fromkeys(each.zone for each in pool.pool.offerings)
    said = [
        f"pool {name} offers zone {zone} and names no subnet there; add it to the pool's subnets"
        for zone in zones
        if not pool.subnet(zone)
    ]
    subnets = {pool.subnet(zone): zone for zone in zones if pool.subnet(zone)}
    if subnets:
        found, failed = await asked.found(
            f"look for the subnets of pool {name}",
            lambda: asked.calls.ask("ec2", "describe_subnets", SubnetIds=list(subnets)),
        )
        said += [failed] if failed else []
        for each in found["Subnets"] if found else ():
            id_, zone = each["SubnetId"], each["AvailabilityZone"]
            if subnets.get(id_) != zone:
                said.append(
                    f"pool {name}: subnet {id_} is in {zone}, and not in {subnets.get(id_)}"
                )
    if pool.security_groups:
        _, failed = await asked.found(
            f"look for the security groups of pool {name}",
            lambda: asked.calls.ask(
                "ec2", "describe_security_groups", GroupIds=list(pool.security_groups)
            ),
        )
        said += [failed] if failed else []
    return said


async def _types(pool: Ec2Pool, asked: _Asked) -> list[str]:
    """Types are what the pool needs them to be, and are sold in its zones."""
    name = pool.pool.name
    types = list(dict.fromkeys(each.type for each in pool.pool.offerings))
    found, failed = await asked.found(
        f"look up the instance types of pool {name}",
        lambda: asked.calls.pages(
            "ec2",
            "describe_instance_types",
            "InstanceTypes",
            pages_max=_PAGES_MAX,
            Filters=[{"Name": "instance-type", "Values": types}],
        ),
    )
    if failed:
        return [failed]
    known = {each["InstanceType"]: each for each in found}
    said = [f"pool {name}: this region has no type {each}" for each in types if each not in known]
    wanted = {_ARCHITECTURES[each] for each in pool.pool.systems if each in _ARCHITECTURES}
    for type_, info in known.items():
        processor = info.get("ProcessorInfo", {})
        if wanted and not wanted & set(processor.get("SupportedArchitectures", wanted)):
            said.append(f"pool {name}: {type_} cannot run {', '.join(pool.pool.systems)}")
        is_able = _NESTED in processor.get("SupportedFeatures", ()) or info.get("BareMetal")
        if pool.pool.is_nested_virtual and not is_able:
            said.append(f"pool {name}: {type_} has no nested virtualization; take C8i, M8i or R8i")
    return said + await _offered(pool, types, asked)


async def _offered(pool: Ec2Pool, types: list[str], asked: _Asked) -> list[str]:
    name = pool.pool.name
    found, failed = await asked.found(
        f"look up in which zones the types of pool {name} are",
        lambda: asked.calls.pages(
            "ec2",
            "describe_instance_type_offerings",
            "InstanceTypeOfferings",
            pages_max=_PAGES_MAX,
            LocationType="availability-zone",
            Filters=[{"Name": "instance-type", "Values": types}],
        ),
    )
    if failed:
        return [failed]
    sold = {(each["InstanceType"], each["Location"]) for each in found}
    return [
        f"pool {name}: {each.type} is not to be had in {each.zone}"
        for each in pool.pool.offerings
        if (each.type, each.zone) not in sold
    ]
