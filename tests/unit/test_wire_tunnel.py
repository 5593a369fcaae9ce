"""What becomes of an agent's words that its handler has not yet read."""

import asyncio
from dataclasses import replace

from grpc import StatusCode

from grange.scheduler.facts import AgentId, AgentSpec, Measurements
from grange.wire.agent_messages import agent_message_to_bytes
from grange.wire.messages import Heartbeat, Ping
from grange.wire.tunnel import UNREAD_MAX, Tunnel

SPEC = AgentSpec(AgentId("a"), "ci-3", "s1", "", ("x86_64-linux",), (), (), 4, 8, 1 << 30)
BEATS = [Heartbeat(number, (), Measurements()) for number in range(3 * UNREAD_MAX)]


class Wire:
    """Stands in for gRPC's context: says every beat, then is silent."""

    def __init__(self) -> None:
        self.unsaid = [agent_message_to_bytes(beat) for beat in BEATS]
        self.is_silent = asyncio.Event()
        self.is_writing, self.may_write = asyncio.Event(), asyncio.Event()

    async def write(self, data: bytes) -> None:
        self.is_writing.set()
        await self.may_write.wait()

    async def read(self) -> bytes:
        await asyncio.sleep(0)  # as gRPC, give way to others
        if self.unsaid:
            return self.unsaid.pop(0)
        self.is_silent.set()
        return await asyncio.Future()


async def read_some(tunnel: Tunnel, count: int) -> list[Heartbeat]:
    heard: list[Heartbeat] = []
    async for message in tunnel:
        assert isinstance(message, Heartbeat)
        heard.append(message)
        if len(heard) == count:
            break
    return heard


async def test_a_lost_agents_last_words_are_still_read() -> None:
    wire = Wire()
    tunnel = Tunnel(SPEC, wire, ping_s=1e6)
    reading = asyncio.create_task(tunnel.take_in())
    kept = UNREAD_MAX - 1
    assert await read_some(tunnel, len(BEATS) - kept) == BEATS[:-kept]
    await wire.is_silent.wait()
    tunnel.end(None)
    reading.cancel()
    await asyncio.wait((reading,))
    assert await read_some(tunnel, len(BEATS)) == BEATS[-kept:]


async def test_a_closed_tunnel_says_no_more() -> None:
    wire = Wire()
    tunnel = Tunnel(SPEC, wire, ping_s=1e6)
    reading = asyncio.create_task(tunnel.take_in())
    await read_some(tunnel, len(BEATS) - 1)
    await wire.is_silent.wait()
    tunnel.close("replaced", StatusCode.ABORTED)
    tunnel.close("again")
    tunnel.send(Ping())
    assert await read_some(tunnel, 1) == []
    assert tunnel.ended.result() == (StatusCode.ABORTED, "replaced")
    reading.cancel()
    await asyncio.wait((reading,))


async def test_a_handler_that_does_not_read_holds_the_agent_back() -> None:
    wire = Wire()
    tunnel = Tunnel(replace(SPEC, name="slow"), wire, ping_s=1e6)
    reading = asyncio.create_task(tunnel.take_in())
    for _ in range(10 * len(BEATS)):
        await asyncio.sleep(0)  # enough turns of the loop to read everything
    assert len(wire.unsaid) == len(BEATS) - UNREAD_MAX
    assert await read_some(tunnel, len(BEATS)) == BEATS
    reading.cancel()
    await asyncio.wait((reading,))


async def test_no_status_goes_out_while_the_first_message_is_on_its_way() -> None:
    """gRPC would refuse it, and the agent would never hear why its tunnel ended."""
    wire = Wire()
    tunnel = Tunnel(SPEC, wire, ping_s=1e6)
    writing = asyncio.create_task(tunnel.send_out())
    tunnel.send(Ping())
    await wire.is_writing.wait()
    tunnel.close("replaced", StatusCode.ABORTED)
    beginning = asyncio.create_task(tunnel.begin())
    for _ in range(10):
        await asyncio.sleep(0)
    assert not beginning.done()
    wire.may_write.set()
    await beginning
    writing.cancel()
    await asyncio.wait((writing,))
    await tunnel.begin()  # nothing is on its way, then or before


async def test_a_tunnel_that_said_nothing_yet_is_not_waited_for() -> None:
    await Tunnel(SPEC, Wire(), ping_s=1e6).begin()
