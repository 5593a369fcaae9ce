"""Channels that are no channels."""

import asyncio
from contextlib import suppress
from time import monotonic

import pytest

from grange.client.image_models import SourceSpec
from grange.evaluator.channel import ChannelSource
from grange.evaluator.failure import JobError
from grange.evaluator.nix import Limits


async def test_a_revision_without_end_is_not_read_to_its_end() -> None:
    has_gone = asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        with suppress(ConnectionError):
            while True:
                writer.write(b"c" * 100_000)
                await writer.drain()
        writer.close()
        has_gone.set()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        host, port = server.sockets[0].getsockname()
        spec = SourceSpec(name="main", kind="channel", location=f"http://{host}:{port}/channel")
        with pytest.raises(JobError, match="and no commit"):
            await ChannelSource(spec).commit_of("latest", Limits(monotonic() + 60, 0))
        await has_gone.wait()
