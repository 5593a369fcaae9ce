"""Tailscale, or headscale: instances found through this machine's own node, and their devices
deleted through the control server's API."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import httpx
from pydantic_core import from_json

from grange.capacity.facts import Instance, InstanceId
from grange.cloud.overlay.peers import Peer, Status, of_instance, parse, tagged
from grange.errors import GrangeError, OperatorError, OutsideError

ANSWER_S: Final = 10.0
STATUS_BYTES: Final = 64 << 20  # some kilobytes for each of 10,000 nodes
API_BYTES: Final = 1 << 20
NAMED: Final = 5  # peers in one sentence
_STATUS_URL: Final = "http://local-tailscaled.sock/localapi/v0/status"


@dataclass(frozen=True, slots=True)
class TailscaleSettings:
    """With neither key nor client devices are not deleted: ephemeral ones end by themselves, within
    an hour or two days."""

    tag: str = "tag:grange-builder"  # that the control server gave to instances
    socket: str = "/var/run/tailscale/tailscaled.sock"
    kind: Literal["tailscale", "headscale"] = "tailscale"
    api: str = "https://api.tailscale.com"
    key_file: Path | None = None  # an API key
    client_id: str = ""  # or an OAuth client that may write devices
    client_secret_file: Path | None = None

    def device_url(self, device: str) -> str:
        path = "api/v2/device" if self.kind == "tailscale" else "api/v1/node"
        return f"{self.api.rstrip('/')}/{path}/{device}"


class Tailscale:
    """`grange.ports.Overlay`. Its instances have their id in their host name, and the tag."""

    def __init__(self, settings: TailscaleSettings) -> None:
        self._settings = settings
        self._node = httpx.AsyncClient(
            transport=httpx.AsyncHTTPTransport(uds=settings.socket), timeout=ANSWER_S
        )
        self._api = httpx.AsyncClient(timeout=ANSWER_S)
        self._doubles: dict[InstanceId, list[str]] = {}  # as of the latest look

    async def addresses(self, instances: Sequence[Instance]) -> tuple[tuple[InstanceId, str], ...]:
        """Raises OutsideError, OperatorError. Nobody is believed where two claim to be it."""
        peers = tagged(await self._status(), self._settings.tag)
        found, doubles = [], {}
        for instance in instances:
            match of_instance(peers, instance):
                case [peer]:
                    found.append((instance.id, peer.address))
                case [_, _, *_] as several:
                    doubles[instance.id] = [peer.address for peer in several]
        self._doubles = doubles
        return tuple(found)

    async def forget(self, instance: InstanceId) -> None:
        """Raises OutsideError, OperatorError."""
        if not (headers := await self._credential()):
            return
        for peer in tagged(await self._status(), self._settings.tag):
            if peer.names(instance):
                await self._delete(peer.id, headers)

    async def troubles(self) -> tuple[str, ...]:
        try:
            status = await self._status()
            await self._credential()
        except GrangeError as error:
            return (str(error),)
        said = list(status.health or ())[:NAMED]
        said += [
            f"instance {instance} is {' and '.join(addresses)} on the overlay: none is used until"
            " one of these devices is deleted"
            for instance, addresses in list(self._doubles.items())[:NAMED]
        ]
        peers = tagged(status, self._settings.tag)
        if relayed := [peer for peer in peers if peer.is_active and not peer.direct]:
            said.append(
                f"{_list(relayed)} can be reached through a relay alone, which is slow; let UDP"
                " through to and from port 41641 of instances"
            )
        return tuple(said)

    async def close(self) -> None:
        await self._node.aclose()
        await self._api.aclose()

    async def _status(self) -> Status:
        socket = self._settings.socket
        try:
            request = self._node.build_request("GET", _STATUS_URL)
            code, body = await _bounded(self._node, request, STATUS_BYTES)
        except httpx.HTTPError as error:
            raise OutsideError(
                f"tailscaled's socket {socket} cannot be used: {_words(error)}; is tailscaled"
                " running, and may this user open the socket?"
            ) from error
        if code in (401, 403):
            raise OperatorError(
                f"tailscaled at {socket} does not let this user read its status; run as root, or"
                " make it the operator: tailscale set --operator=USER"
            )
        if code != 200:
            raise OutsideError(f"tailscaled at {socket} answers {code}: {_excerpt(body)}")
        status = parse(socket, body)
        if status.state != "Running":
            raise OperatorError(
                f"tailscaled at {socket} is not on its network but in state {status.state[:40]!r};"
                " run: tailscale up"
            )
        return status

    async def _credential(self) -> dict[str, str]:
        """For the API; empty where there is none. Read anew each time: keys are rotated."""
        settings = self._settings
        if settings.key_file is not None:
            return {"Authorization": f"Bearer {_secret(settings.key_file)}"}
        if settings.client_secret_file is None:
            return {}
        data = {
            "client_id": settings.client_id,
            "client_secret": _secret(settings.client_secret_file),
        }
        answer = await self._call("POST", f"{settings.api.rstrip('/')}/api/v2/oauth/token", data)
        token = answer.get("access_token")
        if not isinstance(token, str) or not token.isascii() or not token.isprintable():
            raise OutsideError(f"{settings.api} gave no token for OAuth client {data['client_id']}")
        return {"Authorization": f"Bearer {token}"}

    async def _delete(self, device: str, headers: dict[str, str]) -> None:
        if not device.isalnum():
            raise OutsideError(f"tailscaled gives a device the id {device[:60]!r}")
        await self._call("DELETE", self._settings.device_url(device), headers=headers)

    async def _call(
        self,
        method: str,
        url: str,
        data: dict[str, str] | None = None,
        headers: dict[str, str] | None = None,
    ) -> dict[str, object]:
        """What it answers; {} for what is gone, or no JSON object."""
        try:
            request = self._api.build_request(method, url, data=data, headers=headers)
            code, body = await _bounded(self._api, request, API_BYTES)
        except httpx.HTTPError as error:
            raise OutsideError(f"{url} cannot be reached: {_words(error)}") from error
        except httpx.InvalidURL as error:
            raise OperatorError(f"{url} is no URL: {error}; fix api in [overlay]") from error
        if code in (400, 401, 403):
            raise OperatorError(
                f"{url} refuses {method} with {code}: {_excerpt(body)}; give [overlay] a key, or an"
                " OAuth client, that may write devices"
            )
        if code not in (200, 204, 404, 410):
            raise OutsideError(f"{url} answers {method} with {code}: {_excerpt(body)}")
        return _object(body)


async def _bounded(
    client: httpx.AsyncClient, request: httpx.Request, bytes_max: int
) -> tuple[int, bytes]:
    body = bytearray()
    answer = await client.send(request, stream=True)
    try:
        async for part in answer.aiter_bytes():
            body += part
            if len(body) > bytes_max:
                raise OutsideError(f"{request.url} answers with more than {bytes_max} bytes")
    finally:
        await answer.aclose()
    return answer.status_code, bytes(body)


def _object(body: bytes) -> dict[str, object]:
    try:
        answer = from_json(body)
    except ValueError:
        return {}
    return answer if isinstance(answer, dict) else {}


def _secret(path: Path) -> str:
    try:
        text = path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise OperatorError(f"{path}, named in [overlay], cannot be read: {error}") from error
    if not text or not text.isascii() or not text.isprintable():
        raise OperatorError(f"{path}, named in [overlay], holds no key")
    return text


def _words(error: httpx.HTTPError) -> str:
    return str(error) or type(error).__name__


def _excerpt(body: bytes) -> str:
    return repr(body[:200].decode(errors="replace"))


def _list(peers: Sequence[Peer]) -> str:
    more = len(peers) - NAMED
    return ", ".join(sorted(p.host for p in peers)[:NAMED]) + (f" and {more} more" * (more > 0))
