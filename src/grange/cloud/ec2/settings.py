"""What an operator says of EC2."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from grange.capacity.facts import Pool


@dataclass(frozen=True, slots=True)
class Ec2Settings:
    """Empty fields are for boto3 to find: in the environment, its files, or the instance's role."""

    farm: str  # as in `Rules.farm`: the tag by which instances are ours
    region: str = ""
    profile: str = ""
    endpoint: str = ""  # a URL in place of Amazon's, for all services
    sqs_url: str = ""  # the queue with spot notices; without one they are polled for
    launches_at_once: int = 8
    notice_poll_s: float = 10.0  # how often interruptions are asked for beside the queue


@dataclass(frozen=True, slots=True)
class Ec2Pool:
    """What instances of a pool are, beyond what `pool` says of them.

    `pool.offerings` names instance types and zones; each zone has its subnet here. Everything here
    belongs into `pool.config_hash`: what was launched with something else has drifted.
    """

    pool: Pool
    image: str  # "ami-…"
    subnets: Mapping[str, str]  # zone: "subnet-…"
    security_groups: tuple[str, ...] = ()  # "sg-…"; the VPC's default where there are none
    instance_profile: str = ""  # its name or ARN
    key_name: str = ""
    volume_gb: int = 0  # of the root volume; zero: as the image says
    volume_type: str = "gp3"
    volume_iops: int = 0  # beyond what the type comes with
    volume_mb_s: int = 0
    device: str = "/dev/xvda"  # the image's root device
    is_public: bool | None = None  # has a public address; None: as the subnet says
    price_max: float | None = None  # dollars an hour on the spot market
    tags: Mapping[str, str] = field(default_factory=dict)
    more: Mapping[str, Any] = field(default_factory=dict)
    """Further fields of EC2's RequestLaunchTemplateData, as they stand there."""

    def subnet(self, zone: str) -> str:
        """Of a zone of `pool.offerings`; "" where there is none, which `troubles` tells."""
        return self.subnets.get(zone, "")
