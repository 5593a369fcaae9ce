"""Tokens: the right to one upload, carried in a URL.

A token says which upload and until when, and only who has the key can have made it. What the
upload may be is remembered by whoever granted it.
"""

import hmac
import os
from base64 import urlsafe_b64decode, urlsafe_b64encode
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from secrets import token_bytes
from typing import Final

from grange.errors import OperatorError, PeerError

KEY_BYTES: Final = 32
_ID_BYTES: Final = 12  # random, so that one from before a restart means nothing after it
_EXPIRY_BYTES: Final = 5  # whole seconds since 1970
_SEAL_BYTES: Final = 16
_TOKEN_BYTES: Final = _ID_BYTES + _EXPIRY_BYTES + _SEAL_BYTES
TOKEN_CHARS: Final = _TOKEN_BYTES * 4 // 3


@dataclass(frozen=True, slots=True)
class Token:
    id: bytes
    expires: int  # wall clock


class TokenKey:
    """Makes tokens and knows its own."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    @classmethod
    def load(cls, path: Path) -> "TokenKey":
        """The key kept in a file, which is made where there is none; raises OperatorError."""
        try:
            if not path.exists():
                new = path.with_name(f"{path.name}.{token_bytes(4).hex()}")
                descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
                with open(descriptor, "wb") as file:
                    file.write(token_bytes(KEY_BYTES))
                    file.flush()
                    os.fsync(descriptor)
                with suppress(FileExistsError):  # another coordinator was faster: that one holds
                    os.link(new, path)
                new.unlink()
            key = path.read_bytes()
        except OSError as error:
            raise OperatorError(
                f"the key of upload URLs cannot be kept in {path}: {error.strerror}; "
                "set the state directory to one that this user may write"
            ) from error
        if len(key) != KEY_BYTES:
            raise OperatorError(f"{path} is damaged; delete it, and a new key will be made")
        return cls(key)

    def derive(self, purpose: str) -> bytes:
        """A key for another purpose, which tells nothing of this one."""
        return hmac.digest(self._key, b"derived for " + purpose.encode(), "sha256")

    def issue(self, expires: int) -> tuple[bytes, str]:
        """A new id, and its token as URLs have it."""
        id_ = token_bytes(_ID_BYTES)
        signed = id_ + expires.to_bytes(_EXPIRY_BYTES, "big")
        return id_, urlsafe_b64encode(signed + self._seal(signed)).decode()

    def read(self, text: str) -> Token:
        """What a token says; raises PeerError for one that this key did not make."""
        try:
            data = urlsafe_b64decode(text) if len(text) == TOKEN_CHARS else b""
        except ValueError:
            data = b""
        signed, seal = data[:-_SEAL_BYTES], data[-_SEAL_BYTES:]
        if len(data) != _TOKEN_BYTES or not hmac.compare_digest(seal, self._seal(signed)):
            raise PeerError("this upload URL was not made by this farm; use one as it was given")
        return Token(signed[:_ID_BYTES], int.from_bytes(signed[_ID_BYTES:], "big"))

    def _seal(self, signed: bytes) -> bytes:
        return hmac.digest(self._key, signed, "sha256")[:_SEAL_BYTES]
