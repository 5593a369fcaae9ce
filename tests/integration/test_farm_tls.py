"""A farm whose every word is encrypted, and whose agents show certificates."""

import signal
import ssl
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from grange.client.accounts import AccountClient
from grange.client.credentials import token_in
from grange.errors import OperatorError, OutsideError
from grange.store.path import NIX_STORE
from grange.wire.channel import RunnerChannel
from grange.wire.credentials import AgentCredentials
from grange.wire.messages import VersionCheck
from grange.wire.tls import ClientPems
from tests.certificates import Authority, serial_of
from tests.integration.farm import Farm, make_farm, until

pytestmark = pytest.mark.peer


class HttpsFarm(Farm):
    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.http_port}"


class TlsFarm:
    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.authority = Authority(folder)
        self.others = Authority(folder, "another authority")
        self.issue("127.0.0.1")
        config = folder / "farm.toml"
        config.write_text(
            '[tls]\ncertificate = "server.pem"\nkey = "server.key"\n'
            f'client_ca = "{self.authority.file}"\n'
        )
        monkeypatch.setenv("SSL_CERT_FILE", str(self.authority.file))
        self.farm: Farm = make_farm(folder / "farm", "--config", config, kind=HttpsFarm)

    def issue(self, *also: str) -> None:
        """A new certificate for the farm's servers."""
        self.authority.issue("farm.example", also, "server")

    def seen(self, port: int) -> int:
        """The serial number of the certificate that is shown there."""
        pem = ssl.get_server_certificate(("127.0.0.1", port))
        return serial_of(pem.encode())

    def options(self, name: str) -> list[str]:
        """Of an agent with a certificate for `name`."""
        certificate, key = map(str, self.authority.issue(name))
        files = ["--certificate", certificate, "--key", key]
        return ["--ca", str(self.authority.file), *files, "--max-jobs", "1"]

    async def knock(self, pems: ClientPems, name: str, registration: str = "") -> None:
        """As an agent of that name would begin."""
        agent = str(uuid4())
        channel = RunnerChannel(
            f"https://127.0.0.1:{self.farm.agents_port}",
            NIX_STORE,
            credentials=AgentCredentials(agent, "p" * 43, registration, name),
            tls=pems,
        )
        try:
            await channel.check_version(VersionCheck("1", agent, name, NIX_STORE.root))
        finally:
            await channel.close()


@pytest.fixture
def tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TlsFarm]:
    opened = TlsFarm(tmp_path, monkeypatch)
    try:
        opened.farm.start_coordinator()
        yield opened
    finally:
        opened.farm.stop()


def pems(authority: Authority, name: str, ca: Path) -> ClientPems:
    certificate, key = authority.issue(name)
    return ClientPems(ca.read_bytes(), certificate.read_bytes(), key.read_bytes())


def test_builds_go_through_and_certificates_are_read_anew(tls: TlsFarm) -> None:
    farm = tls.farm
    farm.add_agent("one", *tls.options("one"))
    build = farm.succeed(farm.submit(farm.step("over-tls", "echo sealed > $out")))
    assert build.submitted_by == "token admin"
    with AccountClient(farm.url, token_file=farm.admin_token) as client:
        [account] = client.accounts()
    assert (account.name, account.registered_by) == ("one", "certificate of one")
    coordinator = farm.coordinator
    assert coordinator is not None
    before = tls.seen(farm.http_port)
    tls.issue("127.0.0.1")
    coordinator.signal(signal.SIGHUP)
    until(lambda: tls.seen(farm.http_port) != before, "the new certificate is shown", coordinator)
    now = tls.seen(farm.http_port)
    until(lambda: tls.seen(farm.agents_port) == now, "gRPC shows it too", coordinator)
    (tls.farm.root.parent / "server.key").write_text("no key")
    coordinator.signal(signal.SIGHUP)
    until(lambda: "stays as it was" in coordinator.log, "the bad key is told of", coordinator)
    two = farm.start_agent("two", *tls.options("two"))
    until(lambda: "two" in farm.agent_states(), "gRPC takes agents with the new one", two)


async def test_an_agent_without_a_certificate_of_its_own_is_not_let_in(tls: TlsFarm) -> None:
    ca = tls.authority.file
    token = token_in(tls.farm.agent_token)
    with pytest.raises(OutsideError):  # the handshake fails
        await tls.knock(ClientPems(ca.read_bytes()), "one", token)
    with pytest.raises(OutsideError):
        await tls.knock(pems(tls.others, "one", ca), "one", token)
    with pytest.raises(OperatorError, match=r"the certificate is two's, and not agent"):
        await tls.knock(pems(tls.authority, "two", ca), "one", token)
    await tls.knock(pems(tls.authority, "one", ca), "one")


async def test_a_server_that_another_authority_vouches_for_is_not_trusted(tls: TlsFarm) -> None:
    with pytest.raises(OutsideError):
        await tls.knock(pems(tls.authority, "one", tls.others.file), "one")
