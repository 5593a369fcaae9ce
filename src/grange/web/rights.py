"""What each route asks of its caller: said once, where the route is."""

from typing import Any, Final

from fastapi import Depends
from starlette.requests import HTTPConnection

from grange.identity import Identity, Role

CALLER: Final = "grange.identity"  # of the ASGI scope: who asks, as the door has found


def caller(connection: HTTPConnection) -> Identity:
    """Who asks. The door has put it there; a request that came round it is a bug."""
    found = connection.scope[CALLER]
    assert isinstance(found, Identity)
    return found


class Needs:
    """A dependency: the caller, who has `role`. ForbiddenError for any other."""

    def __init__(self, role: Role) -> None:
        self.role = role

    def __call__(self, connection: HTTPConnection) -> Identity:
        found = caller(connection)
        found.demand(self.role)
        return found


def needs(role: Role) -> Any:
    """For a route's `dependencies`, or as the default of a parameter of type Identity."""
    return Depends(Needs(role))
