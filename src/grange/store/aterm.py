"""The ATerm text of derivations: its strings, its lists, and how they are read strictly and fast.

Everything here works on text decoded as Latin-1, one character per byte, so positions are byte
offsets and text sorts as bytes do. Only the canonical spelling that Nix prints is accepted.
Source: Nix manual, "Derivation ATerm format"; libstore/derivations.cc, `printString`.
"""

import re
from collections.abc import Iterable
from itertools import chain
from typing import Any, Final

from grange.errors import PeerError

# The inside of a string as Nix prints it: five characters are escaped, and no others.
STRING: Final = r'[^"\\\n\r\t]*+(?:\\["\\nrt][^"\\\n\r\t]*+)*+'

_SPECIAL: Final = re.compile(r'["\\\n\r\t]')


def escape(text: str) -> str:
    """`text` as it stands between the quotes of a string."""
    if _SPECIAL.search(text) is None:
        return text
    text = text.replace("\\", "\\\\").replace('"', '\\"')
    return text.replace("\n", "\\n").replace("\r", "\\r").replace("\t", "\\t")


def unescape(text: str) -> str:
    """The inverse of `escape`, for text that matched `STRING`.

    Between two escaped backslashes every other escape stands alone, so plain replacement reads
    it right, and ten times faster than a substitution with a function.
    """
    if "\\" not in text:
        return text
    return "\\".join(
        part.replace('\\"', '"').replace("\\n", "\n").replace("\\r", "\r").replace("\\t", "\t")
        for part in text.split("\\\\")
    )


def quoted(texts: Iterable[str]) -> str:
    """`texts` as the inside of a list of strings."""
    return ",".join([f'"{escape(text)}"' for text in texts])


def complain(text: str, offset: int, expected: str) -> PeerError:
    """The error for text that goes wrong at byte `offset`."""
    context = text[offset : offset + 40].encode("latin-1")
    return PeerError(f"expected {expected} at byte {offset}, near {context!r}")


class Items:
    """How the items of one kind of list are spelt, and how to read all of them at once."""

    __slots__ = ("_expected", "_literal_chars", "_pattern")

    def __init__(self, expected: str, pattern: str, literal: str) -> None:
        """`pattern` matches a comma and an item; `literal` is what of it is outside all groups."""
        self._expected = expected
        self._pattern = re.compile("," + pattern)
        self._literal_chars = len(literal) + 1

    def read(self, text: str, start: int, end: int) -> list[Any]:
        """The groups of every item in ``text[start:end]``, as `re.findall` gives them.

        `findall` skips what it does not understand, so the lengths must add up to the whole.
        """
        if start == end:
            return []
        section = "," + text[start:end]
        found = self._pattern.findall(section)
        chars = sum(map(len, found if self._pattern.groups == 1 else chain.from_iterable(found)))
        if chars + self._literal_chars * len(found) == len(section):
            return found
        offset = 0
        while (item := self._pattern.match(section, offset)) is not None:
            offset = item.end()
        raise complain(text, start + max(offset - 1, 0), self._expected)
