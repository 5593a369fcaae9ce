"""The logs of attempts: appended while they build, kept by attempt, followed by whoever watches."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Final

from grange.errors import OutsideError
from grange.scheduler.facts import AttemptId

READ_BYTES: Final = 256 << 10
_PER_DIRECTORY: Final = 1_000


class Logs:
    """Files under `root`, one for each attempt that logged anything.

    A part is taken in at its offset: what was taken in before is skipped, so that an agent may
    repeat itself after a lost connection.
    """

    def __init__(self, root: Path, *, log_bytes_max: int) -> None:
        self._root = root
        self._log_bytes_max = log_bytes_max  # 0: no limit but the agent's own
        self._sizes: dict[AttemptId, int] = {}  # of live logs
        self._grown: dict[AttemptId, asyncio.Event] = {}  # of live logs that are followed
        root.mkdir(parents=True, exist_ok=True)

    def limit(self, log_bytes_max: int) -> None:
        """Of each log from now on."""
        self._log_bytes_max = log_bytes_max

    def _path(self, attempt: AttemptId) -> Path:
        return self._root / str(attempt // _PER_DIRECTORY) / f"{attempt}.log"

    def append(self, attempt: AttemptId, offset: int, data: bytes) -> bytes:
        """Take in a part; returns what of it was new. Raises OutsideError on a full disk.

        A gap (a part that was lost) is filled by a line that says so.
        """
        size = self._sizes.get(attempt)
        if size is None:
            path = self._path(attempt)
            size = path.stat().st_size if path.exists() else 0
        if offset > size:
            data = f"\n[{offset - size} bytes of the log were lost]\n".encode() + data
        else:
            data = data[size - offset :]
        if self._log_bytes_max:
            data = data[: max(0, self._log_bytes_max - size)]
        if not data:
            self._sizes[attempt] = size
            return b""
        try:
            path = self._path(attempt)
            if not size:
                path.parent.mkdir(exist_ok=True)
            with path.open("ab") as file:
                file.write(data)
        except OSError as error:
            raise OutsideError(
                f"the log of attempt {attempt} cannot be written: {error.strerror}; "
                f"make room under {self._root}"
            ) from error
        self._sizes[attempt] = size + len(data)
        if (grown := self._grown.get(attempt)) is not None:
            grown.set()
        return data

    def end(self, attempt: AttemptId) -> None:
        """Nothing will be appended any more."""
        self._sizes.pop(attempt, None)
        if (grown := self._grown.pop(attempt, None)) is not None:
            grown.set()

    def drop(self, attempt: AttemptId) -> None:
        """Delete the log, if there is one; raises OutsideError where the disk keeps it."""
        path = self._path(attempt)
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise OutsideError(f"{path} cannot be deleted: {error.strerror}; delete it") from error

    def size(self, attempt: AttemptId) -> int:
        try:
            return os.stat(self._path(attempt)).st_size
        except FileNotFoundError:
            return 0

    async def read(
        self, attempt: AttemptId, is_live: Callable[[AttemptId], bool] | None = None
    ) -> AsyncIterator[bytes]:
        """The log so far and, given what tells whether it may grow, what comes until it may not."""
        position = 0
        while True:
            follows = is_live is not None and is_live(attempt)
            if follows:
                grown = self._grown.setdefault(attempt, asyncio.Event())
                grown.clear()
            while data := await asyncio.to_thread(self._read, attempt, position):
                position += len(data)
                yield data
            if not follows:
                return
            await grown.wait()

    def _read(self, attempt: AttemptId, position: int) -> bytes:
        try:
            with self._path(attempt).open("rb") as file:
                file.seek(position)
                return file.read(READ_BYTES)
        except FileNotFoundError:
            return b""
