"""The calls of /api/v1/capacity without a transport: what to send, and what an answer means.

A caller sends `CapacityRequest` by whatever speaks HTTP, with the token as `Authorization: Bearer`
where it has one, and hands status and body to the reader that stands beside the request. A 307 of
a coordinator that does not lead is the transport's: the same request is for its `Location`.

Readers raise PeerError and its kinds where the request is wrong, OutsideError where the daemon
cannot do its part now or what answers is no daemon of ours. NotFoundError is thus the daemon's own
word, never a proxy's page.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from http import HTTPStatus
from typing import Any, Final, TypeVar
from urllib.parse import quote, urlencode

from pydantic import BaseModel, TypeAdapter, ValidationError

from grange.client.capacity_models import (
    CapacityEventView,
    CapacityStatus,
    ConsoleView,
    CostView,
    Done,
    ExplanationView,
    HintRequest,
    NoticeRequest,
    OrphanView,
    PoolVerbRequest,
    PrewarmRequest,
    ReservationView,
    ReserveRequest,
    SlotVerb,
    SlotVerbRequest,
    SlotView,
)
from grange.client.models import Problem
from grange.errors import (
    ConflictError,
    ForbiddenError,
    GrangeError,
    NotFoundError,
    OperatorError,
    OutsideError,
    PeerError,
    ThrottledError,
    UnauthenticatedError,
)

BASE: Final = "/api/v1/capacity"  # of paths
ANSWER_S: Final = 30.0  # for what is answered at once
ROUND_S: Final = 300.0  # for a whole round of observing and acting, clouds included
PROSE_CHARS_MAX: Final = 200  # of an answer that is not the API's

ModelT = TypeVar("ModelT", bound=BaseModel)

_KINDS: Final[dict[int, type[PeerError]]] = {
    HTTPStatus.UNAUTHORIZED: UnauthenticatedError,
    HTTPStatus.FORBIDDEN: ForbiddenError,
    HTTPStatus.NOT_FOUND: NotFoundError,
    HTTPStatus.CONFLICT: ConflictError,
    HTTPStatus.TOO_MANY_REQUESTS: ThrottledError,
}


@dataclass(frozen=True, slots=True)
class CapacityRequest:
    method: str
    path: str  # from the root, query included, quoted
    json: dict[str, Any] | None = None  # the body; None: there is none
    answer_s: float = ANSWER_S  # how long an answer may take


# --- Reservations and hints ---------------------------------------------------------------------


def reserve(request: ReserveRequest) -> CapacityRequest:
    """Read with `read_reservation`: new, or the one that the key has already."""
    return _post("reservations", request)


def reservation(id_: str) -> CapacityRequest:
    """Read with `read_reservation`."""
    return _get(f"reservations/{_part(id_)}")


def wait(id_: str, version: int, wait_s: float) -> CapacityRequest:
    """Answered when its version is newer than this, or unchanged after `wait_s`, of which a daemon
    may wait less. Read with `read_reservation`."""
    path = f"reservations/{_part(id_)}"
    return _get(path, answer_s=wait_s + ANSWER_S, version=version, wait_s=wait_s)


def renew(id_: str) -> CapacityRequest:
    """A heartbeat. Read with `read_reservation`, which tells of danger and loss too."""
    return _post(f"reservations/{_part(id_)}/heartbeat")


def release(id_: str) -> CapacityRequest:
    """From any state, as often as one likes. Read with `read_reservation`."""
    return _post(f"reservations/{_part(id_)}/release")


def reservations(
    states: Iterable[str] = (),
    project: str | None = None,
    limit: int | None = None,
    *,
    key_prefix: str | None = None,
) -> CapacityRequest:
    """Those in one of `states`, or in any, whose keys begin with `key_prefix`; the oldest first.
    Read with `read_reservations`."""
    return _get(
        "reservations", state=[*states], project=project, key_prefix=key_prefix, limit=limit
    )


def hint(request: HintRequest) -> CapacityRequest:
    """Read with `read_done`."""
    return _post("hints", request)


def notice(request: NoticeRequest) -> CapacityRequest:
    """Read with `read_done`."""
    return _post("notices", request)


# --- What operators ask -------------------------------------------------------------------------


def status() -> CapacityRequest:
    """Read with `read_status`."""
    return _get("status")


def slots(pool: str | None = None) -> CapacityRequest:
    """Read with `read_slots`."""
    return _get("slots", pool=pool)


def events(
    *,
    limit: int | None = None,
    before: int | None = None,
    pool: str | None = None,
    slot: str | None = None,
    reservation: str | None = None,
) -> CapacityRequest:
    """The newest first; `before`, an id, turns the page. Read with `read_events`."""
    return _get("events", limit=limit, before=before, pool=pool, slot=slot, reservation=reservation)


def orphans() -> CapacityRequest:
    """Read with `read_orphans`."""
    return _get("orphans")


def cost() -> CapacityRequest:
    """Read with `read_cost`."""
    return _get("cost")


def explain_pool(pool: str) -> CapacityRequest:
    """Read with `read_explanation`."""
    return _get(f"pools/{_part(pool)}/explain")


def explain_reservation(id_: str) -> CapacityRequest:
    """Read with `read_explanation`."""
    return _get(f"reservations/{_part(id_)}/explain")


def console(slot: str) -> CapacityRequest:
    """Read with `read_console`."""
    return _get(f"slots/{_part(slot)}/console")


def say_of_slot(slot: str, verb: SlotVerb, request: SlotVerbRequest) -> CapacityRequest:
    """Read with `read_done`."""
    return _post(f"slots/{_part(slot)}/{verb}", request)


def pause(request: PoolVerbRequest) -> CapacityRequest:
    """Read with `read_done`."""
    return _post("pause", request)


def resume(request: PoolVerbRequest) -> CapacityRequest:
    """Read with `read_done`."""
    return _post("resume", request)


def prewarm(request: PrewarmRequest) -> CapacityRequest:
    """Read with `read_done`."""
    return _post("prewarm", request)


def reconcile_now() -> CapacityRequest:
    """Answered once a round has been tried. Read with `read_done`."""
    return CapacityRequest("POST", f"{BASE}/reconcile-now", answer_s=ROUND_S)


# --- What answers mean --------------------------------------------------------------------------


def read_reservation(status: int, body: bytes) -> ReservationView:
    return _one(ReservationView, status, body)


def read_reservations(status: int, body: bytes) -> list[ReservationView]:
    return _many(ReservationView, status, body)


def read_done(status: int, body: bytes) -> Done:
    return _one(Done, status, body)


def read_status(status: int, body: bytes) -> CapacityStatus:
    return _one(CapacityStatus, status, body)


def read_slots(status: int, body: bytes) -> list[SlotView]:
    return _many(SlotView, status, body)


def read_events(status: int, body: bytes) -> list[CapacityEventView]:
    return _many(CapacityEventView, status, body)


def read_orphans(status: int, body: bytes) -> list[OrphanView]:
    return _many(OrphanView, status, body)


def read_cost(status: int, body: bytes) -> list[CostView]:
    return _many(CostView, status, body)


def read_explanation(status: int, body: bytes) -> ExplanationView:
    return _one(ExplanationView, status, body)


def read_console(status: int, body: bytes) -> ConsoleView:
    return _one(ConsoleView, status, body)


def problem(status: int, body: bytes) -> GrangeError:
    """The error that an answer other than a success stands for."""
    try:
        told = Problem.model_validate_json(body)
    except ValidationError:
        return _stranger(status, body)
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return OperatorError(told.error) if told.fault == "operator" else OutsideError(told.error)
    return _KINDS.get(status, PeerError)(told.error)


def _one(model: type[ModelT], status: int, body: bytes) -> ModelT:
    if not HTTPStatus.OK <= status < HTTPStatus.MULTIPLE_CHOICES:
        raise problem(status, body)
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        raise _stranger(status, body) from error


@cache
def _list_of(model: type[ModelT]) -> TypeAdapter[list[ModelT]]:
    return TypeAdapter(list[model])  # type: ignore[valid-type]


def _many(model: type[ModelT], status: int, body: bytes) -> list[ModelT]:
    if not HTTPStatus.OK <= status < HTTPStatus.MULTIPLE_CHOICES:
        raise problem(status, body)
    try:
        return _list_of(model).validate_json(body)
    except ValidationError as error:
        raise _stranger(status, body) from error


def _stranger(status: int, body: bytes) -> OutsideError:
    """What answered is no autoscaler of ours, or one of another release."""
    text = body[: PROSE_CHARS_MAX * 4].decode(errors="replace")
    shown = "".join(char if char.isprintable() else " " for char in text)[:PROSE_CHARS_MAX].strip()
    return OutsideError(
        f"what answers there does not speak the capacity API of Grange: status {status}, "
        f"{shown or 'and nothing more'!r}; see that the address is a farm's or an autoscaler's, "
        "and that it is no older than this client"
    )


# --- How requests are put -----------------------------------------------------------------------


def _get(
    path: str, *, answer_s: float = ANSWER_S, **query: str | float | list[str] | None
) -> CapacityRequest:
    said = {name: value for name, value in query.items() if value is not None}
    asked = urlencode(said, doseq=True)
    return CapacityRequest("GET", f"{BASE}/{path}{'?' if asked else ''}{asked}", None, answer_s)


def _post(path: str, body: BaseModel | None = None) -> CapacityRequest:
    json = None if body is None else body.model_dump(mode="json")
    return CapacityRequest("POST", f"{BASE}/{path}", json)


def _part(text: str) -> str:
    """One part of a path, whatever is in it; what would lead elsewhere becomes what is nowhere."""
    return "-" if text in ("", ".", "..") else quote(text, safe="")
