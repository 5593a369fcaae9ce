"""How much callers may say: what is kept in memory, on disk and in metrics is bounded."""

import math
from typing import Final

from grange.capacity.events import OperatorSaid
from grange.capacity.facts import Claim, Need
from grange.errors import PeerError

KEY_MAX: Final = 256  # characters, as for all words
REASON_MAX: Final = 1_000
WORDS_MAX: Final = 64  # features or tags of one claim; Nix has some five
SIZE_MAX: Final = 10_000
PRIORITY_MAX: Final = 1_000_000
WAITING_MAX: Final = 1_000_000
TERM_MAX_S: Final = 30 * 86_400.0


def check_claim(claim: Claim) -> None:
    """Raises PeerError where something is empty, or too long, or out of range."""
    _word("key", claim.key)
    _word("system", claim.system)
    _word("project", claim.project)
    _text("by", claim.by, KEY_MAX)
    _words("features", claim.features)
    _number("size", claim.size, 1, SIZE_MAX)
    _number("priority", claim.priority, -PRIORITY_MAX, PRIORITY_MAX)
    if claim.deadline_s is not None:
        _number("deadline_s", claim.deadline_s, 0, TERM_MAX_S)


def check_hint(key: str, need: Need, for_s: float) -> None:
    _word("key", key)
    _word("system", need.system)
    _word("project", need.project)
    _words("features", need.features)
    _words("tags", need.tags)
    _number("waiting", need.waiting, 0, WAITING_MAX)
    _number("for_s", for_s, 0, TERM_MAX_S)


def check_said(said: OperatorSaid) -> None:
    _text("by", said.by, KEY_MAX)
    _text("reason", said.reason, REASON_MAX)
    _number("slots", said.slots, 0, WAITING_MAX)
    _number("for_s", said.for_s, 0, TERM_MAX_S)


def _word(name: str, text: str) -> None:
    if not text:
        raise PeerError(f"{name} is empty")
    _text(name, text, KEY_MAX)


def _text(name: str, text: str, most: int) -> None:
    if len(text) > most:
        raise PeerError(f"{name} has {len(text)} characters; at most {most} may be")
    if not text.isprintable():
        raise PeerError(f"{name} has characters that cannot be shown; leave them out")


def _words(name: str, words: tuple[str, ...]) -> None:
    if len(words) > WORDS_MAX:
        raise PeerError(f"{name} are {len(words)}; at most {WORDS_MAX} may be")
    for each in words:
        _word(f"one of {name}", each)


def _number(name: str, number: float, least: float, most: float) -> None:
    if not math.isfinite(number) or not least <= number <= most:
        raise PeerError(f"{name} is {number:g}; it must be from {least:g} to {most:g}")
