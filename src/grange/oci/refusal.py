"""Refusals as registries tell them: a code of the OCI distribution specification, and words.

Source: distribution-spec 1.1, "Error Codes". Clients show the words of a 4xx to people and drop
those of a 5xx, so whatever a person can act on is one of these.
"""

import json
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any, Final

from grange.errors import PeerError

MESSAGE_CHARS_MAX: Final = 2000  # what fits a terminal; clients print it in one line


class Code(StrEnum):
    """What the specification lists and the pull side can mean."""

    BLOB_UNKNOWN = "BLOB_UNKNOWN"
    DIGEST_INVALID = "DIGEST_INVALID"
    MANIFEST_UNKNOWN = "MANIFEST_UNKNOWN"
    NAME_INVALID = "NAME_INVALID"
    NAME_UNKNOWN = "NAME_UNKNOWN"
    UNAUTHORIZED = "UNAUTHORIZED"
    DENIED = "DENIED"
    UNSUPPORTED = "UNSUPPORTED"
    TOO_MANY_REQUESTS = "TOOMANYREQUESTS"  # sic, in the specification

    @property
    def status(self) -> int:
        """The HTTP status that goes with it."""
        return _STATUS[self]


_STATUS: Final = {
    Code.BLOB_UNKNOWN: 404,
    Code.DIGEST_INVALID: 400,
    Code.MANIFEST_UNKNOWN: 404,
    Code.NAME_INVALID: 400,
    Code.NAME_UNKNOWN: 404,
    Code.UNAUTHORIZED: 401,
    Code.DENIED: 403,
    Code.UNSUPPORTED: 405,
    Code.TOO_MANY_REQUESTS: 429,
}


class RefusedError(PeerError):
    """A request for an image that cannot be met as it stands; `code` says why to programs.

    Nothing in its words steers a terminal, whichever builder or package set they come from.
    """

    def __init__(self, code: Code, message: str, detail: Mapping[str, Any] | None = None) -> None:
        super().__init__(_plain(message))
        self.code = code
        self.detail = detail

    def body(self) -> bytes:
        """The JSON of an answer with `code.status`."""
        return error_body([self])


def error_body(errors: Sequence[RefusedError]) -> bytes:
    """The JSON that tells of `errors`, in their order; messages are cut to a readable length."""
    told = []
    for error in errors:
        each: dict[str, Any] = {"code": error.code.value, "message": _cut(str(error))}
        if error.detail is not None:
            each["detail"] = error.detail
        told.append(each)
    text = json.dumps({"errors": told}, separators=(",", ":"), sort_keys=True)
    return text.encode()


def _plain(text: str) -> str:
    return "".join(char if char.isprintable() or char in "\n\t" else " " for char in text)


def _cut(text: str) -> str:
    return text if len(text) <= MESSAGE_CHARS_MAX else text[: MESSAGE_CHARS_MAX - 3] + "..."
