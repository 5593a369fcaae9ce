"""Errors as HTTP answers."""

from http import HTTPStatus
from typing import Final

from fastapi.responses import JSONResponse, Response

from grange.errors import (
    ConflictError,
    ForbiddenError,
    GrangeError,
    NotFoundError,
    OperatorError,
    PeerError,
    ThrottledError,
    UnauthenticatedError,
)

_CHALLENGE: Final = {"www-authenticate": 'Basic realm="grange", charset="UTF-8"'}
_LATER: Final = {"retry-after": "2"}


def problem(error: GrangeError) -> Response:
    match error:
        case UnauthenticatedError():
            return answer(HTTPStatus.UNAUTHORIZED, str(error), "request", _CHALLENGE)
        case ForbiddenError():
            return answer(HTTPStatus.FORBIDDEN, str(error), "request")
        case ThrottledError():
            return answer(HTTPStatus.TOO_MANY_REQUESTS, str(error), "request", _LATER)
        case NotFoundError():
            return answer(HTTPStatus.NOT_FOUND, str(error), "request")
        case ConflictError():
            return answer(HTTPStatus.CONFLICT, str(error), "request")
        case PeerError():
            return answer(HTTPStatus.BAD_REQUEST, str(error), "request")
        case OperatorError():
            return answer(HTTPStatus.SERVICE_UNAVAILABLE, str(error), "operator")
        case _:
            return answer(HTTPStatus.SERVICE_UNAVAILABLE, str(error), "outside")


def answer(
    status: HTTPStatus, text: str, fault: str, headers: dict[str, str] | None = None
) -> Response:
    """A Problem, as `grange.client.models` has it."""
    return JSONResponse({"error": text, "fault": fault}, status, headers)
