"""How the fake launches: templates, single instances, fleets, and what tokens are for."""

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from grange.capacity.facts import Market
from tests.fake_ec2.protocol import AwsError
from tests.fake_ec2.world import TOKEN_S, Answered, FakeEc2, Machine, Params


@dataclass(frozen=True)
class Offer:
    type: str
    subnet: str
    market: Market
    price_max: str | None = None


_NOT_COMPARED: Final = {"DryRun"}


def create_launch_template(world: FakeEc2, params: Params) -> Mapping[str, Any]:
    name = params["LaunchTemplateName"]
    if params.get("DryRun"):
        world.authorize_dry()
    if name in world.templates:
        raise AwsError("InvalidLaunchTemplateName.AlreadyExistsException")
    world.templates[name] = {
        "data": params["LaunchTemplateData"],
        "tags": tags_of(params, "launch-template"),
        "made": world.clock.now,
    }
    return {"LaunchTemplate": _template(world, name)}


def describe_launch_templates(world: FakeEc2, params: Params) -> Mapping[str, Any]:
    if params.get("DryRun"):
        world.authorize_dry()
    return {
        "LaunchTemplates": [
            _template(world, name)
            for name, each in world.templates.items()
            if are_met(params.get("Filters"), {f"tag:{k}": v for k, v in each["tags"].items()})
        ]
    }


def delete_launch_template(world: FakeEc2, params: Params) -> Mapping[str, Any]:
    if params.get("DryRun"):
        world.authorize_dry()
    _template_data(world, params)
    name = params["LaunchTemplateName"]
    said = {"LaunchTemplate": _template(world, name)}
    del world.templates[name]
    return said


def run_instances(world: FakeEc2, params: Params) -> Mapping[str, Any]:
    template = params.get("LaunchTemplate")
    data = {**(_template_data(world, template) if template else {}), **params}
    interfaces = data.get("NetworkInterfaces") or [{}]
    subnet = data.get("SubnetId") or interfaces[0].get("SubnetId", "")
    if data.get("SubnetId") and "NetworkInterfaces" in data:
        raise AwsError(
            "InvalidParameterCombination",
            "Network interfaces and an instance-level subnet ID may not be specified together",
        )
    market_options = params.get("InstanceMarketOptions", {})
    market = Market.SPOT if market_options.get("MarketType") == "spot" else Market.ON_DEMAND
    kinds = {each["ResourceType"] for each in params.get("TagSpecifications", ())}
    if "spot-instances-request" in kinds and market is Market.ON_DEMAND:
        raise AwsError("InvalidParameterCombination", "no spot request to tag")
    _check_common(world, data, [subnet])
    if params.get("DryRun"):
        world.authorize_dry()
    scope = f"RunInstances {world.subnets[subnet]}"
    known = _replayed(world, scope, params)
    if known is None:
        price_max = market_options.get("SpotOptions", {}).get("MaxPrice")
        made = _make(world, data, params, Offer(data["InstanceType"], subnet, market, price_max))
        made.user_data = base64.b64decode(params.get("UserData", "")).decode()
        known = world.tokens[_token(scope, params)] = Answered(_digest(params), [made.id], [])
    return {"Instances": [shown(world, world.machines[each]) for each in known.ids]}


def create_fleet(world: FakeEc2, params: Params) -> Mapping[str, Any]:
    assert params["Type"] == "instant"
    (config,) = params["LaunchTemplateConfigs"]
    if params.get("DryRun"):
        world.authorize_dry()
    data = _template_data(world, config["LaunchTemplateSpecification"])
    overrides = config["Overrides"]
    if "InstanceMarketOptions" in data:
        raise AwsError("InvalidLaunchTemplate", "market options cannot be used with a fleet")
    _check_common(world, data, [each["SubnetId"] for each in overrides])
    zones = {world.subnets[each["SubnetId"]] for each in overrides}
    scope = f"CreateFleet {zones.pop() if len(zones) == 1 else ''}"
    known = _replayed(world, scope, params)
    if known is None:
        known = world.tokens[_token(scope, params)] = _fleet(world, params, data, overrides)
    launched = [world.machines[each] for each in known.ids]
    return {
        "FleetId": "fleet-1",
        "Errors": known.errors,
        "Instances": [
            {
                "InstanceIds": [each.id],
                "InstanceType": each.type,
                "Lifecycle": each.market.value,
                "LaunchTemplateAndOverrides": {
                    "Overrides": {"InstanceType": each.type, "SubnetId": each.subnet}
                },
            }
            for each in launched
        ],
    }


def _fleet(world: FakeEc2, params: Params, data: Params, overrides: list[Params]) -> Answered:
    kind = params["TargetCapacitySpecification"]["DefaultTargetCapacityType"]
    market = Market(kind)

    def rank(override: Params) -> tuple[float, float]:
        price = 1e9
        if override["InstanceType"] in world.types:
            price = world.price_of(override["InstanceType"], market)
        return (0.0, price) if market is Market.SPOT else (override.get("Priority", 1e9), price)

    specification = params["LaunchTemplateConfigs"][0]["LaunchTemplateSpecification"]
    errors: list[Params] = []
    for each in sorted(overrides, key=rank):
        offer = Offer(each["InstanceType"], each["SubnetId"], market, each.get("MaxPrice"))
        try:
            denied = world.unauthorized("ec2:RunInstances")
            if denied is not None:
                raise denied
            made = _make(world, data, params, offer)
        except AwsError as error:
            about = {"Overrides": {"InstanceType": offer.type, "SubnetId": offer.subnet}}
            said = {"ErrorCode": error.code, "ErrorMessage": error.message}
            errors.append({**said, "Lifecycle": kind, "LaunchTemplateAndOverrides": about})
            continue
        encoded = specification.get("LaunchTemplateSpecificationUserData", "")
        made.user_data = base64.b64decode(encoded).decode()
        return Answered(_digest(params), [made.id], errors)
    return Answered(_digest(params), [], errors)


def _replayed(world: FakeEc2, scope: str, params: Params) -> Answered | None:
    """What a token was answered with. Scopes are zones where a request names one."""
    known = world.tokens.get(_token(scope, params))
    if known is None:
        return None
    ends = [world.machines[each].ended_at for each in known.ids]
    if ends and all(each is not None and world.clock.now - each > TOKEN_S for each in ends):
        return None
    if known.digest != _digest(params):
        raise AwsError("IdempotentParameterMismatch", "Arguments on this request are inconsistent")
    if world.forgets_the_dead and ends and all(each is not None for each in ends):
        raise AwsError("IdempotentInstanceTerminated")
    return known


def _token(scope: str, params: Params) -> tuple[str, str]:
    assert len(params["ClientToken"]) <= 64
    return scope, params["ClientToken"]


def _digest(params: Params) -> str:
    said = {key: value for key, value in params.items() if key not in _NOT_COMPARED}
    return json.dumps(said, sort_keys=True)


def _check_common(world: FakeEc2, data: Params, subnets: list[str]) -> None:
    if data.get("ImageId") not in world.images:
        raise AwsError(
            "InvalidAMIID.NotFound", f"The image id '{data.get('ImageId')}' is not known"
        )
    for each in subnets:
        if each not in world.subnets:
            raise AwsError("InvalidSubnetID.NotFound", f"The subnet ID '{each}' does not exist")
    for each in data.get("SecurityGroupIds", ()):
        if each not in world.groups:
            raise AwsError("InvalidGroup.NotFound", f"The security group '{each}' does not exist")


def _check_offer(world: FakeEc2, offer: Offer) -> None:
    zone, is_spot = world.subnets[offer.subnet], offer.market is Market.SPOT
    if offer.type not in world.types:
        raise AwsError("InvalidParameterValue", f"Invalid value '{offer.type}' for InstanceType.")
    if (offer.type, zone) in world.not_sold:
        raise AwsError("Unsupported", f"{offer.type} is not supported in {zone}")
    price = world.price_of(offer.type, offer.market)
    if is_spot and offer.price_max is not None and float(offer.price_max) < price:
        raise AwsError("SpotMaxPriceTooLow", f"{offer.price_max} is less than {price}")
    live = [each for each in world.live() if each.market is offer.market]
    vcpus = sum(world.types[each.type].vcpus for each in live) + world.types[offer.type].vcpus
    if vcpus > world.vcpus_max.get(offer.market, vcpus):
        raise AwsError("MaxSpotInstanceCountExceeded" if is_spot else "VcpuLimitExceeded")
    if world.stock.get((offer.type, zone, offer.market), 1) < 1:
        raise AwsError("InsufficientInstanceCapacity", f"no {offer.type} in {zone}", 500)


def _make(world: FakeEc2, data: Params, params: Params, offer: Offer) -> Machine:
    _check_offer(world, offer)
    zone, now = world.subnets[offer.subnet], world.clock.now
    key = (offer.type, zone, offer.market)
    if key in world.stock:
        world.stock[key] -= 1
    number = len(world.machines) + 1
    machine = Machine(
        f"i-{number:017x}",
        offer.type,
        zone,
        offer.subnet,
        offer.market,
        world.price_of(offer.type, offer.market),
        tags_of(params, "instance"),
        data,
        "",
        params["ClientToken"],
        f"10.0.{number >> 8}.{number & 255}",
        now,
        now + world.rng.random() * world.lag_s,
        now + world.pending_s,
    )
    world.machines[machine.id] = machine
    if world.late:
        world.end(machine, world.late.pop(0))
    return machine


def shown(world: FakeEc2, machine: Machine) -> Params:
    """As EC2's Instance."""
    said: Params = {
        "InstanceId": machine.id,
        "InstanceType": machine.type,
        "ImageId": machine.data["ImageId"],
        "State": {"Name": world.state_of(machine)},
        "Placement": {"AvailabilityZone": machine.zone},
        "SubnetId": machine.subnet,
        "LaunchTime": world.clock.date(machine.born),
        "Tags": [{"Key": key, "Value": value} for key, value in machine.tags.items()],
    }
    if machine.is_live:
        said["PrivateIpAddress"] = machine.address
    if machine.market is Market.SPOT:
        said["InstanceLifecycle"] = "spot"
    if "CpuOptions" in machine.data:
        said["CpuOptions"] = machine.data["CpuOptions"]
    if machine.reason:
        said["StateReason"] = {"Code": machine.reason, "Message": machine.reason}
    return said


def tags_of(params: Params, kind: str) -> dict[str, str]:
    return {
        tag["Key"]: tag["Value"]
        for each in params.get("TagSpecifications", ())
        if each["ResourceType"] == kind
        for tag in each["Tags"]
    }


def are_met(filters: list[Params] | None, of: Mapping[str, str]) -> bool:
    return all(of.get(each["Name"]) in each["Values"] for each in filters or ())


def _template_data(world: FakeEc2, named: Params) -> Params:
    name = named["LaunchTemplateName"]
    if name not in world.templates:
        raise AwsError(
            "InvalidLaunchTemplateName.NotFoundException", f"no launch template is named {name}"
        )
    data: Params = world.templates[name]["data"]
    return data


def _template(world: FakeEc2, name: str) -> Params:
    made = world.clock.date(world.templates[name]["made"])
    return {"LaunchTemplateName": name, "LaunchTemplateId": "lt-1", "CreateTime": made}
