"""Integers, strings and lists as the worker protocol writes them.

An integer is 8 bytes, little-endian; a string is its length, its bytes, and zeros up to a multiple
of 8; a list is its length and its items. Source: Nix, libutil/serialise.hh.
"""

import asyncio
from collections.abc import Collection, Iterable, Mapping
from struct import Struct
from typing import Final

from grange.daemon.failure import DaemonGone
from grange.errors import PeerError
from grange.store.basic import BasicDerivation
from grange.store.content import ContentAddress
from grange.store.hash import Hash
from grange.store.narinfo import PathInfo
from grange.store.path import StoreDir, StorePath

STRING_BYTES_MAX: Final = 64 << 20  # the largest derivations known are a few MiB
LIST_ITEMS_MAX: Final = 10_000_000  # ten times the paths of the largest stores known
READ_BYTES: Final = 256 << 10  # measured: no gain beyond
# A question takes milliseconds. A daemon whose database another one has locked, as after a large
# import, needs seconds; one that says nothing for this long will say nothing any more.
ANSWER_S: Final = 100.0

_INTEGER: Final = Struct("<Q")
_ZEROS: Final = bytes(8)


def integer(value: int) -> bytes:
    return _INTEGER.pack(value)


def string(value: str | bytes) -> bytes:
    data = value.encode(errors="surrogateescape") if isinstance(value, str) else value
    return b"".join((_INTEGER.pack(len(data)), data, _ZEROS[: -len(data) % 8]))


def strings(values: Collection[str | bytes]) -> bytes:
    return integer(len(values)) + b"".join(map(string, values))


def string_map(values: Mapping[str, str]) -> bytes:
    """Pairs in the order of their keys, which is the order the daemon keeps them in."""
    return integer(len(values)) + b"".join(
        string(name) + string(values[name]) for name in sorted(values)
    )


def store_paths(paths: Iterable[StorePath], store_dir: StoreDir) -> bytes:
    return strings([store_dir.show(path) for path in sorted(set(paths))])


def path_info(info: PathInfo, store_dir: StoreDir) -> bytes:
    """Path and path info, as `AddMultipleToStore` wants them before each NAR."""
    content_address = info.content_address
    return b"".join(
        (
            string(store_dir.show(info.path)),
            string(store_dir.show(info.deriver) if info.deriver else ""),
            string(info.nar_hash.base16()),
            store_paths(info.references, store_dir),
            integer(0),  # registration time: the daemon's own
            integer(info.nar_bytes),
            integer(0),  # "ultimate": built by that very store, which no import is
            strings(info.signatures),
            string(content_address.show() if content_address else ""),
        )
    )


def basic_derivation(derivation: BasicDerivation, store_dir: StoreDir) -> bytes:
    parts = [integer(len(derivation.outputs))]
    for name, output in sorted(derivation.outputs.items()):
        fields = name, store_dir.show(output.path), output.hash_algo, output.hash
        parts.extend(map(string, fields))
    parts.append(store_paths(derivation.input_srcs, store_dir))
    parts.append(string(derivation.system))
    parts.append(string(derivation.builder))
    parts.append(strings(derivation.args))
    parts.append(string_map(derivation.env))
    return b"".join(parts)


class WireReader:
    """Reads from a stream with a buffer of its own, so that most reads need no wait.

    Whatever cannot be read, because it ended, because it is no sense or because nothing comes for
    `patience_s` (None: for ever), raises DaemonGone.
    """

    __slots__ = ("_buffer", "_position", "_stream", "patience_s", "store_dir")

    def __init__(self, stream: asyncio.StreamReader, store_dir: StoreDir) -> None:
        self._stream = stream
        self._buffer = b""
        self._position = 0
        self.patience_s: float | None = ANSWER_S
        self.store_dir = store_dir

    @property
    def at_end(self) -> bool:
        return self._stream.at_eof() and self._position == len(self._buffer)

    async def _more(self) -> bytes:
        try:
            async with asyncio.timeout(self.patience_s):
                chunk = await self._stream.read(READ_BYTES)
        except TimeoutError:
            raise DaemonGone(
                f"the daemon said nothing for {self.patience_s:.0f} s;"
                " see its own log, and whether its store's disk answers"
            ) from None
        except OSError as error:
            raise DaemonGone(f"the connection to the daemon failed: {error}") from error
        if not chunk:
            raise DaemonGone("the daemon closed the connection; its own log may say why")
        return chunk

    async def _need(self, count: int) -> None:
        """Wait until `count` bytes are in the buffer."""
        parts = [self._buffer[self._position :]]
        have = len(parts[0])
        while have < count:
            parts.append(await self._more())
            have += len(parts[-1])
        self._buffer = b"".join(parts)
        self._position = 0

    async def integer(self) -> int:
        position = self._position
        if len(self._buffer) - position < 8:
            await self._need(8)
            position = 0
        self._position = position + 8
        value: int = _INTEGER.unpack_from(self._buffer, position)[0]
        return value

    async def bounded(self, most: int, what: str) -> int:
        value = await self.integer()
        if value > most:
            raise DaemonGone(f"protocol violation by the daemon: {what} of {value}, at most {most}")
        return value

    async def boolean(self) -> bool:
        return await self.integer() != 0

    async def peek(self) -> int:
        """The integer that comes next, left where it is."""
        value = await self.integer()
        self._position -= 8
        return value

    async def string(self) -> bytes:
        length = await self.bounded(STRING_BYTES_MAX, "a string length")
        position = self._position
        padded = (length + 7) & ~7
        if len(self._buffer) - position < padded:
            await self._need(padded)
            position = 0
        self._position = position + padded
        end = position + length
        if self._buffer[end : self._position].strip(b"\0"):
            raise DaemonGone("protocol violation by the daemon: a string is not padded with zeros")
        return self._buffer[position:end]

    async def clipped(self, bytes_max: int) -> bytes:
        """A string of any length, of which no more than `bytes_max` bytes are kept."""
        length = await self.peek()
        if length <= bytes_max:
            return await self.string()
        await self.integer()
        kept = b""
        left = (length + 7) & ~7
        while left:
            piece = await self.some(left)
            left -= len(piece)
            if len(kept) < bytes_max:
                kept += piece[: bytes_max - len(kept)]
        return kept + b" [%d more bytes of this line were left out]" % (length - bytes_max)

    async def some(self, bytes_max: int) -> bytes:
        """Raw bytes, at least one and at most `bytes_max` (which is at least one)."""
        if self._position == len(self._buffer):
            self._buffer = await self._more()
            self._position = 0
        piece = self._buffer[self._position : self._position + bytes_max]
        self._position += len(piece)
        return piece

    async def text(self) -> str:
        return (await self.string()).decode(errors="surrogateescape")

    async def strings(self) -> list[str]:
        count = await self.bounded(LIST_ITEMS_MAX, "a list length")
        return [await self.text() for _ in range(count)]

    async def string_map(self) -> dict[str, str]:
        count = await self.bounded(LIST_ITEMS_MAX, "a map length")
        return {await self.text(): await self.text() for _ in range(count)}

    async def store_path(self) -> StorePath:
        return self._parse_path(await self.text())

    async def store_paths(self) -> tuple[StorePath, ...]:
        return tuple(map(self._parse_path, await self.strings()))

    def _parse_path(self, text: str) -> StorePath:
        try:
            return self.store_dir.parse(text)
        except PeerError as error:
            raise DaemonGone(f"protocol violation by the daemon: {error}") from error

    async def path_info(self, path: StorePath) -> PathInfo:
        """What the daemon knows of `path`, without the path itself."""
        deriver = await self.text()
        nar_hash = await self.text()
        references = await self.store_paths()
        await self.integer()  # registration time
        nar_bytes = await self.integer()
        await self.integer()  # "ultimate"
        signatures = await self.strings()
        content_address = await self.text()
        try:
            return PathInfo(
                path=path,
                nar_hash=Hash.parse(nar_hash, "sha256"),
                nar_bytes=nar_bytes,
                references=tuple(sorted(references)),
                deriver=self._parse_path(deriver) if deriver else None,
                content_address=ContentAddress.parse(content_address) if content_address else None,
                signatures=tuple(signatures),
            )
        except PeerError as error:
            raise DaemonGone(f"protocol violation by the daemon: {error}") from error
