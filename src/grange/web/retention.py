"""What is kept of the cache: collections and pins."""

import re
from typing import Annotated, Final

from fastapi import APIRouter, Query
from starlette.requests import Request

from grange.client.models import CollectView, KeptView, PinRequest, PinView
from grange.coordinator.farm import Farm
from grange.coordinator.retention import Report
from grange.errors import ConflictError, NotFoundError, PeerError
from grange.identity import Identity, Role
from grange.ports import Pin
from grange.scheduler.facts import BuildId
from grange.web.rights import did, needs
from grange.web.views import Views

PATHS_SHOWN_MAX: Final = 1_000_000
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+:@-]{0,254}\Z")


def retention_calls(api: APIRouter, farm: Farm, _: Views) -> None:
    retention, retained, store_dir = farm.retention, farm.retained, farm.settings.store_dir

    def report(found: Report, *, is_done: bool) -> CollectView:
        return CollectView(
            paths=[store_dir.show(path) for path in found.paths[:PATHS_SHOWN_MAX]],
            count=len(found.paths),
            file_bytes=found.file_bytes,
            kept=[
                KeptView(reason=each.reason, paths=each.paths, file_bytes=each.file_bytes)
                for each in found.kept
            ],
            builds=found.builds,
            attempts=found.attempts,
            files=found.files,
            is_done=is_done,
        )

    @api.get("/collect", dependencies=[needs(Role.READ)])
    async def plan(*, pressed: Annotated[bool, Query()] = False) -> CollectView:
        """What a collection would do now, and why the rest stays. `pressed`: room is short, so
        outputs go that were stored lately."""
        return report(await retention.plan(is_pressed=pressed), is_done=False)

    @api.post("/collect", dependencies=[needs(Role.OPERATE)])
    async def collect(
        request: Request, *, pressed: Annotated[bool, Query()] = False
    ) -> CollectView:
        """Collect; answered when it is done. Files go after a grace, for downloads under way."""
        done = report(await retention.collect(is_pressed=pressed), is_done=True)
        did(request, f"collected {done.count} paths")
        return done

    def view(pin: Pin) -> PinView:
        return PinView(
            name=pin.name,
            path=None if pin.path is None else store_dir.show(pin.path),
            build=pin.build,
            created=pin.created,
            created_by=pin.created_by,
        )

    @api.get("/pins", dependencies=[needs(Role.READ)])
    async def pins() -> list[PinView]:
        """By name."""
        return [view(pin) for pin in await retained.pins()]

    @api.post("/pins")
    async def pin(
        wanted: PinRequest, request: Request, who: Annotated[Identity, needs(Role.OPERATE)]
    ) -> PinView:
        """Keep a path with its closure, or a build's record and outputs. A name that is taken gets
        the new one."""
        if (wanted.path is None) is (wanted.build is None):
            raise PeerError("pin a path or a build: one of them")
        path = None if wanted.path is None else store_dir.parse(wanted.path)
        build = None if wanted.build is None else BuildId(wanted.build)
        if build is not None:
            record = await farm.journal.build(build)
            if record is None:
                raise NotFoundError(f"there is no build {build}")
            if record.outcome is None or not record.outcome.is_success:
                raise ConflictError(f"build {build} has not succeeded, so it has nothing to keep")
        name = wanted.name or (str(path) if path is not None else str(build))
        if _NAME.match(name) is None:
            raise PeerError(f"{name[:300]!r} cannot name a pin; letters, digits and ._+:@- can")
        new = Pin(name, path, build, farm.loop.now(), who.name)
        await retention.pin(new)
        did(request, f"pinned {path or build} as {name}")
        return view(new)

    @api.delete("/pins/{name}", dependencies=[needs(Role.OPERATE)])
    async def unpin(name: str, request: Request) -> list[PinView]:
        """Keep it no more; the pins that are left."""
        if not await retained.drop_pin(name):
            raise NotFoundError(f"there is no pin {name!r}; grange pins lists them")
        did(request, f"unpinned {name}")
        return await pins()
