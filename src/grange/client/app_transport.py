"""Calls of a farm from another thread of its own process, without a network between."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from concurrent.futures import CancelledError, Future
from typing import Any

import httpx


class AppTransport(httpx.BaseTransport, httpx.AsyncBaseTransport):
    """Hands requests to an ASGI application on `loop`, whatever host their URLs name.

    So a certificate need not be good for this machine, nor a public URL be reachable from here.
    Must not be used on `loop` itself. Answers come whole: none that goes on may be asked for.
    """

    def __init__(self, app: Any, loop: asyncio.AbstractEventLoop) -> None:
        self._app = httpx.ASGITransport(app, raise_app_exceptions=False)
        self._loop = loop

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        request.read()
        future = self._begin(request, self._answer(request))
        try:
            return future.result(_limit_s(request))
        except TimeoutError as error:
            future.cancel()
            raise httpx.ReadTimeout("no answer", request=request) from error
        except CancelledError as error:
            raise httpx.ConnectError("the farm has stopped", request=request) from error

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        assert isinstance(request.stream, httpx.AsyncByteStream)
        there = httpx.Request(
            request.method,
            request.url,
            headers=request.headers,
            stream=_FromElsewhere(request.stream, asyncio.get_running_loop()),
        )
        future = asyncio.wrap_future(self._begin(request, self._answer(there)))
        try:
            return await asyncio.wait_for(future, _limit_s(request))
        except TimeoutError as error:
            raise httpx.ReadTimeout("no answer", request=request) from error
        except asyncio.CancelledError as error:
            current = asyncio.current_task()
            if current is not None and current.cancelling():
                raise
            raise httpx.ConnectError("the farm has stopped", request=request) from error

    def _begin(
        self, request: httpx.Request, answering: Coroutine[Any, Any, httpx.Response]
    ) -> Future[httpx.Response]:
        try:
            return asyncio.run_coroutine_threadsafe(answering, self._loop)
        except RuntimeError as error:  # the loop is closed
            answering.close()
            raise httpx.ConnectError("the farm has stopped", request=request) from error

    async def _answer(self, request: httpx.Request) -> httpx.Response:
        answer = await self._app.handle_async_request(request)
        assert isinstance(answer.stream, httpx.AsyncByteStream)
        body = b"".join([piece async for piece in answer.stream])
        return httpx.Response(
            answer.status_code, headers=answer.headers, stream=httpx.ByteStream(body)
        )


class _FromElsewhere(httpx.AsyncByteStream):
    """A body whose pieces are made on `loop`, for whoever reads it on another."""

    def __init__(self, body: httpx.AsyncByteStream, loop: asyncio.AbstractEventLoop) -> None:
        self._body = body
        self._loop = loop

    async def __aiter__(self) -> AsyncIterator[bytes]:
        pieces = aiter(self._body)

        async def piece() -> bytes | None:
            return await anext(pieces, None)

        while True:
            made = await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(piece(), self._loop))
            if made is None:
                return
            yield made


def _limit_s(request: httpx.Request) -> float | None:
    limit: float | None = request.extensions.get("timeout", {}).get("read")
    return limit
