"""What else the fake can be asked."""

import base64
from collections.abc import Mapping
from typing import Any, Final

from grange.capacity.facts import Market
from tests.fake_ec2 import launches
from tests.fake_ec2.launches import are_met, shown
from tests.fake_ec2.protocol import AwsError
from tests.fake_ec2.world import Action, FakeEc2, Machine, Params

HIDDEN_S: Final = 30.0  # a message that was received


def _machine(world: FakeEc2, id_: str) -> Machine:
    if not id_.startswith("i-"):
        raise AwsError("InvalidInstanceID.Malformed", f'Invalid id: "{id_}"')
    machine = world.machines.get(id_)
    if machine is None or not world.is_listed(machine):
        raise AwsError("InvalidInstanceID.NotFound", f"The instance ID '{id_}' does not exist")
    return machine


def describe_instances(world: FakeEc2, params: Params) -> Mapping[str, Any]:
    if params.get("DryRun"):
        world.authorize_dry()
    found = [
        each
        for each in world.machines.values()
        if world.is_listed(each)
        and are_met(params.get("Filters"), {f"tag:{k}": v for k, v in each.tags.items()})
    ]
    start = int(params.get("NextToken", "0"))
    end = start + min(params.get("MaxResults", world.page), world.page)
    said: Params = {
        "Reservations": [{"Instances": [shown(world, each)]} for each in found[start:end]]
    }
    if end < len(found):
        said["NextToken"] = str(end)
    return said


def terminate_instances(world: FakeEc2, params: Params) -> Mapping[str, Any]:
    machines = [_machine(world, each) for each in params["InstanceIds"]]
    if params.get("DryRun"):
        world.authorize_dry()
    for each in machines:
        world.end(each, "Client.UserInitiatedShutdown")
    return {"TerminatingInstances": [{"InstanceId": each.id} for each in machines]}


def get_console_output(world: FakeEc2, params: Params) -> Mapping[str, Any]:
    machine = _machine(world, params["InstanceId"])
    if params.get("DryRun"):
        world.authorize_dry()
    if params.get("Latest") and world.types[machine.type].is_old:
        raise AwsError("UnsupportedOperation", "This instance type does not support latest output")
    said = f"booting {machine.id}\nlogin:"
    return {"InstanceId": machine.id, "Output": base64.b64encode(said.encode()).decode()}


def describe_spot_instance_requests(world: FakeEc2, params: Params) -> Mapping[str, Any]:
    if params.get("DryRun"):
        world.authorize_dry()
    requests = []
    for each in world.machines.values():
        if each.market is not Market.SPOT:
            continue
        is_marked = each.marked_at is not None and each.is_live
        code = "marked-for-termination" if is_marked else "fulfilled"
        if are_met(params.get("Filters"), {"status-code": code}):
            since = world.clock.date(each.marked_at if is_marked else each.born)
            status = {"Code": code, "UpdateTime": since}
            requests.append({"InstanceId": each.id, "Status": status})
    return {"SpotInstanceRequests": requests}


def describe_spot_price_history(world: FakeEc2, params: Params) -> Mapping[str, Any]:
    return {
        "SpotPriceHistory": [
            {
                "InstanceType": type_,
                "AvailabilityZone": zone,
                "SpotPrice": f"{world.price_of(type_, Market.SPOT):.6f}",
            }
            for type_ in params["InstanceTypes"]
            for zone in world.zones
            if type_ in world.types and (type_, zone) not in world.not_sold
        ]
    }


def describe_images(world: FakeEc2, params: Params) -> Mapping[str, Any]:
    for each in params["ImageIds"]:
        if each not in world.images:
            raise AwsError("InvalidAMIID.NotFound", f"The image id '[{each}]' does not exist")
    return {
        "Images": [
            {
                "ImageId": each,
                "Architecture": world.images[each],
                "State": "available",
                "RootDeviceName": "/dev/xvda",
            }
            for each in params["ImageIds"]
        ]
    }


def describe_subnets(world: FakeEc2, params: Params) -> Mapping[str, Any]:
    for each in params.get("SubnetIds", ()):
        if each not in world.subnets:
            raise AwsError("InvalidSubnetID.NotFound", f"The subnet ID '{each}' does not exist")
    wanted = params.get("SubnetIds") or list(world.subnets)
    return {
        "Subnets": [{"SubnetId": each, "AvailabilityZone": world.subnets[each]} for each in wanted]
    }


def describe_security_groups(world: FakeEc2, params: Params) -> Mapping[str, Any]:
    for each in params.get("GroupIds", ()):
        if each not in world.groups:
            raise AwsError("InvalidGroup.NotFound", f"The security group '{each}' does not exist")
    return {"SecurityGroups": [{"GroupId": each} for each in params.get("GroupIds", ())]}


def describe_instance_types(world: FakeEc2, params: Params) -> Mapping[str, Any]:
    return {
        "InstanceTypes": [
            {
                "InstanceType": name,
                "BareMetal": name.endswith(".metal"),
                "VCpuInfo": {"DefaultVCpus": each.vcpus},
                "ProcessorInfo": {
                    "SupportedArchitectures": [each.architecture],
                    "SupportedFeatures": list(each.features),
                },
            }
            for name, each in world.types.items()
            if are_met(params.get("Filters"), {"instance-type": name})
        ]
    }


def describe_instance_type_offerings(world: FakeEc2, params: Params) -> Mapping[str, Any]:
    return {
        "InstanceTypeOfferings": [
            {"InstanceType": name, "LocationType": params["LocationType"], "Location": zone}
            for name in world.types
            for zone in world.zones
            if (name, zone) not in world.not_sold
            and are_met(params.get("Filters"), {"instance-type": name})
        ]
    }


def decode_authorization_message(world: FakeEc2, params: Params) -> Mapping[str, Any]:
    if not world.can_decode:
        raise AwsError(
            "AccessDenied", "not authorized to perform: sts:DecodeAuthorizationMessage", 403
        )
    return {"DecodedMessage": base64.b64decode(params["EncodedMessage"]).decode()}


def receive_message(world: FakeEc2, params: Params) -> Mapping[str, Any]:
    """At once, even where there is none: nobody waits on virtual time."""
    shown_now = [each for each in world.messages.values() if each.hidden_until <= world.clock.now]
    taken = shown_now[: params["MaxNumberOfMessages"]]
    for each in taken:
        each.hidden_until = world.clock.now + HIDDEN_S
    return {
        "Messages": [
            {"MessageId": each.id, "ReceiptHandle": each.id, "Body": each.body} for each in taken
        ]
    }


def delete_message_batch(world: FakeEc2, params: Params) -> Mapping[str, Any]:
    for each in params["Entries"]:
        world.messages.pop(each["ReceiptHandle"], None)
    return {"Successful": [{"Id": each["Id"]} for each in params["Entries"]], "Failed": []}


def get_queue_attributes(world: FakeEc2, params: Params) -> Mapping[str, Any]:
    return {"Attributes": {"QueueArn": "arn:aws:sqs:us-east-1:123456789012:grange"}}


ACTIONS: Final[dict[str, Action]] = {
    "CreateFleet": launches.create_fleet,
    "CreateLaunchTemplate": launches.create_launch_template,
    "DecodeAuthorizationMessage": decode_authorization_message,
    "DeleteLaunchTemplate": launches.delete_launch_template,
    "DeleteMessageBatch": delete_message_batch,
    "DescribeImages": describe_images,
    "DescribeInstanceTypeOfferings": describe_instance_type_offerings,
    "DescribeInstanceTypes": describe_instance_types,
    "DescribeInstances": describe_instances,
    "DescribeLaunchTemplates": launches.describe_launch_templates,
    "DescribeSecurityGroups": describe_security_groups,
    "DescribeSpotInstanceRequests": describe_spot_instance_requests,
    "DescribeSpotPriceHistory": describe_spot_price_history,
    "DescribeSubnets": describe_subnets,
    "GetConsoleOutput": get_console_output,
    "GetQueueAttributes": get_queue_attributes,
    "ReceiveMessage": receive_message,
    "RunInstances": launches.run_instances,
    "TerminateInstances": terminate_instances,
}
