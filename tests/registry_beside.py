"""A `grange registry` that runs beside a coordinator, over a database and a store of a farm."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Collection
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import aiohttp
from prometheus_client import CollectorRegistry

from grange.client.image_models import SourceSpec
from grange.clock import SystemClock
from grange.db.open import open_journal
from grange.identity import Role
from grange.images.layers import CODECS
from grange.images.settings import ImageSettings, PackageSource
from grange.objects.directory import DirectoryObjects
from grange.oci.manifest import (
    DOCKER_GZIP,
    OCI_GZIP,
    PLATFORMS,
    Compression,
    Layer,
    Runtime,
    Variant,
    image,
)
from grange.ports import ImageKey, ImageRecord, ImageRequest, Made, Pending, Resolution
from grange.registry.app import RegistryOptions
from grange.registry.metrics import RegistryMetrics
from grange.scheduler.facts import BuildId
from grange.web.app import make_app
from grange.web.capacity import no_pools
from grange.web.images import ImageParts
from grange.web.registry import RegistryParts, may_pull
from tests.images_cache import Place, filled
from tests.images_fakes import MemoryCatalog
from tests.registry_place import COMMIT, FakeImages, listening
from tests.web_place import NoImages, web_place

SOURCE = PackageSource(SourceSpec(name="own", kind="path", location="/nowhere"), "5" * 64)
SETTINGS = ImageSettings.of(SOURCE)
SECRET = "grange_of_a_puller"
GRANGE = Path(sys.executable).with_name("grange")
READY_S = 60


@dataclass
class FakeMaker:
    """Implements `grange.ports.Maker`: never ready."""

    asked: list[ImageRequest] = field(default_factory=list)
    used: set[str] = field(default_factory=set)
    is_noted: asyncio.Event = field(default_factory=asyncio.Event)

    async def make(self, request: ImageRequest, wait_s: float) -> Made | Pending:
        self.asked.append(request)
        return Pending("building it", (BuildId("b-1"),), 7)

    async def note_used(self, digests: Collection[str]) -> None:
        self.used.update(digests)
        self.is_noted.set()


async def fill(folder: Path, database: str | None = None) -> dict[Variant, ImageRecord]:
    """A journal and a store as a farm leaves them that has made the image `hello`."""
    place = Place()
    members = filled(place)
    objects = DirectoryObjects(folder / "store")
    await place.copy(objects)
    layers = place.layers(objects=objects)
    rows = [
        await layers.layer(CODECS[Compression.GZIP], [members[name]]) for name in ("large", "hello")
    ]
    rows.append(await layers.root(CODECS[Compression.GZIP], [members["hello"]]))
    await layers.close()
    journal = await open_journal(database or str(folder / "journal.db"))
    try:
        await journal.add_paths([*place.nars.values()], "source")
        for row in rows:
            await journal.images.save_layer(row)
        records = {}
        for variant in (OCI_GZIP, DOCKER_GZIP):
            made = image(
                variant,
                PLATFORMS["x86_64-linux"],
                Runtime(command=("hello",)),
                [Layer(row.descriptor, "a layer") for row in rows],
            )
            records[variant] = ImageRecord(
                ImageKey("hello", SOURCE.at(COMMIT), variant),
                made.manifest,
                made.config,
                tuple(row.key for row in rows),
                (members["hello"].path,),
                0.0,
                0.0,
            )
            await journal.images.save_image(records[variant])
        now = SystemClock().wall_s()
        await journal.images.save_resolution(Resolution("own", "latest", COMMIT, now))
    finally:
        await journal.close()
    return records


@dataclass
class Around:
    """A registry that runs, and what is around it."""

    url: str
    folder: Path
    images: dict[Variant, ImageRecord]
    http: aiohttp.ClientSession  # shows a token
    maker: FakeMaker
    coordinator: "Coordinator"

    @property
    def port(self) -> str:
        return self.url.rpartition(":")[2]


@dataclass
class Coordinator:
    url: str
    token: Path  # a file with one that it takes
    serving: AsyncExitStack

    async def leave(self) -> None:
        await self.serving.aclose()


@asynccontextmanager
async def coordinator(folder: Path, maker: FakeMaker) -> AsyncIterator[Coordinator]:
    none: Any = NoImages()
    parts = ImageParts(lambda: ("own",), MemoryCatalog(), maker, none, none, none)
    options = RegistryOptions(may_pull(is_open=False), RegistryMetrics(CollectorRegistry()))
    async with web_place(folder / "farm") as place, AsyncExitStack() as serving:
        shown = await place.token(Role.READ)
        token = folder / "token"
        token.write_text(shown["authorization"].removeprefix("Bearer "))
        registry_parts = RegistryParts(FakeImages(), options, lambda: SETTINGS)
        app = make_app(place.farm, no_pools, parts, registry_parts)
        url = await serving.enter_async_context(listening(app))
        yield Coordinator(url, token, serving)


@asynccontextmanager
async def running(folder: Path, *options: str, database: str | None = None) -> AsyncIterator[str]:
    """The URL of a `grange registry` over what lies in `folder`."""
    command = [str(GRANGE), "registry", "--listen", "127.0.0.1:0"]
    command += ["--database", database or str(folder / "journal.db")]
    command += ["--store", str(folder / "store")]
    process = await asyncio.create_subprocess_exec(
        *command, *options, stderr=asyncio.subprocess.PIPE, env=os.environ | {"HOME": str(folder)}
    )
    assert process.stderr is not None
    try:
        line = (await asyncio.wait_for(process.stderr.readline(), READY_S)).decode()
        assert line.startswith("registry: http://"), line + (await process.stderr.read()).decode()
        yield line.split()[1]
    finally:
        process.send_signal(signal.SIGTERM)
        rest = (await process.stderr.read()).decode()
        assert await process.wait() in (0, -signal.SIGTERM), rest
        assert "Traceback" not in rest, rest


@asynccontextmanager
async def beside(folder: Path) -> AsyncIterator[Around]:
    """A registry in `folder` that lets in who shows SECRET, and its coordinator."""
    images = await fill(folder)
    tokens = folder / "tokens"
    tokens.write_text(f"{sha256(SECRET.encode()).hexdigest()} puller\n")
    maker = FakeMaker()
    async with coordinator(folder, maker) as leader:
        options = ["--tokens-file", str(tokens), "--token-file", str(leader.token)]
        options += ["--coordinator", leader.url]
        headers = {"authorization": aiohttp.encode_basic_auth("x", SECRET)}
        async with (
            running(folder, *options) as own_url,
            aiohttp.ClientSession(own_url, headers=headers) as http,
        ):
            yield Around(own_url, folder, images, http, maker, leader)


async def get(around: Around, path: str) -> tuple[int, bytes, aiohttp.typedefs.LooseHeaders]:
    async with around.http.get(path) as answer:
        return answer.status, await answer.read(), answer.headers


async def manifest_is_there(around: Around, reference: str = "latest") -> bytes:
    """The manifest, once the registry knows of the coordinator which sources there are."""
    async with asyncio.timeout(READY_S):
        while True:
            status, body, headers = await get(around, f"/v2/hello/manifests/{reference}")
            if status != 503:
                assert status == 200, body
                return body
            assert "retry-after" in headers
