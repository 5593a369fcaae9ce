"""What operators turn: projects, pauses, priorities."""

from contextlib import suppress
from typing import Annotated

from fastapi import APIRouter, Path, Request

from grange.client.models import (
    BuildView,
    PausedView,
    PauseRequest,
    PausesView,
    PriorityRequest,
    ProjectView,
)
from grange.coordinator.farm import Farm
from grange.errors import NotFoundError, PeerError
from grange.identity import Identity, Role
from grange.scheduler.events import AgentRuled, Event, FarmPaused, ProjectPaused
from grange.scheduler.facts import AgentId, BuildId
from grange.web.rights import did, needs
from grange.web.views import Views

BuildPath = Annotated[str, Path(max_length=64)]


def knob_calls(api: APIRouter, farm: Farm, views: Views) -> None:
    journal = farm.journal

    @api.get("/projects", dependencies=[needs(Role.READ)])
    async def projects() -> list[ProjectView]:
        """Those with a rule, with builds, or that used agents of late; most used first."""
        core = views.core
        names = dict.fromkeys([*farm.settings.projects, *core.accounts])
        shown = [views.project(name) for name in names]
        return sorted(shown, key=lambda each: (-each.use, each.name))

    @api.get("/pauses", dependencies=[needs(Role.READ)])
    async def pauses() -> PausesView:
        """All that is paused now."""
        core = views.core
        return PausesView(
            farm=core.pause,
            projects=[
                PausedView(name=name, reason=account.pause)
                for name, account in sorted(core.accounts.items())
                if account.pause is not None
            ],
            agents=[
                PausedView(name=id_, reason=rule.reason)
                for id_, rule in sorted(core.agent_rules.items())
                if rule.is_paused
            ],
        )

    @api.post("/pause", dependencies=[needs(Role.OPERATE)])
    async def pause(request: PauseRequest, asked: Request) -> PausesView:
        """Begin nothing more: of a project, on an agent or, with neither, at all."""
        await farm.loop.settle(await _ruling(request, is_paused=True))
        did(asked, f"paused {_meant(request)}: {request.reason or 'no reason given'}")
        return await pauses()

    @api.post("/resume", dependencies=[needs(Role.OPERATE)])
    async def resume(request: PauseRequest, asked: Request) -> PausesView:
        """End a pause. Harmless where there is none."""
        await farm.loop.settle(await _ruling(request, is_paused=False))
        did(asked, f"ended the pause of {_meant(request)}")
        return await pauses()

    async def _ruling(request: PauseRequest, *, is_paused: bool) -> Event:
        if request.project is not None and request.agent is not None:
            raise PeerError("pause a project or an agent, not both in one request")
        if request.project is not None:
            return ProjectPaused(request.project, is_paused, request.reason)
        if request.agent is not None:
            agent = await _agent(request.agent)
            return AgentRuled(agent, is_paused=is_paused, reason=request.reason)
        return FarmPaused(is_paused, request.reason)

    async def _agent(text: str) -> AgentId:
        """The agent meant by its id or its name, here or not."""
        with suppress(NotFoundError):
            return (await farm.keeper.find(text)).id
        known = [spec for spec, _ in await journal.agents()]
        found = [spec.id for spec in known if text in (spec.id, spec.name)]
        if not found:
            raise NotFoundError(f"no agent {text} was ever here; `grange agents` lists who is")
        if len(found) > 1:
            raise PeerError(f"{len(found)} agents are called {text}; name one by its id: {found}")
        return found[0]

    @api.post("/builds/{build}/priority")
    async def prioritise(
        build: BuildPath,
        request: PriorityRequest,
        who: Annotated[Identity, needs(Role.SUBMIT, Role.OPERATE)],
        asked: Request,
    ) -> BuildView:
        """Raise or lower a build, and what only it needs."""
        record = await journal.build(BuildId(build))
        if record is None:
            raise NotFoundError(f"there is no build {build}")
        who.demand_build_of(record.project)
        changed = await farm.submissions.prioritise(record.id, request.priority)
        did(asked, f"gave build {record.id} the priority {request.priority}")
        [view] = await views.builds([changed])
        return view


def _meant(request: PauseRequest) -> str:
    if request.project is not None:
        return f"the project {request.project}"
    return "the farm" if request.agent is None else f"agent {request.agent}"
