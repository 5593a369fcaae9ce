"""What images take of the outside, in memory: the catalog, objects, a farm that builds, layers.

`asked` of each counts the calls of each method, so that a test can tell what was not done.
"""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import Any

from grange.errors import OutsideError, PeerError
from grange.images.doors import LostPathError
from grange.objects.keys import check_key
from grange.oci.descriptor import LayerDescriptor, Member, layer_key, root_key
from grange.oci.manifest import Document
from grange.oci.names import Attribute
from grange.oci.root import ACCOUNTS
from grange.oci.segments import Codec
from grange.ports import (
    Closure,
    Evaluated,
    ImageKey,
    ImageRecord,
    ObjectEntry,
    Package,
    PackageSet,
    Progress,
    Resolution,
    StoredLayer,
    StoredSegment,
    Tell,
)
from grange.scheduler.facts import BuildId
from grange.store.hash import Hash, base32_encode
from grange.store.narinfo import NarInfo, PathInfo
from grange.store.path import StorePath

HOUR_S = 3600.0


def digest_of(text: str) -> str:
    return f"sha256:{sha256(text.encode()).hexdigest()}"


def path_of(name: str) -> StorePath:
    """A store path of this name; the same one whenever it is asked for."""
    return StorePath.parse_base(f"{base32_encode(sha256(name.encode()).digest()[:20])}-{name}")


def narinfo_of(name: str, *references: str, nar_bytes: int = 1000, url: str = "") -> NarInfo:
    """A path info of `path_of(name)`; `url` says where it is, when not in the farm's cache."""
    nar_hash = Hash("sha256", sha256(b"nar of " + name.encode()).digest())
    info = PathInfo(path_of(name), nar_hash, nar_bytes, tuple(sorted(map(path_of, references))))
    return NarInfo(info, url or f"nar/{nar_hash.digest.hex()}.nar.zst", "zstd", nar_hash, nar_bytes)


def member_of(narinfo: NarInfo) -> Member:
    return Member(narinfo.info.path, narinfo.info.nar_hash)


class FakeClock:
    """Stands still until it is moved."""

    def __init__(self, now: float = 1_000_000.0) -> None:
        self.now = now

    def monotonic_s(self) -> float:
        return self.now

    def wall_s(self) -> float:
        return self.now


class MemoryCatalog:
    """Implements `grange.ports.Catalog`. `cached` are the paths with a NAR in the farm's cache."""

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()
        self.cached: set[StorePath] = set()
        self._resolutions: dict[tuple[str, str], Resolution] = {}
        self._names: dict[tuple[PackageSet, str, Attribute], tuple[str, ...]] = {}
        self._evaluated: dict[tuple[PackageSet, str, Attribute], Evaluated] = {}
        self._layers: dict[str, StoredLayer] = {}
        self._segments: dict[tuple[str, Member], StoredSegment] = {}
        self._diff_ids: dict[Member, str] = {}
        self._images: dict[ImageKey, ImageRecord] = {}
        self._indexes: dict[str, Document] = {}

    async def resolution(self, source: str, tag: str) -> Resolution | None:
        self.asked["resolution"] += 1
        return self._resolutions.get((source, tag))

    async def resolutions(self, source: str) -> list[Resolution]:
        self.asked["resolutions"] += 1
        found = [each for each in self._resolutions.values() if each.source == source]
        return sorted(found, key=lambda each: each.tag)

    async def save_resolution(self, resolution: Resolution) -> None:
        self.asked["save_resolution"] += 1
        self._resolutions[resolution.source, resolution.tag] = resolution

    async def names(
        self, packages: PackageSet, system: str, ways: Collection[Attribute]
    ) -> dict[Attribute, tuple[str, ...]]:
        self.asked["names"] += 1
        keys = {way: (packages, system, way) for way in ways}
        return {way: self._names[key] for way, key in keys.items() if key in self._names}

    async def save_names(
        self, packages: PackageSet, system: str, names: Mapping[Attribute, Sequence[str]]
    ) -> None:
        self.asked["save_names"] += 1
        for way, each in names.items():
            self._names[packages, system, way] = tuple(each)

    async def evaluated(
        self, packages: PackageSet, system: str, attributes: Collection[Attribute]
    ) -> dict[Attribute, Evaluated]:
        self.asked["evaluated"] += 1
        keys = {each: (packages, system, each) for each in attributes}
        return {each: self._evaluated[key] for each, key in keys.items() if key in self._evaluated}

    async def save_evaluated(
        self, packages: PackageSet, system: str, answers: Iterable[Evaluated]
    ) -> None:
        self.asked["save_evaluated"] += 1
        for answer in answers:
            self._evaluated[packages, system, answer.attribute] = answer

    async def layers(self, keys: Collection[str]) -> dict[str, StoredLayer]:
        self.asked["layers"] += 1
        return {key: self._layers[key] for key in keys if key in self._layers}

    async def layer_with(self, digest: str) -> StoredLayer | None:
        self.asked["layer_with"] += 1
        found = (each for each in self._layers.values() if each.descriptor.digest == digest)
        return next(found, None)

    async def segments(
        self, codec: str, members: Collection[Member]
    ) -> dict[Member, StoredSegment]:
        self.asked["segments"] += 1
        keys = {member: (codec, member) for member in members}
        return {each: self._segments[key] for each, key in keys.items() if key in self._segments}

    async def save_layer(self, layer: StoredLayer) -> None:
        self.asked["save_layer"] += 1
        self._layers.setdefault(layer.key, layer)
        for segment in layer.segments:
            self._segments.setdefault((layer.codec, segment.member), segment)

    async def diff_ids(self, members: Collection[Member]) -> dict[Member, str]:
        self.asked["diff_ids"] += 1
        return {each: self._diff_ids[each] for each in members if each in self._diff_ids}

    async def save_diff_ids(self, diff_ids: Mapping[Member, str]) -> None:
        self.asked["save_diff_ids"] += 1
        for member, diff_id in diff_ids.items():
            self._diff_ids.setdefault(member, diff_id)

    async def paths_without_segments(self, codec: str, limit: int) -> list[StorePath]:
        self.asked["paths_without_segments"] += 1
        there = {member.path for each, member in self._segments if each == codec}
        return sorted(self.cached - there)[:limit]

    async def image(self, key: ImageKey) -> ImageRecord | None:
        self.asked["image"] += 1
        return self._images.get(key)

    async def save_image(self, image: ImageRecord) -> None:
        self.asked["save_image"] += 1
        self._images.setdefault(image.key, image)

    async def images(self, *, limit: int, before: float | None = None) -> list[ImageRecord]:
        self.asked["images"] += 1
        found = [each for each in self._images.values() if before is None or each.created < before]
        return sorted(found, key=lambda each: -each.created)[:limit]

    async def document(self, digest: str) -> Document | None:
        self.asked["document"] += 1
        for image in self._images.values():
            for document in (image.manifest, image.config):
                if document.digest == digest:
                    return document
        return self._indexes.get(digest)

    async def save_document(self, document: Document) -> None:
        self.asked["save_document"] += 1
        self._indexes.setdefault(document.digest, document)

    async def touch_images(self, digests: Collection[str], now: float) -> None:
        self.asked["touch_images"] += 1
        hour = now // HOUR_S * HOUR_S
        for key, image in self._images.items():
            if image.manifest.digest in digests and image.used < hour:
                self._images[key] = replace(image, used=hour)

    async def drop_images(self, digests: Collection[str]) -> None:
        self.asked["drop_images"] += 1
        self._images = {
            key: image
            for key, image in self._images.items()
            if image.manifest.digest not in digests
        }
        for digest, index in [*self._indexes.items()]:
            named = {each["digest"] for each in json.loads(index.body)["manifests"]}
            if not named.isdisjoint(digests):
                del self._indexes[digest]

    async def images_of(self, path: StorePath) -> set[str]:
        return {
            image.manifest.digest
            for image in self._images.values()
            for key in image.layers
            if any(member.path == path for member in self._layers[key].members)
        }

    async def kept_roots(self) -> set[StorePath]:
        self.asked["kept_roots"] += 1
        return {path for image in self._images.values() for path in image.roots}

    async def kept_blobs(self) -> set[str]:
        self.asked["kept_blobs"] += 1
        kept = set()
        for layer in self._kept_layers():
            kept |= {segment.digest for segment in layer.segments}
            kept |= {layer.descriptor.digest} if layer.is_root else set()
        return kept

    async def drop_spent_layers(self) -> int:
        self.asked["drop_spent_layers"] += 1
        kept = {layer.key for layer in self._kept_layers()}
        spent = [
            key
            for key, layer in self._layers.items()
            if key not in kept and any(each.path not in self.cached for each in layer.members)
        ]
        for key in spent:
            del self._layers[key]
        used = {
            (layer.codec, segment.member)
            for layer in self._layers.values()
            for segment in layer.segments
        }
        self._segments = {key: each for key, each in self._segments.items() if key in used}
        return len(spent)

    def _kept_layers(self) -> list[StoredLayer]:
        keys = {key for image in self._images.values() for key in image.layers}
        return [self._layers[key] for key in keys if key in self._layers]


class MemoryObjects:
    """Implements `grange.ports.Objects`. With `trouble` set, whatever is asked of it raises that;
    `breaks` says after how many bytes reading a key breaks off."""

    direct = None

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()
        self.stored: dict[str, bytes] = {}
        self.breaks: dict[str, int] = {}
        self.trouble: OutsideError | None = None
        self.bytes_read = 0

    def writer(self, *, encoding: str = "") -> "MemoryWriter":
        self._ask("writer")
        return MemoryWriter(self)

    async def put_if_absent(self, key: str, data: bytes, *, encoding: str = "") -> bool:
        self._ask("put_if_absent", key)
        return self.stored.setdefault(key, data) is data

    async def get(self, key: str) -> bytes | None:
        self._ask("get", key)
        return self.stored.get(key)

    async def size(self, key: str) -> int | None:
        self._ask("size", key)
        return len(self.stored[key]) if key in self.stored else None

    async def read(self, key: str, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        self._ask("read", key)
        data = self.stored.get(key)
        if data is None:
            raise OutsideError(f"there is no object {key}")
        whole = data[start:end]
        for at in range(0, len(whole), 1 << 16):
            if start + at >= self.breaks.get(key, len(data)):
                raise OutsideError(f"reading {key} broke off")
            self.bytes_read += len(whole[at : at + (1 << 16)])
            yield whole[at : at + (1 << 16)]

    def local_path(self, key: str) -> str | None:
        return None

    async def list(self, prefix: str = "") -> AsyncIterator[ObjectEntry]:
        self._ask("list")
        for key in [key for key in self.stored if key.startswith(prefix)]:
            yield ObjectEntry(key, len(self.stored[key]), 0.0)

    async def delete(self, key: str) -> None:
        self._ask("delete", key)
        self.stored.pop(key, None)

    def _ask(self, method: str, key: str = "key") -> None:
        check_key(key)
        self.asked[method] += 1
        if self.trouble is not None:
            raise self.trouble


class MemoryWriter:
    def __init__(self, objects: MemoryObjects) -> None:
        self.is_over = False
        self._objects = objects
        self._data = bytearray()

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        self._objects._ask("write")
        self._data += data

    async def commit(self, key: str, *, replaces: bool = False) -> bool:
        self._objects._ask("commit", key)
        if key in self._objects.stored and not replaces:
            return False
        self._objects.stored[key] = bytes(self._data)
        return True

    async def discard(self) -> None:
        self.is_over = True
        self._data.clear()


@dataclass
class FakeBuilds:
    """Implements `grange.ports.ImageBuilds`. What is in `cache` is there; a build of a derivation
    puts what `makes` has of it there, once `may_end` is set, or raises what `fails` has of it."""

    cache: dict[StorePath, NarInfo] = field(default_factory=dict)
    makes: dict[StorePath, list[NarInfo]] = field(default_factory=dict)
    fails: dict[StorePath, Exception] = field(default_factory=dict)  # once each
    may_end: asyncio.Event = field(default_factory=asyncio.Event)
    has_begun: asyncio.Event = field(default_factory=asyncio.Event)
    asked: Counter[str] = field(default_factory=Counter)
    built: list[StorePath] = field(default_factory=list)
    promised: set[StorePath] = field(default_factory=set)
    unknown: set[StorePath] = field(default_factory=set)
    lost: set[StorePath] = field(default_factory=set)  # known, and not there

    def __post_init__(self) -> None:
        self.may_end.set()

    def have(self, *narinfos: NarInfo) -> None:
        self.cache.update({each.info.path: each for each in narinfos})

    async def promise(self, paths: Collection[StorePath]) -> None:
        self.asked["promise"] += 1
        self.promised.update(paths)

    async def closure(self, roots: Collection[StorePath]) -> Closure:
        self.asked["closure"] += 1
        found: dict[StorePath, NarInfo] = {}
        missing = set()
        left = [*roots]
        while left:
            path = left.pop()
            if path in self.cache and path not in found:
                found[path] = self.cache[path]
                left += self.cache[path].info.references
            elif path not in self.cache:
                missing.add(path)
        return Closure(tuple([found[path] for path in sorted(found)]), tuple(sorted(missing)))

    async def check(self, packages: Collection[Package]) -> None:
        self.asked["check"] += 1
        for package in packages:
            if package.drv_path in self.unknown:
                raise PeerError(f"{package.drv_path} was not sent")

    async def forget_lost(self, paths: Collection[StorePath]) -> bool:
        self.asked["forget_lost"] += 1
        lost = self.lost.intersection(paths)
        for path in lost:
            del self.cache[path]
        self.lost -= lost
        return bool(lost)

    async def build(
        self, packages: Sequence[Package], missing: Collection[StorePath], tell: Tell
    ) -> None:
        self.asked["build"] += 1
        wanted = [
            each for each in packages if not {*missing}.isdisjoint(dict(each.outputs).values())
        ]
        builds = tuple([BuildId(f"build of {package.drv_path.name}") for package in wanted])
        tell(Progress("building", builds))
        self.has_begun.set()
        await self.may_end.wait()
        for package in wanted:
            error = self.fails.pop(package.drv_path, None)
            if error is not None:
                raise error
            self.built.append(package.drv_path)
            self.have(*self.makes.get(package.drv_path, []))


@dataclass
class FakeBlob:
    """So many zero bytes."""

    digest: str
    size: int

    async def read(self, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        yield bytes(self.size)[start:end]


class FakeLayers:
    """Implements `LayerStore` and `Blobs` of `grange.images.doors`: layers that have digests and no
    bytes worth reading, saved in the catalog. `made` counts how often each key was made."""

    def __init__(self, catalog: MemoryCatalog) -> None:
        self._catalog = catalog
        self.made: Counter[str] = Counter()
        self.may_end = asyncio.Event()
        self.may_end.set()
        self.has_begun = asyncio.Event()
        self.fails: set[StorePath] = set()  # for as long as a path is in it

    async def layer(self, codec: Codec, members: Sequence[Member]) -> StoredLayer:
        key = layer_key(codec.version, members)
        segments = tuple(
            [
                StoredSegment(each, digest_of(f"{codec.version} {each.path}"), 100)
                for each in sorted(members)
            ]
        )
        return await self._made(key, codec, members, segments, is_root=False)

    async def root(self, codec: Codec, roots: Sequence[Member]) -> StoredLayer:
        key = root_key(codec.version, roots, ACCOUNTS)
        return await self._made(key, codec, roots, (), is_root=True)

    async def blob(self, digest: str) -> "FakeBlob | None":
        layer = await self._catalog.layer_with(digest)
        return None if layer is None else FakeBlob(digest, layer.descriptor.blob_bytes)

    async def _made(
        self,
        key: str,
        codec: Codec,
        members: Sequence[Member],
        segments: tuple[StoredSegment, ...],
        *,
        is_root: bool,
    ) -> StoredLayer:
        known = (await self._catalog.layers([key])).get(key)
        if known is not None:
            return known
        self.made[key] += 1
        for path in self.fails.intersection(each.path for each in members):
            raise LostPathError(path, f"{path} is not there")
        self.has_begun.set()
        await self.may_end.wait()
        descriptor = LayerDescriptor(digest_of(f"tar {key}"), digest_of(key), 100 * len(members))
        layer = StoredLayer(
            key, codec.version, descriptor, tuple(sorted(members)), segments, is_root
        )
        await self._catalog.save_layer(layer)
        return layer


@dataclass
class FakeMirror:
    """Implements `grange.images.doors.Mirroring`: what was mirrored is in the cache of `builds`."""

    builds: FakeBuilds
    mirrored: list[StorePath] = field(default_factory=list)
    fails: set[StorePath] = field(default_factory=set)  # once each

    async def mirror(
        self, narinfos: Sequence[NarInfo], tell: Callable[[str], None] | None = None
    ) -> None:
        if tell is not None:
            tell(f"fetching {len(narinfos)} paths from an upstream")
        for narinfo in narinfos:
            if narinfo.info.path in self.fails:
                self.fails.remove(narinfo.info.path)
                raise LostPathError(narinfo.info.path, "the upstream does not have it")
            self.mirrored.append(narinfo.info.path)
            url = f"nar/{narinfo.info.nar_hash.digest.hex()}.nar.zst"
            self.builds.have(replace(narinfo, url=url))


def json_of(document: Document) -> Any:
    return json.loads(document.body)
