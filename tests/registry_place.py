"""A registry that runs, over images that are made up."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from hashlib import sha256

import aiohttp
import uvicorn
from starlette.types import ASGIApp

from grange.cache.alone import MayRead
from grange.coordinator.http_protocol import http_config
from grange.errors import GrangeError, OutsideError
from grange.images.service import PendingError, Served
from grange.oci.descriptor import LayerDescriptor
from grange.oci.manifest import (
    DOCKER_GZIP,
    PLATFORMS,
    Document,
    Image,
    Layer,
    Runtime,
    Variant,
    choose_variant,
    image,
)
from grange.oci.names import parse_name, parse_reference
from grange.oci.refusal import Code, RefusedError
from grange.ports import Pending, RuntimeWish
from grange.registry.alone import make_registry_app
from grange.scheduler.facts import BuildId

COMMIT = "c0ffee" + "0" * 34


def digest_of(data: bytes) -> str:
    return f"sha256:{sha256(data).hexdigest()}"


@dataclass
class FakeBlob:
    """Bytes that come in pieces. It breaks off before `breaks_at`, and waits there for `goes_on`;
    `adds` is what comes behind its end."""

    data: bytes
    chunk_bytes: int = 1 << 16
    breaks_at: int | None = None
    adds: bytes = b""
    goes_on: asyncio.Event = field(default_factory=asyncio.Event)
    is_left: asyncio.Event = field(default_factory=asyncio.Event)
    reads: list[tuple[int, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.goes_on.set()

    @property
    def digest(self) -> str:
        return digest_of(self.data)

    @property
    def size(self) -> int:
        return len(self.data)

    async def read(self, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        end = self.size if end is None else end
        self.reads.append((start, end))
        try:
            for at in range(start, end, self.chunk_bytes):
                if self.breaks_at is not None and at >= self.breaks_at:
                    await self.goes_on.wait()
                    raise OutsideError("the disk is gone; mount it again")
                yield self.data[at : min(end, at + self.chunk_bytes)]
            if self.adds:
                yield self.adds
        finally:
            self.is_left.set()


class FakeImages:
    """Implements `grange.registry.doors.Images`: one image under every name and most tags, in all
    variants."""

    def __init__(self, layers: Sequence[FakeBlob] = ()) -> None:
        self.layers = [*layers] or [FakeBlob(b"a layer" * 100_000), FakeBlob(b"small")]
        self.asked: list[tuple[str, str, RuntimeWish]] = []
        self.recorded = ["v1", "main", "v2"]
        self.warnings: tuple[str, ...] = ()
        self.trouble: GrangeError | None = None
        self.commit = COMMIT
        self.goes_on = asyncio.Event()
        self.goes_on.set()
        self.is_asked = asyncio.Event()
        self.is_left = asyncio.Event()
        self._documents: dict[str, Document] = {}

    def image(self, variant: Variant = DOCKER_GZIP) -> Image:
        layers = [
            Layer(LayerDescriptor(each.digest, each.digest, each.size), "a layer")
            for each in self.layers
        ]
        made = image(variant, PLATFORMS["x86_64-linux"], Runtime(command=("hello",)), layers)
        self._documents |= {made.manifest.digest: made.manifest, made.config.digest: made.config}
        return made

    def hold(self, document: Document) -> None:
        self._documents[document.digest] = document

    async def manifest(
        self, name: str, reference: str, accept: Sequence[str], wish: RuntimeWish, wait_s: float
    ) -> Served:
        self.asked.append((name, reference, wish))
        self.is_asked.set()
        try:
            await self.goes_on.wait()
        finally:
            self.is_left.set()
        if self.trouble is not None:
            raise self.trouble
        parse_name(name)
        if ":" in parse_reference(reference):
            found = self._documents.get(reference)
            if found is None:
                raise RefusedError(Code.MANIFEST_UNKNOWN, f"nobody knows {reference}")
            return Served(found, "", (), reference)
        made = self.image(choose_variant(accept, is_zstd_allowed=False))
        manifest = made.manifest
        return Served(manifest, self.commit, self.warnings, manifest.digest)

    async def blob(self, digest: str) -> FakeBlob | Document | None:
        if self.trouble is not None:
            raise self.trouble
        blobs = {each.digest: each for each in self.layers}
        return blobs.get(digest) or self._documents.get(digest)

    async def tags(self, name: str) -> list[str]:
        parse_name(name)
        return [*self.recorded]


def pending(retry_after_s: int) -> PendingError:
    return PendingError(Pending("building git", (BuildId("b-1"),), retry_after_s))


async def refused(answer: aiohttp.ClientResponse) -> tuple[int, str]:
    """Status and code of an error in the specification's form."""
    assert answer.headers["content-type"] == "application/json"
    [error] = json.loads(await answer.read())["errors"]
    assert error["message"]
    return answer.status, error["code"]


@asynccontextmanager
async def serving(images: FakeImages, may_pull: MayRead | None = None) -> AsyncIterator[str]:
    """The URL of a registry of these."""

    @asynccontextmanager
    async def opened() -> AsyncIterator[FakeImages]:
        yield images

    async with listening(make_registry_app(opened, may_pull), has_lifespan=True) as url:
        yield url


@asynccontextmanager
async def listening(app: ASGIApp, *, has_lifespan: bool = False) -> AsyncIterator[str]:
    """The URL of `app`, served as our commands do."""
    bound = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(http_config(app, 1, has_lifespan=has_lifespan))
    running = asyncio.create_task(server.serve([bound]))
    try:
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"
    finally:
        server.should_exit = True
        await running
