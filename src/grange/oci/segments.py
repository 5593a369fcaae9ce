"""Layers of compressed segments: a header, one segment for each store path, an end.

Each segment is a gzip member or a zstd frame of its own, and both formats read one after another as
one. So a path is compressed once, and a layer of other paths is made by writing its segment again.
"""

import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from typing import IO, Final, Protocol, Self, cast

import zstandard

from grange.errors import PeerError
from grange.oci.tar import END, PIECE_BYTES, TarOfNar, store_header
from grange.store.compression import USUAL_LEVELS, Compressor, compressor
from grange.store.path import NIX_STORE, StoreDir, StorePath

WINDOW_BYTES_MAX: Final = 8 << 20  # of a segment made by others than this very version
_GZIP_WBITS: Final = 31
_LIBRARIES: Final = {
    "gzip": f"zlib-{zlib.ZLIB_RUNTIME_VERSION}",
    "zstd": "libzstd-" + ".".join(map(str, zstandard.ZSTD_VERSION)),
}


@dataclass(frozen=True, slots=True)
class Codec:
    """How segments are compressed, in one thread."""

    compression: str  # "gzip" or "zstd"
    level: int

    @classmethod
    def usual(cls, compression: str) -> Self:
        return cls(compression, USUAL_LEVELS[compression])

    @property
    def version(self) -> str:
        """Names all that decides which bytes come out, such as ``zstd-3-libzstd-1.5.7``."""
        return f"{self.compression}-{self.level}-{_LIBRARIES[self.compression]}"


GZIP: Final = Codec.usual("gzip")
ZSTD: Final = Codec.usual("zstd")


@dataclass(frozen=True, slots=True)
class Segment:
    """Where in a layer's blob a path's segment lies."""

    path: StorePath
    offset: int
    size: int  # in bytes
    digest: str  # of the segment alone, as "sha256:…"


@dataclass(frozen=True, slots=True)
class Layer:
    """What is known of a layer when all of it has been written."""

    diff_id: str  # of the tar archive, as "sha256:…"
    digest: str  # of the blob
    tar_bytes: int
    blob_bytes: int
    segments: tuple[Segment, ...]


class LayerWriter:
    """Makes one layer in a stream; what its calls return, in their order, is the blob.

    `start`; then for each path `open` and its NAR, or `open_segment` and its segment of another
    layer, to `feed`, and `close`; then `finish`. Holds a few megabytes, whatever the sizes.
    A PeerError from any of them ends it: there is no layer.
    """

    def __init__(self, codec: Codec, store_dir: StoreDir = NIX_STORE) -> None:
        self._codec = codec
        self._store_dir = store_dir
        self._tar = _Measured()
        self._blob = _Measured()
        self._segments: list[Segment] = []
        self._member: _Member | None = None
        self._path: StorePath | None = None  # whose member it is
        self._told: str | None = None  # the digest that its segment must have
        self._segment = _Measured()  # its bytes in the blob
        self._is_refused = False

    def start(self) -> bytes:
        """The header: the directories above all store paths."""
        return self.whole(store_header(self._store_dir))

    def whole(self, tar: bytes) -> bytes:
        """A segment of these entries, which belong to no path."""
        assert self._member is None
        self._tar.add(tar)
        return self._blob.add(_segment_of(tar, self._codec))

    def open(self, path: StorePath) -> None:
        """The NAR of `path` is fed next."""
        nar = TarOfNar(path, self._store_dir)
        self._open(path, _FromNar(nar, self._codec, self._tar), None)

    def open_segment(self, path: StorePath, digest: str) -> None:
        """The segment of `path` in a layer of the same codec, with this digest, is fed next."""
        self._open(path, _FromSegment(path, self._codec, self._tar), digest)

    def feed(self, data: bytes | memoryview) -> Iterator[bytes]:
        """The blob's next bytes. Must be exhausted."""
        assert self._member is not None, "no path is open"
        view = memoryview(data)
        with self._unless_refused():
            for at in range(0, len(view), PIECE_BYTES):
                made = self._member.feed(view[at : at + PIECE_BYTES])
                if made:
                    self._segment.add(made)
                    yield self._blob.add(made)

    def close(self) -> bytes:
        """Say that all of the path was fed; raises PeerError where that cannot be true."""
        assert self._member is not None, "no path is open"
        assert self._path is not None
        with self._unless_refused():
            made = self._member.finish()
            self._segment.add(made)
            self._blob.add(made)
            digest, size = self._segment.digest(), self._segment.size
            if self._told not in (None, digest):
                raise PeerError(
                    f"the stored segment of {self._path} has the digest {digest}, not "
                    f"{self._told}; forget that layer and make it from NARs"
                )
        self._segments.append(Segment(self._path, self._blob.size - size, size, digest))
        self._member = None
        return made

    def finish(self) -> tuple[bytes, Layer]:
        """The end of the archive, and what the whole layer is."""
        with self._unless_refused():
            last = self.whole(END)
        layer = Layer(
            diff_id=self._tar.digest(),
            digest=self._blob.digest(),
            tar_bytes=self._tar.size,
            blob_bytes=self._blob.size,
            segments=tuple(self._segments),
        )
        return last, layer

    def _open(self, path: StorePath, member: "_Member", told: str | None) -> None:
        assert self._member is None, "the path before it was not closed"
        self._member, self._path, self._told = member, path, told
        self._segment = _Measured()

    @contextmanager
    def _unless_refused(self) -> Iterator[None]:
        """Nothing comes out any more after an error in here."""
        assert not self._is_refused, "the layer was refused, or what it fed was not taken"
        self._is_refused = True
        yield
        self._is_refused = False


class _Measured:
    """Counts and hashes what passes."""

    __slots__ = ("_hasher", "size")

    def __init__(self) -> None:
        self.size = 0
        self._hasher = sha256()

    def add(self, data: bytes) -> bytes:
        self.size += len(data)
        self._hasher.update(data)
        return data

    def digest(self) -> str:
        return f"sha256:{self._hasher.hexdigest()}"


class _Member(Protocol):
    """Makes the bytes of one segment, and tells the layer what tar bytes are in it."""

    def feed(self, data: memoryview) -> bytes: ...

    def finish(self) -> bytes: ...


class _FromNar:
    """The segment of a path from its NAR."""

    def __init__(self, nar: TarOfNar, codec: Codec, tar: _Measured) -> None:
        self._nar = nar
        self._tar = tar
        self._stream = compressor(codec.compression, codec.level)

    def feed(self, data: memoryview) -> bytes:
        return _compressed(self._stream, self._tar.add(self._nar.feed(data)))

    def finish(self) -> bytes:
        last = _compressed(self._stream, self._tar.add(self._nar.finish()))
        return last + self._stream.flush()


def _segment_of(tar: bytes, codec: Codec) -> bytes:
    stream = compressor(codec.compression, codec.level)
    return _compressed(stream, tar) + stream.flush()


def _compressed(stream: Compressor, tar: bytes) -> bytes:
    """What comes out for `tar`, given in pieces of one size: how a NAR came in must not show."""
    view = memoryview(tar)
    cuts = range(0, len(view), PIECE_BYTES)
    return b"".join([stream.compress(view[at : at + PIECE_BYTES]) for at in cuts])


class _FromSegment:
    """A segment made before. Only its digest proves that it is whole; here it is just undone."""

    def __init__(self, path: StorePath, codec: Codec, tar: _Measured) -> None:
        self._path = path
        self._undo = _unzstd(tar) if codec.compression == "zstd" else _gunzip(tar)

    def feed(self, data: memoryview) -> bytes:
        try:
            self._undo(data)
        except (zstandard.ZstdError, zlib.error) as error:
            raise PeerError(
                f"the stored segment of {self._path} is damaged ({error}); forget that layer and "
                "make it from NARs"
            ) from None
        return bytes(data)

    def finish(self) -> bytes:
        return b""


# Both give a piece at a time, however much their input stands for.


def _unzstd(tar: _Measured) -> Callable[[memoryview], object]:
    frame = zstandard.ZstdDecompressor(max_window_size=WINDOW_BYTES_MAX)
    return frame.stream_writer(cast(IO[bytes], _Sink(tar)), write_size=PIECE_BYTES).write


def _gunzip(tar: _Measured) -> Callable[[memoryview], object]:
    member = zlib.decompressobj(_GZIP_WBITS)

    def undo(data: memoryview | bytes) -> None:
        while data and not member.eof:
            tar.add(member.decompress(data, PIECE_BYTES))
            data = member.unconsumed_tail

    return undo


class _Sink:
    """All of a file that a zstd writer asks for."""

    def __init__(self, tar: _Measured) -> None:
        self._tar = tar

    def write(self, data: bytes) -> int:
        return len(self._tar.add(data))
