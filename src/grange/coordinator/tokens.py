"""Secrets: made, taken apart and compared. What is kept of one is its digest.

A token is ``grange_<id>_<secret>``: the id finds its record, and may be shown to anyone. A signed
token, ``grange_hook_<claims>.<seal>``, has no record: the farm gives it to programs it starts.
"""

import hmac
import json
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Iterable
from hashlib import sha256
from secrets import token_hex, token_urlsafe
from typing import Final

from grange.errors import UnauthenticatedError
from grange.identity import PEOPLE, Identity, Role
from grange.ports import Clock

PREFIX: Final = "grange_"
ID_BYTES: Final = 6
SECRET_BYTES: Final = 32  # random, so that a plain hash of it tells nothing and costs nothing
PASSWORD_CHARS_MIN: Final = 32  # of one that an agent made for itself: as long as a random one is
SIGNED_CHARS_MAX: Final = 16_000  # a header of more is refused before it comes here

_TOKEN: Final = re.compile(rf"{PREFIX}([0-9a-f]{{{2 * ID_BYTES}}})_([\w-]{{43}})\Z", re.ASCII)
_SIGNED: Final = f"{PREFIX}hook_"


def new_token() -> tuple[str, str, bytes]:
    """A new token: its id, itself, and the digest of its secret."""
    id_, secret = token_hex(ID_BYTES), token_urlsafe(SECRET_BYTES)
    return id_, f"{PREFIX}{id_}_{secret}", digest_of(secret)


def new_password() -> tuple[str, str, bytes]:
    """A new password: its record's id, itself, and its digest."""
    secret = token_urlsafe(SECRET_BYTES)
    return token_hex(ID_BYTES), secret, digest_of(secret)


def split_token(text: str) -> tuple[str, str] | None:
    """Its id and its secret; None for what is no token."""
    match = _TOKEN.match(text)
    return None if match is None else (match[1], match[2])


def is_token(text: str) -> bool:
    return text.startswith(PREFIX)


def digest_of(secret: str) -> bytes:
    return sha256(secret.encode()).digest()


def is_same(digest: bytes, secret: str) -> bool:
    """Takes as long wherever the two differ."""
    return hmac.compare_digest(digest, digest_of(secret))


class HookTokens:
    """Short-lived tokens for programs that the farm itself starts. They cannot be revoked."""

    def __init__(self, key: bytes, clock: Clock) -> None:
        self._key = key
        self._clock = clock

    def issue(
        self, name: str, roles: Iterable[Role], projects: Iterable[str] | None, expires: float
    ) -> str:
        """A token of the identity "hook `name`", good until `expires` on the wall clock.

        `projects` None: all. It may never administer.
        """
        granted = frozenset(roles)
        assert granted <= PEOPLE - {Role.ADMINISTER}, f"no right for a hook: {granted}"
        claims = {
            "name": name,
            "roles": sorted(granted),
            "projects": None if projects is None else sorted(projects),
            "expires": expires,
        }
        body = urlsafe_b64encode(json.dumps(claims, separators=(",", ":")).encode()).decode()
        return f"{_SIGNED}{body}.{self._seal(body)}"

    @staticmethod
    def is_one(text: str) -> bool:
        return text.startswith(_SIGNED)

    def read(self, text: str) -> Identity:
        """Raises UnauthenticatedError for one that is not this farm's, or has expired."""
        body, _, seal = text.removeprefix(_SIGNED).partition(".")
        is_ours = len(text) <= SIGNED_CHARS_MAX and hmac.compare_digest(
            seal.encode(errors="replace"), self._seal(body).encode()
        )
        if not is_ours:
            raise UnauthenticatedError("this token was not made by this farm")
        claims = json.loads(urlsafe_b64decode(body))
        if self._clock.wall_s() >= claims["expires"]:
            raise UnauthenticatedError(f"the token of hook {claims['name']!r} has expired")
        projects = claims["projects"]
        return Identity(
            f"hook {claims['name']}",
            frozenset(map(Role, claims["roles"])),
            None if projects is None else frozenset(projects),
        )

    def _seal(self, body: str) -> str:
        seal = hmac.digest(self._key, body.encode(errors="replace"), "sha256")
        return urlsafe_b64encode(seal).decode()
