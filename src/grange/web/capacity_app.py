"""The HTTP application of an autoscaler alone: the capacity API, metrics and health, no farm.

One application for each place that it listens at, for each has a door of its own: who may open the
Unix socket may do all; over TCP a token says who asks.
"""

import hmac
import logging
import re
from collections.abc import Callable
from hashlib import sha256
from http import HTTPStatus
from pathlib import Path
from typing import Annotated, Final

from fastapi import APIRouter, FastAPI
from fastapi.responses import PlainTextResponse, Response
from prometheus_client import CollectorRegistry, generate_latest
from starlette.types import ASGIApp, Scope

from grange import __version__
from grange.autoscaler.service import Autoscaler
from grange.errors import GrangeError, OperatorError, OutsideError, UnauthenticatedError
from grange.identity import ANONYMOUS, PEOPLE, Identity, Role
from grange.web.answers import problem
from grange.web.app import ERRORS, tell_errors
from grange.web.capacity import capacity_calls
from grange.web.door import Door
from grange.web.intake import STRANGERS_BYTES_MAX
from grange.web.rights import CALLER, needs, open_to_all, rights

log = logging.getLogger(__name__)

Identify = Callable[[Scope], Identity]  # raises UnauthenticatedError

# What a token alone may be good for: to read, to reserve, to steer, and to warn of an instance.
ROLES: Final = (Role.READ, Role.SUBMIT, Role.OPERATE, Role.BUILD)
_OPENER: Final = Identity("the socket", PEOPLE | {Role.BUILD})
_DIGEST: Final = re.compile(r"[0-9a-f]{64}\Z")


def make_capacity_app(
    autoscaler: Autoscaler, door: Identify, registry: CollectorRegistry
) -> FastAPI:
    """`door` is `by_socket`, or what `read_tokens` gives; `registry` has its metrics."""
    app = FastAPI(
        title="Grange capacity",
        version=__version__,
        description="Elastic capacity for builds: pools, slots and reservations.",
        docs_url="/api/docs",
        openapi_url="/api/v1/openapi.json",
        redoc_url=None,
    )
    app.add_middleware(Door, keeper=_Keeper(door))
    api = APIRouter(prefix="/api/v1", responses=ERRORS)
    capacity_calls(api, lambda: autoscaler)
    app.router.routes.extend(api.routes)
    _watch_calls(app, autoscaler, registry)
    tell_errors(app)
    rights(app)  # a route that does not say what it needs must not be served
    return app


def _watch_calls(app: FastAPI, autoscaler: Autoscaler, registry: CollectorRegistry) -> None:
    @app.get("/metrics", include_in_schema=False, dependencies=[needs(Role.READ)])
    async def metrics() -> Response:
        return Response(generate_latest(registry), media_type="text/plain; version=0.0.4")

    @app.get("/healthz", include_in_schema=False)
    async def health(who: Annotated[Identity, open_to_all("well or not, and no more")]) -> Response:
        """Whether it can answer. That a cloud fails is told by the status: a restart mends none."""
        try:
            autoscaler.pools()
        except OutsideError as error:
            text = str(error) if who.may(Role.READ) else "something is wrong"
            return PlainTextResponse(text + "\n", HTTPStatus.SERVICE_UNAVAILABLE)
        return PlainTextResponse("ok\n")


class _Keeper:
    """Implements `grange.web.door.Keeper`. What callers change is logged."""

    def __init__(self, identify: Identify) -> None:
        self._identify = identify

    async def identify(self, scope: Scope) -> Identity:
        return self._identify(scope)

    def refusal(self, _: Scope, error: GrangeError) -> ASGIApp:
        return problem(error)

    def bytes_max(self, _: Scope) -> int:
        return STRANGERS_BYTES_MAX

    async def record(self, scope: Scope, done: str) -> None:
        log.info("%s %s", scope[CALLER].name, done)


# --- Doors --------------------------------------------------------------------------------------


def by_socket(_: Scope) -> Identity:
    """Who could open the Unix socket: its mode and group say who that is."""
    return _OPENER


def read_tokens(path: Path) -> Identify:
    """Who shows a token of a file is whom the file says. A line has the SHA-256 of a token's text
    in base 16, as sha256sum prints it, then its roles (read, submit, operate, build; with commas
    between), then its name; `#` begins a comment.

    Raises OperatorError for a file that cannot be read, that has no token, or a line that is wrong.
    """
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise OperatorError(f"the tokens in {path} cannot be read: {error}") from error
    known: dict[bytes, Identity] = {}
    for number, line in enumerate(lines, 1):
        if words := line.partition("#")[0].split():
            digest, identity = _token_line(words, f"{path}, line {number}")
            known[digest] = identity
    if not known:
        raise OperatorError(f"{path} has no token, so nobody could ask; add one, or do not listen")
    return lambda scope: _shown_by(scope, known)


def _token_line(words: list[str], where: str) -> tuple[bytes, Identity]:
    if _DIGEST.match(words[0]) is None:
        raise OperatorError(
            f"{where}: begins with no SHA-256 in base 16; make one with: "
            "printf %s TOKEN | sha256sum"
        )
    allowed = {role.value: role for role in ROLES}
    asked = words[1].split(",") if len(words) > 1 else []
    if not asked or (unknown := [each for each in asked if each not in allowed]):
        said = ", ".join(unknown) if asked else "nothing"
        raise OperatorError(
            f"{where}: after the digest come roles, of {', '.join(allowed)}, with commas between; "
            f"not {said}"
        )
    name = " ".join(words[2:]) or words[0][:8]
    roles = frozenset(allowed[each] for each in asked)
    return bytes.fromhex(words[0]), Identity(f"token {name}", roles)


def _shown_by(scope: Scope, known: dict[bytes, Identity]) -> Identity:
    values = [value for name, value in scope["headers"] if name == b"authorization"]
    if not values:
        return ANONYMOUS
    scheme, _, rest = values[0].partition(b" ")
    digest = sha256(rest.strip()).digest()
    found = [each for mine, each in known.items() if hmac.compare_digest(mine, digest)]
    if len(values) > 1 or scheme.lower() != b"bearer" or not found:
        raise UnauthenticatedError(
            "the token that was shown is not one of this autoscaler's: see its tokens_file, and "
            "what --token-file or GRANGE_TOKEN name on your side"
        )
    return found[0]
