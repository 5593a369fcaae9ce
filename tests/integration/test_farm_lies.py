"""An agent that lies about what it built: nothing gets a signature, and the blame is its own."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from hashlib import sha256
from uuid import uuid4

import httpx
import pytest
import zstandard

from grange.client.models import BuildView
from grange.scheduler.facts import (
    AgentId,
    AgentSpec,
    AttemptId,
    Measurements,
    Outcome,
    Phase,
    Usage,
)
from grange.store.hash import Hash
from grange.store.nar import nar_of_text
from grange.store.path import NIX_STORE, StorePath
from grange.wire.channel import ClientTunnel, RunnerChannel
from grange.wire.credentials import AgentCredentials
from grange.wire.messages import (
    BuildOrder,
    Built,
    BuiltOutput,
    Failed,
    Heartbeat,
    Orders,
    Report,
    UploadGrant,
)
from tests.integration.farm import Farm, running_farm

pytestmark = pytest.mark.peer

STRANGER = StorePath.parse_base("0" * 32 + "-stranger")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Farm]:
    with running_farm(tmp_path_factory.mktemp("lies") / "farm", agents=()) as farm:
        yield farm


@pytest.fixture
def farm(shared: Farm) -> Iterator[Farm]:
    """With an agent that has built nothing yet, so that it gets no steps ahead of the liar."""
    agent = shared.add_agent("honest")
    yield shared
    agent.stop()


@dataclass
class Liar:
    """Speaks the protocol and builds nothing. It is the fastest, so it gets the next step."""

    tunnel: ClientTunnel
    id: AgentId

    async def order(self) -> BuildOrder:
        """The next build it is told to do; it says that it builds."""
        async for message in self.tunnel:
            if isinstance(message, Orders) and message.builds:
                [order] = message.builds
                assert isinstance(order, BuildOrder)
                await self.tunnel.send(Report(phases=((order.attempt, Phase.BUILDING),)))
                return order
        raise AssertionError("the tunnel ended before an order came")

    async def claim(self, attempt: AttemptId, *outputs: BuiltOutput) -> None:
        await self.tunnel.send(Report(built=(Built(attempt, outputs, Usage()),)))

    async def grants(self, attempt: AttemptId) -> list[UploadGrant]:
        async for message in self.tunnel:
            if isinstance(message, Orders):
                found = [grant for grant in message.grants if grant.attempt == attempt]
                if found:
                    return found
        raise AssertionError("the tunnel ended before a grant came")

    async def settled(self, attempt: AttemptId) -> bool:
        """Whether the attempt ended as delivered."""
        async for message in self.tunnel:
            if isinstance(message, Orders):
                for settled, is_delivered in message.settled:
                    if settled == attempt:
                        return is_delivered
        raise AssertionError("the tunnel ended before the attempt")

    async def give_up(self, attempt: AttemptId, outcome: Outcome) -> None:
        """As an agent does whose upload was refused."""
        failed = Failed(attempt, outcome, "the cache refuses it", Usage())
        await self.tunnel.send(Report(failed=(failed,)))
        assert not await self.settled(attempt)


@asynccontextmanager
async def lying(farm: Farm, *tags: str) -> AsyncIterator[Liar]:
    spec = AgentSpec(
        id=AgentId(str(uuid4())),
        name="liar",
        session=uuid4().hex,
        previous_session="",
        systems=("x86_64-linux",),
        features=(),
        mandatory_features=(),
        max_jobs=1,
        cpus=1,
        memory_bytes=1 << 30,
        speed_factor=1000.0,
        tags=tags,
    )
    token = farm.agent_token.read_text().strip()
    credentials = AgentCredentials(spec.id, uuid4().hex, token, spec.name)
    channel = RunnerChannel(f"127.0.0.1:{farm.agents_port}", NIX_STORE, credentials=credentials)
    try:
        tunnel = await channel.open_tunnel(spec)
        await tunnel.send(Heartbeat(0, (), Measurements()))
        await asyncio.to_thread(farm.await_agent, "liar")
        yield Liar(tunnel, spec.id)
        await tunnel.send(Report(is_leaving=True))
        await tunnel.close()
    finally:
        await channel.close()


async def submitted(farm: Farm, name: str, script: str = "echo honest > $out") -> BuildView:
    """A build of a derivation that is new to the farm."""
    drv = await asyncio.to_thread(farm.step, f"{name}-{uuid4().hex[:8]}", script)
    return await asyncio.to_thread(farm.submit, drv)


def claimed(path: StorePath, nar: bytes, *references: StorePath) -> BuiltOutput:
    return BuiltOutput("out", path, Hash("sha256", sha256(nar).digest()), len(nar), references)


def output_of(build: BuildView) -> StorePath:
    return NIX_STORE.parse(build.outputs["out"])


async def put(url: str, nar: bytes) -> httpx.Response:
    async with httpx.AsyncClient(trust_env=False) as http:
        return await http.put(url, content=zstandard.compress(nar))


async def built_honestly(farm: Farm, build: BuildView, outcome: Outcome) -> None:
    """The liar's attempt ended as told; another agent built the step, and Nix takes the result."""
    assert (await asyncio.to_thread(farm.succeed, build)).outcome == "succeeded"
    first, *_, last = await asyncio.to_thread(farm.attempts, build)
    assert (first.agent_name, first.outcome) == ("liar", outcome.value)
    assert (last.agent_name, last.outcome) == ("honest", "succeeded")
    third = farm.root / f"third-{uuid4().hex[:8]}"
    code, errors = await asyncio.to_thread(farm.nix_copy, build.outputs["out"], to=third)
    assert code == 0, errors
    physical = third / build.outputs["out"].lstrip("/")
    assert physical.read_text() == "honest\n"


@pytest.mark.parametrize(
    ("upload", "words"),
    [
        (nar_of_text(b"forged\n"), "hash"),
        (nar_of_text(b"honest\n")[:-8], "end"),
        (nar_of_text(b"honest\n") + bytes(8), ""),
        (b"no NAR at all", ""),
    ],
)
async def test_other_bytes_than_claimed_are_refused(farm: Farm, upload: bytes, words: str) -> None:
    async with lying(farm) as liar:
        build = await submitted(farm, "bytes")
        order = await liar.order()
        await liar.claim(order.attempt, claimed(output_of(build), nar_of_text(b"honest\n")))
        [grant] = await liar.grants(order.attempt)
        answer = await put(grant.url, upload)
        assert answer.is_client_error, answer.text
        assert words in answer.text
        assert farm.narinfo(build.outputs["out"]).status_code == 404
        await liar.give_up(order.attempt, Outcome.UPLOAD_FAILED)
    await built_honestly(farm, build, Outcome.UPLOAD_FAILED)


async def test_a_hidden_reference_is_refused(farm: Farm) -> None:
    async with lying(farm) as liar:
        build = await submitted(farm, "hidden")
        order = await liar.order()
        [source, *_] = order.derivation.input_srcs
        nar = nar_of_text(NIX_STORE.show(source).encode())
        await liar.claim(order.attempt, claimed(output_of(build), nar))
        [grant] = await liar.grants(order.attempt)
        answer = await put(grant.url, nar)
        assert answer.is_client_error
        assert source.hash_part in answer.text
        await liar.give_up(order.attempt, Outcome.UPLOAD_FAILED)
    await built_honestly(farm, build, Outcome.UPLOAD_FAILED)


async def test_an_invented_reference_is_refused(farm: Farm) -> None:
    async with lying(farm) as liar:
        build = await submitted(farm, "invented")
        order = await liar.order()
        [source, *_] = order.derivation.input_srcs
        nar = nar_of_text(b"refers to nothing\n")
        await liar.claim(order.attempt, claimed(output_of(build), nar, source))
        [grant] = await liar.grants(order.attempt)
        answer = await put(grant.url, nar)
        assert answer.is_client_error
        assert str(source) in answer.text
        await liar.give_up(order.attempt, Outcome.UPLOAD_FAILED)
    await built_honestly(farm, build, Outcome.UPLOAD_FAILED)


async def test_a_reference_outside_its_closure_is_refused_at_once(farm: Farm) -> None:
    async with lying(farm) as liar:
        build = await submitted(farm, "outside")
        order = await liar.order()
        nar = nar_of_text(NIX_STORE.show(STRANGER).encode())
        await liar.claim(order.attempt, claimed(output_of(build), nar, STRANGER))
        assert not await liar.settled(order.attempt)
    await built_honestly(farm, build, Outcome.AGENT_FAILED)
    first, *_ = farm.attempts(build)
    assert str(STRANGER) in first.message


async def test_another_steps_path_is_refused_at_once(farm: Farm) -> None:
    async with lying(farm) as liar:
        build = await submitted(farm, "mine")
        order = await liar.order()
        theirs = await asyncio.to_thread(farm.step, "theirs", "echo > $out")
        await asyncio.to_thread(farm.submit, theirs)
        nar = nar_of_text(b"honest\n")
        await liar.claim(order.attempt, claimed(STRANGER, nar))
        assert not await liar.settled(order.attempt)
    await built_honestly(farm, build, Outcome.AGENT_FAILED)
    first, *_ = farm.attempts(build)
    assert "do not fit the derivation" in first.message
    assert farm.get(f"/{STRANGER.hash_part}.narinfo").status_code == 404


async def test_urls_are_good_for_what_they_were_made_and_once(farm: Farm) -> None:
    """The right bytes, then: under a forged URL they are refused, and twice they are not stored."""
    async with lying(farm) as liar:
        build = await submitted(farm, "urls")
        order = await liar.order()
        nar = nar_of_text(b"honest\n")
        await liar.claim(order.attempt, claimed(output_of(build), nar))
        [old] = await liar.grants(order.attempt)
        await liar.claim(order.attempt, claimed(output_of(build), nar))
        [grant] = await liar.grants(order.attempt)
        base, _, token = grant.url.rpartition("/")
        flipped = token[:-1] + ("A" if token[-1] != "A" else "B")
        for forged in (f"{base}/{flipped}", f"{base}/none"):
            answer = await put(forged, nar)
            assert answer.status_code == 403, answer.text
        assert (await put(old.url, nar)).status_code == 410, "a newer grant makes it void"
        assert (await put(grant.url, nar)).status_code == 201
        assert await liar.settled(order.attempt)
        assert (await put(grant.url, nar)).status_code in (409, 410)
    assert (await asyncio.to_thread(farm.finish, build)).outcome == "succeeded"


async def test_a_url_outlives_neither_its_attempt_nor_its_agent(farm: Farm) -> None:
    async with lying(farm) as liar:
        build = await submitted(farm, "late")
        order = await liar.order()
        nar = nar_of_text(b"forged\n")
        await liar.claim(order.attempt, claimed(output_of(build), nar))
        [grant] = await liar.grants(order.attempt)
    assert (await asyncio.to_thread(farm.succeed, build)).outcome == "succeeded"
    published = farm.narinfo(build.outputs["out"]).text
    assert (await put(grant.url, nar)).status_code == 410
    assert farm.narinfo(build.outputs["out"]).text == published
    await built_honestly(farm, build, Outcome.AGENT_LOST)


async def test_nobody_speaks_of_anothers_attempt(farm: Farm) -> None:
    """Neither its failure, nor its outputs, nor its log."""
    async with lying(farm) as liar:
        mine = await submitted(farm, "busy")
        order = await liar.order()
        farm.shut("others")
        script = "echo at the gate; read _ < /gates/others || true; echo honest > $out"
        theirs = await submitted(farm, "others", script)
        attempt = await asyncio.to_thread(farm.at_gate, theirs)
        assert attempt.agent_name == "honest"
        other = AttemptId(attempt.id)
        nar = nar_of_text(b"forged\n")
        await liar.claim(other, claimed(output_of(theirs), nar))
        await liar.tunnel.send(
            Report(failed=(Failed(other, Outcome.BUILD_FAILED, "not so", Usage()),))
        )
        assert not await liar.settled(other)
        await liar.give_up(order.attempt, Outcome.RETURNED)
        farm.open("others")
    await asyncio.to_thread(farm.succeed, theirs)
    [only] = farm.attempts(theirs)
    assert (only.id, only.outcome) == (attempt.id, "succeeded")
    await asyncio.to_thread(farm.succeed, mine)
