"""Which store paths a stream of bytes refers to: those whose hash part occurs in it.

The search is exact, wherever chunks begin and end. It is fast because a hash part is a run of 32
characters of Nix base 32, and such a run covers eight neighbours among every fourth byte: few
places in programs, text or noise do, and only those are looked at.
"""

import struct
from collections.abc import Iterable
from typing import Final

from grange.store.hash import BASE32_CHARS
from grange.store.path import HASH_PART_CHARS

_STRIDE: Final = 4  # at 8, source text has ten times the false runs; at 2, sampling costs double
_IS_BASE32: Final = bytes(chr(byte) in BASE32_CHARS for byte in range(256))
_RUN: Final = b"\1" * (HASH_PART_CHARS // _STRIDE)
_BLOCK: Final = HASH_PART_CHARS // 2  # whichever 32 bytes one picks hold a whole aligned block
_FEW_CANDIDATES: Final = 4  # up to here as many plain searches cost less than one by samples
_SMALL_BYTES: Final = 4096  # up to here a chunk is joined to what went before
_LONG_RUN_BYTES: Final = 512  # from here on it pays to look at blocks before places


class ReferenceScanner:
    """Finds which of `candidates`, hash parts of store paths, occur in what it is fed.

    Holds 31 bytes of the stream, and 16 short strings per candidate once it has met a long run.
    """

    __slots__ = ("_blocks", "_found", "_missing", "_tail")

    def __init__(self, candidates: Iterable[str]) -> None:
        self._missing = {candidate.encode() for candidate in candidates}
        assert all(len(candidate) == HASH_PART_CHARS for candidate in self._missing)
        self._found: set[str] = set()
        self._tail = b""  # the last bytes fed, where a hash part may have begun
        self._blocks: frozenset[bytes] | None = None

    @property
    def found(self) -> set[str]:
        """The candidates met so far."""
        return set(self._found)

    def feed(self, chunk: bytes | memoryview) -> None:
        """Look through the next bytes of the stream."""
        if not self._missing:
            return
        data = bytes(chunk)
        if len(data) <= _SMALL_BYTES:
            data = self._tail + data
        else:
            self._search(self._tail + data[: HASH_PART_CHARS - 1])
        self._search(data)
        self._tail = data[-(HASH_PART_CHARS - 1) :]

    def _search(self, data: bytes) -> None:
        if len(self._missing) <= _FEW_CANDIDATES:
            for candidate in [*self._missing]:
                if candidate in data:
                    self._meet(candidate)
            return
        samples = data[::_STRIDE].translate(_IS_BASE32)
        first = samples.find(_RUN)
        while first >= 0:
            # The samples before `first` and at `end` are not base 32: the run lies between them.
            end = samples.find(b"\0", first + len(_RUN))
            stop = len(data) if end < 0 else end * _STRIDE
            self._look_up(data[max(0, (first - 1) * _STRIDE + 1) : stop])
            first = -1 if end < 0 else samples.find(_RUN, end)

    def _look_up(self, run: bytes) -> None:
        if len(run) < _LONG_RUN_BYTES:
            self._look_up_places(run, 0, len(run))
            return
        if self._blocks is None:
            self._blocks = frozenset(
                candidate[at : at + _BLOCK] for candidate in self._missing for at in range(_BLOCK)
            )
        # A hash part at any of the 16 places up to a block's holds that whole block.
        whole = memoryview(run)[: len(run) // _BLOCK * _BLOCK]
        for index, (block,) in enumerate(struct.iter_unpack(f"{_BLOCK}s", whole)):
            if block in self._blocks:
                self._look_up_places(run, max(0, (index - 1) * _BLOCK + 1), index * _BLOCK + 1)

    def _look_up_places(self, run: bytes, start: int, stop: int) -> None:
        """Meet the candidates that begin at one of the places from `start` to before `stop`."""
        for at in range(start, min(stop, len(run) - HASH_PART_CHARS + 1)):
            place = run[at : at + HASH_PART_CHARS]
            if place in self._missing:
                self._meet(place)

    def _meet(self, candidate: bytes) -> None:
        self._missing.discard(candidate)
        self._found.add(candidate.decode())
