"""Every method of the gRPC service, asked by everyone who has no right to it."""

from collections.abc import AsyncIterator, Sequence
from typing import Any
from uuid import uuid4

import grpc
import pytest

from grange.coordinator.doorkeeper import shown_by
from grange.coordinator.tokens import new_token
from grange.identity import CredentialKind, Identity, Role
from grange.store.path import NIX_STORE
from grange.wire.callers import OPEN_METHODS, RIGHTS, Caller
from grange.wire.credentials import AgentCredentials
from grange.wire.server import add_runner_service, new_server
from grange.wire.service import SERVICE
from tests.integration.test_wire_grpc import Farm
from tests.unit.test_doorkeeper import ID, Place

STREAMED_IN = {"OpenTunnel", "BuildLog", "BuildResult"}
STREAMED_OUT = {"OpenTunnel", "FetchPaths"}

Metadata = Sequence[tuple[str, str]]


class Server:
    """The service behind a door; its handler has heard nothing as long as nobody was let in."""

    def __init__(self) -> None:
        self.place = Place()
        self.farm = Farm()
        self.server = new_server()

        async def identify(caller: Caller) -> Identity:
            shown = shown_by(caller)
            return await self.place.door.identify(shown, caller.address)

        add_runner_service(self.server, self.farm, NIX_STORE, identify=identify)
        self.address = f"127.0.0.1:{self.server.add_insecure_port('127.0.0.1:0')}"

    async def refused(self, method: str, metadata: Metadata) -> grpc.StatusCode:
        """What a call of `method` ends with."""
        async with grpc.aio.insecure_channel(self.address) as channel:
            of: Any = channel  # grpc-stubs do not know that serializers may be left out
            path = f"/{SERVICE}/{method}"
            if method in STREAMED_IN and method in STREAMED_OUT:
                call = of.stream_stream(path)(metadata=metadata)
            elif method in STREAMED_IN:
                call = of.stream_unary(path)(metadata=metadata)
            elif method in STREAMED_OUT:
                call = of.unary_stream(path)(b"", metadata=metadata)
            else:
                call = of.unary_unary(path)(b"", metadata=metadata)
            code: grpc.StatusCode = await call.code()
            return code


@pytest.fixture
async def server(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Server]:
    monkeypatch.setattr("grange.coordinator.throttle.FAILURES_MAX", 1e9)
    opened = Server()
    await opened.server.start()
    yield opened
    await opened.server.stop(0)
    assert opened.farm.heard.empty()
    assert opened.farm.tunnels.empty()


def test_every_method_of_the_service_has_a_right() -> None:
    from grange.wire.generated.runner.v1 import runner_pb2

    methods = runner_pb2.DESCRIPTOR.services_by_name["RunnerService"].methods_by_name
    assert set(methods) == set(RIGHTS)
    assert OPEN_METHODS == ("Check", "Watch")


@pytest.mark.parametrize("method", sorted(RIGHTS))
async def test_no_bad_credential_opens_a_method(server: Server, method: str) -> None:
    place = server.place
    password = await place.agent()
    expired, _ = await place.token(expires=place.clock.now)
    revoked, revoked_id = await place.token()
    await place.accounts.revoke_credential(revoked_id, 1.0)
    good = AgentCredentials(ID, password).authorization
    for metadata in (
        (),
        (("authorization", f"Bearer {new_token()[1]}"),),
        (("authorization", f"Bearer {expired}"),),
        (("authorization", f"Bearer {revoked}"),),
        (("authorization", AgentCredentials(ID, "x" * 43).authorization),),
        (("authorization", AgentCredentials(str(uuid4()), password).authorization),),
        (("authorization", good), ("authorization", good)),
        (("grange-registration", await place.registration()),),
    ):
        code = await server.refused(method, metadata)
        assert code is grpc.StatusCode.UNAUTHENTICATED, metadata


@pytest.mark.parametrize("method", sorted(RIGHTS))
async def test_no_person_and_no_hook_speaks_as_an_agent(server: Server, method: str) -> None:
    place = server.place
    admin, _ = await place.token(role=Role.ADMINISTER)
    joining, _ = await place.token(CredentialKind.REGISTRATION, Role.JOIN)
    hook = place.hooks.issue("h", {Role.OPERATE, Role.SUBMIT}, None, place.clock.now + 60)
    for token in (admin, joining, hook):
        code = await server.refused(method, (("authorization", f"Bearer {token}"),))
        assert code is grpc.StatusCode.PERMISSION_DENIED


async def test_who_fails_too_often_is_told_to_come_back(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("grange.coordinator.throttle.FAILURES_MAX", 2)
    bad = (("authorization", "Bearer bad"),)
    codes = [await server.refused("HasPath", bad) for _ in range(4)]
    assert codes[0] is grpc.StatusCode.UNAUTHENTICATED
    assert codes[-1] is grpc.StatusCode.RESOURCE_EXHAUSTED  # to agents a failure that passes
