"""The registry beside the rest of a farm: who may pull, and errors as whoever asks reads them."""

from starlette.responses import Response
from starlette.types import Scope

from grange.errors import ForbiddenError, GrangeError, UnauthenticatedError
from grange.identity import ANONYMOUS_NAME, Identity, Role
from grange.registry.app import Check
from grange.registry.refusals import refusal
from grange.registry.requests import ROOT
from grange.web.answers import problem
from grange.web.rights import CALLER


def may_pull(*, is_open: bool) -> Check:
    """Who has the right to read, or with `is_open` everyone who shows nothing wrong."""

    def check(scope: Scope) -> None:
        who: Identity = scope[CALLER]
        if is_open or who.may(Role.READ):
            return
        if who.name == ANONYMOUS_NAME:
            raise UnauthenticatedError(
                "pulling from this farm needs a token with the right to read: log in to it with "
                "any user name, and the token as the password"
            )
        raise ForbiddenError(
            f"{who.name} has no right to read; ask whoever runs this farm for a token with the "
            "role read"
        )

    return check


def told(path: str, error: GrangeError) -> Response:
    """`error`, to whoever asked for `path`."""
    return refusal(error) if path.startswith(ROOT) else problem(error)
