"""Errors as answers of a registry: the JSON that the distribution specification has for them.

Clients show the words of a 4xx to people. For a 5xx the specification lists no code; UNAVAILABLE
is what other registries say.
"""

import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import Final

from starlette.responses import Response

from grange.errors import (
    ForbiddenError,
    GrangeError,
    NotFoundError,
    OperatorError,
    OutsideError,
    PeerError,
    ThrottledError,
    UnauthenticatedError,
)
from grange.images.service import PendingError
from grange.oci.refusal import MESSAGE_CHARS_MAX, Code, RefusedError

VERSION: Final = {"docker-distribution-api-version": "registry/2.0"}
READS: Final = "GET, HEAD"
AGAIN_S: Final = 5  # for what fails outside, and for who asks too much
_CHALLENGE: Final = {"www-authenticate": 'Basic realm="grange"'}


class MeaninglessError(RefusedError):
    """A request that the specification knows, put so that it means nothing."""

    def __init__(self, message: str) -> None:
        super().__init__(Code.UNSUPPORTED, message)


def refusal(error: GrangeError) -> Response:
    """What to answer where `error` is why something cannot be answered."""
    match error:
        case PendingError():
            return _answer(error, {"retry-after": str(max(1, error.retry_after_s))})
        case MeaninglessError():
            return _answer(error, {}, HTTPStatus.BAD_REQUEST)
        case RefusedError():
            return _answer(error, _usual(error.code))
        case PeerError():
            code = _code(error)
            status = HTTPStatus.BAD_REQUEST if code is Code.UNSUPPORTED else None
            return _answer(RefusedError(code, str(error)), _usual(code), status)
        case OperatorError() | OutsideError() | _:
            return _unavailable(str(error))


def write_refused(method: str) -> Response:
    """To whoever would change something."""
    words = f"images are made from package sources, and nothing is pushed: no {method[:20]!r} here"
    return refusal(RefusedError(Code.UNSUPPORTED, words))


def _code(error: PeerError) -> Code:
    match error:
        case UnauthenticatedError():
            return Code.UNAUTHORIZED
        case ForbiddenError():
            return Code.DENIED
        case ThrottledError():
            return Code.TOO_MANY_REQUESTS
        case NotFoundError():
            return Code.MANIFEST_UNKNOWN
        case _:
            return Code.UNSUPPORTED


def _usual(code: Code) -> Mapping[str, str]:
    """Headers that an answer with this code must have."""
    match code:
        case Code.UNAUTHORIZED:
            return _CHALLENGE
        case Code.UNSUPPORTED:
            return {"allow": READS}
        case Code.TOO_MANY_REQUESTS:
            return {"retry-after": str(AGAIN_S)}
        case _:
            return {}


def _answer(error: RefusedError, headers: Mapping[str, str], status: int | None = None) -> Response:
    return _json(error.body(), error.code.status if status is None else status, headers)


def _unavailable(text: str) -> Response:
    error = {"code": "UNAVAILABLE", "message": text[:MESSAGE_CHARS_MAX]}
    body = json.dumps({"errors": [error]}).encode()
    return _json(body, HTTPStatus.SERVICE_UNAVAILABLE, {"retry-after": str(AGAIN_S)})


def _json(body: bytes, status: int, headers: Mapping[str, str]) -> Response:
    always = {**VERSION, "cache-control": "no-store"}
    return Response(body, status, {**always, **headers}, media_type="application/json")
