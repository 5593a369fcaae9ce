"""The peers of a Tailscale node, as its LocalAPI lists them, and which of them an instance is."""

import ipaddress
import re
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from grange.capacity.facts import Instance, InstanceId
from grange.errors import OutsideError

SKEW = timedelta(seconds=60)  # between the clocks of a cloud and of Tailscale


class Peer(BaseModel):
    """Fields of ipnstate.PeerStatus. What a peer says of itself, such as `host`, may be a lie."""

    model_config = ConfigDict(frozen=True)

    id: str = Field(alias="ID", min_length=1, max_length=200)
    host: str = Field("", alias="HostName")
    tags: tuple[str, ...] | None = Field(None, alias="Tags")  # of the control server
    ips: tuple[str, ...] | None = Field(None, alias="TailscaleIPs")
    created: datetime = Field(alias="Created")
    is_active: bool = Field(False, alias="Active")
    direct: str = Field("", alias="CurAddr")  # "" where it is reached through a relay

    def names(self, instance: InstanceId) -> bool:
        """Whether its name has the whole id in it, as in "grange-x86-1-i-0abc"."""
        whole = rf"(?<![0-9A-Za-z]){re.escape(instance)}(?![0-9A-Za-z])"
        return re.search(whole, self.host, re.IGNORECASE) is not None

    @property
    def address(self) -> str:
        """The IPv4 one where there is one; "" where there is none at all."""
        parsed = [ip for text in self.ips or () if (ip := _ip(text))]
        return str(min(parsed, key=lambda ip: ip.version)) if parsed else ""


class Status(BaseModel):
    """Fields of ipnstate.Status."""

    state: str = Field(alias="BackendState")
    peers: dict[str, Peer] | None = Field(None, alias="Peer")
    health: tuple[str, ...] | None = Field(None, alias="Health")


def parse(socket: str, body: bytes) -> Status:
    """Raises OutsideError."""
    try:
        return Status.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "it"
        raise OutsideError(
            f"tailscaled at {socket} answers in a way that Grange does not know: {where}"
            f" {first['msg'].lower()}; see whether that is tailscaled's socket"
        ) from error


def tagged(status: Status, tag: str) -> list[Peer]:
    return [peer for peer in (status.peers or {}).values() if tag in (peer.tags or ())]


def of_instance(peers: Iterable[Peer], instance: Instance) -> list[Peer]:
    """Those that may be it: none that is older."""
    launched = datetime.fromtimestamp(instance.launched_wall_s, UTC) - SKEW
    return [
        peer
        for peer in peers
        if peer.names(instance.id) and _aware(peer.created) >= launched and peer.address
    ]


def _aware(at: datetime) -> datetime:
    return at if at.tzinfo else at.replace(tzinfo=UTC)


def _ip(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None
