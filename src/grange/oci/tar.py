"""A store path's NAR as entries of a tar archive, while it comes in.

Everything a reader could see is fixed, so that one NAR makes one sequence of bytes: owner 0:0,
times of one second as in every store, modes 0555 and 0444, names relative to the image's root,
directories before what is in them, and all of them there: clients disagree on what an implied
parent looks like. Names that ustar has no room for go into PAX records.
Source: POSIX.1-2017, "pax", ustar and pax interchange formats; OCI image specification, layer.md.
"""

from collections.abc import Callable
from typing import Final

from grange.errors import PeerError
from grange.store.nar import NarReader
from grange.store.path import NIX_STORE, StoreDir, StorePath

FORMAT_VERSION: Final = "tar-1"  # another one as soon as any byte made here becomes another
MTIME_S: Final = 1
PATH_BYTES_MAX: Final = 4095  # PATH_MAX without its final zero: nobody could unpack more
END: Final = bytes(1024)  # of an archive
PIECE_BYTES: Final = 256 << 10  # what fits a core's own cache

_BLOCK_BYTES: Final = 512
_NAME_BYTES_MAX: Final = 100
_PREFIX_BYTES_MAX: Final = 155
_SIZE_MAX: Final = 8**11 - 1  # what eleven octal digits hold
_OWNER_AND_GROUP: Final = b"0000000\0" * 2
_MTIME: Final = b"%011o\0" % MTIME_S
_MAGIC: Final = b"ustar\x0000"
_NAMES_AND_DEVICE: Final = bytes(64) + b"0000000\0" * 2  # of owner and group, which are empty
_CHECKSUM_BLANK: Final = 8 * ord(" ")  # the field counts as blanks
_FIXED_SUM: Final = sum(_OWNER_AND_GROUP + _MTIME + _MAGIC + _NAMES_AND_DEVICE) + _CHECKSUM_BLANK

_REGULAR: Final = b"0"
_SYMLINK: Final = b"2"
_DIRECTORY: Final = b"5"
_PAX: Final = b"x"
_PAX_NAME: Final = b"././@PaxHeader"  # nobody sees it
_WHITEOUT: Final = b"/.wh."  # in a layer such a name removes a file of the layers below


class UnfitError(PeerError):
    """A package that no image can have."""


def padding(size: int) -> bytes:
    """The zeros behind a file of `size` bytes."""
    return bytes(-size & (_BLOCK_BYTES - 1))


def directory(name: bytes, mode: int = 0o555) -> bytes:
    """A directory; `name` is relative to the image's root, which itself is ``.``."""
    return _entry(name + b"/", _DIRECTORY, mode)


def file_open(name: bytes, size: int, mode: int = 0o444) -> bytes:
    """What stands before the contents of a file; `padding(size)` comes after them."""
    return _entry(name, _REGULAR, mode, size=size)


def symlink(name: bytes, target: bytes) -> bytes:
    """A symlink."""
    return _entry(name, _SYMLINK, 0o777, target=target)


def store_header(store_dir: StoreDir = NIX_STORE) -> bytes:
    """The entries above all store paths: the image's root, and the store with its parents."""
    pieces = [directory(b".", 0o755)]
    above = b""
    for part in store_dir.root.strip("/").encode().split(b"/"):
        above += part
        pieces.append(directory(above, 0o755))
        above += b"/"
    return b"".join(pieces)


def _entry(name: bytes, kind: bytes, mode: int, *, size: int = 0, target: bytes = b"") -> bytes:
    """An entry's header, with one of PAX records before it where ustar has no room."""
    if len(name) > PATH_BYTES_MAX:
        raise UnfitError(
            f"the name {name[:100]!r}… has {len(name)} bytes, and nobody can unpack more than "
            f"{PATH_BYTES_MAX}; leave its package out of images"
        )
    if _WHITEOUT in b"/" + name:
        raise UnfitError(
            f"a file called {name[-100:]!r} would remove another one from the image; leave its "
            "package out of images"
        )
    records = b""
    if len(target) > _NAME_BYTES_MAX:
        records += _record(b"linkpath", target)
        target = target[:_NAME_BYTES_MAX]
    prefix = b""
    if len(name) > _NAME_BYTES_MAX:
        # The first slash behind which the rest fits; not the one a directory's name ends in.
        cut = name.find(b"/", len(name) - _NAME_BYTES_MAX - 1, -1)
        if 0 < cut <= _PREFIX_BYTES_MAX:
            prefix, name = name[:cut], name[cut + 1 :]
        else:
            records += _record(b"path", name)
            name = name[:_NAME_BYTES_MAX]
    if size > _SIZE_MAX:
        records += _record(b"size", b"%d" % size)
        size = 0
    header = _header(name, kind, mode, size=size, prefix=prefix, target=target)
    if not records:
        return header
    before = _header(_PAX_NAME, _PAX, 0o444, size=len(records))
    return before + records + padding(len(records)) + header


def _record(key: bytes, value: bytes) -> bytes:
    """One PAX record, whose length counts its own digits."""
    rest = b" %s=%s\n" % (key, value)
    length = len(rest) + len(b"%d" % len(rest))
    length = len(rest) + len(b"%d" % length)
    return b"%d%s" % (length, rest)


def _header(
    name: bytes, kind: bytes, mode: int, *, size: int, prefix: bytes = b"", target: bytes = b""
) -> bytes:
    numbers = b"%07o\0" % mode, b"%011o\0" % size
    checksum = _FIXED_SUM + sum(name) + sum(prefix) + sum(target) + kind[0]
    checksum += sum(numbers[0]) + sum(numbers[1])
    return b"".join(
        (
            name.ljust(_NAME_BYTES_MAX, b"\0"),
            numbers[0],
            _OWNER_AND_GROUP,
            numbers[1],
            _MTIME,
            b"%06o\0 " % checksum,
            kind,
            target.ljust(_NAME_BYTES_MAX, b"\0"),
            _MAGIC,
            _NAMES_AND_DEVICE,
            prefix.ljust(_PREFIX_BYTES_MAX + 12, b"\0"),
        )
    )


class TarOfNar:
    """Takes the NAR of `path` in chunks of any size and gives its tar entries in whole pieces.

    So where a piece ends does not depend on the chunks. What a chunk gives is at most some twenty
    times as long, so cut chunks bound the memory. The parents of the path and the end of the
    archive are not in it: see `store_header` and `END`.
    Raises PeerError for what is no NAR, or cannot be said in a layer; it is of no use after that.
    """

    __slots__ = ("_entries", "_is_refused", "_reader")

    def __init__(
        self, path: StorePath, store_dir: StoreDir = NIX_STORE, piece_bytes: int = PIECE_BYTES
    ) -> None:
        self._entries = _Entries(f"{store_dir.root}/{path}".strip("/").encode(), piece_bytes)
        self._reader = NarReader(self._entries)
        self._is_refused = False

    def feed(self, nar: bytes | memoryview) -> bytes | bytearray:
        """What the next bytes of the NAR give: a multiple of `piece_bytes`, often none."""
        self._after(lambda: self._reader.feed(nar))
        return self._entries.take_pieces()

    def finish(self) -> bytes:
        """The rest; raises PeerError where the NAR is not complete."""
        self._after(self._reader.finish)
        return self._entries.take()

    def _after(self, step: Callable[[], None]) -> None:
        assert not self._is_refused, "the NAR was refused"
        self._is_refused = True
        step()
        self._is_refused = False


class _Entries:
    """Writes down as tar entries what a `NarReader` finds; a `grange.store.nar.Visitor`."""

    __slots__ = ("_above", "_contents_left", "_out", "_padding", "_piece_bytes", "_root")

    def __init__(self, root: bytes, piece_bytes: int = PIECE_BYTES) -> None:
        self._root = root
        self._piece_bytes = piece_bytes
        self._above: list[bytes] = []  # the open directories, each with its slash
        self._out = bytearray()
        self._contents_left = 0  # of the file last met
        self._padding = b""  # behind it

    def take_pieces(self) -> bytes | bytearray:
        """What has been written since something was taken, in whole pieces."""
        end = len(self._out) // self._piece_bytes * self._piece_bytes
        if not end:
            return b""
        taken, self._out = self._out, self._out[end:]  # what is large is not copied
        del taken[end:]
        return taken

    def take(self) -> bytes:
        """All that is left."""
        taken = bytes(self._out)
        self._out.clear()
        return taken

    def directory_opened(self, name: bytes) -> None:
        path = self._path(name)
        self._out += directory(path)
        self._above.append(path + b"/")

    def directory_closed(self) -> None:
        self._above.pop()

    def symlink(self, name: bytes, target: bytes) -> None:
        self._out += symlink(self._path(name), target)

    def regular(self, name: bytes, is_executable: bool, size: int, _offset: int) -> None:
        self._out += file_open(self._path(name), size, 0o555 if is_executable else 0o444)
        self._contents_left = size
        self._padding = padding(size)

    def contents(self, piece: memoryview) -> None:
        self._out += piece
        self._contents_left -= len(piece)
        if not self._contents_left:
            self._out += self._padding

    def _path(self, name: bytes) -> bytes:
        if not self._above:
            return self._root
        return self._above[-1] + name
