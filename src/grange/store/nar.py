"""Nix archives (NAR): a strict incremental reader, a writer for trees in memory, and the listing.

A NAR is a sequence of strings, each a 64-bit little-endian length, the bytes, and zeros up to a
multiple of eight. Exactly one archive stands for a tree, so its hash names the tree; that is why
the reader refuses whatever no packer writes (order, padding, missing parts), even where Nix would
let it pass. Source: Nix manual, "Nix Archive (NAR) Format"; libutil/archive.cc.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from json import JSONEncoder
from typing import Final, NoReturn, Protocol

from grange.errors import PeerError

NAME_BYTES_MAX: Final = 255  # NAME_MAX of every file system a store lives on
TARGET_BYTES_MAX: Final = 4095  # PATH_MAX without its final zero
CONTENTS_BYTES_MAX: Final = 2**63 - 1  # the largest file offset
DEPTH_MAX: Final = 256  # twice this in JSON objects, which must stay below Python's recursion limit
LISTING_BYTES_MAX: Final = 32 << 20  # some 400,000 files; larger trees go without a listing


def padding(size: int) -> bytes:
    """The zeros behind a string of `size` bytes."""
    return bytes(-size & 7)


def string(data: bytes) -> bytes:
    """`data` as the archive spells it: length, bytes, padding."""
    return len(data).to_bytes(8, "little") + data + padding(len(data))


def _strings(*tokens: bytes) -> bytes:
    return b"".join(map(string, tokens))


MAGIC: Final = string(b"nix-archive-1")
CLOSE: Final = string(b")")  # ends a node, and once more the entry it is in
DIRECTORY_OPEN: Final = _strings(b"(", b"type", b"directory")
_REGULAR: Final = _strings(b"(", b"type", b"regular", b"contents")
_EXECUTABLE: Final = _strings(b"(", b"type", b"regular", b"executable", b"", b"contents")
_SYMLINK: Final = _strings(b"(", b"type", b"symlink", b"target")
_ENTRY: Final = _strings(b"entry", b"(", b"name")
_NODE: Final = string(b"node")


def regular_open(size: int, *, is_executable: bool) -> bytes:
    """What stands before the contents of a file; `padding(size)` and CLOSE come after them."""
    return (_EXECUTABLE if is_executable else _REGULAR) + size.to_bytes(8, "little")


def symlink_node(target: bytes) -> bytes:
    """A whole symlink."""
    return _SYMLINK + string(target) + CLOSE


def entry_open(name: bytes) -> bytes:
    """What stands before the node called `name` in its directory; CLOSE comes after the node."""
    return _ENTRY + string(name) + _NODE


@dataclass(frozen=True, slots=True)
class File:
    contents: bytes
    is_executable: bool = False


@dataclass(frozen=True, slots=True)
class Symlink:
    target: bytes


@dataclass(frozen=True, slots=True)
class Directory:
    entries: "Mapping[bytes, Tree]"


Tree = File | Symlink | Directory


def nar_of_tree(tree: Tree) -> bytes:
    """The archive of a tree in memory, whose names and depth must be ones `NarReader` accepts."""
    return MAGIC + b"".join(_node_pieces(tree))


def single_file_nar(contents: bytes, executable: bool = False) -> bytes:
    """The archive of one file."""
    return nar_of_tree(File(contents, executable))


def nar_of_text(text: bytes) -> bytes:
    """The archive of a store path written by `builtins.toFile` and its like: a derivation, say."""
    return single_file_nar(text)


def _node_pieces(tree: Tree) -> Iterator[bytes]:
    match tree:
        case File(contents, is_executable):
            yield regular_open(len(contents), is_executable=is_executable)
            yield contents
            yield padding(len(contents)) + CLOSE
        case Symlink(target):
            yield symlink_node(target)
        case Directory(entries):
            yield DIRECTORY_OPEN
            for name in sorted(entries):
                yield entry_open(name)
                yield from _node_pieces(entries[name])
                yield CLOSE
            yield CLOSE


class Visitor(Protocol):
    """What a `NarReader` finds, in the order of the archive. The root's name is empty."""

    def directory_opened(self, name: bytes) -> None: ...

    def directory_closed(self) -> None: ...

    def symlink(self, name: bytes, target: bytes) -> None: ...

    def regular(self, name: bytes, is_executable: bool, size: int, offset: int) -> None:
        """A file whose `size` bytes begin at byte `offset` of the archive."""

    def contents(self, piece: memoryview) -> None:
        """The next bytes, never none, of the file last met; valid only during the call."""


# An item is what the reader takes in one step. The longest is an entry that is a symlink.
_ITEM_BYTES_MAX: Final = (
    len(entry_open(bytes(NAME_BYTES_MAX))) + len(symlink_node(bytes(TARGET_BYTES_MAX))) + len(CLOSE)
)
_CLOSES: Final = (CLOSE, CLOSE + CLOSE)  # of a root; of a node and its entry
_TAILS: Final = [[bytes(pad) + close for pad in range(8)] for close in _CLOSES]
_ZEROS: Final = [bytes(pad) for pad in range(8)]


class NarReader:
    """Reads one archive in chunks of any size and tells `visitor` what is in it.

    Holds less than 5 KB and a name per level of the archive; file contents are passed on or skipped
    at the same cost whatever their size. What it has been fed is judged once the longest
    possible item is there, or at `finish`. After a PeerError it must not be used again.
    """

    __slots__ = ("_base", "_contents_left", "_item", "_names", "_rest", "_visitor", "nar_bytes")

    def __init__(self, visitor: Visitor | None = None) -> None:
        self.nar_bytes = 0  # fed so far
        self._visitor = visitor
        self._item: Callable[[bytes, int], int] | None = self._root  # None behind the last node
        self._names: list[bytes] = []  # the entry last read of each open directory
        self._contents_left = 0  # bytes of the current file not fed yet
        self._rest = b""  # fed but not read: the beginning of an item
        self._base = 0  # where in the archive that, or the item behind the contents, begins

    def feed(self, data: bytes | memoryview) -> None:
        """Take the next bytes; raises PeerError where they cannot belong to an archive."""
        self.nar_bytes += len(data)
        if self._contents_left:
            piece = memoryview(data)[: self._contents_left]
            self._contents_left -= len(piece)
            if self._visitor is not None and piece:
                self._visitor.contents(piece)
            data = memoryview(data)[len(piece) :]
        if data:
            self._read(self._rest + data, _ITEM_BYTES_MAX)

    def finish(self) -> None:
        """Say that nothing more comes; raises PeerError where the archive is not complete."""
        if self._contents_left:
            raise _malformed(
                self.nar_bytes, f"the archive ends {self._contents_left} bytes before a file does"
            )
        self._read(self._rest, 1)
        if self._item is not None or self._contents_left:
            raise _malformed(self.nar_bytes, "the archive ends early")

    def _read(self, data: bytes, item_bytes: int) -> None:
        """Take items off `data` as long as it has `item_bytes` left."""
        at = 0
        last = len(data) - item_bytes
        while at <= last and self._item is not None:
            at = self._item(data, at)
        if self._item is None and at < len(data):
            raise _malformed(self._base + at, "there are bytes behind the end of the archive")
        self._contents_left = max(0, at - len(data))
        self._rest = data[at:]
        self._base += at

    # Each kind of item takes the data and where in it to begin, and returns where it ended.

    def _root(self, data: bytes, at: int) -> int:
        if not data.startswith(MAGIC, at):
            self._refuse(data, at, "the magic string 'nix-archive-1'", MAGIC)
        return self._node(data, at + len(MAGIC), b"")

    def _entry(self, data: bytes, at: int) -> int:
        """An entry up to the contents or entries of its node, or the end of the directory."""
        if not data.startswith(_ENTRY, at):
            if self._visitor is not None and data.startswith(CLOSE, at):
                self._visitor.directory_closed()
            self._names.pop()
            return self._close(data, at, _CLOSES[bool(self._names)], "an entry or ')'", _ENTRY)
        name_at = at + len(_ENTRY)
        name, at = self._string(data, name_at, NAME_BYTES_MAX, "a name")
        if name <= self._names[-1]:
            if not name:
                raise _malformed(self._base + name_at, "a name is empty")
            raise _malformed(
                self._base + name_at, f"{name!r} must not follow {self._names[-1]!r}: unsorted"
            )
        if b"/" in name or b"\0" in name or name in {b".", b".."}:
            raise _malformed(self._base + name_at, f"{name!r} is no name for a file")
        self._names[-1] = name
        if not data.startswith(_NODE, at):
            self._refuse(data, at, "'node'", _NODE)
        return self._node(data, at + len(_NODE), name)

    def _node(self, data: bytes, at: int, name: bytes) -> int:
        if data.startswith(_REGULAR, at):
            return self._regular(data, at + len(_REGULAR), name, False)
        if data.startswith(_EXECUTABLE, at):
            return self._regular(data, at + len(_EXECUTABLE), name, True)
        if data.startswith(DIRECTORY_OPEN, at):
            if len(self._names) == DEPTH_MAX:
                raise _malformed(self._base + at, f"directories lie more than {DEPTH_MAX} deep")
            if self._visitor is not None:
                self._visitor.directory_opened(name)
            self._names.append(b"")
            self._item = self._entry
            return at + len(DIRECTORY_OPEN)
        if not data.startswith(_SYMLINK, at):
            literals = (_REGULAR, _EXECUTABLE, DIRECTORY_OPEN, _SYMLINK)
            self._refuse(data, at, "a regular file, a symlink or a directory", *literals)
        target_at = at + len(_SYMLINK)
        target, at = self._string(data, target_at, TARGET_BYTES_MAX, "a symlink's target")
        if not target or b"\0" in target:
            raise _malformed(self._base + target_at, f"{target!r} is no target for a symlink")
        if self._visitor is not None:
            self._visitor.symlink(name, target)
        return self._close(data, at, _CLOSES[bool(self._names)], "')'")

    def _regular(self, data: bytes, at: int, name: bytes, is_executable: bool) -> int:
        size = int.from_bytes(data[at : at + 8], "little")
        if size > CONTENTS_BYTES_MAX:
            raise _malformed(self._base + at, f"a file claims {size} bytes")
        at += 8
        if at > len(data):
            raise _malformed(self._base + len(data), "the archive ends early")
        if self._visitor is not None:
            self._visitor.regular(name, is_executable, size, self._base + at)
            if size and at < len(data):
                self._visitor.contents(memoryview(data)[at : at + size])
        tail = _TAILS[bool(self._names)][-size & 7]
        self._item = lambda data, at: self._close(data, at, tail, "zeros and ')' behind a file")
        return at + size

    def _string(self, data: bytes, at: int, bytes_max: int, what: str) -> tuple[bytes, int]:
        size = int.from_bytes(data[at : at + 8], "little")
        if size > bytes_max:
            raise _malformed(self._base + at, f"{what} of {size} bytes; at most {bytes_max} may be")
        at += 8
        end = at + size
        pad = -size & 7
        if end + pad > len(data):
            raise _malformed(self._base + len(data), "the archive ends early")
        if data[end : end + pad] != _ZEROS[pad]:
            raise _malformed(self._base + end, f"the padding of {what} is not zero")
        return data[at:end], end + pad

    def _close(self, data: bytes, at: int, literal: bytes, what: str, *others: bytes) -> int:
        """The end of a node, and of the entry that it is, unless it is the root."""
        if not data.startswith(literal, at):
            self._refuse(data, at, what, literal, *others)
        self._item = self._entry if self._names else None
        return at + len(literal)

    def _refuse(self, data: bytes, at: int, what: str, *literals: bytes) -> NoReturn:
        """Raise for data that begins with none of `literals`."""
        if any(literal.startswith(data[at:]) for literal in literals):
            raise _malformed(self._base + len(data), "the archive ends early")
        raise _malformed(self._base + at, f"there should be {what}")


def _malformed(position: int, what: str) -> PeerError:
    return PeerError(
        f"malformed NAR: at byte {position}, {what}; whoever sent it must pack the path again"
    )


_json_string: Final = JSONEncoder(ensure_ascii=False).encode


class Listing:
    """A visitor that writes the ``.ls`` file Nix's ``write-nar-listing`` puts beside a narinfo.

    Source: libstore/nar-accessor.cc, version 1 of the format.
    """

    def __init__(self, bytes_max: int = LISTING_BYTES_MAX) -> None:
        self._bytes_max = bytes_max
        self._text: bytearray | None = bytearray(b'{"version":1,"root":')
        self._comma = ""

    def json(self) -> bytes | None:
        """The listing of a finished archive.

        None where it would be larger than `bytes_max`, or where a name or target is not UTF-8,
        which JSON cannot say and Nix cannot list either.
        """
        return None if self._text is None else bytes(self._text) + b"}"

    def directory_opened(self, name: bytes) -> None:
        self._add(name, '{"type":"directory","entries":{')
        self._comma = ""

    def directory_closed(self) -> None:
        if self._text is not None:
            self._text += b"}}"
        self._comma = ","

    def symlink(self, name: bytes, target: bytes) -> None:
        self._add(name, f'{{"type":"symlink","target":{_json_of(target)}}}')

    def regular(self, name: bytes, is_executable: bool, size: int, offset: int) -> None:
        executable = ',"executable":true' if is_executable else ""
        self._add(name, f'{{"type":"regular","size":{size}{executable},"narOffset":{offset}}}')

    def contents(self, piece: memoryview) -> None:
        pass

    def _add(self, name: bytes, node: str) -> None:
        if self._text is None:
            return
        key = f"{self._comma}{_json_of(name)}:" if name else ""
        try:
            self._text += (key + node).encode()
        except UnicodeEncodeError:
            self._text = None
            return
        self._comma = ","
        if len(self._text) > self._bytes_max:
            self._text = None


def _json_of(name: bytes) -> str:
    """`name` as a JSON string, which cannot be encoded where `name` is not UTF-8."""
    return _json_string(name.decode(errors="surrogateescape"))
