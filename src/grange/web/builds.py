"""Builds: submitted, shown, watched, cancelled and tried again."""

import uuid
from typing import Annotated, Final

from fastapi import APIRouter, Query, Request
from fastapi.responses import StreamingResponse

from grange.client.models import (
    BuildView,
    RetryRequest,
    StepView,
    SubmitAnswer,
    SubmitRequest,
    SupportView,
    WatchRequest,
    Why,
)
from grange.coordinator.farm import Farm
from grange.coordinator.watch import WATCHES_MAX
from grange.errors import NotFoundError, OutsideError, PeerError
from grange.identity import Identity, Role
from grange.ports import BuildRecord, NewBuild
from grange.scheduler.facts import BuildId, Limits, check_of, checked
from grange.web.rights import did, needs
from grange.web.views import Views
from grange.web.watching import watch

WHY_MAX: Final = 100
STEPS_SHOWN_MAX: Final = 10_000


def build_calls(api: APIRouter, farm: Farm, views: Views) -> None:
    journal, store_dir = farm.journal, farm.settings.store_dir

    async def find(build: str) -> BuildRecord:
        record = await journal.build(BuildId(build))
        if record is None:
            raise NotFoundError(f"there is no build {build}")
        return record

    async def view(record: BuildRecord) -> BuildView:
        [found] = await views.builds([record])
        supports = await journal.supports(record.root)
        found.nix_support = {
            name: SupportView.model_validate_json(text) for name, text in supports.items() if text
        }
        return found

    @api.get("/builds", dependencies=[needs(Role.READ)])
    async def builds(
        *,
        unfinished: bool = False,
        limit: Annotated[int, Query(ge=1, le=10_000)] = 100,
        before: float | None = None,
    ) -> list[BuildView]:
        """The newest first; `before` pages on by the time of submission."""
        return await views.builds(
            await journal.builds(unfinished_only=unfinished, limit=limit, before=before)
        )

    @api.post("/builds")
    async def submit(
        request: SubmitRequest, who: Annotated[Identity, needs(Role.SUBMIT)]
    ) -> SubmitAnswer:
        """Ask for builds of derivations the farm knows. With ids, asking twice is harmless."""
        who.demand_project(request.project)
        ids = request.ids or [str(uuid.uuid4()) for _ in request.drv_paths]
        if len(ids) != len(request.drv_paths):
            raise PeerError(f"{len(ids)} ids for {len(request.drv_paths)} derivations")
        records, steps = await farm.submissions.submit(
            [
                NewBuild(
                    BuildId(id_),
                    store_dir.parse(path),
                    request.project,
                    request.priority,
                    tuple(sorted(set(request.tags))),
                    who.name,
                    farm.loop.now(),
                    Limits(**request.limits.model_dump()),
                    request.is_check,
                    request.not_before,
                )
                for id_, path in zip(ids, request.drv_paths, strict=True)
            ]
        )
        return SubmitAnswer(builds=await views.builds(records), steps=steps)

    @api.get("/builds/{build}", dependencies=[needs(Role.READ)])
    async def show(build: str) -> BuildView:
        return await view(await find(build))

    @api.get("/builds/{build}/steps", dependencies=[needs(Role.READ)])
    async def steps(build: str) -> list[StepView]:
        """The steps of its build closure that were ever wanted, root first."""
        record = await find(build)
        closure = await journal.build_closure(record.drv_path, limit=STEPS_SHOWN_MAX)
        return [views.summary(step) for step in closure]

    @api.post("/builds/{build}/cancel")
    async def cancel(
        asked: Request, build: str, who: Annotated[Identity, needs(Role.SUBMIT, Role.OPERATE)]
    ) -> BuildView:
        """Stop it; steps that other builds want go on."""
        who.demand_build_of((await find(build)).project)
        record = await farm.submissions.cancel(BuildId(build), who.name)
        did(asked, f"cancelled build {record.id} ({record.drv_path.name})")
        return await view(record)

    @api.post("/builds/{build}/retry")
    async def retry(
        asked: Request,
        build: str,
        who: Annotated[Identity, needs(Role.SUBMIT, Role.OPERATE)],
        request: RetryRequest | None = None,
    ) -> BuildView:
        """Try a failed or cancelled build again, forgetting remembered failures below it."""
        who.demand_build_of((await find(build)).project)
        not_before = 0.0 if request is None else request.not_before
        record = await farm.submissions.retry(BuildId(build), not_before)
        did(asked, f"had build {record.id} ({record.drv_path.name}) tried again")
        return await view(record)

    @api.get("/builds/{build}/why", dependencies=[needs(Role.READ)])
    async def why_build(build: str) -> list[Why]:
        """Why its steps are not running: of those that wait for nothing but the farm first."""
        record = await find(build)
        nodes = await journal.unfinished_graph([record.drv_path])
        live = [node for node in nodes if node.spec.id in views.core.steps]
        live.sort(key=lambda node: views.core.steps[node.spec.id].missing)
        wanted = [node.spec.id for node in (live or nodes)[:WHY_MAX]]
        check = check_of(record.root)
        if record.is_check and check in views.core.steps:
            wanted.append(check)
        records = await journal.steps([checked(id_) for id_ in wanted])
        return [await views.why(id_, records[checked(id_)]) for id_ in wanted]

    @api.post("/watch", response_class=StreamingResponse, dependencies=[needs(Role.READ)])
    async def watch_builds(request: WatchRequest) -> StreamingResponse:
        """Newline-delimited WatchEvents, until every build has finished."""
        records = await journal.builds_of([BuildId(build) for build in request.builds])
        if missing := set(request.builds) - {record.id for record in records}:
            raise NotFoundError(f"there is no build {min(missing)}")
        if farm.watches.count >= WATCHES_MAX:
            raise OutsideError(f"{WATCHES_MAX} watches are open already; try again in a while")
        lines = watch(farm, views, records, logs=request.logs)
        return StreamingResponse(lines, media_type="application/x-ndjson")
