"""Steps, their attempts and logs."""

from fastapi import APIRouter
from fastapi.responses import PlainTextResponse, Response, StreamingResponse

from grange.client.models import AttemptView, StepView, Why
from grange.coordinator.farm import Farm
from grange.errors import NotFoundError
from grange.identity import Role
from grange.ports import StepRecord
from grange.scheduler.facts import AttemptId, StepId
from grange.web.rights import needs
from grange.web.views import Views


def step_calls(api: APIRouter, farm: Farm, views: Views) -> None:
    journal = farm.journal

    async def find(step: int) -> StepRecord:
        record = (await journal.steps([StepId(step)])).get(StepId(step))
        if record is None:
            raise NotFoundError(f"there is no step {step}")
        return record

    @api.get("/steps", dependencies=[needs(Role.READ)])
    async def step_of(drv_path: str) -> StepView:
        """The step of a derivation, by its store path."""
        path = farm.settings.store_dir.parse(drv_path)
        step = await journal.step_of(path)
        if step is None:
            raise NotFoundError(f"the farm has never been given {drv_path}")
        return await show(step)

    @api.get("/steps/{step}", dependencies=[needs(Role.READ)])
    async def show(step: int) -> StepView:
        record = await find(step)
        [summary] = await journal.build_closure(record.drv_path, limit=1)
        return views.summary(summary)

    @api.get("/steps/{step}/why", dependencies=[needs(Role.READ)])
    async def why_step(step: int) -> Why:
        return await views.why(StepId(step), await find(step))

    @api.get("/steps/{step}/attempts", dependencies=[needs(Role.READ)])
    async def attempts(step: int) -> list[AttemptView]:
        """Oldest first."""
        await find(step)
        return [views.attempt(record) for record in await journal.attempts(StepId(step))]

    @api.get(
        "/attempts/{attempt}/log", dependencies=[needs(Role.READ)], response_class=PlainTextResponse
    )
    async def log(attempt: int, *, follow: bool = False) -> Response:
        """The log's bytes as the build wrote them; with `follow`, until the attempt ends."""
        if await journal.attempt(AttemptId(attempt)) is None:
            raise NotFoundError(f"there is no attempt {attempt}")
        parts = farm.logs.read(AttemptId(attempt), farm.is_live if follow else None)
        return StreamingResponse(parts, media_type="text/plain; charset=utf-8")
