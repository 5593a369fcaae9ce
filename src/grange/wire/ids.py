"""Attempt ids as Hydra's dialect writes them: UUIDs.

An attempt of this farm is a version 8 UUID of a fixed prefix with the number in its low 62 bits
(RFC 9562, section 5.8), so it can be read back. A stock queue runner hands out random UUIDs, which
an agent takes as the numbers they are: of 128 bits, and never below 2^62.
"""

import re
from typing import Final
from uuid import UUID

from grange.errors import PeerError
from grange.scheduler.facts import AgentId, AttemptId

ATTEMPT_MAX: Final = (1 << 62) - 1  # what a UUID leaves beside version and variant

_PREFIX: Final = "6772616e-6765-8000-"  # "grange", version 8
_UUID: Final = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\Z")


def attempt_to_uuid(attempt: AttemptId) -> str:
    """`attempt` in UUID form; of a stock queue runner's, the one it gave."""
    if attempt > ATTEMPT_MAX:
        return str(UUID(int=attempt))
    return f"{_PREFIX}{attempt >> 48 | 0x8000:04x}-{attempt & 0xFFFF_FFFF_FFFF:012x}"


def attempt_from_uuid(text: str) -> AttemptId:
    """The attempt of this farm that `text` names; raises PeerError on any other text."""
    if _UUID.match(text) is not None and text.startswith(_PREFIX):
        number = int(text[19:23] + text[24:], 16) - (1 << 63)
        if 0 < number <= ATTEMPT_MAX:
            return AttemptId(number)
    raise PeerError(f"build_id: {text[:100]!r} is no attempt of this farm")


def order_from_uuid(text: str) -> AttemptId:
    """The attempt that a coordinator or a stock queue runner calls `text`."""
    if text.startswith(_PREFIX):
        return attempt_from_uuid(text)
    number = int(text.replace("-", ""), 16) if _UUID.match(text) is not None else 0
    if number <= ATTEMPT_MAX:
        raise PeerError(f"build_id: {text[:100]!r} is not a UUID")
    return AttemptId(number)


def agent_id(text: str) -> AgentId:
    """An agent's UUID, in lower case; raises PeerError on any other text."""
    lower = text.lower()
    if _UUID.match(lower) is None:
        raise PeerError(f"machine_id: {text[:100]!r} is not a UUID")
    return AgentId(lower)
