"""What is said to EC2: launch templates, fleets, single instances. Pure.

A template says what a pool's instances on one market have in common, and is named after what it
says, so that one of a name never changes. What is of one launch, user data and tags, comes with
the launch.
"""

import base64
import hashlib
import json
import re
from typing import Any, Final

from grange.capacity.facts import LaunchOrder, Market
from grange.cloud.ec2.settings import Ec2Pool
from grange.errors import OperatorError

FARM: Final = "grange:farm"
SLOT: Final = "grange:slot"
GENERATION: Final = "grange:generation"
POOL: Final = "grange:pool"
CONFIG: Final = "grange:config"
TOKEN: Final = "grange:token"
USER_DATA_MAX: Final = 16 << 10  # EC2's limits, both
OVERRIDES_MAX: Final = 300
_TAGGED: Final = ("instance", "volume", "network-interface")


def template_data(farm: str, pool: Ec2Pool, market: Market) -> dict[str, Any]:
    """EC2's RequestLaunchTemplateData."""
    data: dict[str, Any] = {
        "ImageId": pool.image,
        "InstanceInitiatedShutdownBehavior": "terminate",  # so that powering off ends it
        "MetadataOptions": {
            "HttpEndpoint": "enabled",
            "HttpTokens": "required",
            "HttpPutResponseHopLimit": 1,
            "InstanceMetadataTags": "enabled",  # it can read which slot it sits in
        },
    }
    if market is Market.SPOT:  # a fleet cannot tag these itself, and on demand there are none
        said = {"ResourceType": "spot-instances-request", "Tags": _tags(_common(farm, pool))}
        data["TagSpecifications"] = [said]
    if pool.instance_profile:
        kind = "Arn" if pool.instance_profile.startswith("arn:") else "Name"
        data["IamInstanceProfile"] = {kind: pool.instance_profile}
    if pool.key_name:
        data["KeyName"] = pool.key_name
    if pool.pool.is_nested_virtual:
        data["CpuOptions"] = {"NestedVirtualization": "enabled"}
    if pool.volume_gb:
        data["BlockDeviceMappings"] = [{"DeviceName": pool.device, "Ebs": _volume(pool)}]
    if pool.is_public is not None:
        data["NetworkInterfaces"] = [_interface(pool)]
    elif pool.security_groups:
        data["SecurityGroupIds"] = list(pool.security_groups)
    return data | dict(pool.more)


def template_name(farm: str, pool: Ec2Pool, market: Market) -> str:
    said = json.dumps(template_data(farm, pool, market), sort_keys=True)
    digest = hashlib.sha256(said.encode()).hexdigest()[:16]
    name = re.sub(r"[^a-zA-Z0-9().\-/_]", "-", f"grange-{farm}-{pool.pool.name}")
    return f"{name[:100]}-{digest}"


def template_params(farm: str, pool: Ec2Pool, market: Market) -> dict[str, Any]:
    """Of CreateLaunchTemplate."""
    return {
        "LaunchTemplateName": template_name(farm, pool, market),
        "LaunchTemplateData": template_data(farm, pool, market),
        "TagSpecifications": [
            {"ResourceType": "launch-template", "Tags": _tags(_common(farm, pool))}
        ],
    }


def fleet_params(farm: str, pool: Ec2Pool, order: LaunchOrder, user_data: str) -> dict[str, Any]:
    """Of CreateFleet: one instance, of whichever offering there is best to be had."""
    is_spot = order.market is Market.SPOT
    overrides = []
    for rank, each in enumerate(order.offerings[:OVERRIDES_MAX]):
        override: dict[str, Any] = {"InstanceType": each.type, "SubnetId": _subnet(pool, each.zone)}
        if is_spot and pool.price_max is not None:
            override["MaxPrice"] = f"{pool.price_max:g}"
        if not is_spot:
            override["Priority"] = float(rank)
        overrides.append(override)
    template = {
        "LaunchTemplateName": template_name(farm, pool, order.market),
        "Version": "1",
        "LaunchTemplateSpecificationUserData": base64.b64encode(_checked(user_data)).decode(),
    }
    params: dict[str, Any] = {
        "Type": "instant",
        "ClientToken": order.token,
        "LaunchTemplateConfigs": [
            {"LaunchTemplateSpecification": template, "Overrides": overrides}
        ],
        "TargetCapacitySpecification": {
            "TotalTargetCapacity": 1,
            "DefaultTargetCapacityType": "spot" if is_spot else "on-demand",
        },
        "TagSpecifications": [
            {"ResourceType": kind, "Tags": _tags(tags(farm, pool, order))}
            for kind in ("fleet", *_TAGGED)
        ],
    }
    if is_spot:
        params["SpotOptions"] = {
            "AllocationStrategy": "price-capacity-optimized",
            "InstanceInterruptionBehavior": "terminate",
        }
    else:
        params["OnDemandOptions"] = {"AllocationStrategy": "prioritized"}
    return params


def run_params(farm: str, pool: Ec2Pool, order: LaunchOrder, user_data: str) -> dict[str, Any]:
    """Of RunInstances, for an order of one offering."""
    (offering,) = order.offerings
    subnet = _subnet(pool, offering.zone)
    name = template_name(farm, pool, order.market)
    said = _tags(tags(farm, pool, order))
    params: dict[str, Any] = {
        "MinCount": 1,
        "MaxCount": 1,
        "ClientToken": order.token,
        "LaunchTemplate": {"LaunchTemplateName": name, "Version": "1"},
        "InstanceType": offering.type,
        "UserData": _checked(user_data).decode(),  # encoded by the client
    }
    kinds: tuple[str, ...] = _TAGGED
    if pool.is_public is None:
        params["SubnetId"] = subnet
    else:
        params["NetworkInterfaces"] = [_interface(pool) | {"SubnetId": subnet}]
    if order.market is Market.SPOT:
        options = {"SpotInstanceType": "one-time", "InstanceInterruptionBehavior": "terminate"}
        if pool.price_max is not None:
            options["MaxPrice"] = f"{pool.price_max:g}"
        params["InstanceMarketOptions"] = {"MarketType": "spot", "SpotOptions": options}
        kinds += ("spot-instances-request",)
    params["TagSpecifications"] = [{"ResourceType": kind, "Tags": said} for kind in kinds]
    return params


def tags(farm: str, pool: Ec2Pool, order: LaunchOrder) -> dict[str, str]:
    """Enough to find, adopt or end an instance of which nothing else is known."""
    return {
        **_common(farm, pool),
        SLOT: order.slot,
        GENERATION: str(order.generation),
        CONFIG: order.pool.config_hash,
        TOKEN: order.token,
        "Name": f"grange {farm} {order.slot}",
    }


def _common(farm: str, pool: Ec2Pool) -> dict[str, str]:
    return {**pool.tags, FARM: farm, POOL: pool.pool.name}


def _tags(said: dict[str, str]) -> list[dict[str, str]]:
    return [{"Key": key, "Value": value} for key, value in said.items()]


def _subnet(pool: Ec2Pool, zone: str) -> str:
    subnet = pool.subnet(zone)
    if not subnet:
        raise OperatorError(
            f"pool {pool.pool.name} offers zone {zone} and names no subnet there; "
            "add it to the pool's subnets"
        )
    return subnet


def _volume(pool: Ec2Pool) -> dict[str, Any]:
    volume: dict[str, Any] = {
        "VolumeSize": pool.volume_gb,
        "VolumeType": pool.volume_type,
        "DeleteOnTermination": True,
    }
    if pool.volume_iops:
        volume["Iops"] = pool.volume_iops
    if pool.volume_mb_s:
        volume["Throughput"] = pool.volume_mb_s
    return volume


def _interface(pool: Ec2Pool) -> dict[str, Any]:
    interface: dict[str, Any] = {
        "DeviceIndex": 0,
        "AssociatePublicIpAddress": pool.is_public,
        "DeleteOnTermination": True,
    }
    if pool.security_groups:
        interface["Groups"] = list(pool.security_groups)
    return interface


def _checked(user_data: str) -> bytes:
    said = user_data.encode()
    if len(said) > USER_DATA_MAX:
        raise OperatorError(
            f"user data of {len(said)} bytes is more than the {USER_DATA_MAX} that EC2 takes; "
            "put what is long into the image"
        )
    return said
