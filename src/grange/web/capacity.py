"""Elastic capacity: how pools and slots stand, and what operators say of them."""

from typing import Annotated, Final, assert_never

from fastapi import APIRouter, Path, Query, Request

from grange import __version__
from grange.autoscaler.service import Autoscaler
from grange.capacity.events import OperatorSaid, Verb
from grange.capacity.facts import (
    PoolName,
    ReservationId,
    Slot,
    SlotId,
    SlotState,
)
from grange.client.capacity_models import (
    CapacityEventView,
    CapacityStatus,
    ConsoleView,
    CostView,
    Done,
    ExplanationView,
    OrphanView,
    PoolVerbRequest,
    PrewarmRequest,
    SlotVerb,
    SlotVerbRequest,
    SlotView,
)
from grange.client.models import LIMIT_MAX, NAME_MAX
from grange.errors import ConflictError, NotFoundError, OperatorError
from grange.identity import Identity, Role
from grange.web import capacity_views as views
from grange.web.capacity_claims import AutoscalerOf, NameQuery, SlotOf, claim_calls
from grange.web.rights import did, needs

EVENTS_MAX: Final = 10_000

NamePath = Annotated[str, Path(max_length=NAME_MAX)]
Operator = Annotated[Identity, needs(Role.OPERATE)]


def no_pools() -> Autoscaler:
    """For a farm without elastic capacity."""
    raise OperatorError(
        "this farm has no elastic capacity; add a [pools.NAME] section to the file that `grange "
        "serve --config` reads (docs/operating/capacity.md)"
    )


def capacity_calls(
    api: APIRouter, autoscaler_of: AutoscalerOf, slot_of: SlotOf | None = None
) -> None:
    """Under /capacity of `api`. `slot_of` is as for `claim_calls`."""
    claim_calls(api, autoscaler_of, slot_of)
    _look_calls(api, autoscaler_of)
    _explain_calls(api, autoscaler_of)
    _slot_calls(api, autoscaler_of)
    _pool_calls(api, autoscaler_of)


# --- How things stand ---------------------------------------------------------------------------


def _look_calls(api: APIRouter, autoscaler_of: AutoscalerOf) -> None:
    @api.get("/capacity/status", dependencies=[needs(Role.READ)])
    async def status() -> CapacityStatus:
        """Pools with counts, and all that is wrong."""
        return views.status(autoscaler_of(), __version__)

    @api.get("/capacity/slots", dependencies=[needs(Role.READ)])
    async def slots(pool: NameQuery = None) -> list[SlotView]:
        """Those of one pool, or all."""
        autoscaler = autoscaler_of()
        _check_pool(autoscaler, pool)
        pools = {each.pool.name: each.pool for each in autoscaler.pools()}
        found = autoscaler.slots()
        return [views.slot(each, pools) for each in found if pool in (None, each.slot.pool)]

    @api.get("/capacity/events", dependencies=[needs(Role.READ)])
    async def events(
        *,
        limit: Annotated[int, Query(ge=1, le=EVENTS_MAX)] = 100,
        before: Annotated[int | None, Query(ge=0, le=LIMIT_MAX)] = None,
        pool: NameQuery = None,
        slot: NameQuery = None,
        reservation: NameQuery = None,
    ) -> list[CapacityEventView]:
        """The newest first; `before`, an id, turns the page."""
        found = await autoscaler_of().events(
            limit=limit,
            before=before,
            pool=None if pool is None else PoolName(pool),
            slot=None if slot is None else SlotId(slot),
            reservation=None if reservation is None else ReservationId(reservation),
        )
        return [views.event(each) for each in found]

    @api.get("/capacity/orphans", dependencies=[needs(Role.READ)])
    async def orphans() -> list[OrphanView]:
        """Instances with the farm's tag that no slot owns; they are adopted or ended by and by."""
        return [views.orphan(each) for each in autoscaler_of().orphans()]

    @api.get("/capacity/cost", dependencies=[needs(Role.READ)])
    async def cost() -> list[CostView]:
        """By pool: this month, and an hour now."""
        return [views.cost(each) for each in autoscaler_of().cost()]


def _explain_calls(api: APIRouter, autoscaler_of: AutoscalerOf) -> None:
    @api.get("/capacity/pools/{pool}/explain", dependencies=[needs(Role.READ)])
    async def explain_pool(pool: NamePath) -> ExplanationView:
        """What it has, what is asked of it, and what keeps it from more."""
        autoscaler = autoscaler_of()
        _check_pool(autoscaler, pool)
        return ExplanationView(text=autoscaler.explain_pool(PoolName(pool)))

    @api.get("/capacity/slots/{slot}/console", dependencies=[needs(Role.READ)])
    async def console(slot: NamePath) -> ConsoleView:
        """What the latest instance that failed to become ready had printed."""
        autoscaler = autoscaler_of()
        found = _slot(autoscaler, slot)
        return ConsoleView(slot=slot, text=await autoscaler.console(found.id))


def _check_pool(autoscaler: Autoscaler, pool: str | None) -> None:
    known = [each.pool.name for each in autoscaler.pools()]
    if pool is not None and pool not in known:
        raise NotFoundError(f"there is no pool {pool}; there are {', '.join(known) or 'none'}")


def _slot(autoscaler: Autoscaler, id_: str) -> Slot:
    found = autoscaler.slot(SlotId(id_))
    if found is None:
        raise NotFoundError(f"there is no slot {id_}; see grange capacity slots")
    return found


# --- What operators say -------------------------------------------------------------------------


def _slot_calls(api: APIRouter, autoscaler_of: AutoscalerOf) -> None:
    async def say(verb: SlotVerb, slot: str, request: SlotVerbRequest, who: Identity) -> Done:
        """Raises ConflictError where the slot's state makes nothing of it."""
        autoscaler = autoscaler_of()
        before = _slot(autoscaler, slot)
        by = _by(who, request.by)
        await autoscaler.say(OperatorSaid(Verb(verb), slot=before.id, by=by, reason=request.reason))
        found = _slot(autoscaler, slot)
        if not _is_done(verb, before, found):
            raise ConflictError(f"{verb} has no effect: {slot} is {_stands(found)}")
        return Done(said=f"{slot} is {_stands(found)} now")

    @api.post("/capacity/slots/{slot}/{verb}")
    async def say_of_slot(
        slot: NamePath, verb: SlotVerb, request: SlotVerbRequest, who: Operator, asked: Request
    ) -> Done:
        """Drain, undrain, terminate or quarantine it; 409 where its state makes nothing of it."""
        done = await say(verb, slot, request, who)
        did(asked, f"said {verb} of slot {slot}: {request.reason or 'no reason given'}")
        return done


def _pool_calls(api: APIRouter, autoscaler_of: AutoscalerOf) -> None:
    @api.post("/capacity/pause")
    async def pause(request: PoolVerbRequest, who: Operator, asked: Request) -> Done:
        """Launch nothing more, and end nothing for being idle: of a pool or, with none, of all."""
        autoscaler = autoscaler_of()
        _check_pool(autoscaler, request.pool)
        by = _by(who, request.by)
        reason = f"{request.reason} ({by})" if request.reason else f"by {by}"
        pool = None if request.pool is None else PoolName(request.pool)
        await autoscaler.say(OperatorSaid(Verb.PAUSE, pool=pool, by=by, reason=reason))
        did(asked, f"paused capacity of {_meant(request.pool)}: {request.reason or 'no reason'}")
        where = "any pool" if request.pool is None else f"pool {request.pool}"
        return Done(said=f"nothing more is launched for {where}")

    @api.post("/capacity/resume")
    async def resume(request: PoolVerbRequest, who: Operator, asked: Request) -> Done:
        """End a pause, and try anew what was held back after failures."""
        autoscaler = autoscaler_of()
        _check_pool(autoscaler, request.pool)
        pool = None if request.pool is None else PoolName(request.pool)
        await autoscaler.say(OperatorSaid(Verb.RESUME, pool=pool, by=_by(who, request.by)))
        did(asked, f"resumed capacity of {_meant(request.pool)}")
        return Done(said=f"{_meant(request.pool)} may launch again")

    @api.post("/capacity/prewarm")
    async def prewarm(request: PrewarmRequest, who: Operator, asked: Request) -> Done:
        """Have so many slots of a pool ready, asked for or not, for a while."""
        autoscaler = autoscaler_of()
        _check_pool(autoscaler, request.pool)
        said = OperatorSaid(
            Verb.PREWARM,
            pool=PoolName(request.pool),
            slots=request.slots,
            for_s=request.for_s,
            by=_by(who, request.by),
        )
        await autoscaler.say(said)
        text = f"{request.slots} slots of {request.pool} for {request.for_s:g} s"
        did(asked, f"had capacity ready: {text}")
        return Done(said=_prewarmed(autoscaler, request, text))

    @api.post("/capacity/reconcile-now", dependencies=[needs(Role.OPERATE)])
    async def reconcile_now(asked: Request) -> Done:
        """Look, plan and act at once; answered when all of it was tried."""
        autoscaler = autoscaler_of()
        await autoscaler.reconcile_now()
        did(asked, "had capacity reconciled")
        return Done(said="looked, planned and acted")


def _prewarmed(autoscaler: Autoscaler, request: PrewarmRequest, text: str) -> str:
    most = next((each.pool.max for each in autoscaler.pools() if each.pool.name == request.pool), 0)
    if not request.slots:
        return f"pool {request.pool} has nothing ready beyond what is asked for and its warm"
    if request.slots > most:
        return f"prewarms {text}, of which its max allows {most}"
    return f"prewarms {text}"


def _by(who: Identity, told: str) -> str:
    return (f"{told}, {who.name}" if told else who.name)[:NAME_MAX]


def _meant(pool: str | None) -> str:
    return "all pools" if pool is None else f"pool {pool}"


def _is_done(verb: SlotVerb, before: Slot, now: Slot) -> bool:
    is_gone = before.instance is not None and now.instance != before.instance
    match verb:
        case SlotVerb.DRAIN:
            return is_gone or now.state in (SlotState.DRAINING, SlotState.TERMINATING)
        case SlotVerb.UNDRAIN:
            return now.state is SlotState.READY and not now.is_quarantined
        case SlotVerb.TERMINATE:
            return is_gone or now.state is SlotState.TERMINATING
        case SlotVerb.QUARANTINE:
            return now.is_quarantined
        case _:
            assert_never(verb)


def _stands(slot: Slot) -> str:
    match slot.state:
        case SlotState.DRAINING:
            return f"draining ({slot.drain_cause})"
        case SlotState.READY if slot.is_quarantined:
            return "ready, in quarantine"
        case state:
            return str(state)
