"""Instances on a Tailscale network: a tailscaled and a control server that tests speak for."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import pytest
from aiohttp import web

from grange.capacity.facts import Instance, InstanceId, InstanceState, Market, Offering, SlotId
from grange.cloud.overlay import NoOverlay, Tailscale, TailscaleSettings
from grange.errors import OperatorError, OutsideError

LAUNCHED: Final = 1_795_000_000.0  # 2026-11-18T11:06:40Z
CREATED: Final = "2026-11-18T11:07:30.5Z"
BEFORE: Final = "2026-11-18T10:00:00Z"
TAG: Final = "tag:grange-builder"


def instance(name: str = "i-0abc", address: str = "10.0.0.1") -> Instance:
    return Instance(
        InstanceId(name), InstanceState.RUNNING, SlotId("x86-1"), 1, "token", Market.SPOT,
        Offering("m8i.large", "a"), LAUNCHED, address,
    )  # fmt: skip


def peer(host: str, ip: str = "100.64.0.1", **more: Any) -> dict[str, Any]:
    return {
        "ID": f"n{ip.replace('.', '').replace(':', '')}CNTRL", "HostName": host, "Tags": [TAG],
        "TailscaleIPs": [ip], "Created": CREATED, "Online": True, "Active": True,
        "CurAddr": "192.0.2.1:41641", "Relay": "fra",
    } | more  # fmt: skip


@dataclass(slots=True)
class Network:
    """What tailscaled and the control server say, and what the latter was asked."""

    settings: TailscaleSettings = field(init=False)
    overlay: Tailscale = field(init=False)
    peers: list[dict[str, Any]] = field(default_factory=list)
    answer: tuple[int, bytes] | None = None  # instead of all that
    state: str = "Running"
    api_status: int = 200
    asked: list[tuple[str, str, str]] = field(default_factory=list)

    async def status(self, request: web.Request) -> web.Response:
        assert request.headers["Host"] == "local-tailscaled.sock"
        if self.answer is not None:
            status, body = self.answer
            return web.Response(status=status, body=body)
        peers = {f"nodekey:{number}": each for number, each in enumerate(self.peers)}
        return web.json_response({"BackendState": self.state, "Peer": peers or None})

    async def api(self, request: web.Request) -> web.Response:
        words = request.headers.get("Authorization", (await request.read()).decode())
        self.asked.append((request.method, request.path, words))
        if request.path.endswith("/oauth/token"):
            return web.json_response({"access_token": "tskey-short", "expires_in": 3600})
        return web.json_response({"message": "said"}, status=self.api_status)


@asynccontextmanager
async def network(**settings: Any) -> AsyncIterator[Network]:
    with TemporaryDirectory(prefix="grange-") as folder:
        (Path(folder) / "key").write_text("tskey-api\n")
        node, api = web.Application(), web.Application()
        runners = web.AppRunner(node), web.AppRunner(api)
        socket = str(Path(folder) / "tailscaled.sock")
        asked = settings.pop("has_key", True)
        said = TailscaleSettings(socket=socket, **settings)
        if asked:
            said = replace(said, key_file=Path(folder) / "key")
        if said.client_id:
            said = replace(said, key_file=None, client_secret_file=Path(folder) / "key")
        net = Network()
        node.router.add_get("/localapi/v0/status", net.status)
        api.router.add_route("*", "/{path:.*}", net.api)
        for runner in runners:
            await runner.setup()
        await web.UnixSite(runners[0], socket).start()
        site = web.TCPSite(runners[1], "127.0.0.1", 0)
        await site.start()
        said = replace(said, api=f"http://127.0.0.1:{runners[1].addresses[0][1]}/")
        net.settings, net.overlay = said, Tailscale(said)
        try:
            yield net
        finally:
            await net.overlay.close()
            for runner in runners:
                await runner.cleanup()


async def test_an_instance_is_the_one_peer_with_its_id_the_tag_and_a_later_birth() -> None:
    async with network() as net:
        net.peers = [
            peer("grange-x86-1-i-0abc", "100.64.0.1", TailscaleIPs=["fd7a::1", "100.64.0.1"]),
            peer("grange-x86-2-i-0abcd", "100.64.0.2"),
            peer("grange-x86-1-i-0abc", "100.64.0.3", Created=BEFORE),
            peer("i-0abc", "100.64.0.4", Tags=None),
            peer("i-0abc", "100.64.0.5", Tags=["tag:server"]),
            peer("i-0ab", "100.64.0.6"),
            peer("laptop", "100.64.0.7", Tags=None, TailscaleIPs=None),
            peer("I-0DEF", "100.64.0.8"),
            peer("i-0eee", "100.64.0.9", TailscaleIPs=[]),
            peer("made-from-ami-0fff", "100.64.0.10"),
        ]
        several = [instance(f"i-0{name}") for name in ("abc", "abcd", "def", "eee", "fff")]
        assert dict(await net.overlay.addresses(several)) == {
            "i-0abc": "100.64.0.1",
            "i-0abcd": "100.64.0.2",
            "i-0def": "100.64.0.8",
        }
        assert await net.overlay.troubles() == ()


async def test_of_two_that_claim_to_be_it_none_is_used() -> None:
    async with network() as net:
        net.peers = [peer("x86-1-i-0abc"), peer("x86-1-i-0abc", "100.64.0.2")]
        assert await net.overlay.addresses([instance()]) == ()
        (said,) = await net.overlay.troubles()
        assert said.startswith("instance i-0abc is 100.64.0.1 and 100.64.0.2 on the overlay")
        del net.peers[1]
        assert await net.overlay.addresses([instance()]) == (("i-0abc", "100.64.0.1"),)
        assert await net.overlay.troubles() == ()


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [("DELETE", "/api/v2/device/n1006401CNTRL", "Bearer tskey-api")]),
        ({"kind": "headscale"}, [("DELETE", "/api/v1/node/n1006401CNTRL", "Bearer tskey-api")]),
        (
            {"client_id": "kABC"},
            [
                ("POST", "/api/v2/oauth/token", "client_id=kABC&client_secret=tskey-api"),
                ("DELETE", "/api/v2/device/n1006401CNTRL", "Bearer tskey-short"),
            ],
        ),
        ({"has_key": False}, []),
    ],
)
async def test_the_devices_of_an_instance_are_deleted_and_no_others(
    settings: dict[str, Any], expected: list[tuple[str, str, str]]
) -> None:
    async with network(**settings) as net:
        net.peers = [peer("x86-1-i-0abc"), peer("i-0abcd", "100.64.0.2"), peer("i-0abc", Tags=[])]
        await net.overlay.forget(InstanceId("i-0abc"))
        assert net.asked == expected
        net.api_status = 404  # gone already
        await net.overlay.forget(InstanceId("i-0abc"))
        await net.overlay.forget(InstanceId("i-never"))


async def test_missing_rights_are_named() -> None:
    async with network() as net:
        net.peers = [peer("i-0abc")]
        net.api_status = 403
        with pytest.raises(OperatorError, match=r"give .overlay. a key"):
            await net.overlay.forget(InstanceId("i-0abc"))
        net.api_status = 500
        with pytest.raises(OutsideError, match=r"with 500: .*said"):
            await net.overlay.forget(InstanceId("i-0abc"))
        net.answer = 403, b"access denied"
        with pytest.raises(OperatorError, match="tailscale set --operator"):
            await net.overlay.addresses([instance()])


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"hello",
        b"[]",
        b"{}",
        b'{"BackendState": 7}',
        b'{"BackendState": "Running", "Peer": [1]}',
        b'{"BackendState": "Running", "Peer": {"k": {"ID": "n1", "Created": "yesterday"}}}',
        b"[" * 100_000,
        json.dumps({"BackendState": "Running", "Peer": {"k": None}}).encode(),
    ],
)
async def test_an_answer_that_is_none_is_told_of(body: bytes) -> None:
    async with network() as net:
        net.answer = 200, body
        with pytest.raises(OutsideError, match="in a way that Grange does not know"):
            await net.overlay.addresses([instance()])
        (said,) = await net.overlay.troubles()
        assert net.settings.socket in said


async def test_lies_in_names_and_ids_do_no_harm() -> None:
    async with network() as net:
        net.peers = [
            peer("x-i-0abc", ID="../../../v2/tailnet/-/acl"),
            peer("i-.*", "100.64.0.2"),
            peer("i-0def", "100.64.0.3", TailscaleIPs=["example.com; set server", "::g"]),
        ]
        assert await net.overlay.addresses([instance("i-0def")]) == ()
        with pytest.raises(OutsideError, match="gives a device the id"):
            await net.overlay.forget(InstanceId("i-0abc"))
        await net.overlay.forget(InstanceId("i-0xyz"))
        assert net.asked == []


async def test_a_node_that_is_not_there_or_not_on_its_network() -> None:
    async with network() as net:
        net.state = "NeedsLogin"
        with pytest.raises(OperatorError, match="run: tailscale up"):
            await net.overlay.addresses([instance()])
        nowhere = Tailscale(replace(net.settings, socket="/nowhere/tailscaled.sock"))
        with pytest.raises(OutsideError, match=r"/nowhere/tailscaled\.sock cannot be used"):
            await nowhere.addresses([instance()])
        await nowhere.close()
        keyless = Tailscale(replace(net.settings, key_file=Path("/nowhere/key")))
        with pytest.raises(
            OperatorError, match=r"/nowhere/key, named in .overlay., cannot be read"
        ):
            await keyless.forget(InstanceId("i-0abc"))
        await keyless.close()


async def test_relays_are_warned_of() -> None:
    async with network() as net:
        net.peers = [peer("i-0abc", CurAddr=""), peer("i-0def", CurAddr="", Active=False)]
        (said,) = await net.overlay.troubles()
        assert said.startswith("i-0abc can be reached through a relay alone")


async def test_without_an_overlay_addresses_are_private_ones() -> None:
    overlay = NoOverlay()
    found = await overlay.addresses([instance(), instance("i-0def", "")])
    assert found == (("i-0abc", "10.0.0.1"),)
    await overlay.forget(InstanceId("i-0abc"))
    assert await overlay.troubles() == ()
    await overlay.close()
