"""Undoing compression that a stranger sent, in pieces of bounded size.

A kilobyte of zstd may hold 32 megabytes, and the library hands over all that its input makes. So
the stream is cut at its blocks, which make at most 128 KiB each: a bomb is met piece by piece.
Format: RFC 8878, section 3.1.1.
"""

import hashlib
import lzma
from collections.abc import AsyncIterator, Iterator
from typing import Final

import zstandard

from grange.errors import PeerError
from grange.store.nar import NarReader
from grange.store.narinfo import NarInfo

WINDOW_BYTES_MAX: Final = 8 << 20  # what levels up to 19 use; memory per upload under way
PIECE_BYTES_MAX: Final = 4 << 20  # smaller ones make threads wait for the interpreter more
XZ_MEMORY_BYTES_MAX: Final = 68 << 20  # what level 9 needs; per upload under way
_BLOCK_BYTES_MAX: Final = 128 << 10
# One less than fit, because a block that began in an earlier chunk may end in a piece too.
_BLOCKS_PER_PIECE: Final = PIECE_BYTES_MAX // _BLOCK_BYTES_MAX - 1
_FRAME_HEADER_BYTES_MAX: Final = 18  # no frame with a NAR in it is shorter
_BLOCK_HEADER_BYTES: Final = 3
_CHECKSUM_BYTES: Final = 4
_RUN_LENGTH: Final = 1  # a block type: one byte, however many it stands for


class Unpacker:
    """Decompresses exactly one zstd frame, fed in chunks of any size."""

    __slots__ = ("_frame", "_has_checksum", "_is_last", "_left", "_rest")

    def __init__(self) -> None:
        self._frame: zstandard.ZstdDecompressionObj | None = None
        self._has_checksum = False
        self._is_last = False  # the last block has begun
        self._rest = b""  # the beginning of a header
        self._left = 0  # bytes before the next block header, or before the end

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """What the next bytes decompress to, in pieces of up to PIECE_BYTES_MAX.

        Raises PeerError for anything but the next part of one frame. Must be exhausted.
        """
        data = self._rest + chunk if self._rest else chunk
        if self._frame is None:
            if len(data) < _FRAME_HEADER_BYTES_MAX:
                self._rest = data
                return
            self._open(data)
        view = memoryview(data)
        start, at, blocks = 0, self._left, 0
        while not self._is_last and at + _BLOCK_HEADER_BYTES <= len(data):
            if blocks == _BLOCKS_PER_PIECE:
                yield self._undo(view[start:at])
                start, blocks = at, 0
            at = self._block_end(data, at)
            blocks += 1
        stop = min(at, len(data))
        if self._is_last and stop < len(data):
            raise PeerError("there are bytes behind the end of the zstd frame")
        if stop > start:
            yield self._undo(view[start:stop])
        self._rest = data[stop:]
        self._left = at - stop

    def finish(self) -> None:
        """Say that nothing more comes; raises PeerError where the frame is not complete."""
        if self._frame is None or not self._frame.eof:
            raise PeerError("the zstd stream ends early")

    def _open(self, data: bytes) -> None:
        try:
            parameters = zstandard.get_frame_parameters(data[:_FRAME_HEADER_BYTES_MAX])
            self._left = zstandard.frame_header_size(data[:_FRAME_HEADER_BYTES_MAX])
        except zstandard.ZstdError:
            raise PeerError("this is not zstd; send what was announced") from None
        if parameters.window_size > WINDOW_BYTES_MAX:
            raise PeerError(
                f"its zstd window of {parameters.window_size} bytes is larger than "
                f"{WINDOW_BYTES_MAX}; compress it at level 19 or lower"
            )
        self._has_checksum = parameters.has_checksum
        self._frame = zstandard.ZstdDecompressor(max_window_size=WINDOW_BYTES_MAX).decompressobj()

    def _block_end(self, data: bytes, at: int) -> int:
        """Where the block that begins at `at` ends, with the checksum if it is the last."""
        header = int.from_bytes(data[at : at + _BLOCK_HEADER_BYTES], "little")
        size = 1 if header >> 1 & 3 == _RUN_LENGTH else header >> 3
        self._is_last = bool(header & 1)
        end = at + _BLOCK_HEADER_BYTES + size
        return end + _CHECKSUM_BYTES if self._is_last and self._has_checksum else end

    def _undo(self, piece: memoryview) -> bytes:
        assert self._frame is not None
        try:
            return self._frame.decompress(piece)
        except zstandard.ZstdError as error:
            raise PeerError(f"its zstd is damaged ({error})") from None


class XzUnpacker:
    """As `Unpacker`, of exactly one xz stream."""

    __slots__ = ("_stream",)

    def __init__(self) -> None:
        self._stream = lzma.LZMADecompressor(lzma.FORMAT_XZ, XZ_MEMORY_BYTES_MAX)

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """As `Unpacker.feed`."""
        while not self._stream.eof:
            try:
                piece = self._stream.decompress(chunk, PIECE_BYTES_MAX)
            except lzma.LZMAError as error:
                raise PeerError(f"its xz is damaged ({error})") from None
            chunk = b""
            if piece:
                yield piece
            elif not self._stream.eof:
                return  # wants more
        if chunk or self._stream.unused_data:
            raise PeerError("there are bytes behind the end of the xz stream")

    def finish(self) -> None:
        """As `Unpacker.finish`."""
        if not self._stream.eof:
            raise PeerError("the xz stream ends early")


def unpacker(compression: str) -> Unpacker | XzUnpacker | None:
    """What undoes this compression; None where there is nothing to undo."""
    match compression:
        case "zstd":
            return Unpacker()
        case "xz":
            return XzUnpacker()
        case "none":
            return None
    raise PeerError(f"the compression {compression[:40]!r} is not known here")


NAR_OVERHEAD_BYTES_MAX: Final = 1 << 10  # of a NAR that is one file


async def read_file(chunks: AsyncIterator[bytes], narinfo: NarInfo, bytes_max: int) -> bytes:
    """The contents of the one file in a NAR that comes in `chunks`, as its narinfo says.

    Raises PeerError where it is not what was signed, is no single file, or exceeds `bytes_max`.
    """
    if narinfo.info.nar_bytes > bytes_max + NAR_OVERHEAD_BYTES_MAX:
        raise PeerError(f"it has {narinfo.info.nar_bytes} bytes, and {bytes_max} is most")
    undo = unpacker(narinfo.compression)
    file = _OneFile()
    reader, digest, size = NarReader(file), hashlib.sha256(), 0
    async for chunk in chunks:
        for piece in (chunk,) if undo is None else undo.feed(chunk):
            size += len(piece)
            if size > narinfo.info.nar_bytes:
                raise PeerError(f"it is longer than the {narinfo.info.nar_bytes} bytes announced")
            digest.update(piece)
            reader.feed(piece)
    if undo is not None:
        undo.finish()
    reader.finish()
    told = narinfo.info.nar_hash
    if size != narinfo.info.nar_bytes or told.algorithm != "sha256":
        raise PeerError("it is not as long as was announced, or hashed in another way")
    if digest.digest() != told.digest:
        raise PeerError("its hash is not the one that was signed")
    return bytes(file.data)


class _OneFile:
    """Takes in a NAR that must be one file; implements `grange.store.nar.Visitor`."""

    def __init__(self) -> None:
        self.data = bytearray()

    def directory_opened(self, _name: bytes) -> None:
        raise PeerError("it is a directory, and a file was expected")

    def directory_closed(self) -> None:
        """Never: none was opened."""

    def symlink(self, _name: bytes, _target: bytes) -> None:
        raise PeerError("it is a link, and a file was expected")

    def regular(self, _name: bytes, _is_executable: bool, _size: int, _offset: int) -> None:
        """Its contents follow."""

    def contents(self, piece: memoryview) -> None:
        self.data += piece
