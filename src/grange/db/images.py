"""What the farm remembers of container images, in SQL for every database."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Final

from grange.db.image_rows import (
    answer_row,
    image_key,
    image_row,
    layer_row,
    member_row,
    named_manifests,
    pack_names,
    read_answer,
    read_attribute,
    read_image,
    read_layer,
    read_member,
    set_row,
    show_attribute,
    unpack_names,
)
from grange.db.rows import Row, read_paths
from grange.db.script import Engine, Script, ask, change
from grange.errors import OutsideError
from grange.oci.descriptor import Member
from grange.oci.manifest import Document
from grange.oci.names import Attribute
from grange.ports import (
    Evaluated,
    ImageKey,
    ImageRecord,
    PackageSet,
    Resolution,
    StoredLayer,
    StoredSegment,
)
from grange.store.path import StorePath

HOUR_S: Final = 3600.0
# Answers for so many of the latest package sets stay, though no tag or image may be of them: one
# may be being made.
SETS_KEPT: Final = 16
_NEVER: Final = 1e300  # a time that is after any other


class SqlCatalog:
    """Implements `grange.ports.Catalog`, where each method's contract stands."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    # --- Package sources ----------------------------------------------------------------------

    async def resolution(self, source: str, tag: str) -> Resolution | None:
        rows = await self._engine.rows("image_resolution", source, str(tag))
        return Resolution(*rows[0]) if rows else None

    async def resolutions(self, source: str) -> list[Resolution]:
        return [Resolution(*row) for row in await self._engine.rows("image_resolutions", source)]

    async def save_resolution(self, resolution: Resolution) -> None:
        row = (resolution.source, str(resolution.tag), resolution.commit, resolution.resolved)
        await self._engine.write(lambda: change("save_image_resolution", [row]))

    async def names(
        self, packages: PackageSet, system: str, ways: Collection[Attribute]
    ) -> dict[Attribute, tuple[str, ...]]:
        keys = [show_attribute(way) for way in ways]
        rows = await self._engine.rows("image_names", *set_row(packages), system, keys)
        return {read_attribute(way): unpack_names(names) for way, names in rows}

    async def save_names(
        self, packages: PackageSet, system: str, names: Mapping[Attribute, Sequence[str]]
    ) -> None:
        packed = [(show_attribute(way), pack_names(each)) for way, each in names.items()]

        def save() -> Script[None]:
            id_ = yield from _set_id(packages)
            yield from change("save_image_names", [(id_, system, *each) for each in packed])

        await self._engine.write(save)

    async def evaluated(
        self, packages: PackageSet, system: str, attributes: Collection[Attribute]
    ) -> dict[Attribute, Evaluated]:
        keys = [show_attribute(each) for each in attributes]
        rows = await self._engine.rows("image_answers", *set_row(packages), system, keys)
        return {answer.attribute: answer for answer in map(read_answer, rows)}

    async def save_evaluated(
        self, packages: PackageSet, system: str, answers: Iterable[Evaluated]
    ) -> None:
        # Of what is said twice, the last holds.
        rows = {answer.attribute: answer_row(answer) for answer in answers}

        def save() -> Script[None]:
            id_ = yield from _set_id(packages)
            yield from change("save_image_answer", [(id_, system, *row) for row in rows.values()])

        await self._engine.write(save)

    # --- Layers -------------------------------------------------------------------------------

    async def layers(self, keys: Collection[str]) -> dict[str, StoredLayer]:
        return await self._engine.read(lambda: _layers([*keys]))

    async def layer_with(self, digest: str) -> StoredLayer | None:
        def find() -> Script[StoredLayer | None]:
            rows = yield from ask("image_layer_of_digest", str(digest))
            found = yield from _layers([key for (key,) in rows])
            return next(iter(found.values()), None)

        return await self._engine.read(find)

    async def segments(
        self, codec: str, members: Collection[Member]
    ) -> dict[Member, StoredSegment]:
        wanted = set(members)
        paths = [str(member.path) for member in wanted]
        found = {}
        for path, nar_hash, digest, size in await self._engine.rows("image_segments", codec, paths):
            member = read_member(path, nar_hash)
            if member in wanted:
                found[member] = StoredSegment(member, digest, size)
        return found

    async def save_layer(self, layer: StoredLayer) -> None:
        await self._engine.write(lambda: _save_layer(layer))

    async def diff_ids(self, members: Collection[Member]) -> dict[Member, str]:
        wanted = set(members)
        rows = await self._engine.rows("image_contents", [str(member.path) for member in wanted])
        known = {
            read_member(path, nar_hash): diff_id
            for _, path, nar_hash, diff_id in rows
            if diff_id is not None
        }
        return {member: known[member] for member in wanted & known.keys()}

    async def save_diff_ids(self, diff_ids: Mapping[Member, str]) -> None:
        await self._engine.write(lambda: _save_diff_ids(diff_ids))

    async def paths_without_segments(self, codec: str, limit: int) -> list[StorePath]:
        rows = await self._engine.rows("paths_without_segments", codec, limit)
        return [StorePath(f"{part}-{name}") for part, name in rows]

    # --- Images -------------------------------------------------------------------------------

    async def image(self, key: ImageKey) -> ImageRecord | None:
        rows = await self._engine.rows("image", image_key(key))
        if not rows:
            return None
        found = read_image(rows[0])
        _whole(found.manifest, rows[0][-1])
        return found

    async def save_image(self, image: ImageRecord) -> None:
        await self._engine.write(lambda: _save_image(image))

    async def images(self, *, limit: int, before: float | None = None) -> list[ImageRecord]:
        rows = await self._engine.rows("images", _NEVER if before is None else before, limit)
        return [read_image(row) for row in rows]

    async def document(self, digest: str) -> Document | None:
        rows = await self._engine.rows("image_document", str(digest))
        return _whole(Document(*rows[0]), digest) if rows else None

    async def save_document(self, document: Document) -> None:
        digest = document.digest
        parts = [(part, digest) for part in named_manifests(document)]

        def save() -> Script[None]:
            yield from _add_documents([document])
            yield from change("add_image_index_part", parts)

        await self._engine.write(save)

    async def touch_images(self, digests: Collection[str], now: float) -> None:
        hour = now // HOUR_S * HOUR_S
        rows = await self._engine.rows("images_of_manifests", [*digests])
        stale = [(id_, hour) for id_, _, _, used in rows if used < hour]
        if stale:  # else nothing is written: those who are asked for are asked for all the time
            await self._engine.write(lambda: change("touch_image", stale))

    async def drop_images(self, digests: Collection[str]) -> None:
        await self._engine.write(lambda: _drop_images([*digests]))

    async def images_of(self, path: StorePath) -> set[str]:
        return {digest for (digest,) in await self._engine.rows("images_of_path", str(path))}

    async def kept_roots(self) -> set[StorePath]:
        rows = await self._engine.rows("image_roots")
        return {path for (roots,) in rows for path in read_paths(roots)}

    async def kept_blobs(self) -> set[str]:
        return {digest for (digest,) in await self._engine.rows("image_blobs")}

    async def drop_spent_layers(self) -> int:
        return await self._engine.write(_drop_spent)


def _set_id(packages: PackageSet) -> Script[int]:
    """Its number, which is given out here where it has none."""
    rows = yield from ask("image_package_set", *set_row(packages))
    if rows:
        known: int = rows[0][0]
        return known
    ((last, _, _, _),) = yield from ask("last_image_ids")
    yield from change("add_image_package_set", [(last + 1, *set_row(packages))])
    return int(last) + 1


def _content_ids(members: Iterable[Member]) -> Script[dict[Member, int]]:
    """Their numbers, which are given out here to those that have none."""
    wanted = dict.fromkeys(members)
    rows = yield from ask("image_contents", [str(member.path) for member in wanted])
    ids = {read_member(path, nar_hash): id_ for id_, path, nar_hash, _ in rows}
    ((_, last, _, _),) = yield from ask("last_image_ids")
    new = {each: last + nth for nth, each in enumerate(wanted.keys() - ids.keys(), 1)}
    yield from change("add_image_content", [(id_, *member_row(each)) for each, id_ in new.items()])
    return {**ids, **new}


def _layers(keys: list[str]) -> Script[dict[str, StoredLayer]]:
    rows = yield from ask("image_layers", keys)
    contents: defaultdict[int, list[Row]] = defaultdict(list)
    if rows:
        for content in (yield from ask("image_layer_contents", keys)):
            contents[content[0]].append(content)
    layers = [read_layer(row, contents[row[0]]) for row in rows]
    return {layer.key: layer for layer in layers if layer is not None}


def _save_layer(layer: StoredLayer) -> Script[None]:
    ids = yield from _content_ids(layer.members)
    segments = {ids[s.member]: (layer.codec, s.digest, s.blob_bytes) for s in layer.segments}
    yield from change("add_image_segment", [(id_, *each) for id_, each in segments.items()])
    if len(layer.members) == 1 and not layer.is_root:
        row = (ids[layer.members[0]], layer.descriptor.diff_id)
        yield from change("set_image_diff_id", [row])
    if (yield from ask("image_layers", [layer.key])):
        return
    ((_, _, last, _),) = yield from ask("last_image_ids")
    yield from change("add_image_layer", [layer_row(last + 1, layer)])
    links = [(last + 1, ids[member]) for member in dict.fromkeys(layer.members)]
    yield from change("add_image_layer_content", links)


def _save_diff_ids(diff_ids: Mapping[Member, str]) -> Script[None]:
    ids = yield from _content_ids(diff_ids)
    rows = [(ids[member], diff_id) for member, diff_id in diff_ids.items()]
    yield from change("set_image_diff_id", rows)


def _save_image(image: ImageRecord) -> Script[None]:
    if (yield from ask("is_image", image_key(image.key))):
        return
    packages = yield from _set_id(image.key.packages)
    yield from _add_documents([image.manifest, image.config])
    ((_, _, _, last),) = yield from ask("last_image_ids")
    yield from change("add_image", [image_row(last + 1, packages, image)])
    uses = [(last + 1, nth, key) for nth, key in enumerate(image.layers)]
    yield from change("add_image_use", uses)


def _add_documents(documents: Iterable[Document]) -> Script[None]:
    rows = [(each.digest, each.media_type, each.body) for each in documents]
    yield from change("add_image_document", rows)


def _drop_images(digests: list[str]) -> Script[None]:
    """With indexes that name them, and with answers for package sets that nothing is of then."""
    found = yield from ask("images_of_manifests", digests)
    indexes = yield from ask("image_indexes_of", digests)
    ids = [(id_,) for id_, _, _, _ in found]
    yield from change("drop_image_uses", ids)
    yield from change("drop_image", ids)
    yield from change("drop_image_index_parts", indexes)
    documents = {(each,) for _, manifest, config, _ in found for each in (manifest, config)}
    yield from change("drop_image_document", sorted(documents.union(map(tuple, indexes))))
    spent = yield from ask("spent_package_sets", SETS_KEPT)
    yield from change("drop_image_names", spent)
    yield from change("drop_image_answers", spent)
    yield from change("drop_image_package_set", spent)


def _drop_spent() -> Script[int]:
    layers = yield from ask("spent_image_layers")
    yield from change("drop_image_layer_contents", layers)
    yield from change("drop_image_layer", layers)
    yield from ask("drop_spent_image_segments")
    yield from ask("drop_spent_image_contents")
    return len(layers)


def _whole(document: Document, digest: str) -> Document:
    """`document`, which is named by `digest`; raises OutsideError where it is another one."""
    if document.digest != str(digest):
        raise OutsideError(
            f"the database has other bytes of {digest} than it had; restore it from a backup"
        )
    return document
