"""What each route asks of its caller: said once, where the route is.

A route without such a word keeps the farm from starting: none is forgotten.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from fastapi import Depends, FastAPI
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute
from starlette.requests import HTTPConnection
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from grange.identity import Identity, Role

CALLER: Final = "grange.identity"  # of the ASGI scope: who asks, as the door has found
DID: Final = "grange.did"  # of the ASGI scope: what the audit log calls what a route did
ROUTE: Final = "route"  # of the ASGI scope, as FastAPI has it


def caller(connection: HTTPConnection) -> Identity:
    """Who asks. The door has put it there; a request that came round it is a bug."""
    found = connection.scope[CALLER]
    assert isinstance(found, Identity)
    return found


def did(connection: HTTPConnection, what: str) -> None:
    """Have the audit log tell `what` of this request, in words that hold no secret."""
    connection.scope[DID] = what


class Needs:
    """A dependency: the caller, who has one of `roles`. Raises as `Identity.demand`."""

    def __init__(self, *roles: Role) -> None:
        self.roles = roles

    def __call__(self, connection: HTTPConnection) -> Identity:
        found = caller(connection)
        found.demand(*self.roles)
        return found

    def __str__(self) -> str:
        return " or ".join(role.value for role in self.roles)


class Open:
    """A dependency that asks nothing of the caller."""

    def __init__(self, reason: str) -> None:
        self.reason = reason

    def __call__(self, connection: HTTPConnection) -> Identity:
        return caller(connection)

    def __str__(self) -> str:
        return f"open: {self.reason}"


class Own:
    """What a route asks for by itself; `words` are for the table of rights."""

    def __init__(self, words: str) -> None:
        self.words = words

    def __str__(self) -> str:
        return self.words


def needs(*roles: Role) -> Any:
    """For a route's `dependencies`, or as the default of a parameter of type Identity: who has one
    of `roles`."""
    return Depends(Needs(*roles))


def open_to_all(reason: str) -> Any:
    """As `needs`, for a route that anyone may ask; `reason` is for the table of rights."""
    return Depends(Open(reason))


# --- Routes that are not FastAPI's ------------------------------------------------------------

_FETCH: Final = Needs(Role.READ, Role.BUILD)  # agents fetch inputs
_GRANTED: Final = Open("the token in it is the right to one upload")
_DESCRIBED: Final = Open("says what the API is like, and nothing of this farm")
_PULLED: Final = Own("read or nothing, as `anonymous_pulls` of the farm's file says")

PLAIN: Final[Mapping[tuple[str, str], Needs | Open | Own]] = {
    ("GET", "/nix-cache-info"): _FETCH,
    ("GET", "/{hash_part}.narinfo"): _FETCH,
    ("GET", "/{hash_part}.ls"): _FETCH,
    ("GET", "/nar/{hash_part}.drv.nar"): _FETCH,
    ("GET", "/nar/{file}"): _FETCH,
    ("GET", "/log/{drv}"): Needs(Role.READ),
    ("PUT", "/upload/{token}"): _GRANTED,
    ("POST", "/upload"): _GRANTED,
    ("POST", "/upload/{token}/direct"): _GRANTED,
    ("POST", "/upload/{token}/arrived"): _GRANTED,
    ("GET", "/v2/{rest:path}"): _PULLED,
    ("GET", "/api/v1/openapi.json"): _DESCRIBED,
    ("GET", "/api/docs"): _DESCRIBED,
    ("GET", "/docs/oauth2-redirect"): _DESCRIBED,
}

# What is told elsewhere, or would drown the audit log: a build tells who submitted it.
UNRECORDED: Final = frozenset(
    {
        "/upload",
        "/upload/{token}",
        "/upload/{token}/direct",
        "/upload/{token}/arrived",
        "/api/v1/watch",
        "/api/v1/builds",
        "/api/v1/derivations",
        "/api/v1/derivations/fetch",
        "/api/v1/derivations/lacking",
        "/api/v1/sources",
        "/api/v1/capacity/reservations",  # the events of capacity tell of these
        "/api/v1/capacity/reservations/{id}/heartbeat",
        "/api/v1/capacity/reservations/{id}/release",
        "/api/v1/capacity/hints",
        "/api/v1/capacity/notices",
        "/api/v1/images/make",  # anyone who reads may; its builds are told of
        "/api/v1/images/explain",
        "/api/v1/images/used",
        "/api/v1/evaluations/take",
        "/api/v1/evaluations/{id}/beat",
        "/api/v1/evaluations/{id}/finish",
    }
)


class _Guarded:
    """A plain route's application, for callers that have the right to it."""

    def __init__(self, app: ASGIApp, route: Route) -> None:
        self._app = app
        self._route = route
        self._rights = {method: _right_of(method, route.path) for method in route.methods or ()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        right = self._rights.get(scope["method"])
        if isinstance(right, Needs):
            identity: Identity = scope[CALLER]
            identity.demand(*right.roles)
        scope[ROUTE] = self._route
        await self._app(scope, receive, send)


def _right_of(method: str, path: str) -> Needs | Open | Own:
    right = PLAIN.get(("GET" if method == "HEAD" else method, path))
    assert right is not None, f"{method} {path} asks no right of its caller: see grange.web.rights"
    return right


def guarded(routes: Iterable[Route]) -> list[BaseRoute]:
    """`routes`, with the rights that `PLAIN` says they need."""
    guards: list[BaseRoute] = []
    for route in routes:
        route.app = _Guarded(route.app, route)
        guards.append(route)
    return guards


# --- The table --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Right:
    methods: Sequence[str]  # without HEAD
    path: str
    needs: str  # for people


def rights(app: FastAPI) -> list[Right]:
    """What each route of `app` asks of its caller. AssertionError for one that does not say."""
    return [
        Right(sorted((route.methods or set()) - {"HEAD"}), route.path, _said(route))
        for route in _routes(app)
    ]


def table(app: FastAPI, methods: Mapping[str, Role]) -> str:
    """In Markdown, for people: the routes of `app` and the `methods` of gRPC."""
    lines = ["| Request | Who may |", "|---|---|"]
    for each in rights(app):
        lines.append(f"| {', '.join(each.methods)} `{each.path}` | {each.needs} |")
    lines += ["", "| gRPC method | Who may |", "|---|---|"]
    lines += [f"| `{name}` | {role.value} |" for name, role in sorted(methods.items())]
    return "\n".join(lines) + "\n"


def _routes(app: FastAPI) -> Iterator[Route]:
    for route in app.routes:
        assert isinstance(route, Route), f"{route} is of a kind that has no rights yet"
        yield route


def _said(route: Route) -> str:
    if isinstance(route, APIRoute):
        found = [str(each) for each in _declared(route.dependant)]
        assert found, f"{route.path} asks no right of its caller: give it needs(Role.X)"
        return ", and ".join(found)
    return ", ".join(
        dict.fromkeys(str(_right_of(method, route.path)) for method in route.methods or ())
    )


def _declared(dependant: Dependant) -> Iterator[Needs | Open]:
    for each in dependant.dependencies:
        if isinstance(each.call, Needs | Open):
            yield each.call
        yield from _declared(each)
