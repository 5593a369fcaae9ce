"""Objects in a bucket, through obstore: S3, Google Cloud Storage, Azure, or this process's memory.

What is small is put in one request that fails where the key is taken. What is large is put in
parts under `incoming/`, for its key is known only at the end, and copied to its key within the
store. What an earlier process left under `incoming/` is swept once it is old.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import contextmanager, suppress
from secrets import token_hex
from typing import TYPE_CHECKING, Any, Final

import obstore
from obstore import exceptions

from grange.errors import OutsideError
from grange.objects.keys import check_key
from grange.ports import DirectUploads, ObjectEntry
from grange.store.compression import decompress

if TYPE_CHECKING:
    from collections.abc import Iterator

    from obstore.store import ObjectStore

READ_BYTES: Final = 1 << 20  # at least, of each piece but the last
WAITING_MAX: Final = 2  # pieces between a writer and its upload
PARTS_AT_ONCE: Final = 4
INCOMING: Final = "incoming/"
DISCARD_S: Final = 10.0  # for the parts under way of an object that is given up

_TYPES: Final = {  # what Nix itself says of them
    ".narinfo": "text/x-nix-narinfo",
    ".ls": "application/json",
    ".drv": "text/plain; charset=utf-8",  # a log
    "nix-cache-info": "text/x-nix-cache-info",
}


class CloudObjects:
    """`grange.ports.Objects` in a bucket. Belongs to one event loop."""

    def __init__(
        self,
        store: "ObjectStore",
        shown: str,
        *,
        part_bytes: int = 8 << 20,
    ) -> None:
        """`shown` names it in errors. What is no longer than `part_bytes` is put at once."""
        self.store: Any = store  # obstore's functions take its stores by kind
        self.shown = shown
        self.part_bytes = part_bytes
        self._direct: DirectUploads | None = None

    @property
    def direct(self) -> DirectUploads | None:
        return self._direct

    def offer(self, direct: DirectUploads) -> None:
        """Have strangers put objects by themselves."""
        self._direct = direct

    def writer(self, *, encoding: str = "") -> "CloudWriter":
        return CloudWriter(self, encoding)

    async def put_if_absent(self, key: str, data: bytes, *, encoding: str = "") -> bool:
        """Make `data` durable as `key`; False where `key` existed and was left alone."""
        return await self.put(key, data, encoding, replaces=False)

    async def put(self, key: str, data: bytes, encoding: str, *, replaces: bool) -> bool:
        with self.blamed(f"put {key}"):
            try:
                await obstore.put_async(
                    self.store,
                    check_key(key),
                    data,
                    attributes=attributes(key, encoding),
                    mode="overwrite" if replaces else "create",
                    use_multipart=False,
                )
            except exceptions.AlreadyExistsError:
                return False
        return True

    async def get(self, key: str) -> bytes | None:
        with self.blamed(f"get {key}"):
            try:
                result = await obstore.get_async(self.store, check_key(key))
            except FileNotFoundError:
                return None
            data = await result.buffer_async()
            if len(data) != result.meta["size"]:
                raise self.short(key, len(data), result.meta["size"])
            encoding = result.attributes.get("Content-Encoding", "")
        if not encoding:
            return bytes(data)
        try:
            return decompress(encoding, bytes(data))
        except ValueError as error:
            raise OutsideError(f"{self.shown}: {key} cannot be read: {error}") from error

    async def size(self, key: str) -> int | None:
        with self.blamed(f"look at {key}"):
            try:
                return (await obstore.head_async(self.store, check_key(key)))["size"]
            except FileNotFoundError:
                return None

    async def read(self, key: str, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        """The bytes from `start` to before `end`; raises OutsideError where they are not there."""
        if end is not None and start >= end:
            return
        options: dict[str, Any] = {}
        if end is not None:
            options["range"] = (start, end)
        elif start:
            options["range"] = {"offset": start}
        async for piece in self.stream(key, options, end):
            yield piece

    async def stream(
        self, key: str, options: dict[str, Any], end: int | None = None
    ) -> AsyncIterator[bytes]:
        """As `read`, with obstore's options of a request."""
        with self.blamed(f"read {key}"):
            result = await obstore.get_async(self.store, check_key(key), options=options)  # type: ignore[arg-type]
            at, last = result.range
            last = last if end is None else end
            if last > at:
                async for piece in result.stream(READ_BYTES):
                    data = bytes(piece)
                    at += len(data)
                    yield data
            if at != last:
                raise self.short(key, at, last)

    def local_path(self, key: str) -> str | None:
        check_key(key)
        return None

    async def list(self, prefix: str = "") -> AsyncIterator[ObjectEntry]:
        folder = prefix.rpartition("/")[0]  # obstore's prefixes end where a part of a key ends
        with self.blamed(f"list {prefix}"):
            async for batch in obstore.list(self.store, prefix=folder or None):
                for meta in batch:
                    if meta["path"].startswith(prefix):
                        yield ObjectEntry(
                            meta["path"], meta["size"], meta["last_modified"].timestamp()
                        )

    async def delete(self, key: str) -> None:
        with self.blamed(f"delete {key}"), suppress(FileNotFoundError):
            await obstore.delete_async(self.store, check_key(key))

    async def copy(self, source: str, key: str, size: int) -> None:
        """Copy what this process has put at `source`, of `size` bytes; takes the place of another.

        Raises OutsideError where something else lies there."""
        if self._direct is not None:
            landed = await self._direct.landed(source)
            if landed is None or landed.size != size:
                raise self.short(source, 0 if landed is None else landed.size, size)
            await self._direct.adopt(landed, key)
            return
        found = await self.size(source)
        if found != size:
            raise self.short(source, found or 0, size)
        with self.blamed(f"copy {source} to {key}"):
            await obstore.copy_async(self.store, source, key)

    def short(self, key: str, found: int, wanted: int) -> OutsideError:
        return OutsideError(
            f"{self.shown}: {key} has {found} of {wanted} bytes; the store has lost or changed it"
        )

    @contextmanager
    def blamed(self, what: str) -> "Iterator[None]":
        """Raise what the store says as an OutsideError."""
        try:
            yield
        except (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError) as error:
            raise OutsideError(
                f"{self.shown} does not let us {what}; see to the credentials in the environment "
                f"and to what they may do: {reason(error)}"
            ) from None
        except (exceptions.BaseError, OSError) as error:
            raise OutsideError(f"{self.shown} could not {what}: {reason(error)}") from None


class CloudWriter:
    """`grange.ports.ObjectWriter` in a bucket. One call at a time."""

    def __init__(self, objects: CloudObjects, encoding: str) -> None:
        self._objects = objects
        self._encoding = encoding
        self._start: list[bytes] = []  # until there is more than one part
        self._size = 0
        self._key = f"{INCOMING}{token_hex(16)}"
        self._pieces: asyncio.Queue[bytes | None] = asyncio.Queue(WAITING_MAX)
        self._upload: asyncio.Task[None] | None = None
        self._is_over = False

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        """Append; raises OutsideError, and leaves nothing behind, where the store fails."""
        assert not self._is_over
        self._size += len(data)
        if self._upload is None:
            self._start.append(bytes(data))
            if self._size > self._objects.part_bytes:
                self._upload = asyncio.create_task(self._put_parts())
                start, self._start = b"".join(self._start), []
                await self._hand_over(start)
        elif data:
            await self._hand_over(bytes(data))

    async def _hand_over(self, data: bytes | None) -> None:
        assert self._upload is not None
        handing = asyncio.create_task(self._pieces.put(data))
        try:
            await asyncio.wait((handing, self._upload), return_when=asyncio.FIRST_COMPLETED)
        finally:
            handing.cancel()
        if data is not None and self._upload.done():  # before its end, so it has failed
            await self.discard()
            self._upload.result()

    async def _put_parts(self) -> None:
        async def pieces() -> AsyncIterator[bytes]:
            while (data := await self._pieces.get()) is not None:
                if self._is_over:
                    raise _DiscardedError  # upon which obstore aborts the parts
                yield data

        with self._objects.blamed(f"put {self._key}"):
            await obstore.put_async(
                self._objects.store,
                self._key,
                pieces(),
                attributes=attributes("", self._encoding),
                use_multipart=True,
                chunk_size=self._objects.part_bytes,
                max_concurrency=PARTS_AT_ONCE,
            )

    async def commit(self, key: str, *, replaces: bool = False) -> bool:
        """As promised; of two that commit a large object as the same key at the same time, the
        latter wins, so its bytes must follow from its key."""
        check_key(key)
        assert not self._is_over
        try:
            if self._upload is None:
                data = b"".join(self._start)
                return await self._objects.put(key, data, self._encoding, replaces=replaces)
            if not replaces and await self._objects.size(key) is not None:
                return False
            await self._hand_over(None)
            await self._upload
            await self._objects.copy(self._key, key, self._size)
            return True
        finally:
            await self.discard()

    async def discard(self) -> None:
        """Give up whatever has not been committed; twice is once."""
        if self._is_over:
            return
        self._is_over = True
        self._start.clear()
        if self._upload is None:
            return
        while not self._pieces.empty():
            self._pieces.get_nowait()
        self._pieces.put_nowait(b"-")
        await asyncio.wait((self._upload,), timeout=DISCARD_S)
        self._upload.cancel()
        await asyncio.wait((self._upload,))
        if not self._upload.cancelled():
            self._upload.exception()  # has been told, or nobody waits for it
        with suppress(OutsideError):  # the sweep will
            await self._objects.delete(self._key)


class _DiscardedError(Exception):
    """Its writer gave the object up."""


def attributes(key: str, encoding: str) -> dict[str, str]:
    """The headers of an object."""
    suffixes = (kind for suffix, kind in _TYPES.items() if key.endswith(suffix))
    found = {"Content-Type": next(suffixes, "application/octet-stream")}
    if encoding:
        found["Content-Encoding"] = encoding
    return found


def reason(error: Exception) -> str:
    """What a store said, in one line of bounded length."""
    return " ".join(str(error).partition("\n\nDebug source")[0].split())[:500]
