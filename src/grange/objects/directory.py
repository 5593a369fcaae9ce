"""Objects on a directory of this machine.

An object is written under `.incoming`, synced, and only then linked to its key: `link` fails where
`rename` would replace, so an object never changes once it is there. What an earlier process left in
`.incoming` is swept at start; one that still writes there holds a lock on its file.
"""

import asyncio
import errno
import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fcntl import LOCK_EX, LOCK_NB, flock
from itertools import count
from pathlib import Path
from secrets import token_hex
from stat import S_ISDIR
from typing import Any, Final, ParamSpec, TypeVar

from grange.errors import GrangeError, OperatorError, OutsideError
from grange.objects.keys import check_key
from grange.ports import ObjectEntry

INLINE_BYTES_MAX: Final = 64 << 10  # up to here a read from the page cache costs less than a thread
READ_BYTES: Final = 512 << 10
SYNC_BYTES: Final = 32 << 20  # written back while more comes, so that the last sync is short
GROUP_MAX: Final = 256  # objects synced together; bounds how long the first of them waits

_INCOMING: Final = ".incoming"
_P = ParamSpec("_P")
_R = TypeVar("_R")

_FULL: Final = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@dataclass(frozen=True, slots=True)
class _Put:
    path: str
    data: bytes
    done: asyncio.Future[bool]


class DirectoryObjects:
    """`grange.ports.Objects` on a directory, which is created where it is missing.

    Belongs to one event loop. Objects put at the same time are made durable as a group, by one
    thread and with one sync of the directory, while the next group gathers.
    """

    def __init__(self, root: Path) -> None:
        """Raises OperatorError where `root` cannot be written."""
        self._root = str(root.absolute())
        self._incoming = f"{self._root}/{_INCOMING}"
        self._numbers = count()
        self._waiting: list[_Put] = []
        self._flushing: asyncio.Task[None] | None = None
        try:
            os.makedirs(self._incoming, exist_ok=True)
            _sweep(self._incoming)
        except OSError as error:
            raise OperatorError(
                f"objects cannot be kept in {self._root}: {error.strerror}; "
                "set the object directory to one that this user may write"
            ) from error

    @property
    def direct(self) -> None:
        """Nobody can write here but this process."""
        return None

    def writer(self, *, encoding: str = "") -> "DirectoryWriter":
        assert not encoding, "a file has no headers"
        return DirectoryWriter(self, self._new_name())

    def _new_name(self) -> str:
        """Of a file that nobody has; for any thread, so not from a generator."""
        return f"{self._incoming}/{token_hex(8)}-{next(self._numbers)}"

    async def put_if_absent(self, key: str, data: bytes, *, encoding: str = "") -> bool:
        """Make `data` durable as `key`; False where `key` existed and was left alone.

        Raises OutsideError, and leaves nothing behind, where the disk is full or fails.
        """
        assert not encoding, "a file has no headers"
        put = _Put(self.path(key), data, asyncio.get_running_loop().create_future())
        self._waiting.append(put)
        if self._flushing is None:
            self._flushing = asyncio.create_task(self._flush())
        return await put.done

    async def _flush(self) -> None:
        puts: list[_Put] = []
        try:
            while self._waiting:
                puts, self._waiting = self._waiting[:GROUP_MAX], self._waiting[GROUP_MAX:]
                answers = await asyncio.to_thread(self._put_all, puts)
                for put, answer in zip(puts, answers, strict=True):
                    if put.done.cancelled():
                        continue
                    if isinstance(answer, bool):
                        put.done.set_result(answer)
                    else:
                        put.done.set_exception(answer)
        finally:
            self._flushing = None
            for put in puts + self._waiting:
                put.done.cancel()  # of no effect unless this task was cancelled

    def _put_all(self, puts: Sequence[_Put]) -> list[bool | GrangeError]:
        """For each whether it is new, or why it could not be kept."""
        files: list[tuple[int, str] | GrangeError | None] = []
        for put in puts:
            try:
                files.append(self._write_new(put))
            except OSError as error:
                files.append(self.failure(error))
        # All are on their way to the disk before the first is waited for, so that one commit of
        # the file system's journal serves the group: a third of the CPU and half the time.
        answers: list[bool | GrangeError] = []
        directories: dict[str, list[int]] = {}
        for index, (put, file) in enumerate(zip(puts, files, strict=True)):
            try:
                answers.append(self._keep(file, put) if isinstance(file, tuple) else file or False)
            except OSError as error:
                answers.append(self.failure(error))
            directories.setdefault(os.path.dirname(put.path), []).append(index)
        for directory, indices in directories.items():
            try:
                # Also for objects that were there: whoever linked one may not have synced it yet.
                _sync_directory(directory)
            except OSError as error:
                for index in indices:
                    answers[index] = self.failure(error)
        return answers

    def _write_new(self, put: _Put) -> tuple[int, str] | None:
        """A new file with the data, open and on its way to the disk; None where `put` is there."""
        if os.path.exists(put.path):
            return None
        name = self._new_name()
        descriptor = _create(name)
        try:
            _write(descriptor, put.data)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)  # starts writing it back
        except OSError:
            os.close(descriptor)
            os.unlink(name)
            raise
        return descriptor, name

    def _keep(self, file: tuple[int, str], put: _Put) -> bool:
        descriptor, name = file
        try:
            os.fsync(descriptor)
            return self.link(name, put.path)
        finally:
            os.close(descriptor)
            os.unlink(name)

    async def get(self, key: str) -> bytes | None:
        path = self.path(key)
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            return None
        try:
            size = os.fstat(descriptor).st_size
            if size <= INLINE_BYTES_MAX:
                return os.read(descriptor, size)
            return await asyncio.to_thread(os.pread, descriptor, size, 0)
        except OSError as error:
            raise self.failure(error) from error
        finally:
            os.close(descriptor)

    async def size(self, key: str) -> int | None:
        path = self.path(key)
        try:
            return os.stat(path).st_size
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise self.failure(error) from error

    async def read(self, key: str, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        """The bytes from `start` to before `end`; raises OutsideError where they are not there."""
        path = self.path(key)
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise self.failure(error) from error
        try:
            if end is None:
                end = os.fstat(descriptor).st_size
            while start < end:
                wanted = min(READ_BYTES, end - start)
                data = await asyncio.to_thread(os.pread, descriptor, wanted, start)
                if not data:
                    raise OutsideError(f"{path} is shorter than when it was stored; restore it")
                start += len(data)
                yield data
        except OSError as error:
            raise self.failure(error) from error
        finally:
            os.close(descriptor)

    def local_path(self, key: str) -> str | None:
        return self.path(key)

    async def delete(self, key: str) -> None:
        path = self.path(key)
        try:
            os.unlink(path)
        except (FileNotFoundError, NotADirectoryError):
            pass
        except OSError as error:
            raise self.failure(error) from error

    async def list(self, prefix: str = "") -> AsyncIterator[ObjectEntry]:
        above = prefix.rpartition("/")[0]
        folders = [self.path(above) if above else self._root]
        while folders:
            try:
                found = await asyncio.to_thread(_entries, folders.pop())
            except OSError as error:
                raise self.failure(error) from error
            for path, status in found:
                if S_ISDIR(status.st_mode):
                    folders.append(path)
                    continue
                key = path.removeprefix(f"{self._root}/")
                if key.startswith(prefix):
                    yield ObjectEntry(key, status.st_size, status.st_mtime)

    def path(self, key: str) -> str:
        """The file of `key`; raises PeerError for a key that could lie outside the directory."""
        return f"{self._root}/{check_key(key)}"

    def link(self, name: str, path: str) -> bool:
        """Give the file `name` the name `path` too; False where that is taken."""
        for _ in range(2):
            try:
                os.link(name, path)
                return True
            except FileExistsError:
                return False
            except FileNotFoundError:
                _make_directories(self._root, os.path.dirname(path))
        raise FileNotFoundError(errno.ENOENT, "its file under .incoming has vanished", path)

    def failure(self, error: OSError) -> OutsideError:
        if error.errno in _FULL:
            return OutsideError(
                f"the disk under {self._root} is full; free some space, then try again: "
                "nothing of this object was kept"
            )
        return OutsideError(f"{error.filename or self._root}: {error.strerror}; see to that disk")


class DirectoryWriter:
    """`grange.ports.ObjectWriter` on a file. One call at a time."""

    def __init__(self, objects: DirectoryObjects, name: str) -> None:
        self._objects = objects
        self._name = name
        self._descriptor: int | None = None
        self._unsynced_bytes = 0
        self._is_over = False
        self._running: set[asyncio.Task[Any]] = set()  # threads that use the descriptor
        self._sync: asyncio.Task[None] | None = None

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        """Append; raises OutsideError, and leaves nothing behind, where the disk is full."""
        assert not self._is_over
        try:
            if len(data) <= INLINE_BYTES_MAX:
                self._append(data)
            else:
                await asyncio.shield(self._start(self._append, data))
            await self._write_back()
        except OSError as error:
            await self.discard()
            raise self._objects.failure(error) from error

    def _append(self, data: bytes | bytearray | memoryview) -> None:
        if self._descriptor is None:
            self._descriptor = _create(self._name)
        _write(self._descriptor, data)
        self._unsynced_bytes += len(data)

    async def _write_back(self) -> None:
        """Have the disk begin with what there is, while more comes."""
        if self._unsynced_bytes < SYNC_BYTES or not (self._sync is None or self._sync.done()):
            return
        if self._sync is not None:
            await self._sync  # the system reports a failed write once, and here
        assert self._descriptor is not None
        self._unsynced_bytes = 0
        self._sync = self._start(os.fdatasync, self._descriptor)

    async def commit(self, key: str, *, replaces: bool = False) -> bool:
        path = self._objects.path(key)
        assert not self._is_over
        try:
            if self._sync is not None:
                await asyncio.shield(self._sync)
            return await asyncio.shield(self._start(self._commit, path, replaces))
        except OSError as error:
            raise self._objects.failure(error) from error
        finally:
            await self.discard()

    def _commit(self, path: str, replaces: bool) -> bool:
        self._append(b"")  # an empty object is one too
        assert self._descriptor is not None
        os.fsync(self._descriptor)
        is_new = self._objects.link(self._name, path)
        if not is_new and replaces:
            os.replace(self._name, path)
            is_new = True
        _sync_directory(os.path.dirname(path))
        return is_new

    def _start(
        self, call: Callable[_P, _R], *arguments: _P.args, **named: _P.kwargs
    ) -> asyncio.Task[_R]:
        task = asyncio.create_task(asyncio.to_thread(call, *arguments, **named))
        self._running.add(task)
        task.add_done_callback(self._end)
        return task

    def _end(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        if not task.cancelled():
            task.exception()  # whoever waited for it may have been cancelled

    async def discard(self) -> None:
        """Give up whatever has not been committed; twice is once."""
        self._is_over = True
        if self._running:
            # A caller that was cancelled leaves its thread at work on the descriptor, whose
            # number must not go to another file meanwhile.
            await asyncio.wait(self._running)
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
            with suppress(FileNotFoundError):
                os.unlink(self._name)


def _create(name: str) -> int:
    descriptor = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    flock(descriptor, LOCK_EX)
    return descriptor


def _write(descriptor: int, data: bytes | bytearray | memoryview) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _entries(folder: str) -> list[tuple[str, os.stat_result]]:
    """What lies in `folder`, but for what is under way and what has just vanished."""
    found = []
    with suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as entries:
        for entry in entries:
            if not entry.name.startswith("."):
                with suppress(FileNotFoundError):
                    found.append((entry.path, entry.stat(follow_symlinks=False)))
    return found


def _sync_directory(directory: str) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _make_directories(root: str, directory: str) -> None:
    """Create `directory` and what lacks between it and `root`, durably."""
    os.makedirs(directory, exist_ok=True)
    while directory != root:
        directory = os.path.dirname(directory)
        _sync_directory(directory)


def _sweep(incoming: str) -> None:
    for name in os.listdir(incoming):
        path = f"{incoming}/{name}"
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        try:
            flock(descriptor, LOCK_EX | LOCK_NB)
            os.unlink(path)
        except BlockingIOError:
            pass  # another process writes it
        finally:
            os.close(descriptor)
