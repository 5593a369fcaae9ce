"""A lost object on its way back: readers follow it into a file while it is made.

A read of any of it ends only when the whole has the right digest: its last bytes are held back
until then, so that nobody takes something wrong for something whole.
"""

import asyncio
import os
from collections.abc import AsyncGenerator
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryFile, gettempdir
from typing import IO, Final

from grange.errors import GrangeError, OutsideError

READ_BYTES: Final = 1 << 20
HELD_BACK_BYTES: Final = 64 << 10  # of each read; nobody's patience ends in so few


class Spool:
    """One writer, `append` then `prove`, or `fail`; any number of readers, also after that.

    Belongs to one event loop. Its file goes with the last `release`.
    """

    def __init__(self, size: int, digest: str, folder: Path | None) -> None:
        self.size = size
        self._digest = digest
        self._folder = folder
        self._file: IO[bytes] | None = None
        self._written = 0
        self._hasher = sha256()
        self._is_proved = False
        self._error: OutsideError | None = None
        self._news = asyncio.Event()
        self._users = 1

    def hold(self) -> None:
        self._users += 1

    def release(self) -> None:
        self._users -= 1
        if not self._users and self._file is not None:
            self._file.close()

    async def append(self, data: bytes) -> None:
        """Raises OutsideError where it is too much, or the disk fails."""
        if self._written + len(data) > self.size:
            raise self._other()
        writing = asyncio.create_task(asyncio.to_thread(self._append, data))
        try:
            # Whoever is cancelled closes the file next, which no thread may be using then.
            await asyncio.wait((writing,))
            writing.result()
        except asyncio.CancelledError:
            await asyncio.wait((writing,))
            raise
        except OSError as error:
            raise OutsideError(
                f"a layer that the store has lost cannot be made again in "
                f"{self._folder or gettempdir()}: {error.strerror}; free some space there"
            ) from error
        self._written += len(data)
        self._tell()

    def _append(self, data: bytes) -> None:
        if self._file is None:
            self._file = TemporaryFile(dir=self._folder, buffering=0)  # noqa: SIM115
        view = memoryview(data)
        while view:
            view = view[self._file.write(view) :]
        self._hasher.update(data)

    def prove(self) -> None:
        """Say that all is there; raises OutsideError where it is something else."""
        if self._written != self.size or f"sha256:{self._hasher.hexdigest()}" != self._digest:
            raise self._other()
        self._is_proved = True
        self._tell()

    def _other(self) -> OutsideError:
        return OutsideError(
            f"{self._digest} was lost, and what is made of its NARs now is something else; restore "
            "it from a backup of the store, or collect the images that have it and pull them again"
        )

    def fail(self, error: GrangeError) -> None:
        """Whoever reads is told."""
        self._error = OutsideError(str(error))
        self._tell()

    def _tell(self) -> None:
        self._news.set()
        self._news = asyncio.Event()

    async def read(self, start: int, end: int) -> AsyncGenerator[bytes, None]:
        """The bytes from `start` to before `end`, as they come; raises OutsideError."""
        held = end - min(HELD_BACK_BYTES, end - start)
        at = start
        while at < end:
            if self._error is not None:
                raise self._error
            news = self._news
            stop = end if self._is_proved else min(self._written, held)
            if at < stop:
                assert self._file is not None
                wanted = min(READ_BYTES, stop - at)
                data = await asyncio.to_thread(os.pread, self._file.fileno(), wanted, at)
                at += len(data)
                yield data
            else:
                await news.wait()
