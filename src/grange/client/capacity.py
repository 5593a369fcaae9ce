"""Calls of /api/v1/capacity: to a farm, or to an autoscaler alone, by TCP or its Unix socket.

Blocking: meant for command lines and scripts. Errors are as in `grange.client.api`.
"""

import os
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, TypeVar

import httpx

from grange.client import capacity_requests as ask
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
from grange.client.capacity_requests import CapacityRequest
from grange.client.connection import API, CONNECT_S, Connection
from grange.errors import ForbiddenError, OutsideError, PeerError

SOCKET: Final = Path("/run/grange/autoscaler.sock")
SOCKET_PATH_MAX: Final = 107  # bytes: what sockaddr_un holds, less its end
_UNIX: Final = "unix:"
_NOWHERE: Final = "http://autoscaler"  # a socket has no host, and HTTP asks for one

AnswerT = TypeVar("AnswerT")


class CapacityClient(Connection):
    """Whoever speaks the capacity API. Not for several threads at once."""

    def __init__(
        self,
        url: str,
        *,
        token_file: Path | None = None,
        transport: httpx.BaseTransport | None = None,
    ):
        """`url` is http(s)://…, as of a farm, or unix:/PATH, where no token is shown: who may open
        the socket may do all."""
        self._socket = _socket_of(url)
        if self._socket is not None:
            transport = transport or httpx.HTTPTransport(uds=str(self._socket))
            url = _NOWHERE
        super().__init__(url, token_file=token_file, transport=transport)

    # --- Reservations ---------------------------------------------------------------------------

    def reserve(self, request: ReserveRequest) -> ReservationView:
        return self._told(ask.reserve(request), ask.read_reservation)

    def reservation(self, id_: str) -> ReservationView:
        return self._told(ask.reservation(id_), ask.read_reservation)

    def wait(self, id_: str, version: int, wait_s: float) -> ReservationView:
        return self._told(ask.wait(id_, version, wait_s), ask.read_reservation)

    def renew(self, id_: str) -> ReservationView:
        return self._told(ask.renew(id_), ask.read_reservation)

    def release(self, id_: str) -> ReservationView:
        return self._told(ask.release(id_), ask.read_reservation)

    def reservations(
        self, states: Iterable[str] = (), project: str | None = None, limit: int | None = None
    ) -> list[ReservationView]:
        return self._told(ask.reservations(states, project, limit), ask.read_reservations)

    def hint(self, request: HintRequest) -> Done:
        return self._told(ask.hint(request), ask.read_done)

    def notice(self, request: NoticeRequest) -> Done:
        return self._told(ask.notice(request), ask.read_done)

    # --- How things stand -----------------------------------------------------------------------

    def status(self) -> CapacityStatus:
        return self._told(ask.status(), ask.read_status)

    def slots(self, pool: str | None = None) -> list[SlotView]:
        return self._told(ask.slots(pool), ask.read_slots)

    def events(
        self,
        *,
        limit: int | None = None,
        before: int | None = None,
        pool: str | None = None,
        slot: str | None = None,
        reservation: str | None = None,
    ) -> list[CapacityEventView]:
        asked = ask.events(
            limit=limit, before=before, pool=pool, slot=slot, reservation=reservation
        )
        return self._told(asked, ask.read_events)

    def orphans(self) -> list[OrphanView]:
        return self._told(ask.orphans(), ask.read_orphans)

    def cost(self) -> list[CostView]:
        return self._told(ask.cost(), ask.read_cost)

    def explain_pool(self, pool: str) -> ExplanationView:
        return self._told(ask.explain_pool(pool), ask.read_explanation)

    def explain_reservation(self, id_: str) -> ExplanationView:
        return self._told(ask.explain_reservation(id_), ask.read_explanation)

    def console(self, slot: str) -> ConsoleView:
        return self._told(ask.console(slot), ask.read_console)

    # --- What operators say ---------------------------------------------------------------------

    def say_of_slot(self, slot: str, verb: SlotVerb, request: SlotVerbRequest) -> Done:
        return self._told(ask.say_of_slot(slot, verb, request), ask.read_done)

    def pause(self, request: PoolVerbRequest) -> Done:
        return self._told(ask.pause(request), ask.read_done)

    def resume(self, request: PoolVerbRequest) -> Done:
        return self._told(ask.resume(request), ask.read_done)

    def prewarm(self, request: PrewarmRequest) -> Done:
        return self._told(ask.prewarm(request), ask.read_done)

    def reconcile_now(self) -> Done:
        return self._told(ask.reconcile_now(), ask.read_done)

    # --- How it is asked ------------------------------------------------------------------------

    def _told(self, request: CapacityRequest, read: Callable[[int, bytes], AnswerT]) -> AnswerT:
        with self._outside():
            if self._socket is not None:
                _knock(self._socket)
            answer = self._ask(
                request.method,
                request.path.removeprefix(API + "/"),
                json=request.json,
                timeout=httpx.Timeout(request.answer_s, connect=CONNECT_S),
            )
        return read(answer.status_code, answer.content)

    def _show(self, request: httpx.Request) -> None:
        if self._socket is None:
            super()._show(request)

    @contextmanager
    def _outside(self) -> Iterator[None]:
        if self._socket is None:
            with super()._outside(), _or_by_socket(" or ".join(self._urls)):
                yield
            return
        try:
            yield
        except httpx.TimeoutException as error:
            raise OutsideError(
                f"the autoscaler at {self._socket} takes connections and does not answer: it is "
                "overloaded, or its process stands still; try again, and see its log"
            ) from error
        except httpx.TransportError as error:
            raise OutsideError(
                f"what listens at {self._socket} hung up, or speaks no HTTP ({error}); see that "
                "the socket is an autoscaler's, and its log"
            ) from error


def is_socket_there() -> bool:
    """Whether an autoscaler alone has its socket here, be it one that we may not open."""
    try:
        SOCKET.stat()
    except PermissionError:
        return True
    except OSError:
        return False
    return True


@contextmanager
def _or_by_socket(urls: str) -> Iterator[None]:
    """Says of a place where nobody answers that an autoscaler alone may be behind a socket."""
    try:
        yield
    except (httpx.ConnectError, httpx.ConnectTimeout) as error:
        if "CERTIFICATE_VERIFY_FAILED" in str(error):
            raise
        raise OutsideError(
            f"nobody answers at {urls} ({error or 'in time'}); start `grange serve` or `grange "
            "autoscaler` there, or name another place with --url or GRANGE_CAPACITY_URL; the "
            f"socket of an autoscaler on this machine, {SOCKET}, is "
            f"{'there' if is_socket_there() else 'not there'}"
        ) from error


def _socket_of(url: str) -> Path | None:
    """None for what is no socket's URL."""
    if not url.startswith(_UNIX):
        return None
    path = Path("/" + url.removeprefix(_UNIX).lstrip("/"))
    if not url.startswith(_UNIX + "/"):
        raise PeerError(f"{url!r} names no socket; write it like {_UNIX}{SOCKET}")
    if len(os.fsencode(path)) > SOCKET_PATH_MAX:
        raise PeerError(f"{path} is longer than the {SOCKET_PATH_MAX} bytes a socket's path may be")
    return path


def _knock(path: Path) -> None:
    """See that somebody listens: what keeps one from a socket is told better here than by HTTP.

    Raises OutsideError, or ForbiddenError.
    """
    elsewhere = "name another with --url or GRANGE_CAPACITY_URL"
    try:
        with socket.socket(socket.AF_UNIX) as knocking:
            knocking.settimeout(CONNECT_S)
            knocking.connect(str(path))
    except FileNotFoundError as error:
        raise OutsideError(
            f"there is no socket {path}; start `grange autoscaler`, whose file says in [daemon] "
            f"where its socket is, or {elsewhere}"
        ) from error
    except PermissionError as error:
        raise ForbiddenError(
            f"you may not open the socket {path}: be its owner or of its group; who may open it "
            "may steer all capacity"
        ) from error
    except ConnectionRefusedError as error:
        if not path.is_socket():
            raise OutsideError(f"{path} is no socket; {elsewhere}") from error
        raise OutsideError(
            f"nobody listens at the socket {path}: its autoscaler has ended, or just starts; see "
            f"its log and start it, or {elsewhere}"
        ) from error
    except OSError as error:
        raise OutsideError(
            f"the socket {path} cannot be reached ({error}); see the autoscaler's log, or "
            f"{elsewhere}"
        ) from error
