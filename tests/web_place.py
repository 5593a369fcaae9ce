"""A coordinator's HTTP application within a test's own process, without agents."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
from fastapi import FastAPI
from prometheus_client import CollectorRegistry

from grange.cache.tokens import TokenKey
from grange.clock import SystemClock
from grange.coordinator.farm import Farm
from grange.coordinator.logs import Logs
from grange.coordinator.settings import FarmSettings
from grange.db.connect import MEMORY
from grange.db.journal import SqliteJournal
from grange.db.leadership import SoleLeadership
from grange.errors import OutsideError
from grange.identity import ANONYMOUS, Role
from grange.images.settings import ImageSettings
from grange.objects.directory import DirectoryObjects
from grange.registry.app import RegistryOptions
from grange.registry.metrics import RegistryMetrics
from grange.scheduler.facts import Limits
from grange.store.keys import SecretKey
from grange.store.path import NIX_STORE
from grange.web.app import make_app
from grange.web.capacity import no_pools
from grange.web.capacity_claims import AutoscalerOf
from grange.web.images import ImageParts
from grange.web.registry import RegistryParts, may_pull
from grange.web.rights import table
from grange.wire.callers import RIGHTS
from tests.images_fakes import MemoryCatalog
from tests.registry_place import FakeImages

URL = "http://farm.example"


def make_farm(folder: Path, *, may_all_read: bool = False) -> Farm:
    """One that leads nothing yet."""
    journal = SqliteJournal.open(MEMORY)
    return Farm(
        FarmSettings(
            store_dir=NIX_STORE,
            cache_url=URL,
            keys=[SecretKey.generate("farm-1", bytes(32))],
            upstream_keys=[],
            limits=Limits(),
            lease_s=30,
            anonymous=replace(ANONYMOUS, roles=frozenset({Role.READ} if may_all_read else ())),
        ),
        clock=SystemClock(),
        journal=journal,
        accounts=journal.accounts,
        events=journal.events,
        retained=journal.retention,
        leadership=SoleLeadership(URL, "farm.example:7381"),
        objects=DirectoryObjects(folder / "cache"),
        token_key=TokenKey(b"k" * 32),
        logs=Logs(folder / "logs", log_bytes_max=1 << 20),
        upstreams=[],
    )


@dataclass(frozen=True, slots=True)
class WebPlace:
    farm: Farm
    app: FastAPI
    http: httpx.AsyncClient

    async def token(self, *roles: Role, projects: frozenset[str] | None = None) -> dict[str, str]:
        """Headers that show a new token with these roles."""
        name = "-".join(sorted(roles))
        _, text = await self.farm.keeper.new_token(
            name, "test", frozenset(roles), projects=projects
        )
        return shown(text)


def shown(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


class NoImages:
    """Whatever makes, explains, evaluates or collects images, and cannot just now."""

    def __getattr__(self, name: str) -> Any:
        def fail(*_args: object, **_named: object) -> None:
            raise OutsideError("there are no images here")

        async def fail_later(*_args: object, **_named: object) -> None:
            fail()

        return fail if name in ("beat", "finish") else fail_later


def no_images() -> ImageParts:
    none: Any = NoImages()
    return ImageParts(lambda: (), MemoryCatalog(), none, none, none, none)


def registry_of(images: FakeImages, *, may_all_pull: bool = False) -> RegistryParts:
    check, metrics = may_pull(is_open=may_all_pull), RegistryMetrics(CollectorRegistry())
    options = RegistryOptions(check, metrics, may_all_pull)
    return RegistryParts(images, options, lambda: ImageSettings({}))


@asynccontextmanager
async def web_place(
    folder: Path,
    *,
    may_all_read: bool = False,
    autoscaler_of: AutoscalerOf = no_pools,
    images: ImageParts | None = None,
    pulled: FakeImages | None = None,
    may_all_pull: bool = False,
) -> AsyncIterator[WebPlace]:
    """It leads, and answers; `pulled` is what its registry has."""
    farm = make_farm(folder, may_all_read=may_all_read)
    registry = registry_of(pulled or FakeImages(), may_all_pull=may_all_pull)
    app = make_app(farm, autoscaler_of, images or no_images(), registry)
    running = asyncio.create_task(farm.run())
    transport = httpx.ASGITransport(app, client=("192.0.2.9", 4711))
    try:
        await farm.loop.ready.wait()
        async with httpx.AsyncClient(transport=transport, base_url=URL) as http:
            yield WebPlace(farm, app, http)
    finally:
        running.cancel()
        await asyncio.wait((running,))
        await farm.journal.close()


RIGHTS_HEAD = """\
# Who may what

Made by `tools/generate-rights` from what each route says of itself; a route that says nothing
keeps the farm from starting. What the roles mean: [security.md](security.md). `administer` includes
every right but `build`, which agents alone have, and `join`, which registration tokens alone have.

"""


def rights_page(folder: Path) -> str:
    """The whole page docs/operating/rights.md."""
    farm = make_farm(folder)
    try:
        return RIGHTS_HEAD + table(
            make_app(farm, images=no_images(), registry=registry_of(FakeImages())), RIGHTS
        )
    finally:
        asyncio.run(farm.journal.close())
