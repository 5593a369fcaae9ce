"""Paths that only an upstream cache has, brought into this farm's: layers are made of NARs that lie
here.

A NAR is judged while it streams to its place, as any upload is. Its path info was signed by a key
that the farm trusts, so what the upstream sends is exactly that or nothing is kept.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from http import HTTPStatus
from random import uniform
from typing import Final, Protocol
from urllib.parse import urlsplit

import aiohttp

from grange.cache.publish import Publisher
from grange.cache.receive import SMALL_NAR_BYTES, store
from grange.cache.signing import nar_key, sign
from grange.cache.verify import (
    NAR_BYTES_MAX,
    Claims,
    RefusedUploadError,
    Verified,
    check_claims,
)
from grange.errors import OutsideError
from grange.images.doors import LostPathError
from grange.ports import Objects
from grange.store.compression import NAR_SUFFIXES
from grange.store.keys import SecretKey
from grange.store.narinfo import NarInfo
from grange.store.path import StoreDir, StorePath

AT_ONCE: Final = 16  # paths; small ones spend their time waiting for answers
LARGE_AT_ONCE: Final = (
    3  # of them; each holds some 30 MB, 68 more where it is xz, and three threads
)
TRIES: Final = 4
TRIES_OF_LIES: Final = 2  # of what came whole and is wrong: once it may have been the road
RETRY_S: Final = 1.0  # before the second try; twice as long before each after it
PATIENCE_S: Final = 30.0  # with an upstream that sends nothing
LEAST_BYTES: Final = 256 << 10  # that must come in so much waiting, or the end
PATIENCES: Final = 2.0  # so much of it: in PATIENCE_S
_MB: Final = 1_000_000

# S3 says FORBIDDEN where the asker may not list what is there.
_GONE: Final = (HTTPStatus.NOT_FOUND, HTTPStatus.FORBIDDEN, HTTPStatus.GONE)

Tell = Callable[[str], None]
"""Hears what is being done, for people."""


class PathInfos(Protocol):
    """What a `Journal` knows of paths."""

    async def narinfo(self, hash_part: str) -> NarInfo | None: ...

    async def mirrored(self, narinfos: Sequence[NarInfo]) -> None: ...


class Holding(Protocol):
    """Keeps files from being collected before a path has them; raises OutsideError where one is
    gone already. See `grange.coordinator.holds`."""

    async def hold(self, key: str) -> None: ...

    def release(self, key: str) -> None: ...


class GoneError(LostPathError):
    """An upstream does not have what it said it has."""


class _BrokenError(Exception):
    """A transfer that came to nothing; the next one may succeed. Its text says how."""


@dataclass(slots=True)
class _Flight:
    """A path on its way, and how many wait for it: when nobody does any more, it ends."""

    task: asyncio.Task[None]
    waiting: int = 0


class Mirror:
    """Belongs to one event loop, that of the leader."""

    def __init__(
        self,
        *,
        journal: PathInfos,
        objects: Objects,
        publisher: Publisher,
        holds: Holding,
        http: aiohttp.ClientSession,
        keys: Sequence[SecretKey],
        store_dir: StoreDir,
        forget: Callable[[StorePath], None],
        on_verified: Callable[[Verified], None] | None = None,
        nar_bytes_max: int = NAR_BYTES_MAX,
        patience_s: float = PATIENCE_S,
        retry_s: float = RETRY_S,
    ) -> None:
        """`forget` hears of paths whose narinfos, where they are kept ready, are not right any
        more; `on_verified` as of `Uploads.want_diff_ids`."""
        self._journal = journal
        self._objects = objects
        self._publisher = publisher
        self._holds = holds
        self._http = http
        self._keys = keys
        self._store_dir = store_dir
        self._forget = forget
        self._on_verified = on_verified
        self._nar_bytes_max = nar_bytes_max
        self._patience_s = patience_s
        self._retry_s = retry_s
        self._free = asyncio.Semaphore(AT_ONCE)
        self._large = asyncio.Semaphore(LARGE_AT_ONCE)
        self._flights: dict[StorePath, _Flight] = {}

    @property
    def under_way(self) -> int:
        """Paths being fetched, or waiting for that."""
        return len(self._flights)

    async def mirror(self, narinfos: Sequence[NarInfo], tell: Tell | None = None) -> None:
        """Have all of these in this farm's cache; those that lie there already are left alone.

        Raises OutsideError, which names upstream and path, where one cannot be had; the others
        are fetched all the same.
        """
        wanted = [narinfo for narinfo in narinfos if "://" in narinfo.url]
        left = {narinfo.info.path: narinfo.info.nar_bytes for narinfo in wanted}
        total = len(left), sum(left.values())

        async def fetch(narinfo: NarInfo) -> None:
            await self._join(narinfo)
            left.pop(narinfo.info.path, None)
            if tell is not None and left:
                tell(_words(total, left))

        if tell is not None and left:
            tell(_words(total, left))
        for end in await asyncio.gather(*map(fetch, wanted), return_exceptions=True):
            if end is not None:
                raise end

    async def _join(self, narinfo: NarInfo) -> None:
        """Wait for the path's flight, which begins here where there is none."""
        path = narinfo.info.path
        flight = self._flights.get(path)
        if flight is None:
            flight = self._flights[path] = _Flight(asyncio.create_task(self._bring(narinfo)))
        flight.waiting += 1
        try:
            await asyncio.shield(flight.task)
        finally:
            flight.waiting -= 1
            if not flight.waiting:
                flight.task.cancel()
                # Whoever asks for the path from here on must not join what is ending.
                if self._flights.get(path) is flight:
                    del self._flights[path]

    async def _bring(self, narinfo: NarInfo) -> None:
        async with self._free:
            known = await self._journal.narinfo(narinfo.info.path.hash_part)
            if known is None:
                raise GoneError(
                    narinfo.info.path,
                    f"{narinfo.info.path} was collected before it was fetched; ask again",
                )
            if "://" not in known.url:
                return
            verified = await self._fetch(known)
            if self._on_verified is not None:
                self._on_verified(verified)
            await self._publish(known, verified)

    async def _publish(self, known: NarInfo, verified: Verified) -> None:
        """The path's file lies here: say so to all who ask for it."""
        own = sign(known.info, self._keys, self._store_dir).signatures
        added = [each for each in own if each not in known.info.signatures]
        narinfo = NarInfo(
            replace(known.info, signatures=(*known.info.signatures, *added)),
            nar_key(verified),
            verified.compression,
            verified.file_hash,
            verified.file_bytes,
        )
        path = narinfo.info.path
        await self._holds.hold(narinfo.url)
        try:
            await self._journal.mirrored([narinfo])
            found = await self._journal.narinfo(path.hash_part)
            if found is None or "://" in found.url:
                raise GoneError(path, f"{path} was collected while it was fetched; ask again")
            self._forget(path)
            if found.url == narinfo.url:  # else the farm has built it meanwhile
                await self._publisher.publish(found)
        finally:
            self._holds.release(narinfo.url)

    # --- Transfers ----------------------------------------------------------------------------

    async def _fetch(self, narinfo: NarInfo) -> Verified:
        """Store the NAR, in one of several tries; raises OutsideError."""
        claims = self._claims(narinfo)
        broken, lies = 0, 0
        while True:
            try:
                return await self._transfer(narinfo, claims)
            except _BrokenError as error:
                broken += 1
                if broken == TRIES:
                    raise OutsideError(
                        f"{_upstream(narinfo)} does not give {claims.path}: {error}, {TRIES} times"
                    ) from error
            except RefusedUploadError as error:
                lies += 1
                if lies == TRIES_OF_LIES:
                    raise _lie(narinfo, error.what) from error
            pause_s = self._retry_s * 2 ** (broken + lies - 1)
            await asyncio.sleep(uniform(pause_s / 2, pause_s))

    def _claims(self, narinfo: NarInfo) -> Claims:
        info = narinfo.info
        claims = Claims(info.path, info.nar_hash, info.nar_bytes, info.references)
        try:
            check_claims(claims, None)
        except RefusedUploadError as error:
            raise _lie(narinfo, error.what) from error
        if narinfo.compression not in NAR_SUFFIXES:
            raise OutsideError(
                f"{_upstream(narinfo)} has {info.path} compressed as "
                f"{narinfo.compression[:40]!r} only, and this farm takes {', '.join(NAR_SUFFIXES)}"
            )
        if info.nar_bytes > self._nar_bytes_max:
            raise OutsideError(
                f"{info.path} is not fetched from {_upstream(narinfo)}: its NAR of "
                f"{info.nar_bytes} bytes is larger than {self._nar_bytes_max}"
            )
        return claims

    async def _transfer(self, narinfo: NarInfo, claims: Claims) -> Verified:
        timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=self._patience_s, sock_read=self._patience_s
        )
        async with AsyncExitStack() as stack:
            if claims.nar_bytes > SMALL_NAR_BYTES:  # before its server begins to send, and waits
                await stack.enter_async_context(self._large)
            try:
                response = await stack.enter_async_context(
                    self._http.get(narinfo.url, timeout=timeout)
                )
            except (aiohttp.ClientError, TimeoutError) as error:
                raise _BrokenError(self._what(error)) from error
            if response.status in _GONE:
                raise GoneError(
                    claims.path,
                    f"{_upstream(narinfo)} said that it has {claims.path}, but answers "
                    f"{response.status} for its NAR; ask again later, and it is built where it can",
                )
            if response.status != HTTPStatus.OK:
                raise _BrokenError(f"it answers {response.status} {response.reason}")
            # References are not searched for: what the signature says of them holds, and a path
            # may name more or fewer than its NAR shows (`toFile`, `unsafeDiscardReferences`).
            return await store(
                claims,
                None,
                self._pieces(response),
                self._objects,
                compression=narinfo.compression,
                images_of=None if self._on_verified is None else self._store_dir,
            )

    async def _pieces(self, response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
        """What comes, as long as enough of it does. Only waiting counts as time."""
        loop = asyncio.get_running_loop()
        waited_s, size = 0.0, 0
        while True:
            begin = loop.time()
            try:
                piece = await response.content.readany()
            except (aiohttp.ClientError, TimeoutError) as error:
                raise _BrokenError(self._what(error)) from error
            if not piece:
                return
            waited_s += loop.time() - begin
            size += len(piece)
            if size >= LEAST_BYTES:
                waited_s, size = 0.0, 0
            elif waited_s > PATIENCES * self._patience_s:
                raise _BrokenError(f"only {size} bytes came in {waited_s:.3g} s")
            yield piece

    def _what(self, error: Exception) -> str:
        if isinstance(error, TimeoutError):
            return f"nothing came in {self._patience_s:g} s"
        return str(error) or type(error).__name__


def _words(total: tuple[int, int], left: dict[StorePath, int]) -> str:
    paths, size = total
    done = (size - sum(left.values())) // _MB
    return (
        f"fetching from upstream: {paths - len(left)} of {paths} paths, {done} of {size // _MB} MB"
    )


def _upstream(narinfo: NarInfo) -> str:
    """What people know it by: the URL of the cache's machine."""
    parts = urlsplit(narinfo.url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


def _lie(narinfo: NarInfo, what: str) -> OutsideError:
    return OutsideError(
        f"{_upstream(narinfo)} gives something else for {narinfo.info.path} than was signed: "
        f"{what}; nothing of it is kept. Take it up with whoever runs that cache, or take it out "
        "of the farm's upstreams"
    )
