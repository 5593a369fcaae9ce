"""Whether uploaded bytes are what was claimed of them: before this nothing gets a signature.

The bytes of a NAR decide everything: that they are a NAR at all, their hash and size, and which
store paths they refer to. Claims are compared with that, and a claim that differs is refused.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Final

from grange.cache.unpack import unpacker
from grange.errors import PeerError
from grange.oci.diff_id import DiffIdVisitor
from grange.store.content import ContentAddress, Method
from grange.store.hash import Hash, new_hasher
from grange.store.nar import Listing, NarReader
from grange.store.path import StoreDir, StorePath
from grange.store.references import ReferenceScanner

NAR_BYTES_MAX: Final = 1 << 40  # larger than any disk that would build it in one output
_SHOWN_MAX: Final = 5  # paths named in one error

Candidates = Mapping[str, StorePath]
"""The paths that an upload may refer to, by hash part."""


def candidates_of(paths: Iterable[StorePath]) -> Candidates:
    return {path.hash_part: path for path in paths}


@dataclass(frozen=True, slots=True)
class Claims:
    """What somebody says of a NAR before sending it."""

    path: StorePath
    nar_hash: Hash
    nar_bytes: int
    references: tuple[StorePath, ...]
    address: ContentAddress | None = None  # of a source, or as a fixed output's derivation has it

    @property
    def file_bytes_max(self) -> int:
        """More than this NAR needs, however badly it compresses: zstd adds 3 bytes to a block."""
        return self.nar_bytes + (self.nar_bytes >> 8) + 1024


@dataclass(frozen=True, slots=True)
class Verified:
    """What has been seen of a NAR, byte by byte."""

    path: StorePath
    nar_hash: Hash
    nar_bytes: int
    references: tuple[StorePath, ...]  # sorted
    address: ContentAddress | None
    compression: str  # "zstd", "xz" or "none"
    file_hash: Hash
    file_bytes: int
    listing: bytes | None  # JSON; None where it would be too large or names are not UTF-8
    diff_id: str | None = None  # of the layer of this path alone; None where nobody asked for it


class RefusedUploadError(PeerError):
    """What came is not what was claimed of it."""

    def __init__(self, path: StorePath, what: str) -> None:
        super().__init__(f"the upload of {path} is refused: {what}")
        self.what = what  # without the path


def check_claims(claims: Claims, candidates: Candidates | None) -> None:
    """Raise PeerError for claims that no bytes could make good.

    `candidates` is None for a source, whose references its content address proves.
    """
    if claims.nar_hash.algorithm != "sha256":
        raise _refused(claims.path, "its NAR hash must be a SHA-256")
    if not 0 < claims.nar_bytes <= NAR_BYTES_MAX:
        raise _refused(
            claims.path, f"a NAR of {claims.nar_bytes} bytes; from 1 to {NAR_BYTES_MAX} may be"
        )
    if len(set(claims.references)) != len(claims.references):
        raise _refused(claims.path, "its references name a path twice")
    if candidates is not None:
        own = claims.path
        outside = [
            reference
            for reference in claims.references
            if reference not in (own, candidates.get(reference.hash_part))
        ]
        if outside:
            raise _refused(
                claims.path,
                f"it refers to {_show(outside)}, which is neither in the closure of its "
                "inputs nor an output of the same derivation",
            )


class NarVerifier:
    """Takes an upload as it comes in and judges it at `finish`.

    In two steps, so that they can run in two threads: `unpack` makes NAR bytes of file bytes, and
    `examine` looks at them. Either raises PeerError as soon as the claims cannot be true any
    more; the verifier must not be used after that.
    """

    def __init__(
        self,
        claims: Claims,
        candidates: Candidates | None,
        compression: str = "zstd",
        *,
        images_of: StoreDir | None = None,
    ) -> None:
        """As for `check_claims`, which the claims must have passed.

        `images_of`: the diff ID of the path as a layer of this store is wanted too.
        """
        self._claims = claims
        self._candidates = candidates
        self._compression = compression
        self._unpacker = unpacker(compression)
        self._file_bytes = 0
        self._file_hasher = sha256()
        self._unpacked_bytes = 0
        self._nar_hasher = sha256()
        address = claims.address
        # Of the NAR or of the one file in it, whichever the address is about.
        self._address_hasher: Any = address and new_hasher(address.hash.algorithm)
        self._is_nar_address = address is not None and address.method is Method.NAR
        contents_hasher = None if self._is_nar_address else self._address_hasher
        if images_of is None:
            self._tree = _Tree(contents_hasher)
        else:
            self._tree = _ImagedTree(contents_hasher, claims.path, images_of)
        self._reader = NarReader(self._tree)
        self._scanner = ReferenceScanner(
            () if candidates is None else {*candidates, claims.path.hash_part}
        )

    def unpack(self, chunk: bytes) -> Iterator[bytes]:
        """Take the next bytes of the file; their NAR bytes in pieces. Must be exhausted."""
        self._file_bytes += len(chunk)
        if self._file_bytes > self._claims.file_bytes_max:
            raise self._refused(
                f"{self._file_bytes} bytes came for a NAR of {self._claims.nar_bytes}"
            )
        self._file_hasher.update(chunk)
        try:
            for piece in (chunk,) if self._unpacker is None else self._unpacker.feed(chunk):
                yield self._within_claim(piece)
        except PeerError as error:
            raise self._refused(error) from None

    def _within_claim(self, piece: bytes) -> bytes:
        self._unpacked_bytes += len(piece)
        if self._unpacked_bytes > self._claims.nar_bytes:
            raise PeerError(f"its NAR is larger than the {self._claims.nar_bytes} bytes claimed")
        return piece

    def examine(self, piece: bytes) -> None:
        """Look at the next bytes of the NAR."""
        self._nar_hasher.update(piece)
        if self._is_nar_address:
            self._address_hasher.update(piece)
        try:
            self._reader.feed(piece)
        except PeerError as error:
            raise self._refused(error) from None
        self._scanner.feed(piece)

    def feed(self, chunk: bytes) -> None:
        """Both steps at once."""
        for piece in self.unpack(chunk):
            self.examine(piece)

    def finish(self) -> Verified:
        """Say that nothing more comes; raises PeerError unless all claims were true."""
        claims = self._claims
        try:
            self._check_nar()
            if claims.address is not None:
                self._check_address(claims.address)
            if self._candidates is not None:
                self._check_references(self._candidates)
        except PeerError as error:
            raise self._refused(error) from None
        return Verified(
            path=claims.path,
            nar_hash=claims.nar_hash,
            nar_bytes=claims.nar_bytes,
            references=tuple(sorted(claims.references)),
            address=claims.address,
            compression=self._compression,
            file_hash=Hash("sha256", self._file_hasher.digest()),
            file_bytes=self._file_bytes,
            listing=self._tree.json(),
            diff_id=self._tree.diff_id(),
        )

    def _check_nar(self) -> None:
        if self._unpacker is not None:
            self._unpacker.finish()
        seen_bytes, nar_bytes = self._reader.nar_bytes, self._claims.nar_bytes
        if seen_bytes < nar_bytes:
            raise PeerError(f"its NAR ends early, after {seen_bytes} of {nar_bytes} bytes claimed")
        self._reader.finish()
        nar_hash = Hash("sha256", self._nar_hasher.digest())
        if nar_hash != self._claims.nar_hash:
            raise PeerError(f"its NAR hash is {nar_hash.nix()}, not {self._claims.nar_hash.nix()}")

    def _check_address(self, address: ContentAddress) -> None:
        if not self._is_nar_address and not self._tree.is_plain_file:
            raise PeerError("it must be a single file that is not executable")
        digest = self._address_hasher.digest()
        if digest != address.hash.digest:
            found = Hash(address.hash.algorithm, digest)
            raise PeerError(f"its content hash is {found.sri()}, not {address.hash.sri()}")

    def _check_references(self, candidates: Candidates) -> None:
        found = self._scanner.found
        claimed = {reference.hash_part for reference in self._claims.references}
        if hidden := found - claimed:
            own = self._claims.path  # the only one found that may be no candidate
            names = sorted(candidates.get(hash_part, own) for hash_part in hidden)
            raise PeerError(f"it refers to {_show(names)} without saying so")
        if invented := claimed - found:
            names = [each for each in self._claims.references if each.hash_part in invented]
            raise PeerError(f"it claims to refer to {_show(names)}, which it does not")

    def _refused(self, what: object) -> PeerError:
        return _refused(self._claims.path, str(what))


class _Tree(Listing):
    """The listing, and the contents of a tree that is a single file."""

    def __init__(self, contents_hasher: Any) -> None:
        super().__init__()
        self._contents_hasher = contents_hasher
        self.is_plain_file = False  # a single one, not executable

    def regular(self, name: bytes, is_executable: bool, size: int, offset: int) -> None:
        super().regular(name, is_executable, size, offset)
        self.is_plain_file = not name and not is_executable

    def contents(self, piece: memoryview) -> None:
        if self._contents_hasher is not None:
            self._contents_hasher.update(piece)

    def diff_id(self) -> str | None:
        """Of the path as a layer of its own; None where it is not known."""
        return None


class _ImagedTree(_Tree):
    """A tree that is hashed as a layer on the side."""

    def __init__(self, contents_hasher: Any, path: StorePath, store_dir: StoreDir) -> None:
        super().__init__(contents_hasher)
        self._layer: DiffIdVisitor | None = DiffIdVisitor(path, store_dir)

    def directory_opened(self, name: bytes) -> None:
        super().directory_opened(name)
        if self._layer is not None:
            try:
                self._layer.directory_opened(name)
            except PeerError:
                self._layer = None  # a name that no layer may have: the path is none the worse

    def directory_closed(self) -> None:
        super().directory_closed()
        if self._layer is not None:
            self._layer.directory_closed()

    def symlink(self, name: bytes, target: bytes) -> None:
        super().symlink(name, target)
        if self._layer is not None:
            try:
                self._layer.symlink(name, target)
            except PeerError:
                self._layer = None

    def regular(self, name: bytes, is_executable: bool, size: int, offset: int) -> None:
        super().regular(name, is_executable, size, offset)
        if self._layer is not None:
            try:
                self._layer.regular(name, is_executable, size, offset)
            except PeerError:
                self._layer = None

    def contents(self, piece: memoryview) -> None:
        super().contents(piece)
        if self._layer is not None:
            self._layer.contents(piece)

    def diff_id(self) -> str | None:
        return None if self._layer is None else self._layer.finish()


def _refused(path: StorePath, what: str) -> PeerError:
    return RefusedUploadError(path, what)


def _show(paths: Sequence[StorePath]) -> str:
    more = f" and {len(paths) - _SHOWN_MAX} more" if len(paths) > _SHOWN_MAX else ""
    return ", ".join(paths[:_SHOWN_MAX]) + more
