"""An autoscaler that does as a test says, on a unix socket of the test's own reactor."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from typing import Any
from urllib.parse import unquote

from twisted.internet import defer
from twisted.protocols.policies import WrappingFactory
from twisted.python import log
from twisted.python.failure import Failure
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request, Site

from grange.capacity.facts import ReservationState
from grange.client.capacity_models import HintRequest, ReservationView, ReserveRequest
from grange.client.capacity_requests import BASE

PREFIX = BASE.encode()


@dataclass
class Held:
    """A reservation, and who waits for news of it."""

    id: str
    request: ReserveRequest
    state: str = "pending"
    version: int = 1
    slot: str | None = None
    why: str = "no instance is free"
    beats: int = 0
    waiting: list[defer.Deferred[None]] = field(default_factory=list)

    @property
    def is_open(self) -> bool:
        return self.state in ("pending", "ready")


class ScriptedDaemon:
    """Grants at once, unless told not to. `calls` is all that was asked of it, in order."""

    def __init__(self, reactor: Any, path: str) -> None:
        self._reactor = reactor
        self._path = path
        self._port: Any = None
        self._ids = count(1)
        self._watchers: list[tuple[Callable[[], bool], defer.Deferred[None]]] = []
        self.held: dict[str, Held] = {}
        self.hints: dict[str, HintRequest] = {}
        self.hinted: list[HintRequest] = []
        self.calls: list[str] = []
        self.is_generous = True
        self.lease_s = 90.0
        self.is_slow: defer.Deferred[None] | None = None  # no reservation is answered before it
        self.refusal: tuple[int, str] | None = None  # status and text, for reservations
        self.is_prose = False  # refusals are a page of somebody else's
        self.redirects = 0  # so many calls are sent elsewhere, which is here

    # --- What tests do --------------------------------------------------------------------------

    def listen(self) -> None:
        self._connections = WrappingFactory(Site(_Door(self)))
        self._port = self._reactor.listenUNIX(self._path, self._connections)

    async def stop(self) -> None:
        """As if it were killed."""
        if self._port is not None:
            port, self._port = self._port, None
            await port.stopListening()
            for connection in list(self._connections.protocols):
                connection.transport.abortConnection()

    def only(self) -> Held:
        (held,) = self.held.values()
        return held

    def set(self, held: Held, state: str, why: str = "", slot: str | None = None) -> None:
        held.state, held.why = state, why or held.why
        held.slot = slot or held.slot
        held.version += 1
        self._wake(held)
        self.look()

    def grant(self, held: Held) -> None:
        self.set(held, "ready", "it has a slot", f"x86-{held.id}")

    def adopt(self, key: str) -> Held:
        """Somebody else's."""
        held = Held(str(next(self._ids)), ReserveRequest(key=key, system="x86_64-linux"))
        self.held[held.id] = held
        self.grant(held)
        return held

    def states(self) -> list[str]:
        return [held.state for held in self.held.values()]

    async def until(self, is_so: Callable[[], bool]) -> None:
        """Looked at after everything that happens here."""
        if not is_so():
            seen: defer.Deferred[None] = defer.Deferred()
            self._watchers.append((is_so, seen))
            await seen

    def look(self) -> None:
        for watcher in list(self._watchers):
            if watcher[0]():
                self._watchers.remove(watcher)
                watcher[1].callback(None)

    # --- What is asked of it --------------------------------------------------------------------

    async def answer(self, method: str, path: str, body: bytes, query: dict[str, Any]) -> Any:
        self.calls.append(f"{method} {path}")
        self.look()
        match [method, *path.split("/")]:
            case ["POST", "reservations"]:
                if self.is_slow is not None:
                    await self.is_slow
                return self._reserve(ReserveRequest.model_validate_json(body))
            case ["GET", "reservations"]:
                wanted = (held for held in self.held.values() if held.is_open)
                prefix = query["key_prefix"]
                return 200, [self._view(h) for h in wanted if h.request.key.startswith(prefix)]
            case ["GET", "reservations", id_]:
                return await self._wait(id_, query)
            case ["POST", "reservations", id_, "heartbeat"] if id_ in self.held:
                self.held[id_].beats += 1
                return 200, self._view(self.held[id_])
            case ["POST", "reservations", id_, "release"] if id_ in self.held:
                held = self.held[id_]
                if held.is_open:
                    self.set(held, "cancelled" if held.state == "pending" else "released")
                return 200, self._view(held)
            case ["POST", "hints"]:
                hint = HintRequest.model_validate_json(body)
                self.hints[hint.key] = hint
                self.hinted.append(hint)
                return 200, {"said": "thanks"}
        return 404, {"fault": "request", "error": f"there is no {path}"}

    def _reserve(self, request: ReserveRequest) -> Any:
        if self.refusal is not None:
            status, text = self.refusal
            return status, text if self.is_prose else {"fault": "request", "error": text}
        known = [held for held in self.held.values() if held.request.key == request.key]
        if known and known[0].request != request:
            return 409, {"fault": "request", "error": "that key is another claim's"}
        if known:
            return 200, self._view(known[0])
        held = Held(str(next(self._ids)), request)
        self.held[held.id] = held
        if self.is_generous:
            self.grant(held)
        return 201, self._view(held)

    async def _wait(self, id_: str, query: dict[str, Any]) -> Any:
        if id_ not in self.held:
            return 404, {"fault": "request", "error": f"there is no reservation {id_}"}
        held = self.held[id_]
        if "version" in query and held.version == query["version"] and query["wait_s"] > 0:
            news: defer.Deferred[None] = defer.Deferred()
            held.waiting.append(news)
            news.addTimeout(query["wait_s"], self._reactor, lambda *_: None)
            self.look()
            await news
        return 200, self._view(held)

    def _wake(self, held: Held) -> None:
        waiting, held.waiting = held.waiting, []
        for each in waiting:
            if not each.called:
                each.callback(None)

    def _view(self, held: Held) -> dict[str, Any]:
        asked = held.request.model_dump(mode="json", exclude={"deadline_s"})
        return ReservationView(
            **asked,
            id=held.id,
            state=ReservationState(held.state),
            version=held.version,
            slot=held.slot,
            address="" if held.slot is None else "10.0.0.1:22",
            reason="" if held.is_open else held.why,
            at_risk="",
            why=held.why,
            lease_s=self.lease_s,
        ).model_dump(mode="json")


class _Door(Resource):
    isLeaf = True  # noqa: N815 - Twisted's name

    def __init__(self, daemon: ScriptedDaemon) -> None:
        super().__init__()
        self._daemon = daemon

    def render(self, request: Request) -> int:
        path = unquote(request.path.removeprefix(PREFIX).decode()).strip("/")
        query = {name.decode(): _number(values[0]) for name, values in (request.args or {}).items()}
        body = request.content.read() if request.content is not None else b""
        asked = defer.ensureDeferred(
            self._daemon.answer(request.method.decode(), path, body, query)
        )
        request.notifyFinish().addErrback(lambda _: asked.cancel())

        def reply(said: tuple[int, Any]) -> None:
            if self._daemon.redirects > 0:
                self._daemon.redirects -= 1
                request.setHeader("Location", request.uri)
                said = 307, {}
            request.setResponseCode(said[0])
            request.setHeader("Content-Type", "application/json")
            body = said[1] if isinstance(said[1], str) else json.dumps(said[1])
            request.write(body.encode())
            request.finish()
            self._daemon.look()

        asked.addCallback(reply).addErrback(_tell)
        return NOT_DONE_YET


def _number(text: bytes) -> Any:
    try:
        return float(text)
    except ValueError:
        return text.decode()


def _tell(failure: Failure) -> None:
    if not failure.check(defer.CancelledError):
        log.err(failure, "the scripted daemon")
