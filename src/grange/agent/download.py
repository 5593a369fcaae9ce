"""Narinfos and NARs from a binary cache over HTTP, decompressed on the way and bounded."""

import asyncio
import bz2
import lzma
import random
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final, Protocol, TypeVar
from urllib.parse import urljoin

import aiohttp
import zstandard

from grange.errors import OutsideError, PeerError
from grange.store.hash import new_hasher
from grange.store.keys import TrustedKeys
from grange.store.narinfo import NARINFO_BYTES_MAX, NarInfo, fingerprint, parse
from grange.store.path import StoreDir, StorePath

TRIES: Final = 5
# Without a byte, or a lease where that is shorter. With all its tries and the pauses between them a
# download that brings nothing ends before a coordinator calls its attempt stalled, after 300 s.
QUIET_S: Final = 45.0
BACKOFF_S: Final = 0.2  # doubled with every try
CHUNK_BYTES: Final = 256 << 10
ZSTD_WINDOW_BYTES_MAX: Final = 128 << 20  # of zstd's --long; what would need more is refused


_T = TypeVar("_T")


class PathMissingError(PeerError):
    """The cache has no such paths (any more); the farm must build or find them again."""

    def __init__(self, message: str, paths: tuple[StorePath, ...]) -> None:
        super().__init__(message)
        self.paths = paths


class DamagedError(PathMissingError):
    """The cache has other bytes of a path than its path info says: as good as none."""

    def __init__(self, path: StorePath, what: str) -> None:
        super().__init__(f"the farm's cache has {path} damaged: {what}", (path,))


class _Inflate(Protocol):
    def decompress(self, data: bytes, /) -> bytes: ...


class _AsItIs:
    def decompress(self, data: bytes, /) -> bytes:
        return data


# A compressed NAR is one stream; what might follow its end is not looked at, for the NAR would then
# lack bytes, which its size tells.
_DECOMPRESSORS: Final[dict[str, Callable[[], _Inflate]]] = {
    "none": _AsItIs,
    "zstd": lambda: zstandard.ZstdDecompressor(
        max_window_size=ZSTD_WINDOW_BYTES_MAX
    ).decompressobj(),
    "xz": lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=1 << 30),
    "bzip2": bz2.BZ2Decompressor,
    "gzip": lambda: zlib.decompressobj(wbits=31),
}


class BinaryCache:
    """The cache at `url`, whose paths must be signed with one of `keys`.

    Raises PathMissingError for what it lacks, DamagedError for wrong bytes, PeerError for what else
    is wrong, OutsideError where it cannot be reached after several tries.
    """

    def __init__(
        self,
        http: aiohttp.ClientSession,
        url: str,
        keys: TrustedKeys,
        store_dir: StoreDir,
        authorization: str = "",
    ) -> None:
        """`authorization` is the header to show at `url`, and nowhere else."""
        self._authorization = authorization
        self._http = http
        self._base = url + "/"
        self._next: BinaryCache | None = None
        self._waiting: set[asyncio.Timeout] = set()  # for a server to say something
        self._keys = keys
        self._store_dir = store_dir

    def move_to(self, cache: "BinaryCache") -> None:
        """Go on with what is under way at `cache`, which has the same paths, at once: whoever
        serves this one may hang."""
        self._next = cache
        for patience in self._waiting:
            patience.reschedule(0.0)

    async def narinfo(self, path: StorePath) -> NarInfo:
        """The path info of `path`, its signature checked."""
        text = b""
        async for chunk in self._body(f"{path.hash_part}.narinfo", path):
            text += chunk
            if len(text) > NARINFO_BYTES_MAX:
                raise PeerError(f"the narinfo of {path} exceeds {NARINFO_BYTES_MAX} bytes")
        narinfo = parse(text.decode(errors="replace"), self._store_dir)
        info = narinfo.info
        if info.path != path:
            raise PeerError(f"the cache answers with {info.path} where {path} was asked for")
        if self._keys.signer(fingerprint(info, self._store_dir), info.signatures) is None:
            raise PeerError(
                f"{path} in the cache at {self._base} is not signed with a key of this farm;"
                " check the farm's signing keys and those of its upstream caches"
            )
        return narinfo

    async def nar(self, narinfo: NarInfo) -> AsyncIterator[bytes]:
        """The NAR in pieces; the last one is given out only if the whole is right."""
        info = narinfo.info
        make = _DECOMPRESSORS.get(narinfo.compression)
        if make is None:
            raise PeerError(
                f"{info.path} is compressed with {narinfo.compression!r}; known are"
                f" {', '.join(_DECOMPRESSORS)}"
            )
        inflate = make()
        hasher = new_hasher(info.nar_hash.algorithm)
        left = info.nar_bytes
        try:
            async for chunk in self._body(narinfo.url, info.path):
                for start in range(0, len(chunk), CHUNK_BYTES):
                    piece = inflate.decompress(chunk[start : start + CHUNK_BYTES])
                    if not piece:
                        continue
                    left -= len(piece)
                    if left < 0:
                        raise DamagedError(info.path, f"its NAR exceeds {info.nar_bytes} bytes")
                    hasher.update(piece)
                    if not left and hasher.digest() != info.nar_hash.digest:
                        raise DamagedError(info.path, f"its hash is not {info.nar_hash.nix()}")
                    yield piece
        except (zstandard.ZstdError, lzma.LZMAError, zlib.error, EOFError, OSError) as error:
            raise DamagedError(info.path, f"it is no {narinfo.compression}: {error}") from error
        if left:
            raise DamagedError(info.path, f"its NAR ends {left} bytes early")

    async def _body(self, location: str, path: StorePath) -> AsyncIterator[bytes]:
        """The body of a GET; where the connection fails in its midst, the rest by a range."""
        cache = self
        offset = 0
        tries = 0
        while True:
            while cache._next is not None:
                cache = cache._next
            url = urljoin(cache._base, location)
            try:
                headers = {"Range": f"bytes={offset}-"} if offset else {}
                if cache._authorization and url.startswith(cache._base):
                    headers["Authorization"] = cache._authorization
                async with await cache._heard(cache._http.get(url, headers=headers)) as response:
                    _check(response, offset, path)
                    while chunk := await cache._heard(response.content.readany()):
                        yield chunk
                        offset += len(chunk)
                        tries = 0
                return
            except (aiohttp.ClientError, TimeoutError, _PassingError) as error:
                tries += 1
                if tries >= TRIES:
                    reason = str(error) or type(error).__name__
                    raise OutsideError(f"{path} cannot be fetched from {url}: {reason}") from error
            await asyncio.sleep(BACKOFF_S * 2**tries * random.uniform(0.5, 1))

    async def _heard(self, answer: Awaitable[_T]) -> _T:
        """What the server says; TimeoutError once there is another to ask instead."""
        async with asyncio.timeout(None) as patience:
            self._waiting.add(patience)
            try:
                return await answer
            finally:
                self._waiting.discard(patience)


class _PassingError(Exception):
    """An answer that another try may better."""


def _check(response: aiohttp.ClientResponse, offset: int, path: StorePath) -> None:
    status = response.status
    if status == (206 if offset else 200):
        return
    if status in {404, 410}:
        message = f"{path} is not in the cache ({response.url} answers {status})"
        raise PathMissingError(message, (path,))
    if status >= 500 or status in {408, 429}:
        raise _PassingError(f"it answers {status}")
    raise PeerError(f"{path} cannot be fetched: {response.url} answers {status}")
