"""The binary cache over HTTP: what Nix and Guix clients ask for, and where agents upload to.

What is served never changes, so it may be cached for ever; what is not there may be there in a
moment. Narinfos and NARs are answered by `grange.cache.reader`.
"""

import re
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from grange.cache.direct_calls import direct_calls
from grange.cache.grants import UploadError
from grange.cache.listing import listing_of
from grange.cache.ranges import FOREVER
from grange.cache.reader import Reader
from grange.cache.receive import take
from grange.cache.signing import derivation_narinfo
from grange.cache.uploads import BATCH_BYTES_MAX, Uploads
from grange.errors import PeerError
from grange.ports import Objects
from grange.store.hash import BASE32_CHARS
from grange.store.keys import SecretKey
from grange.store.nar import nar_of_text
from grange.store.narinfo import NarInfo, show
from grange.store.path import HASH_PART_CHARS, StoreDir, StorePath

PRIORITY: Final = 30  # before cache.nixos.org, which has 40
NIX_CACHE_INFO: Final = "nix-cache-info"
NAR_TYPE: Final = "application/x-nix-nar"
_SOON: Final = {"cache-control": "public, max-age=5"}  # for what is not there yet
HASH_PART: Final = re.compile(rf"[{BASE32_CHARS}]{{{HASH_PART_CHARS}}}\Z")


@dataclass(frozen=True, slots=True)
class DerivationText:
    """A submitted derivation, and all it refers to."""

    path: StorePath
    aterm: bytes
    references: tuple[StorePath, ...]


@dataclass(frozen=True, slots=True)
class Sources:
    """Where the cache finds what it serves. Each answers None for what is not there."""

    narinfo: Callable[[str], Awaitable[NarInfo | None]]  # by hash part; published ones only
    derivation: Callable[[str], Awaitable[DerivationText | None]]  # by hash part
    log: Callable[[StorePath], Awaitable[AsyncIterator[bytes] | None]]  # of a derivation


class Cache:
    """The endpoints. Belongs to one event loop."""

    def __init__(
        self,
        sources: Sources,
        objects: Objects,
        uploads: Uploads,
        keys: Sequence[SecretKey],
        store_dir: StoreDir,
        *,
        is_keeping: Callable[[], bool] = lambda: True,
    ) -> None:
        """`is_keeping`: whether it is told of every path that is forgotten, and so may keep some
        in memory."""
        self._sources = sources
        self._objects = objects
        self._uploads = uploads
        self._keys = keys
        self._store_dir = store_dir
        self.reader = Reader(self._narinfo_text, objects, is_keeping=is_keeping)

    def routes(self) -> list[Route]:
        """To be put before any route that matches everything."""
        return [
            Route("/{hash_part}.narinfo", _Raw(self.reader.narinfo), methods=["GET"]),
            Route("/nar/{hash_part}.drv.nar", self._derivation_nar),
            Route("/nar/{file}", _Raw(self.reader.nar), methods=["GET"]),
            Route("/upload", self._upload_batch, methods=["POST"]),
            Route("/upload/{token}", self._upload, methods=["PUT"]),
            *direct_calls(self._uploads),
            Route(f"/{NIX_CACHE_INFO}", self._cache_info),
            Route("/log/{drv}", self._log),
            Route("/{hash_part}.ls", self._listing),
        ]

    def forget_all(self) -> None:
        """Look every path up anew: another coordinator may have forgotten some."""
        self.reader.forget_all()

    def forget(self, path: StorePath) -> None:
        """Look this path up anew when it is next asked for."""
        self.reader.forget(path.hash_part)

    async def _cache_info(self, _: Request) -> Response:
        return PlainTextResponse(cache_info(self._store_dir), media_type="text/x-nix-cache-info")

    async def _narinfo_text(self, hash_part: str) -> bytes | None:
        narinfo = await self._look_up(hash_part)
        return None if narinfo is None else show(narinfo, self._store_dir).encode()

    async def _look_up(self, hash_part: str) -> NarInfo | None:
        if HASH_PART.match(hash_part) is None:
            return None
        narinfo = await self._sources.narinfo(hash_part)
        if narinfo is not None:
            return narinfo
        drv = await self._sources.derivation(hash_part)
        if drv is None:
            return None
        return derivation_narinfo(drv.path, drv.aterm, drv.references, self._keys, self._store_dir)

    async def _derivation_nar(self, request: Request) -> Response:
        hash_part = request.path_params["hash_part"]
        drv = None
        if HASH_PART.match(hash_part) is not None:
            drv = await self._sources.derivation(hash_part)
        if drv is None:
            return missing(f"no derivation with the hash part {hash_part[:40]!r} was submitted")
        headers = {"cache-control": FOREVER}
        return Response(nar_of_text(drv.aterm), headers=headers, media_type=NAR_TYPE)

    async def _listing(self, request: Request) -> Response:
        hash_part = request.path_params["hash_part"]
        narinfo = None
        if HASH_PART.match(hash_part) is not None:
            narinfo = await self._sources.narinfo(hash_part)
        listing = None if narinfo is None else await listing_of(narinfo, self._objects)
        if listing is None:
            return missing(f"no listing for the hash part {hash_part[:40]!r} is in this cache")
        return Response(listing, media_type="application/json")

    async def _log(self, request: Request) -> Response:
        drv = request.path_params["drv"]
        try:
            log = await self._sources.log(StorePath.parse_base(drv))
        except PeerError:
            log = None
        if log is None:
            return missing(f"no log of {drv[:250]!r} is here; it was not built by this farm")
        return StreamingResponse(log, media_type="text/plain; charset=utf-8")

    async def _upload(self, request: Request) -> Response:
        length = request.headers.get("content-length")
        try:
            answer = await self._uploads.put(
                request.path_params["token"],
                request.stream(),
                int(length) if length is not None else None,
            )
        except ClientDisconnect:
            return Response(status_code=HTTPStatus.BAD_REQUEST)  # nobody hears it
        return PlainTextResponse(answer.text + "\n", answer.status)

    async def _upload_batch(self, request: Request) -> Response:
        try:
            body = await take(request.stream(), BATCH_BYTES_MAX + 1)
            if len(body) > BATCH_BYTES_MAX:
                raise UploadError(
                    HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                    f"a batch of more than {BATCH_BYTES_MAX} bytes; send large files on their own",
                )
            answers = await self._uploads.put_batch(body)
        except ClientDisconnect:
            return Response(status_code=HTTPStatus.BAD_REQUEST)
        except UploadError as error:
            return PlainTextResponse(f"{error}\n", error.status)
        except PeerError as error:
            return PlainTextResponse(f"{error}\n", HTTPStatus.BAD_REQUEST)
        return JSONResponse([{"status": each.status, "text": each.text} for each in answers])


class _Raw:
    """An ASGI application as a route's endpoint."""

    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[None]]) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)


def cache_info(store_dir: StoreDir) -> str:
    """What a client asks of a cache first."""
    return f"StoreDir: {store_dir.root}\nWantMassQuery: 1\nPriority: {PRIORITY}\n"


def missing(text: str) -> Response:
    return PlainTextResponse(text + "\n", HTTPStatus.NOT_FOUND, _SOON)
