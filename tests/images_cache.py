"""A farm's cache in memory, with a few paths of all kinds, and layers made of it."""

import gzip
import io
import random
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import zstandard
from obstore.store import MemoryStore

from grange.cache.signing import listing_key
from grange.images.layers import Layers
from grange.objects.cloud import CloudObjects
from grange.objects.directory import DirectoryObjects
from grange.oci.descriptor import Member
from grange.oci.segments import Codec, LayerWriter
from grange.ports import Objects
from grange.store.compression import NAR_SUFFIXES, compress
from grange.store.hash import Hash
from grange.store.nar import Directory, File, Listing, NarReader, Symlink, Tree, nar_of_tree
from grange.store.narinfo import NarInfo, PathInfo
from grange.store.path import StorePath
from tests.images_fakes import MemoryCatalog, MemoryObjects, path_of

noise = random.Random(8).randbytes

OBJECTS = ("directory", "bucket")


def objects_of(kind: str, folder: Path) -> Objects:
    """Empty ones, of a kind in `OBJECTS`."""
    if kind == "directory":
        return DirectoryObjects(folder / "store")
    return CloudObjects(MemoryStore(), "bucket", part_bytes=5 << 20)


def large(name: bytes) -> Tree:
    """More than is read whole, and than one block."""
    zeros = bytes(2 << 20)
    return Directory({b"noise": File(noise(400_000)), b"zeros": File(zeros), name: File(name)})


TREES: Mapping[str, Tree] = {
    "hello": Directory({b"bin": Directory({b"hello": File(b"#!/bin/sh\n", True)})}),
    "large": large(b"first"),
    "larger": large(b"second"),
    "link": Symlink(b"/nix/store"),
    "single": File(b"a file"),
}


@dataclass
class Place:
    """A cache with the paths of TREES, and layers of it."""

    catalog: MemoryCatalog = field(default_factory=MemoryCatalog)
    objects: MemoryObjects = field(default_factory=MemoryObjects)
    nars: dict[StorePath, NarInfo] = field(default_factory=dict)
    opened: list[Layers] = field(default_factory=list)

    def add(self, name: str, tree: Tree, compression: str = "zstd") -> Member:
        nar = nar_of_tree(tree)
        file = compress(compression, 1, nar)
        digest = Hash.of("sha256", file)
        url = f"nar/{digest.base32()}{NAR_SUFFIXES[compression]}"
        self.objects.stored[url] = file
        listing = Listing()
        reader = NarReader(listing)
        reader.feed(nar)
        reader.finish()
        text = listing.json()
        if text is not None:
            self.objects.stored[listing_key(url)] = text
        info = PathInfo(path_of(name), Hash.of("sha256", nar), len(nar), ())
        self.nars[info.path] = NarInfo(info, url, compression, digest, len(file))
        return Member(info.path, info.nar_hash)

    async def find(self, paths: Collection[StorePath]) -> dict[StorePath, NarInfo]:
        return {path: self.nars[path] for path in paths if path in self.nars}

    def layers(
        self, at_once: int = 2, objects: Objects | None = None, folder: Path | None = None
    ) -> Layers:
        """Layers of this cache, or of a copy of it in `objects`."""
        made = Layers(
            catalog=self.catalog,
            objects=objects or self.objects,
            narinfos=self.find,
            at_once=at_once,
            spool_folder=folder,
        )
        self.opened.append(made)
        return made

    async def close(self) -> None:
        for each in self.opened:
            await each.close()

    async def copy(self, objects: Objects) -> None:
        """Put there what is here."""
        for key, data in self.objects.stored.items():
            await objects.put_if_absent(key, data)

    def lose(self, prefix: str) -> None:
        for key in [key for key in self.objects.stored if key.startswith(prefix)]:
            del self.objects.stored[key]


def filled(place: Place, compression: str = "zstd") -> dict[str, Member]:
    return {name: place.add(name, tree, compression) for name, tree in TREES.items()}


def expected(codec: Codec, names: Collection[str]) -> tuple[bytes, str, str]:
    """The blob, its digest and its diff ID, as one writer makes them."""
    writer = LayerWriter(codec)
    blob = writer.start()
    for name in sorted(names, key=path_of):
        writer.open(path_of(name))
        blob += b"".join(writer.feed(nar_of_tree(TREES[name])))
        blob += writer.close()
    last, layer = writer.finish()
    return blob + last, layer.digest, layer.diff_id


async def blob_of(layers: Layers, digest: str) -> bytes:
    blob = await layers.blob(digest)
    assert blob is not None
    return b"".join([piece async for piece in blob.read(0, blob.size)])


def undone(codec: Codec, blob: bytes) -> bytes:
    if codec.compression == "gzip":
        return gzip.decompress(blob)
    reader = zstandard.ZstdDecompressor().stream_reader(io.BytesIO(blob), read_across_frames=True)
    return reader.read()


def count(layers: Layers, name: str, **labels: str) -> float:
    """What a metric of images says."""
    registry = layers.metrics.registry
    return registry.get_sample_value(f"grange_image_{name}_total", labels) or 0.0
