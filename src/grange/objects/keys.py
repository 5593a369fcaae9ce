"""What the key of an object may be, in any store."""

import re
from typing import Final

from grange.errors import PeerError

# No part may begin with a dot: that keeps `.`, `..` and a directory's own `.incoming` out.
_PART: Final = r"(?!\.)[0-9A-Za-z+\-._?=]{1,255}"
_KEY: Final = re.compile(rf"{_PART}(?:/{_PART}){{0,7}}\Z")


def check_key(key: str) -> str:
    """`key`; raises PeerError for one that could lie outside the store."""
    if _KEY.match(key) is None:
        raise PeerError(f"{key[:300]!r} cannot be the key of an object")
    return key
