"""The diff ID of a path's own layer, found while its NAR is read for something else."""

from hashlib import sha256
from typing import Final

from grange.oci.tar import END, directory, file_open, padding, store_header, symlink
from grange.store.path import NIX_STORE, StoreDir, StorePath

_LARGE_BYTES: Final = 16 << 10  # from here on hashed where it lies: less is gathered first


class DiffIdVisitor:
    """A `grange.store.nar.Visitor`; then `finish`. It hashes what `LayerWriter` would write for
    `path` alone.

    Raises PeerError for what cannot be said in a layer; it is of no use after that.
    """

    __slots__ = ("_above", "_contents_left", "_hasher", "_padding", "_root", "_waiting")

    def __init__(self, path: StorePath, store_dir: StoreDir = NIX_STORE) -> None:
        self._root = f"{store_dir.root}/{path}".strip("/").encode()
        self._above: list[bytes] = []  # the open directories, each with its slash
        self._waiting = bytearray(store_header(store_dir))  # to be hashed
        self._hasher = sha256()
        self._contents_left = 0  # of the file last met
        self._padding = b""  # behind it

    def directory_opened(self, name: bytes) -> None:
        path = self._path(name)
        self._waiting += directory(path)
        self._above.append(path + b"/")

    def directory_closed(self) -> None:
        self._above.pop()

    def symlink(self, name: bytes, target: bytes) -> None:
        self._waiting += symlink(self._path(name), target)

    def regular(self, name: bytes, is_executable: bool, size: int, _offset: int) -> None:
        self._waiting += file_open(self._path(name), size, 0o555 if is_executable else 0o444)
        self._contents_left = size
        self._padding = padding(size)

    def contents(self, piece: memoryview) -> None:
        if len(piece) + len(self._waiting) < _LARGE_BYTES:
            self._waiting += piece
        else:
            self._hash()
            self._hasher.update(piece)
        self._contents_left -= len(piece)
        if not self._contents_left:
            self._waiting += self._padding

    def finish(self) -> str:
        """As ``sha256:<hex>``, when the whole NAR was read."""
        self._waiting += END
        self._hash()
        return f"sha256:{self._hasher.hexdigest()}"

    def _path(self, name: bytes) -> bytes:
        """What an entry is called; every entry comes by here, so what waits stays short."""
        if len(self._waiting) >= _LARGE_BYTES:
            self._hash()
        return self._above[-1] + name if self._above else self._root

    def _hash(self) -> None:
        self._hasher.update(self._waiting)
        self._waiting.clear()
