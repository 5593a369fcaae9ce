"""Connections that are opened and not used are closed; those in use stay."""

import asyncio
from collections.abc import AsyncIterator

import pytest
import uvicorn

from grange.coordinator.http_protocol import PatientProtocol


async def hello(scope: dict[str, object], _receive: object, send: object) -> None:
    assert scope["type"] == "http"
    assert callable(send)
    headers = [(b"content-length", b"2")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"ok"})


@pytest.fixture
async def port() -> AsyncIterator[int]:
    server = uvicorn.Server(
        uvicorn.Config(hello, http=PatientProtocol, port=0, lifespan="off", log_level="error")
    )
    started = asyncio.Event()
    startup = server.startup

    async def starting(sockets: object = None) -> None:
        await startup()
        started.set()

    server.startup = starting  # type: ignore[method-assign]
    serving = asyncio.create_task(server.serve())
    await started.wait()
    yield server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = True
    await serving


@pytest.mark.parametrize("said", [b"", b"GET / HT", b"GET / HTTP/1.1\r\nhost: x\r\nx: "])
async def test_a_head_that_never_ends_is_hung_up_on(
    port: int, monkeypatch: pytest.MonkeyPatch, said: bytes
) -> None:
    monkeypatch.setattr("grange.coordinator.http_protocol.HEAD_S", 0.01)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(said)
    assert await reader.read() == b""
    writer.close()


async def test_one_that_asks_is_answered_as_often_as_it_likes(port: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for _ in range(3):
        writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        assert (await reader.readuntil(b"\r\n\r\nok")).startswith(b"HTTP/1.1 200")
    writer.close()
