"""The capacity API over Twisted's own HTTP agent: no threads, and no second event loop."""

import json
import os
from collections.abc import Callable, Coroutine, Sequence
from http import HTTPStatus
from io import BytesIO
from typing import Any, Final, TypeVar
from urllib.parse import urljoin, urlsplit

from twisted.internet import defer, error
from twisted.internet.endpoints import UNIXClientEndpoint
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.web.client import (
    URI,
    Agent,
    FileBodyProducer,
    HTTPConnectionPool,
    RequestTransmissionFailed,
    ResponseDone,
    ResponseFailed,
)
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgentEndpointFactory, IResponse
from zope.interface import implementer

from grange.client.capacity_requests import CapacityRequest
from grange.errors import OutsideError

CONNECT_S: Final = 10.0
IDLE_MAX: Final = 8  # connections that are kept for the next call
IDLE_S: Final = 60
BODY_BYTES_MAX: Final = 64 << 20  # a hundred thousand reservations
REDIRECTS_MAX: Final = 5  # to the coordinator that leads
UNIX_HOST: Final = "http://localhost"  # for the Host header: a socket has no name

T = TypeVar("T")

# Whatever keeps an answer from coming; anything else is a fault of ours.
_FAILURES: Final = (
    OSError,
    error.ConnectError,
    error.ConnectionClosed,
    error.TimeoutError,
    RequestTransmissionFailed,
    ResponseFailed,
)


class CapacityCaller:
    """Asks the autoscaler at `urls`, the next one where one cannot do it."""

    def __init__(self, reactor: Any, urls: Sequence[str], token_file: str | None = None) -> None:
        self._reactor = reactor
        self._urls = list(urls)
        self._token_file = token_file
        # One for each, since all sockets bear the same name in it.
        self._pools = {url: _pool(reactor) for url in urls}

    @property
    def url(self) -> str:
        """Who is asked now."""
        return self._urls[0]

    async def call(self, request: CapacityRequest, read: Callable[[int, bytes], T]) -> T:
        """What `read` makes of the answer; raises what it raises, and OutsideError."""
        try:
            status, body = await self._ask(request)
            return read(status, body)
        except OutsideError:
            self._urls.append(self._urls.pop(0))
            raise

    async def close(self) -> None:
        for pool in self._pools.values():
            await pool.closeCachedConnections()

    async def _ask(self, request: CapacityRequest) -> tuple[int, bytes]:
        base = self.url
        agent = self._agent(base)
        target = (UNIX_HOST if base.startswith("unix:") else base) + request.path
        headers = self._headers(has_body=request.json is not None)
        for _ in range(REDIRECTS_MAX):
            body = None if request.json is None else json.dumps(request.json).encode()
            asked = _fetch(agent, request.method, target, headers, body)
            status, answer, location = await self._in_time(asked, base, request.answer_s)
            if status != HTTPStatus.TEMPORARY_REDIRECT or not location:
                return status, answer
            target = _redirected(target, location)
        raise OutsideError(f"{base} redirects in circles; see who leads: grange status")

    async def _in_time(self, asked: Coroutine[Any, Any, T], base: str, answer_s: float) -> T:
        """Raises OutsideError; whoever waits may cancel it, and hears of that as such.

        An agent wraps what it was cancelled by into a failure of the response.
        """
        answer: defer.Deferred[T] = defer.ensureDeferred(asked)
        timer = self._reactor.callLater(answer_s, answer.cancel)
        try:
            return await answer
        except (defer.CancelledError, *_FAILURES) as failed:
            is_late = not timer.active()
            if not is_late and _is_cancelled(failed):
                raise defer.CancelledError from failed
            why = f"no answer came in {answer_s:.0f} s" if is_late else _words(failed)
            raise OutsideError(
                f"the autoscaler at {base} cannot be asked: {why}; see that it runs, and that "
                "the Buildbot master may open that address"
            ) from failed
        finally:
            if timer.active():
                timer.cancel()

    def _agent(self, url: str) -> Agent:
        pool = self._pools[url]
        if not url.startswith("unix:"):
            return Agent(self._reactor, connectTimeout=CONNECT_S, pool=pool)
        endpoints = _Socket(self._reactor, url.removeprefix("unix:"))
        return Agent.usingEndpointFactory(self._reactor, endpoints, pool=pool)

    def _headers(self, *, has_body: bool) -> Headers:
        headers = Headers({"User-Agent": ["grange-buildbot"]})
        if has_body:
            headers.setRawHeaders("Content-Type", ["application/json"])
        if self._token_file is not None:
            headers.setRawHeaders("Authorization", [f"Bearer {_token_in(self._token_file)}"])
        return headers


def _pool(reactor: Any) -> HTTPConnectionPool:
    pool = HTTPConnectionPool(reactor, persistent=True)
    pool.maxPersistentPerHost = IDLE_MAX
    pool.cachedConnectionTimeout = IDLE_S
    return pool


async def _fetch(
    agent: Agent, method: str, target: str, headers: Headers, body: bytes | None
) -> tuple[int, bytes, str]:
    """Status, body and where it redirects to."""
    producer: Any = None if body is None else FileBodyProducer(BytesIO(body))
    response = await agent.request(method.encode(), target.encode(), headers, producer)
    location = (response.headers.getRawHeaders("location") or [""])[0]
    return response.code, await _body_of(response), location


def _body_of(response: IResponse) -> "defer.Deferred[bytes]":
    done: defer.Deferred[bytes] = defer.Deferred(lambda _: receiver.stop())
    receiver = _Receiver(done)
    response.deliverBody(receiver)  # type: ignore[call-arg, misc] # an interface has no self
    return done


class _Receiver(Protocol):
    """Gathers a body up to its limit."""

    def __init__(self, done: "defer.Deferred[bytes]") -> None:
        self._done = done
        self._parts: list[bytes] = []
        self._bytes = 0

    def dataReceived(self, data: bytes) -> None:  # noqa: N802 - Twisted's name
        self._parts.append(data)
        self._bytes += len(data)
        if self._bytes > BODY_BYTES_MAX:
            self.stop()

    def connectionLost(self, reason: Failure = connectionDone) -> None:  # noqa: N802
        if self._done.called:
            return
        if reason.check(ResponseDone):
            self._done.callback(b"".join(self._parts))
        else:
            self._done.errback(reason)

    def stop(self) -> None:
        abort = getattr(self.transport, "abortConnection", None)
        if abort is not None:
            abort()


@implementer(IAgentEndpointFactory)
class _Socket:
    """Every host is behind one unix socket."""

    def __init__(self, reactor: Any, path: str) -> None:
        self._endpoint = UNIXClientEndpoint(reactor, path, timeout=CONNECT_S)

    def endpointForURI(self, uri: URI) -> UNIXClientEndpoint:  # noqa: ARG002, N802
        return self._endpoint


def _redirected(target: str, location: str) -> str:
    """Raises OutsideError where what is shown to the next would be read on the way."""
    following = urljoin(target, location)
    if urlsplit(target).scheme == "https" and urlsplit(following).scheme != "https":
        raise OutsideError(f"{target} redirects to {following}, which is not encrypted")
    return following


def _token_in(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read().strip()
    except (OSError, UnicodeDecodeError) as failed:
        said = os.strerror(failed.errno or 0) if isinstance(failed, OSError) else "it is no text"
        raise OutsideError(
            f"cannot read the token file {path}: {said}; it must be a file that the Buildbot "
            "master may read, and hold a token with the role submit"
        ) from failed


def _is_cancelled(failed: Exception) -> bool:
    reasons = getattr(failed, "reasons", ())
    return isinstance(failed, defer.CancelledError) or any(
        reason.check(defer.CancelledError) for reason in reasons
    )


def _words(failed: Exception) -> str:
    match failed:
        case error.ConnectionRefusedError():
            return "nothing listens there"
        case error.TimeoutError():
            return f"it took no connection in {CONNECT_S:.0f} s"
        case ResponseFailed() | RequestTransmissionFailed():
            said = "; ".join(each.getErrorMessage() for each in failed.reasons)
        case _:
            said = str(failed)
    return said.rstrip(".") or type(failed).__name__
