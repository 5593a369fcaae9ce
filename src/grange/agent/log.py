"""The log of one attempt, kept until the coordinator has settled it."""

import os
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Final

MEMORY_BYTES: Final = 256 << 10  # most logs are smaller and never touch the disk


class AttemptLog:
    """Bytes in, bytes out by offset: what a lost connection swallowed can be sent again.

    Past `MEMORY_BYTES` the log goes to an unlinked file in `folder`, and so ends with this process.
    """

    def __init__(self, folder: Path, bytes_max: int) -> None:
        self._folder = folder
        self._bytes_max = bytes_max
        self._tail = bytearray()
        self._file: IO[bytes] | None = None
        self._file_bytes = 0
        self.bytes = 0
        self.is_full = False  # more was offered than `bytes_max`

    def append(self, line: bytes) -> None:
        """Take a line; from the one that exceeds `bytes_max` on, only what still fits."""
        room = self._bytes_max - self.bytes
        if len(line) > room:
            self.is_full = True
            line = line[:room]
        self._tail += line
        self.bytes += len(line)
        if len(self._tail) > MEMORY_BYTES:
            self._spill()

    def note(self, text: str) -> None:
        """Grange's own words to the reader of the log, beyond the limit if need be."""
        line = f"grange: {text}\n".encode(errors="replace")
        self._tail += line
        self.bytes += len(line)

    def _spill(self) -> None:
        if self._file is None:
            self._file = TemporaryFile(buffering=0, dir=self._folder)  # noqa: SIM115
        while self._tail:
            written = os.write(self._file.fileno(), self._tail)
            self._file_bytes += written
            del self._tail[:written]

    def part(self, offset: int, bytes_max: int) -> bytes:
        """Bytes from `offset` on, at least one and at most `bytes_max`; b"" at the end."""
        if offset < self._file_bytes and self._file is not None:
            return os.pread(self._file.fileno(), bytes_max, offset)
        start = offset - self._file_bytes
        return bytes(self._tail[start : start + bytes_max])

    def tail(self, bytes_max: int) -> bytes:
        """The last bytes, wherever they are kept."""
        start = max(0, self.bytes - bytes_max)
        tail = b""
        while piece := self.part(start + len(tail), bytes_max):
            tail += piece
        return tail

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
