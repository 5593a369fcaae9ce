"""Hooks, what they failed to take, and the stream of events."""

import asyncio
import json
from collections.abc import AsyncIterator, Collection
from contextlib import suppress
from typing import Annotated, Final
from urllib.parse import urlsplit

from fastapi import APIRouter, Query, Request
from fastapi.responses import StreamingResponse

from grange.client.hook_models import HookChange, HookEvents, HookFailure, HookView
from grange.coordinator.farm import Farm
from grange.coordinator.hooks.payload import payload
from grange.coordinator.hooks.service import Hooks, HookState
from grange.errors import ConflictError, OutsideError, PeerError
from grange.identity import Role
from grange.ports import FarmEvent
from grange.scheduler.facts import EventKind
from grange.store.path import StoreDir
from grange.web.rights import did, needs

STREAMS_MAX: Final = 200  # of a task and a page of events each
PAGE: Final = 250
BEAT_S: Final = 15.0  # between signs of life, which proxies want
EVENT_MAX: Final = (1 << 63) - 1


def hook_calls(api: APIRouter, farm: Farm) -> None:
    store_dir = farm.settings.store_dir

    @api.get("/hooks", dependencies=[needs(Role.READ)])
    async def hooks() -> list[HookView]:
        """The hooks that the farm's file names, and how they do."""
        return [_view(state) for state in await farm.hooks.states()]

    @api.get("/hooks/failures", dependencies=[needs(Role.OPERATE)])
    async def failures(
        *, hook: str | None = None, limit: Annotated[int, Query(ge=1, le=1_000)] = 100
    ) -> list[HookFailure]:
        """Events that were given up, the newest first."""
        return [
            HookFailure(
                hook=each.hook,
                tries=each.tries,
                error=each.error,
                event=payload(each.event, store_dir),
            )
            for each in await farm.hooks.given_up(hook, limit)
        ]

    @api.post("/hooks/{hook}/retry", dependencies=[needs(Role.OPERATE)])
    async def retry(asked: Request, hook: str, request: HookEvents) -> HookChange:
        """Tell it again of events that were given up."""
        changed = await farm.hooks.retry(hook, _chosen(request))
        did(asked, f"had hook {hook} told again of {changed} events")
        return HookChange(changed=changed)

    @api.post("/hooks/{hook}/skip", dependencies=[needs(Role.OPERATE)])
    async def skip(asked: Request, hook: str, request: HookEvents) -> HookChange:
        """Never tell it of events that were given up or wait after a failure."""
        changed = await farm.hooks.skip(hook, _chosen(request))
        did(asked, f"had hook {hook} skip {changed} events")
        return HookChange(changed=changed)

    _event_calls(api, farm)


def _event_calls(api: APIRouter, farm: Farm) -> None:
    open_streams: set[AsyncIterator[bytes]] = set()

    @api.get("/events", response_class=StreamingResponse, dependencies=[needs(Role.READ)])
    async def events(
        request: Request,
        *,
        after: Annotated[int | None, Query(ge=0, le=EVENT_MAX)] = None,
        kind: Annotated[list[EventKind] | None, Query()] = None,
        project: str | None = None,
    ) -> StreamingResponse:
        """Server-sent events, from now on or after the one that `Last-Event-ID` names."""
        if not farm.hooks.rules.is_stream:
            raise ConflictError(
                "this farm keeps no events for listeners; set stream = true under [events] in the "
                "file of grange serve --config"
            )
        if len(open_streams) >= STREAMS_MAX:
            raise OutsideError(f"{STREAMS_MAX} listen already; try again in a while")
        _, last = await farm.hooks.events.range()
        start = _last_seen(request, after)
        kinds = frozenset(kind or EventKind)
        told = _Stream(farm.hooks, farm.settings.store_dir, kinds, project)
        lines = told.lines(last if start is None else start)

        async def counted() -> AsyncIterator[bytes]:
            open_streams.add(lines)
            try:
                async for line in lines:
                    yield line
            finally:
                open_streams.discard(lines)

        return StreamingResponse(
            counted(),
            media_type="text/event-stream",
            headers={"cache-control": "no-store", "x-accel-buffering": "no"},
        )


class _Stream:
    """What one listener is told."""

    def __init__(
        self, hooks: Hooks, store_dir: StoreDir, kinds: Collection[EventKind], project: str | None
    ) -> None:
        self._hooks = hooks
        self._store_dir = store_dir
        self._kinds = kinds
        self._project = project

    async def lines(self, after: int) -> AsyncIterator[bytes]:
        """Those after this one, and then whatever happens."""
        yield b": this farm's events\n\n"
        first, last = await self._hooks.events.range()
        after = min(after, last)  # of a farm that was made anew
        if after + 1 < first:
            lost = {"from": after + 1, "to": first - 1}
            yield b"event: lost\ndata: " + json.dumps(lost).encode() + b"\n\n"
        while True:
            news = self._hooks.news
            page = await self._hooks.events.events_after(after, self._kinds, PAGE)
            told = [self._shown(each) for each in page if self._project in (None, each.project)]
            if told:
                yield b"".join(told)
            if page:
                after = page[-1].id
            if len(page) == PAGE:
                continue
            with suppress(TimeoutError):
                async with asyncio.timeout(BEAT_S):
                    await news.wait()
            if not news.is_set():
                yield b": still here\n\n"

    def _shown(self, event: FarmEvent) -> bytes:
        text = json.dumps(payload(event, self._store_dir), separators=(",", ":"))
        return f"id: {event.id}\nevent: {event.kind.value}\ndata: {text}\n\n".encode()


def _last_seen(request: Request, after: int | None) -> int | None:
    """The header comes first: a browser sends it by itself when it comes back."""
    text = request.headers.get("last-event-id", "")
    if not text:
        return after
    if not (text.isascii() and text.isdigit() and int(text) <= EVENT_MAX):
        raise PeerError(f"Last-Event-ID {text[:100]!r} is no number of an event")
    return int(text)


def _chosen(request: HookEvents) -> frozenset[int] | None:
    return None if request.events is None else frozenset(request.events)


def _view(state: HookState) -> HookView:
    rule = state.rule
    if rule.command:
        does = f"runs {rule.command[0]}"
    elif rule.url:  # its path may be a secret
        parts = urlsplit(rule.url)
        does = f"posts to {parts.scheme}://{parts.hostname}"
    else:
        does = f"calls {rule.entry_point}"
    return HookView(
        name=rule.name,
        does=does,
        events=sorted(rule.events),
        projects=None if rule.projects is None else sorted(rule.projects),
        parallel=rule.parallel,
        waiting=state.waiting,
        given_up=state.given_up,
        behind=state.behind,
        last_error=state.last_error,
    )
