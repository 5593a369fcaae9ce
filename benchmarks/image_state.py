"""The state of a farm that knows packages and the paths they are made of, for benchmarks of images.

Journal, cache and descriptor table are as a farm leaves them that has built and evaluated all of
it, but for the NARs: once segments and listings are made, they are deleted, so that whatever comes
of this state comes without a NAR.
"""

import asyncio
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.private import Place
from grange.cache.signing import listing_key
from grange.cli.farm_file import read_farm_file
from grange.db.journal import SqliteJournal
from grange.images.layers import Layers
from grange.objects.directory import DirectoryObjects
from grange.oci.descriptor import Member
from grange.oci.segments import GZIP, ZSTD
from grange.ports import Package, PackageSet
from grange.scheduler.facts import Limits
from grange.store.compression import NAR_SUFFIXES, compress
from grange.store.hash import Hash, base32_encode
from grange.store.nar import Directory, File, Listing, NarReader, nar_of_tree
from grange.store.narinfo import NarInfo, PathInfo
from grange.store.path import StorePath

COMMIT: Final = "0123456789" * 4
SYSTEM: Final = "x86_64-linux"
ROOT_FILE_BYTES: Final = 600_000  # so that its listing is an object of its own
SOURCE: Final = Path("/usr/lib")  # what programs consist of, on every machine
CONFIG: Final = """\
[images]
precompute = "never"
zstd = {zstd}
[images.evaluation]
here = false
[images.sources.bench]
path = "packages"
"""


@dataclass(frozen=True, slots=True)
class Known:
    """A path whose NAR is, or was, in the cache."""

    narinfo: NarInfo
    nar: Path  # a copy of it, for the rival

    @property
    def member(self) -> Member:
        return Member(self.narinfo.info.path, self.narinfo.info.nar_hash)


class ImageState:
    """A state directory in the making; `fill` it, then run a farm in it."""

    def __init__(self, place: Place, *, is_zstd: bool = False) -> None:
        """`is_zstd`: there are segments in zstd, too, and whoever takes that gets it."""
        self.state = place.folder("farm")
        self.config = place.root / "farm.toml"
        self.config.write_text(CONFIG.format(zstd=str(is_zstd).lower()))
        self._codecs = [GZIP, ZSTD] if is_zstd else [GZIP]
        self._nars = place.folder("nars")
        self._cache = DirectoryObjects(self.state / "cache")
        self._text = _text(64 << 20)
        self._drawn = random.Random(9)
        self.known: list[Known] = []

    async def path(self, name: str, nar_bytes: int, references: Sequence[Known]) -> Known:
        """A new one, with one file of about so many bytes, which is in the cache."""
        start = self._drawn.randrange(len(self._text) - nar_bytes)
        contents = self._text[start : start + nar_bytes]
        tree = Directory({b"bin": Directory({name.encode(): File(contents, True)})})
        nar = nar_of_tree(tree)
        digest = Hash.of("sha256", nar)
        path = StorePath.parse_base(f"{base32_encode(digest.digest[:20])}-{name}")
        file = compress("zstd", 1, nar)
        file_hash = Hash.of("sha256", file)
        key = f"nar/{file_hash.base32()}{NAR_SUFFIXES['zstd']}"
        refers = tuple(sorted(each.narinfo.info.path for each in references))
        info = PathInfo(path, digest, len(nar), refers)
        await self._cache.put_if_absent(key, file)
        await self._cache.put_if_absent(listing_key(key), _listing(nar))
        copy = self._nars / path
        copy.write_bytes(nar)
        known = Known(NarInfo(info, key, "zstd", file_hash, len(file)), copy)
        self.known.append(known)
        return known

    async def fill(self, packages: Mapping[str, Known]) -> None:
        """Have the farm know all paths, a segment of each, and these packages; NARs go."""
        async with asyncio.timeout(600):
            journal = SqliteJournal.open(str(self.state / "journal.db"))
            try:
                await self._fill(journal, packages)
            finally:
                await journal.close()
        for nar in (self.state / "cache/nar").glob(f"*{NAR_SUFFIXES['zstd']}"):
            nar.unlink()

    async def _fill(self, journal: SqliteJournal, packages: Mapping[str, Known]) -> None:
        await journal.add_paths([each.narinfo for each in self.known], "source")
        layers = Layers(catalog=journal.images, objects=self._cache, narinfos=journal.narinfos)
        try:
            for codec in self._codecs:
                await asyncio.gather(*(layers.layer(codec, [each.member]) for each in self.known))
        finally:
            await layers.close()
        images = read_farm_file(self.config, Limits()).images
        assert images is not None
        set_ = PackageSet("bench", images.settings.sources["bench"].settings, COMMIT)
        await journal.images.save_names(set_, SYSTEM, {(): sorted(packages)})
        await journal.images.save_evaluated(
            set_, SYSTEM, [_package(name, known) for name, known in packages.items()]
        )


def _package(name: str, known: Known) -> Package:
    path = known.narinfo.info.path
    drv = StorePath.parse_base(f"{base32_encode(known.member.nar_hash.digest[:20])}-{name}.drv")
    return Package((name,), drv, (("out", path),))


def _listing(nar: bytes) -> bytes:
    listing = Listing()
    reader = NarReader(listing)
    reader.feed(nar)
    reader.finish()
    said = listing.json()
    assert said is not None
    return said


def _text(size: int) -> bytes:
    """The beginnings of files in SOURCE, so much of them."""
    parts: list[bytes] = []
    left = size
    for file in sorted(SOURCE.rglob("*")):
        if file.is_file() and not file.is_symlink():
            with file.open("rb") as opened:
                parts.append(opened.read(min(left, 1 << 20)))
            left -= len(parts[-1])
            if not left:
                break
    return b"".join(parts)
