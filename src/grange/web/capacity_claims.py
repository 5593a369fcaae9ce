"""Reservations of capacity, and what else is said of work to come: by CI, mostly."""

from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Path, Query, Response

from grange.autoscaler.service import Autoscaler
from grange.autoscaler.sights import Told
from grange.capacity.facts import (
    Claim,
    InstanceId,
    Need,
    Notice,
    Reservation,
    ReservationId,
    ReservationState,
    SlotId,
)
from grange.client.capacity_models import (
    LIST_MAX,
    WAIT_MAX_S,
    Done,
    ExplanationView,
    HintRequest,
    NoticeRequest,
    ReservationView,
    ReserveRequest,
)
from grange.client.models import LIMIT_MAX, NAME_MAX
from grange.errors import ForbiddenError, NotFoundError
from grange.identity import Identity, Role
from grange.web import capacity_views as views
from grange.web.rights import needs

AutoscalerOf = Callable[[], Autoscaler]  # raises GrangeError where this process has none that acts
SlotOf = Callable[[Identity], Awaitable[SlotId | None]]  # that an agent was started in

ReservationPath = Annotated[str, Path(max_length=64)]
NameQuery = Annotated[str | None, Query(max_length=NAME_MAX)]
States = Annotated[list[ReservationState], Query(max_length=len(ReservationState))]
Asker = Annotated[Identity, needs(Role.SUBMIT, Role.OPERATE)]
Looker = Annotated[Identity, needs(Role.READ, Role.SUBMIT, Role.OPERATE)]
Warner = Annotated[Identity, needs(Role.BUILD, Role.OPERATE)]


def claim_calls(api: APIRouter, autoscaler_of: AutoscalerOf, slot_of: SlotOf | None) -> None:
    """Without `slot_of` whoever has the right of agents may warn of any instance."""
    _reservation_calls(api, autoscaler_of)
    _one_reservation_calls(api, autoscaler_of)
    _word_calls(api, autoscaler_of, slot_of)


def _reservation_calls(api: APIRouter, autoscaler_of: AutoscalerOf) -> None:
    @api.post("/capacity/reservations", status_code=HTTPStatus.CREATED)
    async def reserve(request: ReserveRequest, who: Asker, response: Response) -> ReservationView:
        """201 for a new one, 200 for that which the key has already; 409 where it has another
        claim. One that no pool can ever serve is failed from the first, with the reason."""
        who.demand_build_of(request.project)
        claim = Claim(
            key=request.key,
            system=request.system,
            features=tuple(sorted(set(request.features))),
            project=request.project,
            priority=request.priority,
            size=request.size,
            deadline_s=request.deadline_s,
            is_on_demand=request.is_on_demand,
            by=(request.by or who.name)[:NAME_MAX],
        )
        told = await autoscaler_of().reserve(claim)
        if not told.is_new:
            response.status_code = HTTPStatus.OK
        return views.reservation(told)

    @api.get("/capacity/reservations")
    async def reservations(
        who: Looker,
        state: States = [],  # noqa: B006 - FastAPI copies it
        project: NameQuery = None,
        key_prefix: NameQuery = None,
        limit: Annotated[int, Query(ge=1, le=LIST_MAX)] = 1_000,
    ) -> list[ReservationView]:
        """The oldest first, ended ones for a while; without the right to read, those of one's own
        projects."""

        def is_wanted(one: Reservation) -> bool:
            is_meant = project in (None, one.claim.project) and (not state or one.state in state)
            return is_meant and one.claim.key.startswith(key_prefix or "") and _may_see(who, one)

        found = autoscaler_of().reservations(is_wanted, limit)
        return [views.reservation(each) for each in found]


def _one_reservation_calls(api: APIRouter, autoscaler_of: AutoscalerOf) -> None:
    @api.get("/capacity/reservations/{id}")
    async def reservation(
        id: ReservationPath,  # noqa: A002 - what the path calls it
        who: Looker,
        version: Annotated[int | None, Query(ge=0, le=LIMIT_MAX)] = None,
        wait_s: Annotated[float, Query(ge=0, le=86_400, allow_inf_nan=False)] = 0.0,
    ) -> ReservationView:
        """Where `version` is what it has now, after a change or `wait_s`, at most 60 s."""
        autoscaler = autoscaler_of()
        told = _seen(autoscaler, id, who)
        if version is not None and wait_s:
            told = await autoscaler.wait(told.reservation.id, version, min(wait_s, WAIT_MAX_S))
        return views.reservation(told)

    @api.get("/capacity/reservations/{id}/explain")
    async def explain_reservation(id: ReservationPath, who: Looker) -> ExplanationView:  # noqa: A002
        """Why it stands as it does."""
        autoscaler = autoscaler_of()
        told = _seen(autoscaler, id, who)
        return ExplanationView(text=autoscaler.explain_reservation(told.reservation.id))

    @api.post("/capacity/reservations/{id}/heartbeat")
    async def renew(id: ReservationPath, who: Asker) -> ReservationView:  # noqa: A002
        """Renews its lease, and tells what has become of it."""
        autoscaler = autoscaler_of()
        return views.reservation(await autoscaler.renew(_owned(autoscaler, id, who)))

    @api.post("/capacity/reservations/{id}/release")
    async def release(id: ReservationPath, who: Asker) -> ReservationView:  # noqa: A002
        """From any state, as often as one likes."""
        autoscaler = autoscaler_of()
        return views.reservation(await autoscaler.release(_owned(autoscaler, id, who)))


def _word_calls(api: APIRouter, autoscaler_of: AutoscalerOf, slot_of: SlotOf | None) -> None:
    @api.post("/capacity/hints")
    async def hint(request: HintRequest, who: Asker) -> Done:
        """Work that is expected: instances may be launched for it before it is asked for."""
        who.demand_build_of(request.project)
        need = Need(
            request.system,
            tuple(sorted(set(request.features))),
            waiting=request.waiting,
            project=request.project,
            is_hint=True,
        )
        await autoscaler_of().hint(request.key, need, request.for_s)
        return Done(said=f"{request.waiting} places are expected for {request.for_s:g} s")

    @api.post("/capacity/notices")
    async def notice(request: NoticeRequest, who: Warner) -> Done:
        """An instance says that it was told to go: an agent's its own. One that sits in no slot is
        nobody's concern."""
        autoscaler = autoscaler_of()
        instance = InstanceId(request.instance)
        if slot_of is not None and not who.may(Role.OPERATE):
            own = await slot_of(who)
            seat = None if own is None else autoscaler.slot(own)
            if seat is None or seat.instance != instance:
                raise ForbiddenError(f"{who.name} is not on {instance}, and may not warn of it")
        await autoscaler.notice(Notice(instance, request.deadline_s, "agent"))
        return Done(said=f"{instance} is warned")


def _may_see(who: Identity, one: Reservation) -> bool:
    is_own = who.projects is None or one.claim.project in who.projects
    return who.may(Role.READ) or who.may(Role.OPERATE) or is_own


def _seen(autoscaler: Autoscaler, id_: str, who: Identity) -> Told:
    """Raises NotFoundError, also for one that is not the caller's to see."""
    told = autoscaler.reservation(ReservationId(id_))
    if not _may_see(who, told.reservation):
        raise NotFoundError(f"there is no reservation {id_} of your projects")
    return told


def _owned(autoscaler: Autoscaler, id_: str, who: Identity) -> ReservationId:
    """Raises NotFoundError, ForbiddenError for one that is another project's."""
    told = autoscaler.reservation(ReservationId(id_))
    who.demand_build_of(told.reservation.claim.project)
    return told.reservation.id
